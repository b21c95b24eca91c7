"""OHIF as its makers release it, in a real browser: a study opened from our page is drawn. ARCHIVE_TEST_OHIF names the tarball."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.journeys import doors
from tests.journeys.running import ROOT, RunningArchive
from tests.journeys.test_browser import ARGUMENTS, PASSWORD, Visit

playwright_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser


SHADES = 80
"""A page without an image has some ten in its middle."""


def shades(screenshot: bytes) -> int:
    """How many greys the middle of the page shows, below what the viewer lays over it at first."""
    picture = Image.open(io.BytesIO(screenshot)).convert("L")
    width, height = picture.size
    middle = picture.crop((width * 35 // 100, height * 40 // 100, width * 65 // 100, height * 80 // 100))
    return sum(1 for count in middle.histogram() if count)


@pytest.fixture
def tarball() -> Path:
    """The release; npm's package is 48 MB, so nobody has to have it."""
    named = os.environ.get("ARCHIVE_TEST_OHIF")
    found = [Path(named)] if named else sorted((ROOT.parent / "shared").glob("**/ohif-app-*.tgz"))
    if not found or not found[0].exists():
        pytest.skip("no release of OHIF here; ARCHIVE_TEST_OHIF names its tarball (npm pack @ohif/app)")
    return found[0]


@pytest.fixture
def served(tmp_path: Path, tarball: Path, corpus: Path) -> Iterator[RunningArchive]:
    """An archive with a study of the corpus and the viewer installed."""
    files = sorted(path for path in (corpus / "neurolabusc__dcm_qa_ct").rglob("*.dcm"))[:3]
    assert files, "the corpus has no CT series"
    with RunningArchive(tmp_path, settings="[viewer]\nport = 0\n") as archive:
        asker = doors.session(archive, archive.token("admin"))
        assert doors.stow(archive, asker, [path.read_bytes() for path in files])[0] == 200
        (tmp_path / "password").write_text(PASSWORD + "\n", encoding="utf-8")
        archive.json("user", "add", "mia", "--password-file", str(tmp_path / "password"))
        archive.json("grant", "add", "--to", "mia", "--role", "referrer", "--everything")
        assert archive.status["viewer"] is None
        assert archive.json("viewer", "ohif", "--tarball", str(tarball))["restart"]
        archive.stop()
        archive.start("serve")
        yield archive


def test_a_study_opens_in_ohif(served: RunningArchive, program: Callable[[str, str], str]) -> None:
    viewer = str(served.status["viewer"]["public_url"])
    with playwright_api.sync_playwright() as playwright:
        software = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        browser = playwright.chromium.launch(executable_path=program("chromium", "chromium"), args=[*ARGUMENTS, *software])
        context = browser.new_context(ignore_https_errors=True, locale="en-GB")
        context.set_default_timeout(60_000)
        visit = Visit(context.new_page(), viewer, allowed=("GPU stall", "WebGL", "GL Driver"))
        page = visit.page
        answers: list[tuple[int, str]] = []
        page.on("response", lambda answer: answers.append((answer.status, answer.url)))
        page.goto(f"{viewer}/")
        assert page.url.startswith(str(served.status["http"]["public_url"]))
        visit.sign_in("mia", PASSWORD)
        page.get_by_role("heading", name="Studies").wait_for()
        page.locator("tbody tr a").first.click()
        visit.watch()  # from here on nothing may be asked of another origin
        with page.expect_response(re.compile(r"/frames/1$")) as frame:
            page.get_by_role("link", name="Open in OHIF").click()
        assert frame.value.status == 200
        page.wait_for_url(f"{viewer}/viewer**")
        page.locator("canvas").first.wait_for()
        page.get_by_text("CT", exact=True).first.wait_for()
        for _attempt in range(40):
            page.wait_for_timeout(500)
            if (found := shades(page.screenshot())) > SHADES:
                break
        assert found > SHADES, "nothing is drawn"
        failed = [answer for answer in answers if answer[0] >= 400]
        assert failed == []
        assert [one for one in visit.complaints if str(served.status["http"]["public_url"]) not in one] == []
        browser.close()
