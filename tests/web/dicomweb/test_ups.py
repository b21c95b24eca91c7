"""G08: the unified worklist over HTTP: create, search, retrieve, update, change of state, cancel; and who sees what (PS3.18 11)."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from werkzeug.test import TestResponse

from archive.access.grants import Target
from archive.dicom import workitem as rules
from tests.services import archives
from tests.web import real
from tests.web.real import HIDDEN, SEEN, Place

LOCK, OTHER_LOCK = "2.25.11", "2.25.12"
NUMBERS = iter(range(1000, 100_000))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with archives.opened(real.config(tmp_path_factory.mktemp("ups"))) as node:
        made = real.place(node)
        node.accounts.add_user(archives.the_console(node), "ole", roles=["technologist"], password=archives.PASSWORD)
        node.accounts.add_grant(archives.the_console(node), to="ole", role="radiologist", target=Target("everything"))
        yield made


def el(vr: str, *values: Any) -> dict[str, Any]:
    return {"vr": vr, "Value": list(values)}


def code(value: str) -> dict[str, Any]:
    return {"00080100": el("SH", value), "00080102": el("SH", "99TEST"), "00080104": el("LO", value)}


def item(*, patient: str = "NEW", study: str | None = None, **more: Any) -> dict[str, Any]:
    found = {
        "00404005": el("DT", "20260801101500"), "00404041": el("CS", "READY"), "00741000": el("CS", "SCHEDULED"),
        "00741200": el("CS", "MEDIUM"), "00741204": el("LO", "Segment the liver"), "00741202": el("LO", "AI"),
        "00100020": el("LO", patient), "00100010": el("PN", {"Alphabetic": "Work^Item"}),
        "00404025": el("SQ", code("GPU1")), "00404018": el("SQ", code("SEG")),
    }
    if study is not None:
        found["00404021"] = el("SQ", {"0020000D": el("UI", study), "0020000E": el("UI", f"{study}.1")})
    return found | {tag.removeprefix("x"): value for tag, value in more.items()}


def performed(**more: Any) -> dict[str, Any]:
    inner = {
        "00404028": el("SQ", code("GPU1")), "00404050": el("DT", "20260801102000"), "00404019": el("SQ", code("SEG")),
        "00404051": el("DT", "20260801102500"), "00404033": {"vr": "SQ"},
    }
    return {"00741216": el("SQ", inner | more)}


def send(place: Place, method: str, path: str, body: object = None, **more: Any) -> TestResponse:
    if body is not None:
        more |= {"data": json.dumps([body]), "content_type": "application/dicom+json"}
    return place.ask(method, f"/dicomweb/workitems{path}", **more)


def as_ole(place: Place) -> dict[str, str]:
    token = place.node.accounts.create_token(archives.the_console(place.node), owner="ole")["token"]
    return {"Authorization": f"Bearer {token}"}


def made(place: Place, **more: Any) -> str:
    uid = f"1.2.840.99.{next(NUMBERS)}"
    headers = more.pop("headers", None)
    answer = send(place, "POST", f"?{uid}", item(**more), headers=headers)
    assert answer.status_code == 201, answer.text
    return uid


def state_of(place: Place, uid: str) -> str:
    return str(send(place, "GET", f"/{uid}").get_json(force=True)[0]["00741000"]["Value"][0])


def move(place: Place, uid: str, state: str, lock: str = LOCK) -> TestResponse:
    return send(place, "PUT", f"/{uid}/state", {"00741000": el("CS", state), "00081195": el("UI", lock)})


# --- create ---


def test_g08_create_says_where_it_is(place: Place) -> None:
    answer = send(place, "POST", "?1.2.840.99.1", item())
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"{real.ORIGIN}/dicomweb/workitems/1.2.840.99.1"
    assert "created with modifications" in answer.headers["Warning"]
    [found] = send(place, "GET", "/1.2.840.99.1").get_json(force=True)
    assert found["00080016"]["Value"] == [rules.PUSH_SOP_CLASS]
    assert found["00080018"]["Value"] == ["1.2.840.99.1"]
    assert found["00741204"]["Value"] == ["Segment the liver"]
    assert "00081195" not in found
    assert set(rules.PRESENT) <= set(found)


def test_g08_create_with_everything_warns_of_nothing(place: Place) -> None:
    whole = {tag: {"vr": rules.vr_of(int(tag, 16))} for tag in rules.PRESENT} | item()
    answer = send(place, "POST", "?workitem=1.2.840.99.2", whole)
    assert answer.status_code == 201
    assert "Warning" not in answer.headers


def test_g08_create_makes_a_uid(place: Place) -> None:
    answer = send(place, "POST", "", item())
    uid = answer.headers["Location"].rpartition("/")[2]
    assert rules.is_uid(uid)
    assert send(place, "GET", f"/{uid}").status_code == 200


def test_g08_create_twice(place: Place) -> None:
    uid = made(place)
    answer = send(place, "POST", f"?{uid}", item())
    assert answer.status_code == 409
    assert "already exists" in answer.headers["Warning"]


@pytest.mark.parametrize("change", [
    {"00741000": el("CS", "IN PROGRESS")}, {"00741000": None}, {"00741200": None}, {"00741200": el("CS", "SOON")}, {"00404005": None},
    {"00741204": None}, {"00404041": el("CS", "PERHAPS")}, {"00081195": el("UI", LOCK)}, {"00080018": el("UI", "9.9")},
    {"0040A370": {"vr": "LO", "Value": ["x"]}}, {"0020000D": el("UI", "not a uid")}, {"nonsense": {}}, {"00100010": el("PN", "plain")},
    {"00020010": el("UI", "1.2")}, {"00741216": el("SQ", {"00404050": el("DT", "2026")})}, {"00104000": {"vr": "LT", "BulkDataURI": "x"}},
])
def test_g08_create_refuses_what_is_no_workitem(place: Place, change: dict[str, Any]) -> None:
    body = {tag: one for tag, one in (item() | change).items() if one is not None}
    uid = f"1.2.840.99.{next(NUMBERS)}"
    assert send(place, "POST", f"?{uid}", body).status_code == 400
    assert send(place, "GET", f"/{uid}").status_code == 404


@pytest.mark.parametrize(("data", "kind", "status"), [
    (b"", "application/dicom+json", 400), (b"{", "application/dicom+json", 400), (b"[]", "application/dicom+json", 400),
    (b"[{},{}]", "application/dicom+json", 400), (b"3", "application/json", 400), (b"<x/>", "application/dicom+xml", 400),
    (b"x", "text/plain", 415),
    (b'<!DOCTYPE a [<!ENTITY b "c">]><NativeDicomModel>&b;</NativeDicomModel>', "application/dicom+xml", 400),
    (b"[" * 20000, "application/json", 400), (b'{"00741216":{"vr":"SQ","Value":[' * 40 + b"{}" + b"]}}" * 40, "application/json", 400),
])
def test_hostile_bodies(place: Place, data: bytes, kind: str, status: int) -> None:
    assert place.ask("POST", "/dicomweb/workitems", data=data, content_type=kind).status_code == status


def test_a_workitem_in_xml(place: Place) -> None:
    def attribute(tag: str, one: dict[str, Any]) -> str:
        inner = "".join(
            f'<Item number="{n}">{"".join(attribute(t, o) for t, o in sorted(value.items()))}</Item>' if one["vr"] == "SQ"
            else f'<PersonName number="{n}"><Alphabetic><FamilyName>{value["Alphabetic"]}</FamilyName></Alphabetic></PersonName>'
            if one["vr"] == "PN" else f'<Value number="{n}">{value}</Value>'
            for n, value in enumerate(one.get("Value", []), 1)
        )
        return f'<DicomAttribute tag="{tag}" vr="{one["vr"]}">{inner}</DicomAttribute>'

    document = f"<NativeDicomModel>{''.join(attribute(tag, one) for tag, one in sorted(item().items()))}</NativeDicomModel>"
    uid = f"1.2.840.99.{next(NUMBERS)}"
    answer = place.ask("POST", f"/dicomweb/workitems?{uid}", data=document.encode(), content_type="application/dicom+xml")
    assert answer.status_code == 201, answer.text
    [kept] = send(place, "GET", f"/{uid}").get_json(force=True)
    assert kept["00404025"] == item()["00404025"]


# --- search ---


def found(place: Place, query: str, **more: Any) -> list[str]:
    answer = send(place, "GET", f"?{query}", **more)
    assert answer.status_code in {200, 204, 206}, answer.text
    return [row["00080018"]["Value"][0] for row in answer.get_json(force=True)] if answer.status_code != 204 else []


def test_g08_search(place: Place) -> None:
    first = made(place, patient="S1", x00741202=el("LO", "night shift"))
    second = made(place, patient="S1", x00404025=el("SQ", code("GPU7")), x00404005=el("DT", "20270101080000"))
    assert found(place, "PatientID=S1") == [first, second]
    assert found(place, "PatientID=S1&00741202=night%20*") == [first]
    assert found(place, "00100020=S1&ScheduledStationNameCodeSequence.CodeValue=GPU7") == [second]
    assert found(place, "PatientID=S1&00404025.00080100=GPU1") == [first]
    assert found(place, "PatientID=S1&ScheduledProcedureStepStartDateTime=20261231-") == [second]
    assert found(place, "PatientID=S1&ProcedureStepState=SCHEDULED&limit=1") == [first]
    assert found(place, "PatientID=S1&limit=1&offset=1") == [second]
    assert found(place, "PatientID=S1&PatientName=WORK*") == [first, second]
    assert found(place, "PatientID=S1&PatientName=ite&fuzzymatching=true") == [first, second]
    assert found(place, f"SOPInstanceUID={second}&includefield=all") == [second]
    assert found(place, "PatientID=S1&ProcedureStepState=COMPLETED") == []
    assert send(place, "GET", "?PatientID=S1&ProcedureStepState=COMPLETED").status_code == 204


def test_g08_keys_inside_one_sequence_are_met_by_one_of_its_items(place: Place) -> None:
    both = el("SQ", {**code("GPU7"), "00080102": el("SH", "99HERE")}, code("GPU8"))
    one = made(place, patient="S3", x00404025=both)
    for asked, expected in ((("GPU7", "99HERE"), [one]), (("GPU8", "99TEST"), [one]), (("GPU7", "99TEST"), []), (("GPU8", "99*"), [one])):
        query = f"PatientID=S3&00404025.00080100={asked[0]}&ScheduledStationNameCodeSequence.CodingSchemeDesignator={asked[1]}"
        assert found(place, query) == expected, asked
    assert found(place, "PatientID=S3&00404025.00080100=GPU7") == [one]


def test_g08_a_start_is_found_by_its_instant(place: Place) -> None:
    here = made(place, patient="S2", x00404005=el("DT", "20270101080000+0100"))
    there = made(place, patient="S2", x00404005=el("DT", "20270101080000"), x00080201=el("SH", "-0500"))
    for query, expected in (("2027010108%2B0100", [here]), ("2027010107%2B0000", [here]), ("2027010114%2B0100", [there]),
                            ("20270101075959-0500-", [there]), ("20270101080000", [here, there]), ("20270101070000", []),
                            ("20270101070000&TimezoneOffsetFromUTC=%2B0000", [here]),
                            ("-2027010109&00080201=-0500", [here, there])):
        assert found(place, f"PatientID=S2&ScheduledProcedureStepStartDateTime={query}") == expected, query


@pytest.mark.parametrize("query", [
    "limit=0", "limit=x", "offset=-1", "fuzzymatching=1", "Nonsense=1", "TransactionUID=1.2", "PatientID.PatientName=x",
    "PatientID=1&PatientID=2", "00404005=yesterday", "includefield=Nonsense", "SOPInstanceUID=abc",
])
def test_a_search_that_is_not_understood(place: Place, query: str) -> None:
    assert send(place, "GET", f"?{query}").status_code == 400


# --- update and state ---


def test_g08_the_whole_way(place: Place) -> None:
    uid = made(place)
    assert send(place, "POST", f"/{uid}", {"00741204": el("LO", "Segment the spleen")}).status_code == 200
    assert send(place, "POST", f"/{uid}?{LOCK}", {"00741204": el("LO", "x")}).status_code == 400
    assert move(place, uid, "COMPLETED").status_code == 409
    assert move(place, uid, "IN PROGRESS").status_code == 200
    assert state_of(place, uid) == "IN PROGRESS"
    again = move(place, uid, "IN PROGRESS", OTHER_LOCK)
    assert again.status_code == 409
    assert "already IN PROGRESS" in again.headers["Warning"]
    progress = {"00741002": el("SQ", {"00741004": el("DS", 50)})}
    assert send(place, "POST", f"/{uid}", progress).status_code == 409
    assert send(place, "POST", f"/{uid}?{OTHER_LOCK}", progress).status_code == 409
    assert send(place, "POST", f"/{uid}?transaction-uid={LOCK}", progress).status_code == 200
    early = move(place, uid, "COMPLETED")
    assert early.status_code == 409
    assert "final state requirements" in early.headers["Warning"]
    assert send(place, "POST", f"/{uid}", {**performed(), "00081195": el("UI", LOCK)}).status_code == 200
    assert move(place, uid, "COMPLETED", OTHER_LOCK).status_code == 409
    assert move(place, uid, "COMPLETED").status_code == 200
    assert state_of(place, uid) == "COMPLETED"
    repeated = move(place, uid, "COMPLETED")
    assert repeated.status_code == 200
    assert "already in the requested state of COMPLETED" in repeated.headers["Warning"]
    assert send(place, "POST", f"/{uid}?{LOCK}", {"00741204": el("LO", "late")}).status_code == 409
    assert send(place, "POST", f"/{uid}/cancelrequest").status_code == 409
    assert move(place, uid, "CANCELED").status_code == 409
    assert move(place, uid, "SCHEDULED").status_code == 409


def test_g08_cancel(place: Place) -> None:
    uid = made(place)
    reason = {"00741238": el("LT", "ordered twice")}
    assert send(place, "POST", f"/{uid}/cancelrequest", reason).status_code == 202
    [kept] = send(place, "GET", f"/{uid}").get_json(force=True)
    assert kept["00741000"]["Value"] == ["CANCELED"]
    [progress] = kept["00741002"]["Value"]
    assert progress["00741238"]["Value"] == ["ordered twice"]
    assert progress["00404052"]["Value"]
    again = send(place, "POST", f"/{uid}/cancelrequest")
    assert (again.status_code, "already in the requested state of CANCELED" in again.headers["Warning"]) == (202, True)
    busy = made(place)
    assert move(place, busy, "IN PROGRESS").status_code == 200
    assert send(place, "POST", f"/{busy}/cancelrequest").status_code == 202
    assert state_of(place, busy) == "IN PROGRESS"
    assert move(place, busy, "CANCELED").status_code == 200
    assert send(place, "POST", "/1.2.840.99.404/cancelrequest").status_code == 404


@pytest.mark.parametrize("body", [
    {"00741000": el("CS", "IN PROGRESS")}, {"00741000": el("CS", "DONE"), "00081195": el("UI", LOCK)}, {"00081195": el("UI", LOCK)},
])
def test_a_change_of_state_that_says_too_little(place: Place, body: dict[str, Any]) -> None:
    uid = made(place)
    assert send(place, "PUT", f"/{uid}/state", body).status_code == 400
    assert state_of(place, uid) == "SCHEDULED"


@pytest.mark.parametrize("body", [
    {"00741000": el("CS", "COMPLETED")}, {"00100020": el("LO", "other")}, {"00080018": el("UI", "1.2")}, {"00741204": {"vr": "LO"}},
    {"0040A370": el("SQ", {"0020000D": el("UI", "1.2.9")})},
])
def test_an_update_leaves_alone_what_no_update_changes(place: Place, body: dict[str, Any]) -> None:
    uid = made(place)
    before = send(place, "GET", f"/{uid}").get_json(force=True)
    assert send(place, "POST", f"/{uid}", body).status_code == 400
    assert send(place, "GET", f"/{uid}").get_json(force=True) == before


def test_every_missing_piece_keeps_it_from_being_completed() -> None:
    whole = performed()
    assert rules.completable(whole)
    for tag in (*rules.PERFORMED_WITH_VALUE, rules.OUTPUT):
        cut = copy.deepcopy(whole)
        del cut["00741216"]["Value"][0][tag]
        assert not rules.completable(cut), tag


# --- who sees what ---


def test_unseen_is_absent(place: Place) -> None:
    ole = as_ole(place)
    by_study = made(place, patient="NEW", study=HIDDEN, headers=ole)
    by_both = made(place, patient=f"P{SEEN}", study=HIDDEN, headers=ole)
    seen = made(place, patient=f"P{SEEN}", study=SEEN, headers=ole)
    for hidden in (by_study, by_both):
        absent = hidden.replace("1.2.840.", "1.2.841.")
        assert send(place, "GET", f"/{hidden}", headers=ole).status_code == 200
        for method, path, body in (
            ("GET", "/{}", None), ("POST", "/{}", {"00741204": el("LO", "mine")}), ("POST", "/{}/cancelrequest", None),
            ("PUT", "/{}/state", {"00741000": el("CS", "IN PROGRESS"), "00081195": el("UI", LOCK)}),
            ("GET", "?SOPInstanceUID={}", None),
        ):
            one, other = (send(place, method, path.format(uid), body) for uid in (hidden, absent))
            assert (one.status_code, one.data, sorted(set(one.headers) - {"Date"})) == (
                other.status_code, other.data, sorted(set(other.headers) - {"Date"})), path
            assert one.status_code in {404, 204}
    assert found(place, f"PatientID=P{SEEN}") == [seen]
    assert found(place, f"PatientID=P{HIDDEN}") == []


def story(place: Place, headers: dict[str, str], **about: Any) -> list[tuple[str, int, list[str]]]:
    """What somebody is answered who makes a workitem about a patient or study and works with it."""
    uid = made(place, headers=headers, **about)
    told = []
    for method, path, body in (
        ("GET", "/{}", None), ("GET", "?SOPInstanceUID={}", None),
        ("GET", f"?PatientID={about.get('patient', 'NEW')}&SOPInstanceUID={{}}", None),
        ("POST", "?{}", item(**about)), ("POST", "/{}", {"00741204": el("LO", "mine")}),
        ("PUT", "/{}/state", {"00741000": el("CS", "IN PROGRESS"), "00081195": el("UI", LOCK)}),
        ("POST", "/{}?transaction-uid=" + LOCK, performed(**{"00404033": el("SQ", {"0020000D": el("UI", HIDDEN)})})),
        ("PUT", "/{}/state", {"00741000": el("CS", "COMPLETED"), "00081195": el("UI", LOCK)}), ("GET", "/{}", None),
        ("POST", "/{}/cancelrequest", None),
    ):
        answer = send(place, method, path.format(uid), body, headers=headers)
        told.append((method, answer.status_code, sorted({name for name, _ in answer.headers} - {"Date"})))
    return told


def test_a_workitem_tells_nothing_of_what_the_archive_holds(place: Place) -> None:
    """Whoever may work with the worklist and sees no image: a patient and a study that are here and hidden are as those that are not."""
    console = archives.the_console(place.node)
    place.node.accounts.add_user(console, "tec", roles=["technologist"], password=archives.PASSWORD)
    tec = {"Authorization": f"Bearer {place.node.accounts.create_token(console, owner='tec')['token']}"}
    held, absent = story(place, tec, patient=f"P{HIDDEN}"), story(place, tec, patient="P-NEVER")
    assert held == absent
    assert [status for _, status, _ in held] == [200, 200, 200, 409, 200, 200, 200, 200, 200, 409], "and it can be done to its end"
    held, absent = story(place, tec, study=HIDDEN), story(place, tec, study="1.2.840.4711")
    assert held == absent
    assert [status for _, status, _ in held] == [404, 204, 204, 409, 404, 404, 404, 404, 404, 404]


def test_what_is_not_held_yet_is_seen_by_who_sees_everything(place: Place) -> None:
    ole = as_ole(place)
    uid = made(place, study="1.2.840.4712", headers=ole)
    assert send(place, "GET", f"/{uid}", headers=ole).status_code == 200
    assert send(place, "GET", f"/{uid}").status_code == 404
    archives.store(place.node, archives.instance(1, study="1.2.840.4712", PatientID="LATE"))
    assert send(place, "GET", f"/{uid}", headers=ole).status_code == 200
    assert send(place, "GET", f"/{uid}").status_code == 404
    place.node.remove.reject(archives.the_console(place.node), "clinical", "study", "1.2.840.4712", reason="test")
    assert send(place, "GET", f"/{uid}", headers=ole).status_code == 200, "as if it were not there"
    assert send(place, "GET", f"/{uid}").status_code == 404


def test_a_grant_and_its_end_count_at_once(place: Place) -> None:
    uid = made(place, patient=f"P{HIDDEN}", study=HIDDEN, headers=as_ole(place))
    console = archives.the_console(place.node)
    assert send(place, "GET", f"/{uid}").status_code == 404
    grant = place.node.accounts.add_grant(console, to="mia", role="referrer", target=Target("study", HIDDEN))
    assert send(place, "GET", f"/{uid}").status_code == 200
    place.node.accounts.revoke_grant(console, grant["id"])
    assert send(place, "GET", f"/{uid}").status_code == 404


def test_a_deny_hides_the_worklist_of_what_is_still_to_come(place: Place) -> None:
    uid = made(place, patient="TOCOME", headers=as_ole(place))
    console = archives.the_console(place.node)
    assert found(place, "PatientID=TOCOME") == [uid]
    grant = place.node.accounts.add_grant(console, to="mia", role="referrer", target=Target("everything"), deny=True)
    assert found(place, "PatientID=TOCOME") == []
    place.node.accounts.revoke_grant(console, grant["id"])
    assert found(place, "PatientID=TOCOME") == [uid]


def test_a_bounded_token_sees_the_worklist_of_its_study_alone(place: Place) -> None:
    inside, outside = made(place, patient="NEW", study=SEEN), made(place, patient="BOUNDLESS")
    token = place.node.accounts.create_token(
        archives.the_console(place.node), owner="mia", studies=[SEEN], permissions=["search", "worklist"]
    )["token"]
    headers = {"Authorization": f"Bearer {token}"}
    assert send(place, "GET", f"/{outside}", headers=headers).status_code == 404
    assert send(place, "GET", f"/{inside}", headers=headers).status_code == 200


def test_without_the_permission_there_is_no_worklist(place: Place) -> None:
    console = archives.the_console(place.node)
    place.node.accounts.add_user(console, "ref", roles=["referrer"], password=archives.PASSWORD)
    place.node.accounts.add_grant(console, to="ref", role="referrer", target=Target("everything"))
    headers = {"Authorization": f"Bearer {place.node.accounts.create_token(console, owner='ref')['token']}"}
    for method, path, body in (
        ("GET", "", None), ("POST", "", item()), ("GET", "/1.2.3", None), ("POST", "/1.2.3", {}), ("POST", "/1.2.3/cancelrequest", None),
        ("PUT", "/1.2.3/state", {"00741000": el("CS", "CANCELED"), "00081195": el("UI", LOCK)}),
    ):
        assert send(place, method, path, body, headers=headers).status_code == 403, path
    denied = place.node.oversight.search(console, kinds=["denied"])
    assert any("worklist" in str(row["body"]) for row in denied[:3]) or denied


def test_another_datastore_is_another_worklist(place: Place) -> None:
    assert place.ask("GET", "/datastores/research/dicomweb/workitems").status_code == 404


def test_t10_no_audit_no_worklist(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from archive.errors import DatabaseUnavailable
    from archive.ledger.log import Ledger

    uid = made(place)

    def refuse(*_arguments: object, **_options: object) -> int:
        message = "the database is busy"
        raise DatabaseUnavailable(message)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "record", refuse)
        for method, path, body in (
            ("GET", f"/{uid}", None), ("GET", f"?SOPInstanceUID={uid}", None), ("POST", "", item()),
            ("POST", f"/{uid}", {"00741204": el("LO", "unheard")}), ("POST", f"/{uid}/cancelrequest", None),
        ):
            answer = send(place, method, path, body)
            assert answer.status_code == 503, path
            assert b"Segment" not in answer.data
    [kept] = send(place, "GET", f"/{uid}").get_json(force=True)
    assert (kept["00741204"]["Value"], kept["00741000"]["Value"]) == (["Segment the liver"], ["SCHEDULED"])
