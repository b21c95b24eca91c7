"""The pages, asked by a plain client without script: sign-in, list, study, image, password, refusals."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from PIL import Image
from werkzeug.test import TestResponse

from archive.access.grants import Target
from archive.node import Node
from archive.web.wsgi import application
from tests.services import archives

SAME = {"Sec-Fetch-Site": "same-origin"}
TEMPLATES = Path(__file__).resolve().parents[3] / "archive" / "web" / "templates"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with archives.opened(archives.made(tmp_path_factory.mktemp("archive"))) as node:
        for number in range(1, 6):
            archives.store(node, archives.instance(number))
        script = "<script>alert(1)</script>^X"
        archives.store(node, archives.instance(1, study="1.2.4", PatientID="P2", PatientName=script, StudyDate="20250101"))
        archives.store(node, archives.instance(1, study="1.2.5", PatientID="P3", PatientName="Grün^Älla", NumberOfFrames="1000000"))
        console = archives.the_console(node)
        node.accounts.add_user(console, "nobody", password=archives.PASSWORD)
        node.accounts.add_user(console, "one", password=archives.PASSWORD)
        node.accounts.add_grant(console, to="one", role="referrer", target=Target("study", "1.2.4"))
        node.accounts.add_user(console, "fresh", password=archives.PASSWORD, must_change=True)
        yield node


class Browser:
    """A client that keeps its cookie and says where it comes from."""

    def __init__(self, node: Node) -> None:
        self.client: FlaskClient = application(node).test_client()
        self.cookie = ""

    def get(self, path: str) -> TestResponse:
        return self.client.get(path, headers={**SAME, "Cookie": self.cookie})

    def post(self, path: str, **form: str) -> TestResponse:
        answer = self.client.post(path, data=form, headers={**SAME, "Cookie": self.cookie})
        if "Set-Cookie" in answer.headers:
            self.cookie = answer.headers["Set-Cookie"].split(";")[0]
        return answer

    def sign_in(self, name: str, password: str = archives.PASSWORD, target: str = "/studies") -> TestResponse:
        return self.post("/login", name=name, password=password, next=target)


@pytest.fixture
def browser(node: Node) -> Browser:
    return Browser(node)


@pytest.fixture
def admin(browser: Browser) -> Browser:
    assert browser.sign_in("admin").status_code == 303
    return browser


def test_without_a_session_every_page_leads_to_the_sign_in_and_back(browser: Browser) -> None:
    answer = browser.get("/studies/1.2.3?x=1")
    assert (answer.status_code, answer.headers["Location"]) == (302, "/login?next=%2Fstudies%2F1.2.3%3Fx%3D1")
    assert browser.sign_in("admin", target="/studies/1.2.3").headers["Location"] == "/studies/1.2.3"


@pytest.mark.parametrize(
    "target", ["https://evil.example/studies", "//evil.example/studies", "/\\evil.example", "/studies\\..", "javascript:alert(1)"]
)
def test_signing_in_leads_nowhere_else(browser: Browser, target: str) -> None:
    assert browser.sign_in("admin", target=target).headers["Location"] == "/studies"


def test_a_wrong_password_and_an_unknown_name_look_the_same(browser: Browser) -> None:
    wrong, unknown = browser.sign_in("one", "wrong-wrong-wrong"), browser.sign_in("none", "wrong-wrong-wrong")
    assert wrong.status_code == unknown.status_code == 401
    assert wrong.text.replace('value="one"', "") == unknown.text.replace('value="none"', "")


def test_a_sign_in_from_another_site_is_refused(node: Node) -> None:
    client = application(node).test_client()
    answer = client.post("/login", data={"name": "admin", "password": archives.PASSWORD}, headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 403
    assert "Set-Cookie" not in answer.headers


def test_the_list_searches_and_pages(admin: Browser) -> None:
    assert len(re.findall(r'href="/studies/[0-9.]+"', admin.get("/studies").text)) == 3
    for query, found in (("name=anary", 1), ("name=gruen", 0), ("name=GRUN", 1), ("id=P2", 1), ("accession=A1", 3), ("modality=MR", 0),
                         ("from=2026-01-01&to=2026-12-31", 2), ("name=zzz", 0), ("page=2", 0)):
        assert len(re.findall(r'href="/studies/[0-9.]+"', admin.get(f"/studies?{query}").text)) == found, query
    assert admin.get("/studies?from=2026-99-99").status_code == 400
    assert admin.get("/studies?page=-1&name=%00&unknown=1").status_code in {200, 400}


def test_names_are_escaped_everywhere(admin: Browser) -> None:
    for path in ("/studies", "/studies/1.2.4", "/studies/1.2.4/series/1.2.4.1"):
        text = admin.get(path).text
        assert "<script>alert" not in text
        assert "&lt;script&gt;" in text


def test_a_study_shows_its_series_and_a_series_its_images(admin: Browser) -> None:
    study = admin.get("/studies/1.2.3").text
    assert "/studies/1.2.3/series/1.2.3.1" in study
    thumb = re.search(r'<img src="(/studies/[^"]+)"', study)
    assert thumb is not None
    picture = admin.get(thumb[1].replace("&amp;", "&"))
    assert picture.headers["Content-Type"] == "image/jpeg"
    assert picture.headers["Cache-Control"] == "private, no-store"
    assert Image.open(io.BytesIO(picture.data)).size == (16, 16)
    first, last = (admin.get(f"/studies/1.2.3/series/1.2.3.1?image={at}").text for at in (1, 99))
    assert "1 / 5" in first
    assert "5 / 5" in last
    windowed = admin.get("/studies/1.2.3/series/1.2.3.1?image=2&centre=40&width=400").text
    source = re.search(r'id="picture" src="([^"]+)"', windowed)
    assert source is not None
    assert "centre=40&amp;width=400" in source[1]
    plain = admin.get(source[1].split("?")[0]).data
    assert admin.get(source[1].replace("&amp;", "&")).data != plain


def test_a_lying_number_of_frames_costs_nothing(admin: Browser) -> None:
    assert "1000000" in admin.get("/studies/1.2.5/series/1.2.5.1").text
    assert admin.get("/studies/1.2.5/series/1.2.5.1/instances/1.2.5.1.1/frames/900000/picture").status_code == 404


@pytest.mark.parametrize("path", ["/studies/{}", "/studies/{}/series/{}.1", "/studies/{0}/series/{0}.1/thumbnail",
                                  "/studies/{0}/series/{0}.1/instances/{0}.1.1/frames/1/picture"])
def test_what_may_not_be_seen_is_not_there(node: Node, path: str) -> None:
    nobody, one = Browser(node), Browser(node)
    nobody.sign_in("nobody")
    one.sign_in("one")
    for browser in (nobody, one):
        hidden, absent = browser.get(path.format("1.2.3", "1.2.3")), browser.get(path.format("1.9.9", "1.9.9"))
        assert hidden.status_code == absent.status_code == 404
        assert hidden.data.replace(b"1.2.3", b"") == absent.data.replace(b"1.9.9", b"")
        assert {k: v for k, v in hidden.headers if k != "Content-Length"} == {k: v for k, v in absent.headers if k != "Content-Length"}
    assert one.get(path.format("1.2.4", "1.2.4")).status_code == 200
    assert "1.2.3" not in one.get("/studies").text


def test_a_handed_out_password_opens_only_its_own_change(node: Node) -> None:
    browser = Browser(node)
    assert browser.sign_in("fresh").headers["Location"] == "/me/password?first=1"
    assert browser.get("/studies").headers["Location"] == "/me/password?first=1"
    assert browser.get("/dicomweb/studies").status_code == 403
    fresh = "amber-walrus-17-pencil"
    assert browser.post("/me/password", old=archives.PASSWORD, new=fresh, again="other", first="1").status_code == 400
    assert browser.post("/me/password", old="wrong-wrong-wrong", new=fresh, again=fresh, first="1").status_code in {400, 401}
    assert browser.post("/me/password", old=archives.PASSWORD, new=fresh, again=fresh, first="1").headers["Location"] == "/studies"
    assert Browser(node).sign_in("fresh").status_code == 401
    again = Browser(node)
    assert again.sign_in("fresh", fresh).headers["Location"] == "/studies"


def test_signing_out_ends_the_session_on_the_server(admin: Browser) -> None:
    kept = admin.cookie
    assert admin.post("/logout").status_code == 303
    admin.cookie = kept
    assert admin.get("/studies").status_code == 302


def test_pages_carry_a_strict_policy_and_are_not_kept(admin: Browser) -> None:
    answer = admin.get("/studies")
    assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert answer.headers["Cache-Control"] == "private, no-store"


@pytest.mark.parametrize("template", sorted(TEMPLATES.glob("*.html")), ids=lambda path: path.name)
def test_templates_hold_no_inline_script_or_style_and_switch_no_escaping_off(template: Path) -> None:
    text = template.read_text(encoding="utf-8")
    assert not re.search(r"javascript:|<style|\|\s*safe|autoescape\s+false", text)
    markup = re.sub(r"{%.*?%}|{{.*?}}", "", text)
    assert not re.search(r"<[^>]*\s(on\w+|style|hx-on)\s*=", markup)
    assert not re.search(r"<script(?![^>]*\ssrc=\"/static/)", text)
    for control in re.findall(r"<(?:input|select|textarea)[^>]*>", text):
        if 'type="hidden"' not in control:
            name = re.search(r'id="([^"]+)"', control)
            assert name is not None, control
            assert f'for="{name[1]}"' in text, control


NUMBERED = (
    "/albums/{}", "/access/{}", "/admin/reviews/{}", "/studies/1.2.3/series/1.2.3.1/instances/1.2.3.1.1/frames/{}/picture",
)


@pytest.mark.parametrize("digits", [15, 16, 19, 20, 40, 5000])
def test_a_number_that_none_has_is_not_there(admin: Browser, digits: int) -> None:
    """Neither one that no row has, nor one that no database counts to."""
    for path in NUMBERED:
        answer = admin.get(path.format("9" * digits))
        assert answer.status_code == 404, path
        assert "9999" not in answer.text
