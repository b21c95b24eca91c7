"""Second factors, being asked again and sessions, by pages and by the API, asked by a plain client without script."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from archive.access import totp
from archive.node import Node, open_node
from archive.web import permissions
from archive.web.wsgi import application
from tests.services import archives

SAME = {"Sec-Fetch-Site": "same-origin"}


class Hand:
    """A clock set by hand."""

    at = datetime(2026, 7, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.at


@pytest.fixture(scope="module")
def clock() -> Hand:
    return Hand()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, clock: Hand) -> Iterator[Node]:
    config = archives.made(tmp_path_factory.mktemp("archive"), archive={"public_url": "https://pacs.clinic.example"})
    clock.at = datetime.now(UTC) + timedelta(days=1)
    node = open_node(config, clock=clock)
    try:
        assert node.start() == ""
        archives.store(node, archives.instance())
        yield node
    finally:
        node.close()


@pytest.fixture(scope="module")
def app(node: Node) -> Flask:
    return application(node)


class Browser:
    """A client that keeps its cookie."""

    def __init__(self, app: Flask, clock: Hand) -> None:
        self.client: FlaskClient = app.test_client(use_cookies=False)
        self.clock, self.cookie, self.secret = clock, "", b""

    def ask(self, method: str, path: str, **more: object) -> TestResponse:
        headers = {**SAME, "Cookie": self.cookie, **more.pop("headers", {})}  # type: ignore[dict-item]
        answer = self.client.open(path, method=method, headers=headers, **more)  # type: ignore[arg-type]
        if "Set-Cookie" in answer.headers:
            self.cookie = answer.headers["Set-Cookie"].split(";")[0]
        return answer

    def get(self, path: str, **more: object) -> TestResponse:
        return self.ask("GET", path, **more)

    def post(self, path: str, **form: str) -> TestResponse:
        return self.ask("POST", path, data=form)

    def sign_in(self, name: str, target: str = "/studies") -> TestResponse:
        return self.post("/login", name=name, password=archives.PASSWORD, next=target)

    def code(self) -> str:
        self.clock.at += timedelta(seconds=totp.STEP_S)
        return totp.code(self.secret, totp.step_of(self.clock.at))

    def enrol(self) -> list[str]:
        page = self.post("/me/factors/totp", label="phone").text
        found = re.search(r'id="secret">([A-Z2-7 ]+)<', page)
        number = re.search(r"/me/factors/(\d+)/confirm", page)
        assert found
        assert number
        self.secret = base64.b32decode(found[1].replace(" ", ""))
        page = self.post(f"/me/factors/{number[1]}/confirm", code=self.code()).text
        return re.findall(r"<code>([a-z0-9]{6}-[a-z0-9]{6})</code>", page)


@pytest.fixture
def browser(app: Flask, clock: Hand) -> Browser:
    return Browser(app, clock)


@pytest.fixture
def mia(node: Node, request: pytest.FixtureRequest) -> Iterator[str]:
    console, name = archives.the_console(node), f"u{abs(hash(request.node.name)) % 10**9}x"
    node.accounts.add_user(console, name, password=archives.PASSWORD, roles=["technologist"])
    yield name
    node.accounts.role_signs_in(console, "technologist", second_factor=False)


def half_of(page: str) -> str:
    found = re.search(r'name="half" value="([^"]+)"', page)
    assert found
    return html.unescape(found[1])


def test_enrolling_and_signing_in_by_two_steps(browser: Browser, mia: str) -> None:
    browser.sign_in(mia)
    assert "data:image/svg+xml" in browser.post("/me/factors/totp").text
    assert len(browser.enrol()) == 10
    browser.post("/logout")
    page = browser.sign_in(mia, "/studies?PatientName=x")
    assert page.status_code == 200
    assert "Set-Cookie" not in page.headers
    half = half_of(page.text)
    wrong = browser.post("/login/second", half=half, code="000000", next="/studies?PatientName=x")
    assert (wrong.status_code, "Set-Cookie" in wrong.headers) == (401, False)
    assert half_of(wrong.text) == half
    done = browser.post("/login/second", half=half, code=browser.code(), next="/studies?PatientName=x")
    assert (done.status_code, done.location) == (303, "/studies?PatientName=x")
    assert browser.get("/api/session").json["second_factor"]  # type: ignore[index]
    late = browser.post("/login/second", half="x", code="000000")
    assert "took too long" in late.text


@pytest.mark.parametrize("target", ["https://evil.example/", "//evil.example", "/api/users", "/studies\\x"])
def test_the_second_step_leads_nowhere_else(browser: Browser, mia: str, target: str) -> None:
    browser.sign_in(mia)
    browser.enrol()
    half = half_of(browser.sign_in(mia).text)
    assert browser.post("/login/second", half=half, code=browser.code(), next=target).location == "/studies"


def test_a_recovery_code_ends_a_sign_in_once(browser: Browser, mia: str) -> None:
    browser.sign_in(mia)
    codes = browser.enrol()
    half = half_of(browser.sign_in(mia).text)
    assert browser.post("/login/second", half=half, code=codes[0]).status_code == 303
    assert browser.post("/login/second", half=half, code=codes[0]).status_code == 401


def test_who_must_have_a_factor_can_only_enrol(node: Node, browser: Browser, mia: str, app: Flask) -> None:
    node.accounts.role_signs_in(archives.the_console(node), "technologist", second_factor=True)
    browser.sign_in(mia)
    assert browser.get("/studies").location == "/me/factors"
    for path in ("/api/changes", "/dicomweb/studies"):
        refused = browser.get(path)
        assert (refused.status_code, refused.json["code"]) == (403, "second-factor-missing")  # type: ignore[index]
    opened = {
        endpoint for endpoint, rule in permissions.ENDPOINTS.items()
        if not rule.public and endpoint in app.view_functions and endpoint in permissions.BEFORE_FACTOR
    }
    assert opened == permissions.BEFORE_FACTOR
    browser.enrol()
    assert browser.get("/studies").status_code == 200
    token = node.accounts.create_token(archives.the_console(node), owner=mia)["token"]
    assert browser.client.get("/dicomweb/studies", headers={"Authorization": f"Bearer {token}"}).status_code in (200, 204)
    factor = browser.get("/api/me/factors").json["factors"][0]["id"]  # type: ignore[index]
    assert "add another" in browser.post(f"/me/factors/{factor}/remove").text


def test_every_endpoint_that_asks_again_is_there_and_asks(browser: Browser, mia: str, clock: Hand, app: Flask) -> None:
    assert set(app.view_functions) >= permissions.FRESH
    browser.sign_in(mia)
    clock.at += timedelta(minutes=5)
    values = {"study": "1.2.3", "series": "1.2.3.1", "sop": "1.2.3.1.1", "number": 1}
    asked = set()
    for rule in app.url_map.iter_rules():
        if not permissions.needs_fresh(rule.endpoint):
            continue
        method = next(iter((rule.methods or set()) - {"OPTIONS", "HEAD"}))
        path = app.url_map.bind("x").build(rule.endpoint, {name: values.get(name, "clinical") for name in rule.arguments})
        answer = browser.ask(method, path)
        if rule.endpoint.startswith("pages."):
            assert (answer.status_code, (answer.location or "").partition("=")[0]) == (303, "/me/confirm?next"), path
        else:
            assert (answer.status_code, answer.json["code"]) == (403, "step-up"), path  # type: ignore[index]
            assert "/api/session/confirm" in answer.json["remedy"]  # type: ignore[index]
        asked.add(rule.endpoint)
    assert len(asked) >= len(permissions.FRESH)


def test_a_page_asks_again_and_comes_back(browser: Browser, mia: str, clock: Hand) -> None:
    browser.sign_in(mia)
    clock.at += timedelta(minutes=6)
    where = "/dicomweb/studies/1.2.3/zip"
    way = browser.get(where, headers={"Sec-Fetch-Mode": "navigate"})
    assert way.status_code == 303
    before = browser.cookie
    assert browser.post("/me/confirm", next=where, password="wrong wrong wrong").status_code == 401
    done = browser.post("/me/confirm", next=where, password=archives.PASSWORD)
    assert (done.status_code, done.location) == (303, where)
    assert browser.cookie != before
    assert browser.get(where).status_code == 404  # nothing of it is mia's
    browser.cookie = before
    assert browser.get("/studies").location.startswith("/login")


def test_the_api_confirms_enrols_and_lists(browser: Browser, mia: str, clock: Hand) -> None:
    browser.sign_in(mia)
    clock.at += timedelta(minutes=6)
    assert browser.ask("POST", "/api/me/factors/totp", json={}).status_code == 403
    assert browser.ask("POST", "/api/session/confirm", json={"password": "wrong wrong wrong"}).status_code == 401
    told = browser.ask("POST", "/api/session/confirm", json={"password": archives.PASSWORD})
    assert told.status_code == 200
    begun = browser.ask("POST", "/api/me/factors/totp", json={"label": "key"}).json
    assert begun
    browser.secret = base64.b32decode(begun["secret"].replace(" ", ""))
    assert begun["address"].startswith("otpauth://totp/")
    done = browser.ask("POST", f"/api/me/factors/{begun['id']}/confirm", json={"code": browser.code()})
    assert len(done.json["recovery_codes"]) == 10  # type: ignore[index]
    again = browser.ask("POST", f"/api/me/factors/{begun['id']}/confirm", json={"code": browser.code()})
    assert again.status_code == 409
    assert [one["label"] for one in browser.get("/api/me/factors").json["factors"]] == ["key"]  # type: ignore[index]
    assert len(browser.ask("POST", "/api/me/recovery-codes").json["recovery_codes"]) == 10  # type: ignore[index]
    sessions = browser.get("/api/me/sessions").json
    assert [one["current"] for one in sessions or []] == [True]
    assert browser.ask("DELETE", f"/api/me/factors/{begun['id']}").status_code == 200
    assert browser.ask("DELETE", f"/api/me/sessions/{sessions[0]['id']}").status_code == 200  # type: ignore[index]
    assert browser.get("/api/session").status_code == 401


def test_the_page_of_sessions_ends_them(browser: Browser, mia: str, app: Flask, clock: Hand) -> None:
    other = Browser(app, clock)
    other.sign_in(mia)
    browser.sign_in(mia)
    page = browser.get("/me/sessions").text
    assert page.count("/end") == 3
    browser.post("/me/sessions/end")
    assert other.get("/studies").location.startswith("/login")
    assert browser.get("/studies").status_code == 200


def test_no_token_reaches_factors(node: Node, browser: Browser, mia: str) -> None:
    token = node.accounts.create_token(archives.the_console(node), owner=mia)["token"]
    for method, path in (("POST", "/api/me/factors/totp"), ("POST", "/api/me/recovery-codes"), ("DELETE", "/api/me/sessions")):
        answer = browser.client.open(path, method=method, json={}, headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 403
    assert browser.client.post("/api/session/confirm", json={"password": archives.PASSWORD},
                               headers={"Authorization": f"Bearer {token}"}).status_code == 403
