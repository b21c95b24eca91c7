"""Answers as bytes, read back by pydicom; and implicit VR made from explicit."""

from __future__ import annotations

import io
import json
import warnings
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from archive.dicom import compose
from archive.dicom.reencode import little_endian

ROW: dict[str, Any] = {
    "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎"}]}, "00100020": {"vr": "LO"},
    "00080061": {"vr": "CS", "Value": ["CT", "MR"]}, "00201208": {"vr": "IS", "Value": [12]}, "00280010": {"vr": "US", "Value": [512]},
    "00180050": {"vr": "DS", "Value": [0.1, 2]}, "0020000D": {"vr": "UI", "Value": ["1.2.3"]},
    "00400275": {"vr": "SQ", "Value": [{"00400009": {"vr": "SH", "Value": ["S1"]}, "00321064": {"vr": "SQ"}}, {}]},
    "00081199": {"vr": "SQ"}, "00720026": {"vr": "AT", "Value": ["00100010"]}, "00189073": {"vr": "FD", "Value": [1.5]},
    "00091010": {"vr": "UN", "InlineBinary": "AAAA"}, "00204000": {"vr": "LT", "Value": ["a"]},
}  # fmt: skip


@pytest.mark.parametrize("explicit", [True, False])
def test_read_back(explicit: bool) -> None:
    made = compose.dataset(ROW, explicit=explicit, declared=b"")
    found = read_dataset(io.BytesIO(made), is_implicit_VR=not explicit, is_little_endian=True)
    assert found.SpecificCharacterSet == "ISO_IR 192"
    assert str(found.PatientName) == "Yamada^Tarou=山田^太郎"
    assert (found.PatientID, list(found.ModalitiesInStudy), found.NumberOfStudyRelatedInstances) == ("", ["CT", "MR"], 12)
    assert (found.Rows, found.StudyInstanceUID, found.SelectorAttribute, found.AcquisitionDuration) == (512, "1.2.3", 0x00100010, 1.5)
    assert [float(value) for value in found.SliceThickness] == [0.1, 2]
    assert found.RequestAttributesSequence[0].ScheduledProcedureStepID == "S1"
    assert [len(item) for item in found.RequestAttributesSequence] == [2, 0]
    assert len(found.ReferencedSOPSequence) == 0


@pytest.mark.parametrize(("value", "expected"), [
    (1 / 3, "0.33333333333333"), (-1 / 3, "-0.3333333333333"), (1e-20, "1e-20"), (123456789.125, "123456789.125"),
    (-1.2345678901234567e-100, "-1.234567890e-100"), (2.0, "2.0"), (1e22, "1e+22"),
])
def test_a_decimal_in_sixteen_bytes(value: float, expected: str) -> None:
    text = compose.text_of("DS", value)
    assert len(text) <= 16
    assert abs(float(text) - value) <= abs(float(expected) - value)


def test_implicit_from_explicit() -> None:
    dataset = Dataset()
    dataset.PatientName, dataset.Rows, dataset.PixelData = "A^B", 4, bytes(32)
    dataset["PixelData"].VR = "OW"
    inner, outer = Dataset(), Dataset()
    inner.CodeValue = "T-1"
    outer.ConceptNameCodeSequence = [inner]
    dataset.ContentSequence = [outer, Dataset()]
    dataset.add_new(0x00091001, "LO", "private")
    for implicit in (True, False):
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pydicom.filebase import DicomFileLike

            out = DicomFileLike(file)
            out.is_implicit_VR, out.is_little_endian = implicit, True
            write_dataset(out, dataset)
        bare = b"".join(little_endian(file.getvalue(), 0, implicit, True, {}, "US", explicit=False))
        again = read_dataset(io.BytesIO(bare), is_implicit_VR=True, is_little_endian=True)
        there, here = json.loads(again.to_json()), json.loads(dataset.to_json())
        assert there.pop("00091001")["vr"] == "UN"
        here.pop("00091001")
        assert there == here
