"""The pages of asking, deciding, break-glass and its review, asked by a plain client without script."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta

import pytest
from werkzeug.test import TestResponse

from tests.services import ward
from tests.services.ward import ABSENT, FIRST, SECOND, Ward
from tests.web.pages.test_pages import Browser

WHY = "unconscious in the emergency room"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    with ward.opened(tmp_path_factory.mktemp("asking")) as made:
        yield made


def signed_in(place: Ward, name: str) -> Browser:
    browser = Browser(place.node)
    assert browser.sign_in(name).status_code == 303
    return browser


def said(answer: TestResponse, value: str) -> tuple[object, ...]:
    """Everything an answer says, with what was named taken out."""
    headers = sorted((name, text) for name, text in answer.headers.items() if name not in {"Date", "X-Request-Id", "Content-Length"})
    return answer.status_code, headers, re.sub(rf"{re.escape(value)}|/\d+/|\d\d:\d\d", "", answer.text)


def test_t15_asking_for_what_is_hidden_and_for_what_is_not_there(place: Ward) -> None:
    kim, told = signed_in(place, "kim"), []
    assert "Ask for access" in kim.get(f"/studies/{SECOND}").text
    for value in (SECOND, ABSENT):
        answers = [kim.post("/access/ask", level="study", object=value, until="7d", reason=WHY), kim.get("/access")]
        told.append([said(one, value) for one in answers])
        number = re.search(r"/access/(\d+)/withdraw", answers[1].text)
        assert number is not None
        assert kim.post(f"/access/{number[1]}/withdraw").status_code == 303
        _forget(place)
    assert told[0] == told[1]


def _forget(place: Ward) -> None:
    from archive.db.tables import access_request

    with place.node.core.database.begin() as tx:
        tx.execute(access_request.delete())


def test_a_request_is_decided(place: Ward) -> None:
    kim, mia = signed_in(place, "kim"), signed_in(place, "mia")
    assert kim.post("/access/ask", level="study", object=FIRST, reason="short").status_code == 400
    assert kim.post("/access/ask", level="study", object=FIRST, until="1d", reason=WHY).status_code == 303
    number = re.search(r'href="/access/(\d+)"', mia.get("/access").text)
    assert number is not None
    assert kim.get(f"/access/{number[1]}").status_code == 404, "one's own"
    assert "asks for access" in mia.get(f"/access/{number[1]}").text
    assert mia.post(f"/access/{number[1]}", decision="approve", until="nonsense").status_code == 400
    place.clock.at += timedelta(minutes=6)
    asked = mia.post(f"/access/{number[1]}", decision="approve", note="for the board")
    assert asked.headers["Location"] == f"/me/confirm?next=%2Faccess%2F{number[1]}", "who it is, is asked again"
    mia, kim = signed_in(place, "mia"), signed_in(place, "kim")
    assert mia.post(f"/access/{number[1]}", decision="approve", note="for the board").headers["Location"] == "/access"
    assert "granted by mia" in kim.get("/access").text
    assert kim.get(f"/studies/{FIRST}").status_code == 200
    row = place.node.access_requests.mine(place.by_session("kim"))[0]
    place.node.accounts.revoke_grant(place.console, row["grant"])
    assert kim.get(f"/studies/{FIRST}").status_code == 404


def test_break_glass_and_its_review(place: Ward) -> None:
    kim, rita = signed_in(place, "kim"), signed_in(place, "rita")
    assert kim.get(f"/studies/{FIRST}").status_code == 404
    assert "for 60 minutes" in kim.get("/break-glass").text
    assert rita.post("/break-glass", level="patient", object=f"P{FIRST}", reason_code="other", reason=WHY).status_code == 403
    assert kim.post("/break-glass", level="patient", object=f"P{FIRST}", reason_code="other", reason="no").status_code == 400
    opened = kim.post("/break-glass", level="patient", object=f"P{FIRST}", reason_code="emergency", reason=WHY)
    assert opened.headers["Location"] == "/studies"
    for path in ("/studies", f"/studies/{FIRST}", "/access"):
        page = kim.get(path).text
        assert "Everything is recorded" in page, path
        assert f"patient P{FIRST}" in page
    assert "Everything is recorded" not in rita.get("/access").text
    number = re.search(r"/break-glass/(\d+)/end", page)
    assert number is not None
    assert kim.post(f"/break-glass/{number[1]}/end").status_code == 303
    assert kim.get(f"/studies/{FIRST}").status_code == 404
    assert "Everything is recorded" not in kim.get("/studies").text
    assert kim.get("/break-glass/reviews").status_code == 403
    assert WHY in rita.get("/break-glass/reviews").text
    assert rita.post(f"/break-glass/{number[1]}/review", verdict="justified", note="ok").status_code == 400
    assert rita.post(f"/break-glass/{number[1]}/review", verdict="justified", note="the ward confirms").status_code == 303
    assert "Nothing waits" in rita.get("/break-glass/reviews").text
    place.clock.at += timedelta(minutes=6)
    assert kim.get("/break-glass").headers["Location"].startswith("/me/confirm?next=%2Fbreak-glass")


def test_t15_break_glass_on_what_is_not_there(place: Ward) -> None:
    ole, told = signed_in(place, "ole"), []
    for level, value in (("patient", f"P{SECOND}"), ("patient", f"P{ABSENT}"), ("study", SECOND), ("study", ABSENT)):
        opened = ole.post("/break-glass", level=level, object=value, reason_code="covering", reason=WHY)
        told.append((said(opened, value), said(ole.get("/access"), value)))
        number = re.search(r"/break-glass/(\d+)/end", ole.get("/access").text)
        assert number is not None
        ended = ole.post(f"/break-glass/{number[1]}/end")
        assert ended.status_code == 303
    assert told[0] == told[1]
    assert told[2] == told[3]
