"""The pages that lead to an OpenID provider and back, as a browser goes through them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient

from archive.node import Node
from archive.web.wsgi import application
from tests.services import archives, provider
from tests.services.provider import Provider

ORIGIN = "https://127.0.0.1:8443"


@dataclass(frozen=True)
class Place:
    node: Node
    app: Flask
    provider: Provider

    def browser(self) -> FlaskClient:
        return self.app.test_client()

    def come(self, browser: FlaskClient, target: str = "/studies", way: str = "/login/oidc") -> Any:
        """Out to the provider and back, as a link and redirects lead."""
        out = browser.get(f"{way}?next={target}", base_url=ORIGIN)
        assert out.status_code == 303, out.text
        arrived = self.provider.visit(out.headers["Location"])
        return browser.get("/login/oidc/callback", query_string=arrived, base_url=ORIGIN, headers={"Sec-Fetch-Site": "cross-site"})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("elsewhere")
    archives.made(folder)
    (folder / "client").write_text(provider.SECRET)
    with provider.running() as there:
        config = archives.configured(folder, archive={"public_url": ORIGIN}, oidc={
            "issuer": there.issuer, "client_id": provider.CLIENT, "client_secret_file": "client", "label": "the <Hospital>",
        })
        with archives.opened(config) as node:
            console = archives.the_console(node)
            node.accounts.add_user(console, "mia", roles=["technologist"])
            node.identities.bind(console, "mia", external_subject="mia-at-the-clinic")
            yield Place(node, application(node), there)


@pytest.fixture(autouse=True)
def _honest(place: Place) -> None:
    place.provider.reset()


def test_the_sign_in_page_offers_it(place: Place) -> None:
    page = place.browser().get("/login?next=/studies?x=1", base_url=ORIGIN).text
    assert 'href="/login/oidc?next=/studies%3Fx%3D1">Sign in with the &lt;Hospital&gt;</a>' in page


def test_a_browser_goes_out_and_comes_back_signed_in(place: Place) -> None:
    browser = place.browser()
    out = browser.get("/login/oidc?next=/studies", base_url=ORIGIN)
    assert urlsplit(out.headers["Location"]).netloc == urlsplit(place.provider.issuer).netloc
    cookie = out.headers["Set-Cookie"]
    assert cookie.startswith("__Host-oidc=")
    assert {"Secure", "HttpOnly", "Path=/", "SameSite=Lax", "Max-Age=600"} <= set(cookie.split("; "))
    assert dict(parse_qsl(urlsplit(out.headers["Location"]).query))["redirect_uri"] == provider.CALLBACK
    arrived = place.provider.visit(out.headers["Location"])
    back = browser.get("/login/oidc/callback", query_string=arrived, base_url=ORIGIN, headers={"Sec-Fetch-Site": "cross-site"})
    assert back.status_code == 200
    assert 'content="0; url=/studies"' in back.text
    set_here = {one.partition("=")[0]: one for one in back.headers.getlist("Set-Cookie")}
    assert "SameSite=Strict" in set_here["__Host-session"]
    assert "Expires=Thu, 01 Jan 1970" in set_here["__Host-oidc"]
    assert back.headers["Cache-Control"] == "private, no-store"
    assert browser.get("/studies", base_url=ORIGIN).status_code == 200
    again = browser.get("/login/oidc/callback", query_string=arrived, base_url=ORIGIN)
    assert again.status_code == 401
    assert "took too long, or began elsewhere" in again.text


@pytest.mark.parametrize("target", ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:alert(1)", "/login/oidc"])
def test_it_leads_on_to_pages_of_its_own_alone(place: Place, target: str) -> None:
    back = place.come(place.browser(), target)
    assert 'content="0; url=/studies"' in back.text
    assert "evil" not in back.text


def test_another_browser_s_return_opens_nothing(place: Place) -> None:
    """A link with somebody else's code, sent to a victim: the victim's browser began no such sign-in."""
    out = place.browser().get("/login/oidc", base_url=ORIGIN)
    arrived = place.provider.visit(out.headers["Location"])
    victim = place.browser()
    for begun in (False, True):
        if begun:
            victim.get("/login/oidc", base_url=ORIGIN)
        back = victim.get("/login/oidc/callback", query_string=arrived, base_url=ORIGIN)
        assert back.status_code == 401
        assert not any(one.startswith("__Host-session=") for one in back.headers.getlist("Set-Cookie"))


def test_a_refusal_says_what_to_do_and_no_more(place: Place) -> None:
    place.provider.who = {"sub": "stranger"}
    unknown = place.come(place.browser())
    place.provider.claims = {"aud": "other"}
    forged = place.come(place.browser())
    for page in (unknown, forged):
        assert page.status_code == 401
        assert "You could not be signed in this way." in page.text
    assert unknown.text == forged.text
    assert list(unknown.headers.keys()) == list(forged.headers.keys())


def test_a_provider_that_is_away_leaves_the_password(place: Place) -> None:
    place.provider.answers["/realm/token"] = (503, {}, b"")
    page = place.come(place.browser())
    assert page.status_code == 503
    assert "does not answer" in page.text
    assert 'name="password"' in page.text


def test_who_signed_in_there_confirms_there(place: Place) -> None:
    browser = place.browser()
    place.come(browser)
    page = browser.get("/me/confirm?next=/me/factors", base_url=ORIGIN)
    assert 'href="/me/confirm/oidc?next=/me/factors"' in page.text
    before = browser.get_cookie("__Host-session", domain="127.0.0.1")
    back = place.come(browser, "/me/factors", "/me/confirm/oidc")
    assert 'content="0; url=/me/factors"' in back.text
    after = browser.get_cookie("__Host-session", domain="127.0.0.1")
    assert before is not None
    assert after is not None
    assert before.value != after.value
    assert browser.get("/me/factors", base_url=ORIGIN).status_code == 200


@pytest.mark.parametrize("query", ["", "state=x", "code=x&state=", "state=%00&code=%ff", "error=<script>&state=x", "code=" + "a" * 9000])
def test_odd_returns_are_refused_and_show_nothing_of_themselves(place: Place, query: str) -> None:
    browser = place.browser()
    browser.get("/login/oidc", base_url=ORIGIN)
    back = browser.get(f"/login/oidc/callback?{query}", base_url=ORIGIN)
    assert back.status_code == 401
    assert "<script>" not in back.text


def test_an_archive_without_a_provider_offers_none(place: Place) -> None:
    with archives.opened(archives.configured(place.node.config.storage_dir.parent, archive={"public_url": ORIGIN})) as node:
        browser = application(node).test_client()
        assert "Sign in with" not in browser.get("/login", base_url=ORIGIN).text
        assert browser.get("/login/oidc", base_url=ORIGIN).status_code == 400
        assert browser.get("/login/oidc/callback?state=x", base_url=ORIGIN).status_code == 401
