"""STOW-RS: rows A01 to A35 of the DICOMweb checklist, and what becomes of a body that goes wrong."""

from __future__ import annotations

import io
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import CTImageStorage, ImplicitVRLittleEndian
from werkzeug.test import TestResponse

from archive.dicom.part10 import Finding
from archive.errors import (
    ArchiveError,
    DatabaseUnavailable,
    Forbidden,
    InstanceConflict,
    InvalidInstance,
    KeysUnavailable,
    NotFound,
    OutOfSpace,
    SealBroken,
    UnsupportedClass,
)
from archive.web import body
from archive.web.dicomweb import stow
from tests.web.fakes import FakeNode
from tests.web.samples import STUDY, instance, multipart

BASE = "https://pacs.example:8443/dicomweb"
TYPE = 'multipart/related; type="application/dicom"; boundary="b"'


def post(client: FlaskClient, *parts: bytes, path: str = "/dicomweb/studies", **kwargs: Any) -> TestResponse:
    kwargs.setdefault("content_type", TYPE)
    return client.post(path, data=kwargs.pop("data", multipart(*parts)), **kwargs)


def failures(answer: TestResponse) -> list[int]:
    return [item["00081197"]["Value"][0] for item in answer.json.get("00081198", {"Value": []})["Value"]]


def stored(answer: TestResponse) -> list[str]:
    return [item["00081155"]["Value"][0] for item in answer.json.get("00081199", {"Value": []})["Value"]]


def test_a01_one_valid_part(client: FlaskClient, node: FakeNode) -> None:
    answer = post(client, instance(1))
    uid = f"{STUDY}.1.1.1"
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/dicom+json"
    assert answer.json == {
        "00081190": {"vr": "UR", "Value": [f"{BASE}/studies/{STUDY}.1"]},
        "00081199": {"vr": "SQ", "Value": [{
            "00081150": {"vr": "UI", "Value": [CTImageStorage]},
            "00081155": {"vr": "UI", "Value": [uid]},
            "00081190": {"vr": "UR", "Value": [f"{BASE}/studies/{STUDY}.1/series/{STUDY}.1.1/instances/{uid}"]},
        }]},
    }
    assert node.kept[uid].data == instance(1)
    assert node.store.sources[0].via == "stow"


def test_a02_identical_bytes_again(client: FlaskClient) -> None:
    post(client, instance(1))
    answer = post(client, instance(1))
    assert (answer.status_code, stored(answer), failures(answer)) == (200, [f"{STUDY}.1.1.1"], [])


def test_a03_same_uid_other_bytes(client: FlaskClient, node: FakeNode) -> None:
    post(client, instance(1))
    answer = post(client, instance(1, PatientName="Other^Name"))
    assert (answer.status_code, failures(answer)) == (409, [45070])
    assert answer.json["00081198"]["Value"][0]["00081155"]["Value"] == [f"{STUDY}.1.1.1"]
    assert "00081199" not in answer.json
    assert node.kept[f"{STUDY}.1.1.1"].data == instance(1)


def test_a04_two_valid_and_one_broken(client: FlaskClient) -> None:
    answer = post(client, instance(1), b"broken" * 100, instance(2))
    assert answer.status_code == 202
    assert stored(answer) == [f"{STUDY}.1.1.1", f"{STUDY}.1.1.2"]
    assert failures(answer) == [49152]
    assert answer.json["00081198"]["Value"][0] == {
        "00081150": {"vr": "UI"},
        "00081155": {"vr": "UI"},
        "00081197": {"vr": "US", "Value": [49152]},
    }


def test_a05_a28_all_broken(client: FlaskClient) -> None:
    answer = post(client, b"broken" * 100, b"", b"x" * 131)
    assert (answer.status_code, failures(answer)) == (409, [49152] * 3)
    assert "00081199" not in answer.json
    assert "00081190" not in answer.json


def test_a06_a_part_without_content_type(client: FlaskClient) -> None:
    assert post(client, data=multipart(instance(1), content_type=None)).status_code == 200


def test_a07_no_parts(client: FlaskClient) -> None:
    for data in (b"--b--", b"", b"\r\n--b--\r\n", b"something else"):
        answer = post(client, data=data)
        assert (answer.status_code, answer.content_type) == (400, "application/problem+json")


def test_a08_an_empty_single_part(client: FlaskClient) -> None:
    answer = post(client, data=b"", content_type="application/dicom", environ_overrides={"CONTENT_LENGTH": "0"})
    assert (answer.status_code, failures(answer)) == (409, [49152])


