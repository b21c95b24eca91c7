"""Identifiers: any bytes end in a reading or one error, soon; and what pydicom writes is read."""

from __future__ import annotations

import contextlib
import io
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filebase import DicomFileLike
from pydicom.filewriter import write_dataset

from archive.dicom.attributes import Level
from archive.dimse.identifiers import Identifier, MalformedIdentifier, read


def written(dataset: Dataset, *, explicit: bool) -> bytes:
    file = io.BytesIO()
    out = DicomFileLike(file)
    out.is_implicit_VR, out.is_little_endian = not explicit, True
    write_dataset(out, dataset)
    return file.getvalue()


def sample() -> Dataset:
    dataset, step = Dataset(), Dataset()
    dataset.SpecificCharacterSet, dataset.QueryRetrieveLevel, dataset.PatientName = "ISO_IR 100", "STUDY", "Müller*"
    dataset.StudyInstanceUID, dataset.Rows, dataset.StudyDate = ["1.2", "1.3"], 512, ""
    step.ScheduledProcedureStepID = "S1"
    dataset.RequestAttributesSequence = [step]
    dataset.ProcedureCodeSequence = []
    return dataset


@pytest.mark.parametrize("explicit", [True, False])
def test_what_pydicom_writes(explicit: bool) -> None:
    found = read(written(sample(), explicit=explicit), explicit=explicit)
    assert (found.declared, found.level) == (b"ISO_IR 100", Level.STUDY)
    assert found.text(0x00100010) == "Müller*"
    assert (found.text(0x0020000D), found.text(0x00280010), found.text(0x00080020)) == ("1.2\\1.3", "512", "")
    assert found.keys[0x00400275].items[0][0].text.strip() == "S1"
    assert (found.keys[0x00081032].universal, found.keys[0x00400275].universal) == (True, False)


@given(data=st.binary(max_size=200), explicit=st.booleans())
@example(data=b"\x08\x00\x32\x10\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 2000, explicit=False)
@example(data=b"\x08\x00\x32\x10SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 2000, explicit=True)
@example(data=b"\x10\x00\x10\x00\0\0\0\0" * 3000, explicit=False)
@settings(max_examples=300, deadline=None)
def test_any_bytes(data: bytes, explicit: bool) -> None:
    begun = time.process_time()
    with contextlib.suppress(MalformedIdentifier):
        assert isinstance(read(data, explicit=explicit), Identifier)
    assert time.process_time() - begun < 1


@given(at=st.integers(0, 200), byte=st.integers(0, 255), explicit=st.booleans())
@settings(max_examples=300, deadline=None)
def test_one_byte_changed(at: int, byte: int, explicit: bool) -> None:
    data = bytearray(written(sample(), explicit=explicit))
    data[at % len(data)] = byte
    try:
        read(bytes(data), explicit=explicit)
    except MalformedIdentifier:
        return
