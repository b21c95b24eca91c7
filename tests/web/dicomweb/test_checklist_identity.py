"""Checklist rows about who a stored instance is of, and what its text may hold, over a whole archive; each test names its row."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from werkzeug.test import TestResponse

from archive.access.grants import Target
from tests.services import archives
from tests.web import real
from tests.web.real import Place

AS_STORED = {"Accept": "application/dicom; transfer-syntax=*"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """mia may store and sees all."""
    with archives.opened(real.config(tmp_path_factory.mktemp("identity"))) as node:
        made = real.place(node)
        node.accounts.add_grant(archives.the_console(node), to="mia", role="radiologist", target=Target("everything"))
        yield made


def stow(place: Place, data: bytes) -> TestResponse:
    return place.ask("POST", "/dicomweb/studies", data=data, content_type="application/dicom")


def study(place: Place, uid: str) -> dict[str, Any]:
    [row] = place.ask("GET", f"/dicomweb/studies?StudyInstanceUID={uid}").json
    return dict(row)


def rewritten(data: bytes, change: Any, syntax: str | None = None) -> bytes:
    """The same file with its data set changed."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    change(dataset)
    if syntax:
        dataset.file_meta.TransferSyntaxUID = syntax
    out = io.BytesIO()
    pydicom.dcmwrite(out, dataset, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True, enforce_file_format=True)
    return out.getvalue()


@pytest.mark.parametrize(("uid", "value"), [("1.2.20.1", None), ("1.2.20.2", "")])
def test_a20_no_patient_id(place: Place, uid: str, value: str | None) -> None:
    answer = stow(place, archives.instance(1, study=uid, PatientID=value))
    assert (answer.status_code, "00081198" in answer.json) == (200, False)
    row = study(place, uid)
    assert "Value" not in row["00100020"]
    assert place.ask("GET", row["00081190"]["Value"][0].removeprefix(real.ORIGIN)).status_code == 200


def replaced(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) == 1
    assert len(old) == len(new)
    return data.replace(old, new)


def warned(answer: TestResponse) -> list[tuple[list[str], str]]:
    """Status 202 with one stored instance; its warnings as tags and words."""
    assert answer.status_code == 202, answer.text
    assert "00081198" not in answer.json
    [item] = answer.json["00081199"]["Value"]
    assert item["00081196"]["Value"] == [0xB007]
    return [(one["00000901"]["Value"], one["00000902"]["Value"][0]) for one in item["00741048"]["Value"]]


def test_a24_several_patient_ids_where_one_is_allowed(place: Place) -> None:
    data = rewritten(archives.instance(1, study="1.2.24"), lambda dataset: setattr(dataset, "PatientID", ["a", "b"]))
    [(tags, said)] = warned(stow(place, data))
    assert tags == ["00100020"]
    assert said.endswith("several values where one is allowed; each is found")
    # Of several none is dropped: they are another patient than the first alone, who gets no more images by it.
    assert [len(place.ask("GET", f"/dicomweb/studies?PatientID={value}").json) for value in ("a", "b", "c")] == [1, 1, 0]
    [document] = place.ask("GET", "/dicomweb/studies/1.2.24/metadata").json
    assert document["00100020"]["Value"] == ["a", "b"]


@pytest.mark.parametrize(("uid", "sent", "padded", "value"), [
    ("1.2.25.1", b"Knee left12 ", b"Knee left12\0", "Knee left12"), ("1.2.25.2", b"Knee 99999", b"Knee \0\0\0\0\0", "Knee"),
])
def test_a25_text_padded_with_nul(place: Place, uid: str, sent: bytes, padded: bytes, value: str) -> None:
    data = replaced(archives.instance(1, study=uid, StudyDescription=sent.decode().strip()), sent, padded)
    answer = stow(place, data)
    assert (answer.status_code, "00081196" in answer.text) == (200, False)
    [row] = place.ask("GET", f"/dicomweb/studies?StudyInstanceUID={uid}&StudyDescription={value}&includefield=StudyDescription").json
    assert row["00081030"]["Value"] == [value]
    kept = place.ask("GET", f"/dicomweb/studies/{uid}/series/{uid}.1/instances/{uid}.1.1", headers=AS_STORED)
    assert kept.data == data


@pytest.mark.parametrize(("number", "bad", "tag"), [
    (1, b"A\x01CD99", "00100020"), (2, b"A\nCD99", "00100020"), (3, b"A\x7fCD99", "00100020"),
    (4, b"A\x1bCD99", "00080005"), (5, b"A\xffCD99", "00080005"),
])
def test_a26_characters_a_patient_id_has_not(place: Place, number: int, bad: bytes, tag: str) -> None:
    """Peers differ: some refuse with 409; here what a modality sends is kept as it came, with a warning that names the attribute."""
    uid = f"1.2.26.{number}"
    data = replaced(archives.instance(1, study=uid, PatientID="ABCD99"), b"ABCD99", bad)
    [(tags, _said)] = warned(stow(place, data))
    assert tags == [tag]
    assert study(place, uid)["00201208"]["Value"] == [1]
    assert len(place.ask("GET", f"/dicomweb/studies/{uid}/metadata").json) == 1
    kept = place.ask("GET", f"/dicomweb/studies/{uid}/series/{uid}.1/instances/{uid}.1.1", headers=AS_STORED)
    assert kept.data == data


def test_a30_the_patient_id_comes_with_the_second_instance(place: Place) -> None:
    assert stow(place, archives.instance(1, study="1.2.30", PatientID="")).status_code == 200
    assert "Value" not in study(place, "1.2.30")["00100020"]
    assert stow(place, archives.instance(2, study="1.2.30", PatientID="LATER")).status_code == 200
    assert study(place, "1.2.30")["00100020"]["Value"] == ["LATER"]
    assert stow(place, archives.instance(3, study="1.2.30", PatientID="")).status_code == 200
    row = study(place, "1.2.30")
    assert (row["00100020"]["Value"], row["00201208"]["Value"]) == (["LATER"], [3])
    assert len(place.ask("GET", "/dicomweb/studies?PatientID=LATER").json) == 1


def test_a31_private_elements_in_implicit_vr(place: Place) -> None:
    def private(dataset: Dataset) -> None:
        block = dataset.private_block(0x0099, "ACME", create=True)
        block.add_new(1, "LO", "secret")
        block.add_new(2, "OB", b"\1\2\3\4")
        block.add_new(3, "SQ", [Dataset()])

    data = rewritten(archives.instance(1, study="1.2.31"), private, ImplicitVRLittleEndian)
    assert stow(place, data).status_code == 200
    [document] = place.ask("GET", "/dicomweb/studies/1.2.31/metadata").json
    assert document["00990010"] == {"vr": "LO", "Value": ["ACME"]}
    assert {document[f"0099100{n}"]["vr"] for n in (1, 2, 3)} <= {"UN", "SQ"}
    kept = place.ask("GET", "/dicomweb/studies/1.2.31/series/1.2.31.1/instances/1.2.31.1.1", headers=AS_STORED)
    assert kept.data == data