def test_a09_a_part_whose_body_is_empty(client: FlaskClient) -> None:
    answer = post(client, b"")
    assert (answer.status_code, failures(answer)) == (409, [49152])


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json", "text/plain", "", "nonsense", "application/octet-stream", "multipart/form-data; boundary=b",
        'multipart/related; type="application/json"; boundary=b', "application/dicom+json", "application/dicom+xml",
    ],
)
def test_a10_another_type(client: FlaskClient, node: FakeNode, content_type: str) -> None:
    answer = post(client, instance(1), content_type=content_type)
    assert answer.status_code == 415
    assert node.store.incoming == []


def test_a10_a_compressed_body_is_not_taken(client: FlaskClient) -> None:
    assert post(client, instance(1), headers={"Content-Encoding": "gzip"}).status_code == 415


def test_a_multipart_type_without_a_boundary(client: FlaskClient) -> None:
    for content_type in ("multipart/related; type=application/dicom", "multipart/related; type=application/dicom; boundary="):
        assert post(client, instance(1), content_type=content_type).status_code == 400


@pytest.mark.parametrize(
    "content_type", ["application/dicom", "application/dicom; transfer-syntax=1.2.840.10008.1.2.1", "Application/DICOM"]
)
def test_a11_a_single_part(client: FlaskClient, node: FakeNode, content_type: str) -> None:
    answer = post(client, data=instance(1), content_type=content_type)
    assert (answer.status_code, stored(answer)) == (200, [f"{STUDY}.1.1.1"])
    assert node.kept[f"{STUDY}.1.1.1"].data == instance(1)


