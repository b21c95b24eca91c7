"""part10: the file meta we write, what is kept of a scan, inflating, and files without preamble."""

from __future__ import annotations

import io
import json
import zlib
from pathlib import Path

import pydicom
import pytest

from archive.dicom.part10 import Limits, Scanned, bare, inflate, meta, scan, unwrapped
from archive.dicom.stream import StreamScanner
from archive.errors import InvalidInstance
from tests.dicom.conftest import CT, dataset, el, im, part10, pixels


def test_meta_is_read_by_pydicom_and_is_always_the_same() -> None:
    data = meta(CT, "1.2.3", "1.2.840.10008.1.2.4.70")
    read = pydicom.dcmread(io.BytesIO(data)).file_meta
    assert read.FileMetaInformationGroupLength == len(data) - 144
    assert (read.MediaStorageSOPClassUID, read.MediaStorageSOPInstanceUID) == (CT, "1.2.3")
    assert read.TransferSyntaxUID == "1.2.840.10008.1.2.4.70"
    assert read.FileMetaInformationVersion == b"\0\1"
    assert read.ImplementationClassUID.is_valid
    assert not {0x00020016, 0x00020017, 0x00020018} & set(read.keys())  # no AE titles
    assert meta(CT, "1.2.3", "1.2.840.10008.1.2.4.70") == data


def test_what_is_kept_of_a_scan_comes_back_from_json(corpus: Path, hostile: Path) -> None:
    for path in (
        hostile / "binary-in-url.dcm",
        hostile / "bad-date.dcm",
        corpus / "pydicom__pydicom-data/data/emri_small_RLE.dcm",
        corpus / "pydicom__pydicom-data/data/liver_expb.dcm",
        corpus / "own__encapsulated/report-pdf.dcm",
    ):
        scanned = scan(path.read_bytes())
        assert Scanned.from_json(json.loads(json.dumps(scanned.to_json()))) == scanned, path.name


def test_text_and_number_of_odd_values() -> None:
    elements = {
        0x00080008: el(0x00080008, "CS", "\\SECONDARY"),
        0x00100010: el(0x00100010, "PN", "==Phonetic"),
        0x00200013: el(0x00200013, "IS", "seven"),
        0x00280008: el(0x00280008, "IS", " 12 "),
        0x00280010: el(0x00280010, "IS", "5"),  # a wrong VR
    }
    scanned = scan(part10(dataset(elements)))
    assert scanned.text("PatientName") == "==Phonetic"
    assert scanned.values("ImageType") == ["", "SECONDARY"]
    assert scanned.text("ImageType") == ""
    assert scanned.number("InstanceNumber") is None
    assert scanned.number("NumberOfFrames") == 12
    assert scanned.number("Rows") == 5
    assert scanned.number("Columns") is None
    assert scanned.text("Modality") == ""


def test_inflate_gives_the_data_set_back_and_stops_at_the_limit() -> None:
    body = dataset(pixels(2, 2, b"abcd"))
    packer = zlib.compressobj(wbits=-15)
    data = part10(packer.compress(body) + packer.flush(), "1.2.840.10008.1.2.1.99")
    scanned = scan(data)
    whole = inflate(data, scanned)
    assert whole[scanned.dataset_offset :] == body
    assert inflate(data, scanned, Limits(inflated_bytes=len(body))) == whole
    with pytest.raises(InvalidInstance) as caught:
        inflate(data, scanned, Limits(inflated_bytes=len(body) - 1))
    assert caught.value.reason == "too-large"
    assert scanned.frames is not None
    ((offset, length),) = scanned.frames.pieces(0)
    assert whole[offset : offset + length] == b"abcd"


def test_files_without_preamble_are_told_and_can_be_wrapped(corpus: Path) -> None:
    body = dataset(pixels(2, 2, b"abcd"))
    implicit = b"".join(im(tag, value + "\0" * (len(value) & 1)) for tag, value in ((0x00080016, CT), (0x00080018, "1.2.3.4")))
    assert unwrapped(body) == "1.2.840.10008.1.2.1"
    assert unwrapped(implicit) == "1.2.840.10008.1.2"
    assert unwrapped((corpus / "pydicom__pydicom-data/data/OT-PAL-8-face.dcm").read_bytes()) == "1.2.840.10008.1.2"
    found = bare(body)
    assert found is not None
    scanner = StreamScanner(wrap=found.wrap)
    scanner.feed(body[found.dataset_offset :])
    assert scanner.finish() == scan(part10(body))


def test_a_part_that_begins_with_group_two_says_its_transfer_syntax() -> None:
    """interop: a client leaves preamble and DICM out."""
    data = part10(dataset(pixels(2, 2, b"abcd")), "1.2.840.10008.1.2.4.90")[132:]
    found = bare(data)
    assert found is not None
    assert found.transfer_syntax_uid == "1.2.840.10008.1.2.4.90"
    assert data[found.dataset_offset :] == dataset(pixels(2, 2, b"abcd"))


@pytest.mark.parametrize(
    "data", [b"", b"PK\3\4" + bytes(100), b"<html></html>" * 20, bytes(600), b"\x08\0\x16\0UI", b"\2\0\0\0" + b"\xff" * 60]
)
def test_anything_else_is_no_data_set(data: bytes) -> None:
    assert unwrapped(data) is None
