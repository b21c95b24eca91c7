"""Credentials, and what a cookie may not do from elsewhere."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from flask import Flask, Response

from archive.web import permissions, session
from archive.web.app import create_app
from archive.web.context import subject
from tests.web.fakes import FakeNode, config_of

STUDIES = "/dicomweb/studies"


def basic(user: str, token: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{token}".encode()).decode()


def get(app: Flask, path: str = STUDIES, **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return app.test_client(use_cookies=False).get(path, headers=named)  # type: ignore[return-value]


def test_a_bearer_token_names_the_caller(app: Flask, node: FakeNode) -> None:
    assert get(app, Authorization="Bearer mia-token").status_code == 200
    assert node.signin.asked == [("bearer", "mia-token", "127.0.0.1")]
    assert get(app, Authorization="bearer   mia-token").status_code == 200


def test_basic_takes_a_token_as_password(app: Flask) -> None:
    assert get(app, Authorization=basic("mia", "mia-token")).status_code == 200
    assert get(app, Authorization=basic("ole", "mia-token")).status_code == 401


@pytest.mark.parametrize(
    "header",
    [
        "", "Bearer", "Bearer ", "Bearer wrong", "Basic", "Basic %%%", "Basic " + base64.b64encode(b"nocolon").decode(),
        "Basic " + base64.b64encode(b":mia-token").decode(), "Basic " + base64.b64encode(b"\xff\xfe:x").decode(), "Digest x", "mia-token",
        "Bearer " + "x" * 100_000,
    ],
)
def test_g01_anything_else_is_401(app: Flask, header: str) -> None:
    answer = get(app, Authorization=header)
    assert answer.status_code == 401
    assert answer.headers.getlist("WWW-Authenticate")[0].startswith('Bearer realm="strongroom"')


def test_a_failed_header_is_not_rescued_by_the_cookie(app: Flask) -> None:
    answer = get(app, Authorization="Bearer wrong", Cookie="__Host-session=mia-session", Sec_Fetch_Site="same-origin")
    assert answer.status_code == 401


def test_ui4_a_browser_gets_no_basic_challenge(app: Flask) -> None:
    challenges = get(app, Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="cors").headers.getlist("WWW-Authenticate")
    assert challenges == ['Bearer realm="strongroom"']
    challenges = get(app, Cookie="other=1").headers.getlist("WWW-Authenticate")
    assert challenges == ['Bearer realm="strongroom"']


def test_a_program_is_told_that_basic_works(app: Flask) -> None:
    for headers in ({}, {"Authorization": basic("mia", "wrong")}):
        challenges = get(app, **headers).headers.getlist("WWW-Authenticate")
        assert any(challenge.startswith("Basic ") for challenge in challenges)
    assert 'error="invalid_token"' in get(app, Authorization="Bearer wrong").headers["WWW-Authenticate"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://pacs.example:8443"}, 403),
        ({"Sec-Fetch-Site": ""}, 403),
        ({}, 403),
        ({"Origin": "https://pacs.example:8443"}, 200),
        ({"Origin": "https://PACS.example:8443"}, 200),
        ({"Origin": "https://pacs.example"}, 403),
        ({"Origin": "http://pacs.example:8443"}, 403),
        ({"Origin": "https://pacs.example:8443.evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://[bad"}, 403),
        ({"Origin": "https://pacs.example:x"}, 403),
    ],
)
def test_t23_a_cookie_works_from_the_archives_own_pages_only(app: Flask, node: FakeNode, headers: dict[str, str], status: int) -> None:
    client = app.test_client(use_cookies=False)
    answer = client.get(STUDIES, headers={"Cookie": "__Host-session=mia-session", **headers})
    assert answer.status_code == status
    assert len(node.query.asked) == (status == 200)
    answer = client.post(STUDIES, headers={"Cookie": "__Host-session=mia-session", **headers}, content_type="text/plain")
    assert answer.status_code == (415 if status == 200 else 403)


def test_t23_the_refusal_is_the_same_with_and_without_a_valid_session(app: Flask) -> None:
    answers = {get(app, Cookie=f"__Host-session={token}", Sec_Fetch_Site="cross-site").data for token in ("mia-session", "wrong")}
    assert len(answers) == 1


def test_a_token_needs_no_origin(app: Flask) -> None:
    assert get(app, Authorization="Bearer mia-token", Sec_Fetch_Site="cross-site").status_code == 200


def page(app: Flask) -> Flask:
    """Add a page with a form, and a public form, as a blueprint of pages would."""
    app.add_url_rule("/page", "test_page", lambda: subject().name, methods=["GET", "POST"])
    app.add_url_rule("/enter", "test_enter", enter, methods=["GET", "POST"])
    return app


def enter() -> Response:
    response = Response("in")
    session.set_cookie(response, "mia-session")
    return response


@pytest.fixture
def pages(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Flask:
    monkeypatch.setitem(permissions.ENDPOINTS, "test_page", permissions.SIGNED_IN)
    monkeypatch.setitem(permissions.ENDPOINTS, "test_enter", permissions.PUBLIC)
    return page(app)


def test_t23_a_page_may_be_opened_from_a_link_but_not_posted_from_one(pages: Flask) -> None:
    cookie = {"Cookie": "__Host-session=mia-session", "Sec-Fetch-Site": "cross-site"}
    client = pages.test_client(use_cookies=False)
    assert client.get("/page", headers=cookie).text == "mia"
    assert client.post("/page", headers=cookie).status_code == 403
    assert client.post("/page", headers={**cookie, "Sec-Fetch-Site": "same-origin"}).text == "mia"


def test_t23_signing_in_from_another_sites_form_is_refused(pages: Flask) -> None:
    client = pages.test_client(use_cookies=False)
    assert client.post("/enter", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert client.post("/enter", headers={"Origin": "https://evil.example"}).status_code == 403
    assert client.post("/enter", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200
    assert client.post("/enter").status_code == 200


def test_the_cookie_is_bound_to_the_host_and_the_site(pages: Flask) -> None:
    cookie = pages.test_client().post("/enter").headers["Set-Cookie"]
    assert cookie == "__Host-session=mia-session; Secure; HttpOnly; Path=/; SameSite=Strict"


def test_plain_loopback_has_a_cookie_without_the_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(permissions.ENDPOINTS, "test_enter", permissions.PUBLIC)
    monkeypatch.setitem(permissions.ENDPOINTS, "test_page", permissions.SIGNED_IN)
    config = config_of(tmp_path, archive={"public_url": "http://127.0.0.1:8080"}, http={"tls": "off"})
    plain = page(create_app(FakeNode(config)))
    assert plain.test_client().post("/enter").headers["Set-Cookie"] == "session=mia-session; HttpOnly; Path=/; SameSite=Strict"
    headers = {"Cookie": "session=mia-session", "Origin": "http://127.0.0.1:8080"}
    assert plain.test_client(use_cookies=False).post("/page", headers=headers).text == "mia"


def test_a_proxy_that_speaks_tls_keeps_the_prefix(tmp_path: Path) -> None:
    config = config_of(tmp_path, archive={"public_url": "https://pacs.example"}, http={"tls": "off"})
    assert session.cookie_name(config) == "__Host-session"


def test_forwarded_headers_are_not_believed(app: Flask, node: FakeNode) -> None:
    get(app, Authorization="Bearer mia-token", X_Forwarded_For="10.0.0.1", Forwarded="for=10.0.0.1")
    assert node.signin.asked[-1][2] == "127.0.0.1"