def test_a11_a_single_part_of_unknown_length_is_not_taken(app: Flask, node: FakeNode) -> None:
    environ = {"CONTENT_LENGTH": "", "HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True}
    answer = app.test_client().post(
        "/dicomweb/studies", input_stream=io.BytesIO(instance(1)), content_type="application/dicom", environ_overrides=environ,
        headers={"Authorization": "Bearer mia-token"},
    )
    assert answer.status_code == 411
    assert node.store.incoming == []


def test_a12_a_part_names_its_transfer_syntax(client: FlaskClient) -> None:
    data = multipart(instance(1), content_type="application/dicom;transfer-syntax=1.2.840.10008.1.2.1")
    assert post(client, data=data).status_code == 200


@pytest.mark.parametrize("accept", ["application/dicom", "text/html", "multipart/related", "nope"])
def test_a13_an_answer_that_is_not_taken(client: FlaskClient, node: FakeNode, accept: str) -> None:
    assert post(client, instance(1), headers={"Accept": accept}).status_code == 406
    assert node.store.incoming == []


@pytest.mark.parametrize("accept", [None, "*/*", "application/dicom+json", "application/json", "text/html, */*;q=0.1"])
def test_a14_an_answer_that_is_taken(client: FlaskClient, accept: str | None) -> None:
    answer = post(client, instance(1), headers={"Accept": accept})
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/dicom+json")


def test_a15_into_its_own_study(client: FlaskClient) -> None:
    answer = post(client, instance(1), path=f"/dicomweb/studies/{STUDY}.1")
    assert answer.status_code == 200
    assert answer.json["00081190"]["Value"] == [f"{BASE}/studies/{STUDY}.1"]


def test_a16_into_another_study(client: FlaskClient, node: FakeNode) -> None:
    answer = post(client, instance(1), path="/dicomweb/studies/1.2.3")
    assert (answer.status_code, failures(answer)) == (409, [43265])
    item = answer.json["00081198"]["Value"][0]
    assert (item["00081150"]["Value"], item["00081155"]["Value"]) == ([CTImageStorage], [f"{STUDY}.1.1.1"])
    assert node.kept == {}


def test_a17_one_match_and_one_not(client: FlaskClient) -> None:
    answer = post(client, instance(1), instance(1, study=2), path=f"/dicomweb/studies/{STUDY}.1")
    assert (answer.status_code, stored(answer), failures(answer)) == (202, [f"{STUDY}.1.1.1"], [43265])
    assert client.get(f"/dicomweb/studies/{STUDY}.2").status_code == 404


def test_a18_a_study_that_is_no_uid(client: FlaskClient, node: FakeNode) -> None:
    for study in ("not-a-uid", "1..2", ".1", "1.", "1" * 65, "1.2%2F3x", "%00"):
        assert post(client, instance(1), path=f"/dicomweb/studies/{study}").status_code in {400, 404, 405}
    assert post(client, instance(1), path="/dicomweb/studies/not-a-uid").status_code == 400
    assert node.store.incoming == []


def test_a19_missing_identifiers(client: FlaskClient) -> None:
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
        answer = post(client, instance(1, **{keyword: None}))
        assert (answer.status_code, failures(answer)) == (409, [0xC000])
        assert answer.json["00081198"]["Value"][0]["00081155"]["Value"] == [f"{STUDY}.1.1.1"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a21_malformed_uids_are_refused_and_never_echoed(client: FlaskClient) -> None:
    for uid in ("abc.123", "../../../../etc/passwd", "1.2' OR '1'='1", "<script>"):
        answer = post(client, instance(1, SOPInstanceUID=uid))
        assert (answer.status_code, failures(answer)) == (409, [43264])
        assert uid not in answer.text
        assert answer.json["00081198"]["Value"][0]["00081155"] == {"vr": "UI"}


def test_a23_a_finding_is_a_warning(client: FlaskClient, node: FakeNode) -> None:
    node.store.findings = (Finding("00080020", "is not a date"), Finding("", "bytes after the data set " + "x" * 100))
    answer = post(client, instance(1))
    assert answer.status_code == 202
    item = answer.json["00081199"]["Value"][0]
    assert item["00081196"] == {"vr": "US", "Value": [45063]}
    first, second = item["00741048"]["Value"]
    assert first == {"00000901": {"vr": "AT", "Value": ["00080020"]}, "00000902": {"vr": "LO", "Value": ["00080020 is not a date"]}}
    assert set(second) == {"00000902"}
    assert len(second["00000902"]["Value"][0]) == 64
    assert failures(answer) == []


def test_held_instances_are_kept_with_a_warning(client: FlaskClient, node: FakeNode) -> None:
    node.store.status = "held"
    answer = post(client, instance(1))
    assert answer.status_code == 202
    item = answer.json["00081199"]["Value"][0]
    assert item["00081196"]["Value"] == [0xB000]
    assert item["00081190"] == {"vr": "UR"}
    assert "00081190" not in answer.json
    assert "waits for a decision" in answer.text


def test_what_was_decided_against_is_not_said_to_wait(client: FlaskClient, node: FakeNode) -> None:
    node.store.status, node.store.decided = "held", True
    answer = post(client, instance(1))
    assert answer.status_code == 202
    assert "waits" not in answer.text
    assert "was decided against" in answer.text


def test_quarantined_instances_are_failures(client: FlaskClient, node: FakeNode) -> None:
    node.store.status = "quarantined"
    answer = post(client, instance(1))
    assert (answer.status_code, failures(answer)) == (409, [49152])


def test_a27_a_request_larger_than_the_limit(client: FlaskClient, node: FakeNode, app: Flask) -> None:
    limit = node.config.http.max_request_bytes
    answer = app.test_client().post(
        "/dicomweb/studies", input_stream=io.BytesIO(b"--b"), content_type=TYPE,
        headers={"Authorization": "Bearer mia-token"}, environ_overrides={"CONTENT_LENGTH": str(limit + 1)},
    )
    assert answer.status_code == 413
    assert node.store.incoming == []


@pytest.mark.parametrize(
    ("boundary", "lead", "end", "quoted"),
    [("b", "", "\r\n", False), ("b", "preamble\r\n", "\r\n", True), ("b", "", "\n", True), ("=_?:(a/b)'+.x=", "\r\n", "\r\n", False)],
)
def test_a32_boundaries(client: FlaskClient, boundary: str, lead: str, end: str, quoted: bool) -> None:
    named = f'"{boundary}"' if quoted else boundary
    data = multipart(instance(1), instance(2), boundary=boundary, lead=lead, end=end) + b"\r\nepilogue"
    answer = post(client, data=data, content_type=f"multipart/related; type=application/dicom; boundary={named}")
    assert (answer.status_code, len(stored(answer))) == (200, 2)


def test_a33_two_parts_with_the_same_uids(client: FlaskClient) -> None:
    answer = post(client, instance(1), instance(1, PatientName="Other^Name"))
    assert (answer.status_code, stored(answer), failures(answer)) == (202, [f"{STUDY}.1.1.1"], [45070])


def test_a34_a_chunked_body(app: Flask, node: FakeNode) -> None:
    environ = {"CONTENT_LENGTH": "", "HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True}
    answer = app.test_client().post(
        "/dicomweb/studies", input_stream=io.BytesIO(multipart(instance(1))), content_type=TYPE, environ_overrides=environ,
        headers={"Authorization": "Bearer mia-token"},
    )
    assert answer.status_code == 200


@pytest.mark.parametrize("cut", [1, 100, 700, 1000])
def test_a35_a_client_that_drops_mid_body(client: FlaskClient, node: FakeNode, cut: int) -> None:
    data = multipart(instance(1), instance(2))
    answer = post(client, data=data[:-cut], environ_overrides={"CONTENT_LENGTH": str(len(data))})
    assert answer.status_code == 400
    assert [one.ended for one in node.store.incoming] == ["finished", "aborted"]
    assert list(node.kept) == [f"{STUDY}.1.1.1"]


def test_a35_a_client_that_stalls_mid_body(app: Flask, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    gate = threading.Event()
    data = multipart(instance(1), instance(2))[:-300]

    class Stalling(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            block = super().read(size)
            if not block:
                gate.wait(60)
            return block

    monkeypatch.setattr(body.Body.__init__, "__kwdefaults__", {**body.Body.__init__.__kwdefaults__, "patience_s": 1.0})
    answer = app.test_client().post(
        "/dicomweb/studies",
        input_stream=Stalling(data),
        content_type=TYPE,
        environ_overrides={"CONTENT_LENGTH": "", "wsgi.input_terminated": True},
        headers={"Authorization": "Bearer mia-token"},
    )
    gate.set()
    assert answer.status_code == 408
    assert [one.ended for one in node.store.incoming] == ["finished", "aborted"]


def test_2a4_a_part_without_preamble_is_wrapped_with_a_warning(client: FlaskClient, node: FakeNode) -> None:
    data = instance(1)
    answer = post(client, data[132:])
    assert answer.status_code == 202
    assert answer.json["00081199"]["Value"][0]["00081196"]["Value"] == [45056]
    assert node.kept[f"{STUDY}.1.1.1"].data == data


def test_2a4_a_data_set_alone_is_not_guessed_at(client: FlaskClient) -> None:
    data = instance(1, syntax=ImplicitVRLittleEndian)
    at = data.index(b"\x08\x00\x16\x00")
    answer = post(client, data[at:])
    assert (answer.status_code, failures(answer)) == (409, [49152])


def test_a_part_of_another_type_fails_alone(client: FlaskClient) -> None:
    body_bytes = multipart(instance(1), content_type="application/dicom")[:-5]
    body_bytes += multipart(b"{}", content_type="application/dicom+json", lead="")
    answer = post(client, data=body_bytes)
    assert (answer.status_code, len(stored(answer)), failures(answer)) == (202, 1, [49152])


def test_g02_a_reader_may_not_store(client: FlaskClient, node: FakeNode) -> None:
    node.store.faults["open", 0] = Forbidden("you may not store")
    answer = post(client, instance(1))
    assert (answer.status_code, answer.content_type) == (403, "application/problem+json")


def test_an_unknown_datastore_is_not_there(client: FlaskClient, node: FakeNode) -> None:
    node.store.faults["open", 0] = NotFound("there is no such datastore")
    assert post(client, instance(1), path="/datastores/other/dicomweb/studies").status_code == 404


@pytest.mark.parametrize(
    ("error", "status"),
    [(OutOfSpace("full"), 507), (DatabaseUnavailable("locked"), 503), (KeysUnavailable("shut"), 503)],
)
@pytest.mark.parametrize("step", ["open", "write", "finish"])
def test_10_an_archive_that_cannot_store_says_so(client: FlaskClient, node: FakeNode, error: ArchiveError, status: int, step: str) -> None:
    node.store.faults[step, 0] = error
    answer = post(client, instance(1), instance(2))
    assert (answer.status_code, answer.content_type) == (status, "application/problem+json")
    assert (answer.headers.get("Retry-After") is not None) == (status == 503)
    assert all(one.ended == "aborted" for one in node.store.incoming)
    assert node.kept == {}


@pytest.mark.parametrize(
    ("error", "reason"), [(OutOfSpace("full"), 42752), (DatabaseUnavailable("locked"), 272), (Forbidden("derived only"), 292)]
)
def test_10_what_was_stored_before_is_told(client: FlaskClient, node: FakeNode, error: ArchiveError, reason: int) -> None:
    node.store.faults["finish", 2] = error
    answer = post(client, instance(1), instance(2), instance(3))
    assert (answer.status_code, stored(answer), failures(answer)) == (202, [f"{STUDY}.1.1.1", f"{STUDY}.1.1.3"], [reason])
    node.store.faults = {("open", 5): error}
    answer = post(client, instance(4), instance(5))
    assert (answer.status_code, failures(answer)) == (202, [reason])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UnsupportedClass("x"), 290), (InstanceConflict("x"), 45070), (Forbidden("x"), 292), (SealBroken("x"), 272),
        (InvalidInstance("x", reason="bad-uid"), 43264), (InvalidInstance("x", reason="wrong-study"), 43265),
        (InvalidInstance("x", reason="uid-mismatch"), 43264), (InvalidInstance("x", reason="class-mismatch"), 43264),
        (InvalidInstance("x", reason="missing-uid"), 49152), (InvalidInstance("x", reason="too-large"), 49152),
        (InvalidInstance("x", reason="too-deep"), 49152), (InvalidInstance("x", reason="something new"), 49152),
    ],
)
def test_failure_reasons(client: FlaskClient, node: FakeNode, error: ArchiveError, reason: int) -> None:
    node.store.faults["finish", 1] = error
    answer = post(client, instance(1))
    assert (answer.status_code, failures(answer)) == (409, [reason])
    assert stow.reason_of(error) == reason


def test_a_part_refused_early_is_skipped_and_the_next_is_stored(client: FlaskClient, node: FakeNode) -> None:
    node.store.faults["write", 1] = InvalidInstance("x", reason="too-deep")
    answer = post(client, instance(1) + bytes(1 << 20), instance(2))
    assert (answer.status_code, stored(answer)) == (202, [f"{STUDY}.1.1.2"])


def test_a_fault_of_the_program_leaves_nothing_half_stored(client: FlaskClient, node: FakeNode) -> None:
    node.store.faults["finish", 1] = ValueError("CANARY")  # type: ignore[assignment]
    answer = post(client, instance(1))
    assert answer.status_code == 500
    assert "CANARY" not in answer.text
    assert node.store.incoming[0].ended == "aborted"


def test_another_datastore_has_its_own_addresses(client: FlaskClient) -> None:
    answer = post(client, instance(1), path="/datastores/research%20one/dicomweb/studies")
    assert answer.json["00081190"]["Value"] == [f"https://pacs.example:8443/datastores/research%20one/dicomweb/studies/{STUDY}.1"]


def test_memory_does_not_grow_with_a_part(app: Flask, node: FakeNode) -> None:
    import tracemalloc

    node.store.keep_bytes = False
    block, total = bytes(256 << 10), 400  # 100 MiB

    class Long(io.RawIOBase):
        def __init__(self) -> None:
            self.left = iter([b"--b\r\n\r\n" + bytes(128) + b"DICM", *[block] * total, b"\r\n--b--"])

        def read(self, size: int = -1) -> bytes:
            return next(self.left, b"")

    tracemalloc.start()
    try:
        answer = app.test_client().post(
            "/dicomweb/studies", content_type=TYPE, environ_overrides={"CONTENT_LENGTH": "", "wsgi.input": Long()},
            headers={"Authorization": "Bearer mia-token"},
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert answer.status_code == 200
    assert node.store.incoming[0].bytes_seen == total * len(block) + 132
    assert peak < 8 << 20
    assert node.store.largest_write <= 1 << 20


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(data=st.data())
def test_10_a_body_broken_anywhere_is_a_clear_answer(client: FlaskClient, node: FakeNode, data: st.DataObject) -> None:
    node.kept.clear()
    node.store.incoming.clear()
    whole = bytearray(multipart(instance(1), instance(2)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert"])):
            case "flip":
                whole[at] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del whole[at : at + data.draw(st.integers(1, 600))]
                whole = whole or bytearray(b"x")
            case _:
                whole[at:at] = data.draw(st.sampled_from([b"\r\n--b\r\n", b"--b--", b"\x00" * 50, b"\n"]))
    answer = post(client, data=bytes(whole))
    assert answer.status_code in {200, 202, 400, 409}
    assert all(one.ended for one in node.store.incoming)


def test_no_more_parts_than_are_answered_for(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stow, "MAX_PARTS", 3)
    assert post(client, b"", b"", b"").status_code == 409
    assert post(client, b"", b"", b"", b"").status_code == 413
