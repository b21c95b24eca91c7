"""DICOMDIR: every instance is found again by its records, whatever its kind and its text."""

from __future__ import annotations

import io
from typing import Any

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archive.dicom.dicomdir import MEDIA_STORAGE_DIRECTORY, Directory, record_type
from archive.dicom.part10 import Scanned

CT, SR, KO, PR, PDF, ECG = (f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("2", "88.11", "88.59", "11.1", "104.1", "9.1.1"))
RT_DOSE, RAW, SEG, RT_IMAGE = (f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("481.2", "66", "66.4", "481.1"))
FRAMES = object()


def scanned(sop: str, *, study: str = "1.2", series: str = "1.2.1", kind: str = CT, frames: bool = True, **texts: str) -> Scanned:
    """Index attributes as the scanner gives them."""
    from archive.dicom.attributes import BY_KEYWORD

    found: dict[str, Any] = {}
    for keyword, text in texts.items():
        one = BY_KEYWORD[keyword]
        found[one.tag_hex] = {"vr": one.vr, "Value": [{"Alphabetic": text} if one.vr == "PN" else text]}
    return Scanned(kind, sop, study, series, "1.2.840.10008.1.2.1", 0, found, (), FRAMES if frames else None, "zero")  # type: ignore[arg-type]


def walk(data: bytes) -> list[list[pydicom.Dataset]]:
    """The paths from the root to each leaf, by the offsets alone."""
    directory = pydicom.dcmread(io.BytesIO(data))
    at = {one.seq_item_tell: one for one in directory.DirectoryRecordSequence}
    paths: list[list[pydicom.Dataset]] = []

    def level(offset: int, above: list[pydicom.Dataset]) -> None:
        while offset:
            record = at[offset]
            below = record.OffsetOfReferencedLowerLevelDirectoryEntity
            if below:
                level(below, [*above, record])
            else:
                paths.append([*above, record])
            offset = record.OffsetOfTheNextDirectoryRecord

    level(directory.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity, [])
    return paths


@pytest.mark.parametrize(("kind", "frames", "wanted"), [
    (CT, True, "IMAGE"), (SEG, True, "IMAGE"), (RT_IMAGE, True, "IMAGE"), (SR, False, "SR DOCUMENT"), (KO, False, "KEY OBJECT DOC"),
    (PR, False, "PRESENTATION"), (PDF, False, "ENCAP DOC"), (ECG, False, "WAVEFORM"), (RT_DOSE, True, "RT DOSE"), (RAW, False, "RAW DATA"),
    ("1.2.3.4", True, "IMAGE"), ("1.2.3.4", False, None),
])
def test_kinds_of_records(kind: str, frames: bool, wanted: str | None) -> None:
    assert record_type(scanned("1.2.1.1", kind=kind, frames=frames)) == wanted


def test_patients_studies_and_series_are_told_apart() -> None:
    directory = Directory()
    for number, (patient, study, series) in enumerate((
        ("A", "1.2", "1.2.1"), ("A", "1.2", "1.2.2"), ("A", "1.2", "1.2.1"), ("A", "1.3", "1.3.1"), ("B", "1.4", "1.4.1"),
    )):
        one = scanned(f"{series}.{number}", study=study, series=series, PatientID=patient, PatientName=f"{patient}^Ä")
        directory.add(one, ("DICOM", f"I{number}"))
    data = directory.written()
    found = {
        str(path[-1].ReferencedSOPInstanceUIDInFile): (path[0].PatientID, path[1].StudyInstanceUID, path[2].SeriesInstanceUID)
        for path in walk(data)
    }
    assert found == {
        "1.2.1.0": ("A", "1.2", "1.2.1"), "1.2.2.1": ("A", "1.2", "1.2.2"), "1.2.1.2": ("A", "1.2", "1.2.1"),
        "1.3.1.3": ("A", "1.3", "1.3.1"), "1.4.1.4": ("B", "1.4", "1.4.1"),
    }
    assert all(len(path) == 4 and str(path[0].PatientName).endswith("^Ä") for path in walk(data))
    assert pydicom.dcmread(io.BytesIO(data)).file_meta.MediaStorageSOPClassUID == MEDIA_STORAGE_DIRECTORY


def test_what_has_no_record_type_is_left_out() -> None:
    directory = Directory()
    directory.add(scanned("1.2.1.1", kind="1.2.3.4", frames=False), ("A",))
    assert walk(directory.written()) == []


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("AB"), st.text(max_size=40), st.integers(1, 3)), min_size=1, max_size=12))
def test_any_text_leaves_every_instance_findable(made: list[tuple[str, str, int]]) -> None:
    directory = Directory()
    for number, (patient, text, series) in enumerate(made):
        directory.add(
            scanned(f"1.2.{series}.{number}", series=f"1.2.{series}", PatientID=patient, SeriesDescription=text, StudyDescription=text),
            ("DICOM", f"I{number}"),
        )
    found = [str(path[-1].ReferencedSOPInstanceUIDInFile) for path in walk(directory.written())]
    assert sorted(found) == sorted(f"1.2.{series}.{number}" for number, (_, _, series) in enumerate(made))
