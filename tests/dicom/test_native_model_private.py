"""native_model: private attributes come without their block, and find that of their creator (PS3.19 A.1.5)."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from archive.dicom import native_model
from archive.dicom.xml import native
from tests.services.archives import instance

PRIVATE = {
    "00110010": {"vr": "LO", "Value": ["FIRST"]}, "00110011": {"vr": "LO", "Value": ["SECOND"]},
    "00111055": {"vr": "LO", "Value": ["of the first"]}, "00111155": {"vr": "LO", "Value": ["of the second"]},
}


def test_what_is_written_is_read_again() -> None:
    document = {**PRIVATE, "60031010": {"vr": "SQ", "Value": [dict(PRIVATE)]}, "60030010": {"vr": "LO", "Value": ["OUTER"]}}
    assert native_model.to_json(native(dict(sorted(document.items())))) == [document]


def test_a_creator_that_is_not_there_gets_a_block() -> None:
    attributes = (
        '<DicomAttribute tag="00110010" vr="LO"><Value number="1">OTHER</Value></DicomAttribute>',
        '<DicomAttribute tag="00110055" vr="SH" privateCreator="MINE"><Value number="1">x</Value></DicomAttribute>',
    )
    text = f"<NativeDicomModel>{''.join(attributes)}</NativeDicomModel>"
    assert native_model.to_json(text.encode()) == [{
        "00110010": {"vr": "LO", "Value": ["OTHER"]}, "00110011": {"vr": "LO", "Value": ["MINE"]}, "00111155": {"vr": "SH", "Value": ["x"]},
    }]


def test_what_dcmtk_writes(tmp_path: Path, program: Callable[[str, str], str]) -> None:
    import io

    import pydicom

    dataset = pydicom.dcmread(io.BytesIO(instance()))
    dataset.add_new(0x00110010, "LO", "FIRST")
    dataset.add_new(0x00111055, "LO", "of the first")
    dataset.save_as(tmp_path / "one.dcm", enforce_file_format=True)
    done = subprocess.run([program("dcm2xml", "dcmtk"), "-nat", str(tmp_path / "one.dcm")], capture_output=True, check=True)
    found, = native_model.to_json(done.stdout)
    assert found["00111055"] == {"vr": "LO", "Value": ["of the first"]}
    assert "00110055" not in found
