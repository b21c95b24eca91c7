"""The first page in a real browser: sign in, change the first password, search, look at images, sign out; with and without script."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import absent
from tests.journeys import doors
from tests.journeys.running import RunningArchive
from tests.web.samples import instance

playwright_api = pytest.importorskip("playwright.sync_api")
expect = playwright_api.expect  # waits, where asking a locator at once may still find the page before
expect.set_options(timeout=15_000)
pytestmark = pytest.mark.browser

PASSWORD = "a walk by the river 7"
MANY = 57
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Visit:
    """A tab, and everything in it that must not happen."""

    page: playwright_api.Page
    origin: str
    complaints: list[str] = field(default_factory=list)
    allowed: tuple[str, ...] = ()

    def watch(self) -> None:
        """Listen for errors on the console, violations of the policy, faults of scripts, dialogues, and requests to elsewhere."""
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.complaints.append(f"page error: {error}"))
        self.page.on("dialog", lambda dialog: (self.complaints.append(f"dialogue: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", self._asked)
        self.page.on("requestfailed", self._failed)
        self.page.on("websocket", lambda socket: self.complaints.append(f"websocket: {socket.url}"))
        self.page.on("popup", lambda page: self.complaints.append(f"popup: {page.url}"))

    def _said(self, message: playwright_api.ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not any(word in message.text for word in self.allowed):
            self.complaints.append(f"console: {message.text}")

    def _asked(self, request: playwright_api.Request) -> None:
        parts = urlsplit(request.url)
        if f"{parts.scheme}://{parts.netloc}" != self.origin and parts.scheme not in {"data", "blob"}:
            self.complaints.append(f"request to {request.url}")

    def _failed(self, request: playwright_api.Request) -> None:
        if "ERR_ABORTED" not in str(request.failure):  # what a click on the next page interrupts
            self.complaints.append(f"failed: {request.url} {request.failure}")

    def go(self, path: str) -> playwright_api.Response:
        """Open a page of the archive."""
        answer = self.page.goto(self.origin + path)
        assert answer is not None
        return answer

    def sign_in(self, name: str, password: str) -> None:
        """Fill in the form."""
        self.page.get_by_label("Name").fill(name)
        self.page.get_by_label("Password").fill(password)
        self.page.get_by_role("button", name="Sign in").click()

    def picture(self) -> bytes:
        """Return the image as the browser shows it, once it is there."""
        picture = self.page.locator("#picture")
        picture.wait_for()
        answer = self.page.request.get(self.origin + str(picture.get_attribute("src")))
        assert answer.status == 200
        assert answer.headers["content-type"] == "image/png"
        box = picture.bounding_box()
        assert box is not None
        assert box["width"] > 100, "the browser shows no image"
        return bytes(answer.body())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Iterator[RunningArchive]:
    """The demo studies, more than a page of others, and the hostile ones that are kept."""
    with RunningArchive(tmp_path_factory.mktemp("browser"), "--demo") as archive:
        asker = doors.session(archive, archive.token("admin"))
        studies = [
            instance(1, study=study, PatientName=f"Page^{study:03d}", PatientID=f"PG{study}", StudyDate="20200101")
            for study in range(1, MANY + 1)
        ]
        assert doors.stow(archive, asker, studies)[0] == 200
        for name in ("xss-name", "crlf-desc", "bidi-name", "sql-name", "csv-formula", "dims-lie", "frames-lie", "html-preamble", "long-LO"):
            assert doors.stow(archive, asker, [(corpus / "own__hostile" / f"{name}.dcm").read_bytes()])[0] in {200, 202}
        (archive.folder / "password").write_text(PASSWORD + "\n", encoding="utf-8")
        archive.json("user", "add", "mia", "--password-file", str(archive.folder / "password"))
        archive.json("grant", "add", "--to", "mia", "--role", "referrer", "--everything")
        yield archive


@pytest.fixture(scope="module")
def chromium(program: Callable[[str, str], str]) -> Iterator[playwright_api.Browser]:
    """The browser of this machine."""
    path = program("chromium", "chromium")
    with playwright_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        except playwright_api.Error:
            absent("a working chromium")
        yield browser
        browser.close()


@contextmanager
def visiting(chromium: playwright_api.Browser, archive: RunningArchive, *, script: bool) -> Iterator[Visit]:
    """A tab of a fresh profile; whatever was wrong in it fails the test at the end."""
    context = chromium.new_context(ignore_https_errors=True, java_script_enabled=script, locale="en-GB")
    context.set_default_timeout(15_000)
    visit = Visit(context.new_page(), str(archive.status["http"]["public_url"]))
    visit.watch()
    try:
        yield visit
        assert visit.complaints == []
    finally:
        context.close()


@pytest.fixture(params=[True, False], ids=["script", "no script"])
def visit(request: pytest.FixtureRequest, chromium: playwright_api.Browser, served: RunningArchive) -> Iterator[Visit]:
    """A visitor who has signed in, with and without script."""
    with visiting(chromium, served, script=request.param) as made:
        made.go("/")
        made.sign_in("mia", PASSWORD)
        made.page.get_by_role("heading", name="Studies").wait_for()
        yield made


def test_the_first_password_opens_only_its_own_change(chromium: playwright_api.Browser, served: RunningArchive) -> None:
    first = (served.storage / "first-password").read_text(encoding="utf-8").strip()
    with visiting(chromium, served, script=True) as visit:
        visit.allowed = ("401",)  # the wrong password, which Chromium reports too
        visit.go("/studies?name=Demo")
        assert urlsplit(visit.page.url).path == "/login"
        visit.sign_in("admin", "not the password")
        visit.page.get_by_role("alert").wait_for()
        visit.sign_in("admin", first)
        visit.page.get_by_role("heading", name="Choose your password").wait_for()
        visit.go("/studies")
        visit.page.get_by_role("heading", name="Choose your password").wait_for()
        visit.page.get_by_label("Present password").fill(first)
        visit.page.get_by_label(re.compile("^New password at least")).fill(PASSWORD)
        visit.page.get_by_label("New password again").fill(PASSWORD)
        visit.page.get_by_role("button", name="Change password").click()
        visit.page.wait_for_url(re.compile("/studies|/me/password"))
        visit.go("/studies")
        visit.page.get_by_role("heading", name="Studies").wait_for()
        expect(visit.page.get_by_text("recovery kit", exact=False)).not_to_have_count(0)
    assert not (served.storage / "first-password").exists()
    with visiting(chromium, served, script=True) as visit:
        visit.allowed = ("401",)
        visit.go("/login")
        visit.sign_in("admin", first)
        visit.page.get_by_role("alert").wait_for()
        visit.sign_in("admin", PASSWORD)
        visit.page.get_by_role("heading", name="Studies").wait_for()


def test_list_search_and_page(visit: Visit) -> None:
    page = visit.page
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(50)
    page.get_by_role("link", name="Older").click()
    page.wait_for_url("**page=2")
    assert 0 < rows.count() < 50
    page.get_by_role("link", name="Newer").click()
    page.wait_for_url("**page=1")
    page.get_by_label("Patient name").fill("demo")
    page.get_by_role("button", name="Search").click()
    page.wait_for_url("**name=demo**")
    names = rows.locator("td:first-child").all_inner_texts()
    assert {name.split(" · ")[0] for name in names} == {"Demo, Anna", "Demo, Bruno", "Demo, Chiyo"}
    assert any("千代" in name for name in names)
    page.get_by_label("Patient ID").fill("nobody")
    page.get_by_role("button", name="Search").click()
    page.get_by_text("No study that you may see matches.").wait_for()
    page.get_by_role("link", name="Clear").click()
    page.wait_for_url("**/studies")
    page.get_by_label("From").fill("2020-01-01")
    page.get_by_label("To", exact=True).fill("2020-01-01")
    page.get_by_label("Patient name").fill("Page^05")
    page.get_by_role("button", name="Search").click()
    page.wait_for_url("**name=Page**")
    assert rows.count() == MANY - 49


def test_a_study_its_images_slices_and_windows(visit: Visit) -> None:
    page = visit.page
    page.get_by_label("Patient name").fill("demo")
    page.get_by_label("Modality").select_option("CT")
    page.get_by_role("button", name="Search").click()
    page.wait_for_url("**modality=CT**")
    page.locator("tbody a").first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Demo")
    tile = page.locator(".tiles a").first
    tile.locator("img").wait_for()
    tile.click()
    start = visit.picture()
    page.get_by_role("link", name="Next").click()
    page.wait_for_url("**image=**")
    following = visit.picture()
    assert following != start
    page.get_by_label("Image", exact=True).fill("1")
    page.get_by_label("Window centre").fill("40")
    page.get_by_label("Window width").fill("80")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**width=80**")
    narrow = visit.picture()
    page.get_by_label("Window width").fill("2000")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**width=2000**")
    wide = visit.picture()
    assert len({start, following, narrow, wide}) == 4
    page.get_by_role("link", name="Lung").click()
    page.wait_for_url("**width=1500**")
    assert visit.picture() not in {narrow, wide}


def test_signing_out_ends_the_session(visit: Visit) -> None:
    visit.page.locator("tbody a").first.click()
    visit.page.wait_for_url("**/studies/*")
    inside = visit.page.url
    [cookie] = [cookie for cookie in visit.page.context.cookies() if "session" in cookie["name"]]
    assert (cookie["name"], cookie["httpOnly"], cookie["secure"], cookie["sameSite"]) == ("__Host-session", True, True, "Strict")
    visit.page.get_by_role("button", name="Sign out").click()
    visit.page.get_by_role("heading", name="Sign in").wait_for()
    visit.page.goto(inside)
    visit.page.get_by_role("heading", name="Sign in").wait_for()
    visit.page.context.add_cookies([cookie])  # a copy of the cookie is worth nothing any more
    visit.page.goto(inside)
    visit.page.get_by_role("heading", name="Sign in").wait_for()


def test_markup_in_attributes_is_text(visit: Visit) -> None:
    page = visit.page
    names = {"<script>alert(1)</script>": "<script>", "Robert'); DROP TABLE studies;--": "Robert')", "=cmd|calc!A0": "cmd|"}
    for wanted, shown in names.items():
        page.get_by_label("Patient name").fill(wanted)
        page.get_by_role("button", name="Search").click()
        page.wait_for_url("**name=**")
        cell = page.locator("tbody td:first-child a")
        assert shown in cell.inner_text()
        assert page.get_by_label("Patient name").input_value() == wanted
        cell.click()
        expect(page.get_by_role("heading", level=1)).to_contain_text(shown)
        page.locator(".tiles a").first.click()
        page.locator("#picture").wait_for()
        assert page.locator("main script, main img[src='x']").count() == 0
        page.get_by_role("link", name="Studies", exact=True).first.click()
        page.get_by_role("heading", name="Studies").wait_for()
    page.get_by_label("Description").fill("onerror")
    page.get_by_role("button", name="Search").click()
    page.wait_for_url("**description=onerror**")
    assert page.locator("tbody tr").count() == 1
    assert page.locator("main img").count() == 0


def test_what_cannot_be_drawn_leaves_the_page_whole(visit: Visit) -> None:
    visit.allowed = ("404", "406", "400")  # Chromium reports an image that is refused
    page = visit.page
    page.get_by_label("Patient name").fill("Hostile")
    page.get_by_role("button", name="Search").click()
    page.wait_for_url("**name=Hostile**")
    links = [str(link.get_attribute("href")) for link in page.locator("tbody td:first-child a").all()]
    assert len(links) >= 4
    for link in links:
        assert visit.go(link).status == 200
        page.locator(".tiles a").first.click()
        page.get_by_label("Window centre").wait_for()


def test_a_page_that_is_not_there(visit: Visit) -> None:
    visit.allowed = ("404",)
    assert visit.go("/studies/1.2.3.4").status == 404
    visit.page.get_by_role("link", name="Back to the studies").click()
    visit.page.get_by_role("heading", name="Studies").wait_for()


def test_a_study_is_shared_opened_with_a_code_and_ended(chromium: playwright_api.Browser, served: RunningArchive) -> None:
    served.json("user", "add", "rad", "--password-file", str(served.folder / "password"))
    served.json("grant", "add", "--to", "rad", "--role", "radiologist", "--everything")
    with visiting(chromium, served, script=False) as sharer, visiting(chromium, served, script=True) as guest:
        guest.allowed = ("401", "403", "404")  # what is refused, which Chromium reports too
        sharer.go("/studies?name=demo&modality=CT")
        sharer.sign_in("rad", PASSWORD)
        sharer.page.locator("tbody a").first.click()
        sharer.page.get_by_role("link", name="Share…").click()
        sharer.page.get_by_label("With whom").fill("Dr Ott")
        sharer.page.get_by_role("button", name="Look at it first").click()
        sharer.page.get_by_role("heading", name="Share this?").wait_for()
        sharer.page.get_by_role("button", name="Share", exact=True).click()
        link = sharer.page.locator("#link").inner_text()
        code = sharer.page.locator("#share-code").inner_text()

        guest.page.goto(link)
        assert urlsplit(guest.page.url).fragment == ""
        guest.page.get_by_role("button", name="Open").click()
        guest.page.get_by_label("Code").fill("000000" if code != "000000" else "111111")
        guest.page.get_by_role("button", name="Show the images").click()
        guest.page.get_by_text("The code is wrong").wait_for()
        guest.page.get_by_label("Code").fill(code)
        guest.page.get_by_role("button", name="Show the images").click()
        guest.page.wait_for_url("**/shared")
        assert "Dr Ott" in guest.page.locator("header").inner_text()
        [cookie] = guest.page.context.cookies()
        assert (cookie["name"], cookie["httpOnly"], cookie["secure"], cookie["sameSite"]) == ("__Host-share", True, True, "Strict")
        guest.page.locator("tbody a").first.click()
        guest.page.locator(".tiles a").first.click()
        assert guest.picture()[:4] == b"\x89PNG"
        inside = guest.page.url
        guest.go("/studies")
        guest.page.get_by_role("heading", name="Sign in").wait_for()  # to the archive they are nobody
        guest.page.goto(inside)
        guest.picture()

        sharer.go("/shares")
        sharer.page.get_by_role("button", name="End").click()
        sharer.page.get_by_role("heading", name="Ended").wait_for()
        guest.page.get_by_role("link", name="Next").click()
        guest.page.get_by_role("heading", name="Closed").wait_for()
        guest.page.goto(link)
        guest.page.get_by_role("button", name="Open").click()
        guest.page.get_by_text("opens nothing any more").wait_for()
    assert link.partition("#")[2] not in served.log()
