"""/api/worklist and /api/mpps over a real archive: entered, found, cancelled; refusals; the study's page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archive.errors import DatabaseUnavailable
from archive.ledger.log import Ledger
from tests.dimse.test_mpps import begun
from tests.dimse.test_worklist import entry
from tests.services import archives
from tests.web import real
from tests.web.real import HIDDEN, SEEN, Place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with archives.opened(real.config(tmp_path)) as node:
        yield real.place(node)


def post(place: Place, body: Any, **more: Any) -> Any:
    return place.ask("POST", "/api/worklist", json=body, **more)


def test_an_entry_from_begin_to_end(place: Place) -> None:
    made = post(place, entry(1))
    assert made.status_code == 201
    number = made.json[0]["id"]
    assert made.headers["Location"] == f"/api/worklist/{number}"
    post(place, [entry(2, step={"Modality": "MR", "ScheduledStationAETitle": "MR1"}), entry(3)])
    assert post(place, entry(1)).json[0]["id"] == number, "the same again is the same entry"

    def found(query: str) -> list[str]:
        return [one["patient_id"] for one in place.ask("GET", f"/api/worklist?{query}").json]

    assert found("") == ["W1", "W2", "W3"]
    assert (found("modality=MR"), found("station=CT1"), found("patient_id=W3"), found("date=20270110"), found("date=20270111-")) == (
        ["W2"], ["W1", "W3"], ["W3"], ["W1", "W2", "W3"], [])
    one = place.ask("GET", f"/api/worklist/{number}").json
    assert (one["state"], one["dataset"]["00100010"]["Value"]) == ("scheduled", [{"Alphabetic": "Worklist^Number1"}])
    assert place.ask("DELETE", f"/api/worklist/{number}").json["state"] == "cancelled"
    assert found("") == ["W2", "W3"]
    assert found("all=true") == ["W1", "W2", "W3"]
    again = post(place, entry(1))
    assert (again.status_code, again.content_type, again.json["code"]) == (409, "application/problem+json", "state-conflict")


@pytest.mark.parametrize("body", [
    {}, [], 7, "x", [{}], {"00100010": 7}, {"0010001": {"vr": "PN"}}, {**entry(1), "00100010": {"vr": "PN", "Value": ["a\0b"]}},
    {**entry(1), "00100030": {"vr": "DA", "Value": ["yesterday"]}}, {**entry(1), "0020000D": {"vr": "UI", "Value": ["1.2.x"]}},
    {**entry(1), "00100020": {"vr": "LO", "Value": ["x" * 65]}}, {**entry(1), "00400100": {"vr": "SQ"}},
])  # fmt: skip
def test_what_cannot_be_entered(place: Place, body: Any) -> None:
    answer = post(place, body)
    assert (answer.status_code, answer.content_type) == (400, "application/problem+json")
    assert place.ask("GET", "/api/worklist?all=1").json == []


def test_hostile_bodies(place: Place) -> None:
    deep = b'{"00400100":{"vr":"SQ","Value":[' * 30_000
    for body in (b"", b"\xff\xfe", b"[" * 200_000, deep, b'{"00400100":{"vr":"SQ","Value":[' * 12 + b"{}" + b"]}}" * 12):
        answer = place.ask("POST", "/api/worklist", data=body, content_type="application/json")
        assert answer.status_code == 400, body[:20]
    for query in ("patient=1", "date=tomorrow", "limit=0", "limit=x", "all=maybe", "modality=CT&modality=MR"):
        assert place.ask("GET", f"/api/worklist?{query}").status_code == 400, query
    for number in ("0", "77", "x", "9" * 30, "-1"):
        assert place.ask("GET", f"/api/worklist/{number}").status_code == place.ask("DELETE", f"/api/worklist/{number}").status_code == 404
    assert place.ask("GET", "/api/worklist?datastore=other").status_code == 404


def test_who_may(place: Place) -> None:
    console = archives.the_console(place.node)
    post(place, entry(1))
    assert place.app.test_client().get("/api/worklist", base_url=real.ORIGIN).status_code == 401
    for role, may in (("referrer", (403, 403, 403)), ("radiologist", (200, 403, 200))):
        place.node.accounts.add_user(console, role, roles=[role], password=archives.PASSWORD)
        token = place.node.accounts.create_token(console, owner=role)["token"]
        headers = {"Authorization": f"Bearer {token}"}
        told = (place.ask("GET", "/api/worklist", headers=headers).status_code, post(place, entry(2), headers=headers).status_code,
                place.ask("GET", "/api/mpps", headers=headers).status_code)
        assert told == may, role
        assert place.ask("GET", "/api/worklist/1", headers=headers).status_code == may[0]
        assert place.ask("DELETE", "/api/worklist/1", headers=headers).status_code == 403


def test_t10_no_audit_no_data(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    post(place, entry(1))

    def refuse(*_arguments: object, **_options: object) -> int:
        raise DatabaseUnavailable("the database is busy")

    monkeypatch.setattr(Ledger, "record", refuse)
    for method, path in (("GET", "/api/worklist"), ("GET", "/api/worklist/1"), ("DELETE", "/api/worklist/1"), ("GET", "/api/mpps")):
        answer = place.ask(method, path)
        assert answer.status_code == 503, path
        assert b"W1" not in answer.data
    assert post(place, entry(2)).status_code == 503
    monkeypatch.undo()
    assert [one["state"] for one in place.ask("GET", "/api/worklist?all=1").json] == ["scheduled"]


def test_steps_are_shown_with_their_study_to_who_sees_it(place: Place) -> None:
    from archive.dicom import scheduled
    from tests.dimse.test_find import sequence

    console = archives.the_console(place.node)
    for study in (SEEN, HIDDEN):
        step = begun(1, PatientName="Canary^Step", ScheduledStepAttributesSequence=sequence(StudyInstanceUID=study),
                     PerformedProcedureStepDescription="<b>Thorax</b>")
        place.node.steps.create(console, "clinical", f"{study}.77", scheduled.checked(step.to_json_dict()))
    page = place.ask("GET", f"/studies/{SEEN}", browser=True)
    assert page.status_code == 200
    assert "&lt;b&gt;Thorax&lt;/b&gt;" in page.text
    assert "in progress" in page.text
    assert place.ask("GET", f"/studies/{HIDDEN}", browser=True).status_code == 404
    assert [one["studies"] for one in place.ask("GET", f"/api/mpps?study={SEEN}").json] == [[SEEN]]
