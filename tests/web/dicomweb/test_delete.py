"""DELETE over DICOMweb: rows F01 to F06 of the DICOMweb checklist, on a whole archive."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from archive.access.grants import Target
from archive.errors import DatabaseUnavailable
from tests.services import archives
from tests.web import real
from tests.web.real import ABSENT, HIDDEN, SEEN, Place

S = f"/dicomweb/studies/{SEEN}"
E, I = f"{S}/series/{SEEN}.1", f"{S}/series/{SEEN}.1/instances/{SEEN}.1.1"  # noqa: E741


@contextmanager
def deletable(folder: Path) -> Iterator[Place]:
    with archives.opened(real.config(folder)) as node:
        found = real.place(node)
        node.accounts.add_grant(archives.the_console(node), to="mia", role="owner", target=Target("study", SEEN))
        yield found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with deletable(tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def unharmed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Shared by what deletes nothing."""
    with deletable(tmp_path_factory.mktemp("delete")) as found:
        yield found


def status(place: Place, method: str, path: str) -> int:
    return place.ask(method, path).status_code


def events(place: Place, kind: str) -> int:
    return sum(row["kind"] == kind for row in place.node.oversight.search(archives.the_console(place.node), limit=1000))


@pytest.mark.parametrize("path", [S, E])
def test_f01_f02_a_study_or_series_vanishes_with_all_below(place: Place, path: str) -> None:
    answer = place.ask("DELETE", path)
    assert (answer.status_code, answer.data) == (204, b"")
    assert {status(place, "GET", one) for one in (S, E, I, f"{S}/metadata", f"{I}/frames/1", f"{I}/rendered")} == {404}
    assert place.ask("GET", f"/dicomweb/studies?StudyInstanceUID={SEEN}").status_code in (200, 204)
    assert SEEN.encode() not in place.ask("GET", f"/dicomweb/studies?StudyInstanceUID={SEEN}").data
    assert status(place, "DELETE", path) == 404, "F02: again"


def test_f01_f03_one_of_two_instances(place: Place) -> None:
    assert status(place, "DELETE", I) == 204
    assert status(place, "GET", I) == 404
    assert (status(place, "GET", f"{E}/instances/{SEEN}.1.2"), status(place, "GET", E), status(place, "GET", S)) == (200, 200, 200)
    assert status(place, "DELETE", I) == 404
    assert status(place, "DELETE", f"{E}/instances/{SEEN}.1.2") == 204
    assert (status(place, "GET", E), status(place, "GET", S)) == (404, 404), "what is empty vanishes"


@pytest.mark.parametrize("path", [
    "/dicomweb/studies/abc", f"{S}/series/abc", f"{E}/instances/1.2.x", f"/dicomweb/studies/{'1.' * 40}1", f"{S}?reason={'x' * 201}",
    f"{S}?reason=a%0Ab",
])
def test_f04_malformed(unharmed: Place, path: str) -> None:
    assert status(unharmed, "DELETE", path) == 400
    assert status(unharmed, "GET", S) == 200


def test_f05_the_same_bytes_sent_again_are_there_again(place: Place) -> None:
    data = archives.instance(1, study=SEEN, PatientID=f"P{SEEN}", PatientName="Canary^Hidden")
    assert status(place, "DELETE", S) == 204
    sent = place.ask("POST", "/dicomweb/studies", data=data, content_type="application/dicom")
    assert sent.status_code == 200
    assert status(place, "GET", I) == 200
    assert status(place, "GET", f"{E}/instances/{SEEN}.1.2") == 404
    assert place.node.verify.run(archives.the_console(place.node), "full").findings == []


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_f06_methods_that_are_not_there(unharmed: Place, method: str) -> None:
    answer = unharmed.ask(method, "/dicomweb/studies")
    assert answer.status_code == 405
    assert {"GET", "POST"} <= {name.strip() for name in answer.headers["Allow"].split(",")}


def test_under_another_parent_is_not_there(unharmed: Place) -> None:
    for path in (f"/dicomweb/studies/{HIDDEN}/series/{SEEN}.1", f"/dicomweb/studies/{ABSENT}/series/{SEEN}.1/instances/{SEEN}.1.1",
                 f"{S}/series/{HIDDEN}.1/instances/{SEEN}.1.1"):
        assert status(unharmed, "DELETE", path) == 404
    assert status(unharmed, "GET", I) == 200


def test_hidden_answers_as_absent_and_both_are_recorded(unharmed: Place) -> None:
    before = events(unharmed, "denied")
    answers = []
    for study in (HIDDEN, ABSENT):
        for below in ("", f"/series/{study}.1", f"/series/{study}.1/instances/{study}.1.1"):
            answer = unharmed.ask("DELETE", f"/dicomweb/studies/{study}{below}")
            answers.append((answer.status_code, answer.data))
    assert set(answers) == {answers[0]}
    assert answers[0][0] == 404
    assert events(unharmed, "denied") == before + 6
    assert len(unharmed.node.retrieve.instances(archives.user(unharmed.node), "clinical", HIDDEN)) == 2


def test_who_may_see_and_not_delete_deletes_nothing(tmp_path: Path) -> None:
    with archives.opened(real.config(tmp_path)) as node:
        place = real.place(node)  # a researcher sees, and does not delete
        for path in (S, E, I):
            assert status(place, "DELETE", path) == 404
        assert status(place, "GET", S) == 200
        assert events(place, "denied") == 3


def test_the_reason_and_the_one_who_asked_are_in_the_ledger(place: Place) -> None:
    assert status(place, "DELETE", f"{S}?reason=wrong%20patient") == 204
    told = [row for row in place.node.oversight.search(archives.the_console(place.node), limit=1000) if row["kind"] == "rejected"]
    assert len(told) == 1
    assert "mia" in str(told[0])


def test_a_page_elsewhere_deletes_nothing(unharmed: Place) -> None:
    foreign = {"Sec-Fetch-Site": "cross-site", "Origin": "https://elsewhere.example"}
    assert unharmed.ask("DELETE", S, browser=True, headers=foreign).status_code in (401, 403)
    assert status(unharmed, "GET", S) == 200


def test_a_refusal_that_cannot_be_recorded_is_no_answer(unharmed: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise DatabaseUnavailable("no")

    monkeypatch.setattr(unharmed.node.core.database, "group", fails)
    for path in (S, f"/dicomweb/studies/{HIDDEN}"):
        assert status(unharmed, "DELETE", path) == 503


def test_a_study_on_hold_answers_409_and_it_is_recorded(place: Place) -> None:
    console = archives.the_console(place.node)
    number = place.node.holds.add(console, "clinical", SEEN, reason="case")
    for path in (S, E, I):
        assert status(place, "DELETE", path) == 409
    assert events(place, "denied") == 3
    assert status(place, "GET", I) == 200
    place.node.holds.remove(console, number, reason="closed")
    assert status(place, "DELETE", I) == 204


def test_a_hold_on_what_may_not_be_seen_is_not_told(place: Place) -> None:
    place.node.holds.add(archives.the_console(place.node), "clinical", HIDDEN, reason="case")
    assert status(place, "DELETE", f"/dicomweb/studies/{HIDDEN}") == 404
