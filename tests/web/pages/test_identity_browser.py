"""Second factors and passkeys in a real browser, the passkeys with its virtual authenticator (WebAuthn 11)."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any

import pytest
from werkzeug.serving import make_server

from archive.access import totp
from archive.node import Node, open_node
from archive.web.wsgi import application
from tests.conftest import absent
from tests.services import archives

playwright_api = pytest.importorskip("playwright.sync_api")
expect = playwright_api.expect  # waits, where asking a locator at once may still find the page before
expect.set_options(timeout=15_000)
pytestmark = pytest.mark.browser
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"]


@dataclass
class Served:
    """An archive behind http://localhost, where browsers know passkeys, and how far its clock goes ahead."""

    node: Node
    origin: str
    ahead: timedelta = timedelta(0)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("archive")
    archives.made(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = archives.configured(folder, archive={"public_url": f"http://localhost:{port}"}, http={"port": port, "tls": "off"})
    held: list[Served] = []
    node = open_node(config, clock=lambda: datetime.now(UTC) + (held[0].ahead if held else timedelta(0)))
    held.append(Served(node, f"http://localhost:{port}"))
    app = application(node)

    def whole(environ: Any, start_response: Any) -> Any:
        """Hand on a body that ends, as granian does: this server's own goes on as long as its connection."""
        environ["wsgi.input"] = BytesIO(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
        return app(environ, start_response)

    server = make_server("127.0.0.1", port, whole, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        assert node.start() == ""
        for name in ("mia", "plain", "zoe"):
            node.accounts.add_user(archives.the_console(node), name, password=archives.PASSWORD)
        yield held[0]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        node.close()


@pytest.fixture(scope="module")
def chromium(program: Callable[[str, str], str]) -> Iterator[playwright_api.Browser]:
    path = program("chromium", "chromium")
    with playwright_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        except playwright_api.Error:
            absent("a working chromium")
        yield browser
        browser.close()


@contextmanager
def visiting(chromium: playwright_api.Browser, served: Served, *, script: bool = True) -> Iterator[playwright_api.Page]:
    """A tab of a fresh profile; what its console complains of fails the test."""
    context = chromium.new_context(java_script_enabled=script)
    context.set_default_timeout(15_000)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text) if said.type in {"error", "warning"} and "40" not in said.text else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    try:
        yield page
        assert complaints == []
    finally:
        context.close()


def sign_in(page: playwright_api.Page, served: Served, name: str) -> None:
    page.goto(served.origin + "/login")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(archives.PASSWORD)
    page.get_by_role("button", name="Sign in", exact=True).click()


def signed_in(page: playwright_api.Page, served: Served, name: str) -> None:
    """Sign in by password alone, and be there: leaving before the answer would leave the session behind."""
    sign_in(page, served, name)
    page.wait_for_url(served.origin + "/studies")


@pytest.mark.parametrize("script", [True, False])
def test_enrolling_and_signing_in_with_an_authenticator(chromium: playwright_api.Browser, served: Served, script: bool) -> None:
    name = "mia" if script else "plain"
    with visiting(chromium, served, script=script) as page:
        signed_in(page, served, name)
        page.goto(served.origin + "/me/factors")
        page.get_by_role("button", name="Authenticator app").click()
        secret = base64.b32decode(page.locator("#secret").inner_text().replace(" ", ""))
        if script:
            from PIL import Image

            drawn = Image.open(BytesIO(page.locator(".qr img").screenshot())).convert("L")
            assert drawn.getextrema()[0] < 64 < 192 < drawn.getextrema()[1], "the browser shows no picture"

        def code() -> str:
            served.ahead += timedelta(seconds=totp.STEP_S)
            return totp.code(secret, totp.step_of(datetime.now(UTC) + served.ahead))

        page.locator("#code").fill(code())
        page.get_by_role("button", name="Set up").click()
        expect(page.locator(".codes:not([hidden]) li")).to_have_count(10)
        page.get_by_role("button", name="Sign out", exact=True).click()
        sign_in(page, served, name)
        expect(page.get_by_role("heading", name="One more step")).to_be_visible()
        page.locator("#code").fill("000000")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("wrong")
        page.locator("#code").fill(code())
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(served.origin + "/studies")


def test_a_passkey_is_made_used_and_removed(chromium: playwright_api.Browser, served: Served) -> None:
    with visiting(chromium, served) as page:
        devtools = page.context.new_cdp_session(page)
        devtools.send("WebAuthn.enable")
        made = devtools.send("WebAuthn.addVirtualAuthenticator", {"options": {
            "protocol": "ctap2", "transport": "internal", "hasResidentKey": True, "hasUserVerification": True, "isUserVerified": True,
            "automaticPresenceSimulation": True,
        }})
        signed_in(page, served, "zoe")
        page.goto(served.origin + "/me/factors")
        page.get_by_role("button", name="Passkey on this device").click()
        page.locator("[data-passkey-codes] li").nth(10).wait_for()
        page.get_by_role("button", name="Sign out", exact=True).click()
        page.get_by_role("button", name="Sign in with a passkey").click()
        page.wait_for_url(served.origin + "/studies")
        served.ahead += timedelta(minutes=6)
        page.goto(served.origin + "/me/factors")
        page.get_by_role("button", name="Remove").click()
        page.get_by_role("button", name="Use a passkey").click()
        page.wait_for_url(served.origin + "/me/factors")
        # A device that does not check its user opens nothing.
        devtools.send("WebAuthn.setUserVerified", {"authenticatorId": made["authenticatorId"], "isUserVerified": False})
        page.get_by_role("button", name="Sign out", exact=True).click()
        page.get_by_role("button", name="Sign in with a passkey").click()
        page.get_by_role("alert").wait_for()
        devtools.send("WebAuthn.setUserVerified", {"authenticatorId": made["authenticatorId"], "isUserVerified": True})
        page.get_by_role("button", name="Sign in with a passkey").click()
        page.wait_for_url(served.origin + "/studies")
        page.goto(served.origin + "/me/factors")
        page.get_by_role("button", name="Remove").click()
        expect(page.get_by_role("status")).to_contain_text("removed")
        page.get_by_role("button", name="Sign out", exact=True).click()
        page.get_by_role("button", name="Sign in with a passkey").click()
        page.get_by_role("alert").wait_for()
