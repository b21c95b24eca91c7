"""reencode: what stands behind the pixel data is in a converted instance as it was in the stored one, and what is no element is none."""

from __future__ import annotations

import io
import struct
import warnings

import pydicom
import pytest

from archive.dicom.part10 import scan
from archive.dicom.transcode import JPEG_LS, RLE
from archive.dicom.transfer import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE
from tests.dicom.conftest import dataset, el, item, part10, pixels, sequence, to_syntax, us

PIXELS = bytes(range(40)) * 40
PIXEL_DATA = 0x7FE00010
SYNTAXES = (EXPLICIT_LE, IMPLICIT_LE, EXPLICIT_BE, JPEG_LS, RLE)
SIGNATURE = sequence(0xFFFAFFFA, item(us(0x04000005, 1) + el(0x04000120, "OB", b"signed")))
PADDING = el(0xFFFCFFFC, "OB", bytes(100))


def instance(syntax: str = EXPLICIT_LE, extra: dict[int, bytes] | None = None) -> bytes:
    """An image of 40 x 40 in that transfer syntax."""
    plain = part10(dataset(pixels(40, 40, PIXELS) | {0x00280008: el(0x00280008, "IS", "1")} | (extra or {})))
    if syntax in (JPEG_LS, RLE):
        return to_syntax(plain, scan(plain), syntax)
    return rewritten(plain, syntax)


def rewritten(data: bytes, syntax: str) -> bytes:
    """The same by pydicom."""
    read = pydicom.dcmread(io.BytesIO(data))
    again = pydicom.Dataset.from_json(read.to_json_dict())
    again.file_meta = read.file_meta
    again.file_meta.TransferSyntaxUID = syntax
    out = io.BytesIO()
    again.save_as(out, implicit_vr=syntax == IMPLICIT_LE, little_endian=syntax != EXPLICIT_BE, enforce_file_format=True)
    return out.getvalue()


def read(data: bytes) -> pydicom.Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(io.BytesIO(data))


def behind(data: bytes) -> bytes:
    """The bytes behind the pixel data."""
    scanned = scan(data)
    table = scanned.frames
    assert table is not None
    if table.kind == "native":
        return data[table.offset + len(PIXELS) :]
    at, length = table.fragments[-1]
    return data[at + length + 8 :]


@pytest.mark.parametrize("target", [EXPLICIT_LE, IMPLICIT_LE, JPEG_LS, RLE])
@pytest.mark.parametrize("stored", SYNTAXES)
def test_elements_behind_the_pixel_data_stay(stored: str, target: str) -> None:
    private = {0x7FE10010: el(0x7FE10010, "LO", "maker "), 0x7FE11001: el(0x7FE11001, "US", b"\1\2\3\4")}
    data = instance(stored, private | {0xFFFAFFFA: SIGNATURE, 0xFFFCFFFC: PADDING})
    made = read(to_syntax(data, scan(data), target))
    assert [element.tag for element in made if element.tag > PIXEL_DATA] == [0x7FE10010, 0x7FE11001, 0xFFFAFFFA, 0xFFFCFFFC]
    assert made[0x7FE10010].value == "maker"
    assert made[0xFFFAFFFA].value[0].MACIDNumber == 1
    assert made[0xFFFAFFFA].value[0].Signature == b"signed"
    assert made[0xFFFCFFFC].value == bytes(100)


# What a reader that goes on would take for an element: a name, a delimiter and a name, zeros, a tag alone.
NAME = el(0x00100010, "PN", "Other^Name")
GARBAGE = {
    "a delimiter": struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + NAME,
    "an item": struct.pack("<HHI", 0xFFFE, 0xE000, 0) + NAME,
    "zeros": bytes(8) + NAME,
    "no VR": struct.pack("<HHI", 0xFFF0, 0x0101, 4) + b"abcd" + NAME,
    "short": b"\1\2\3",
}


@pytest.mark.parametrize("target", [EXPLICIT_LE, IMPLICIT_LE, JPEG_LS, RLE])
@pytest.mark.parametrize("stored", [EXPLICIT_LE, JPEG_LS, RLE])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_is_no_data_set_any_more_is_none_in_what_is_converted(stored: str, target: str, garbage: str) -> None:
    data = instance(stored) + GARBAGE[garbage]
    scanned = scan(data)
    assert "00100010" not in scanned.attributes
    assert any("after the data set" in finding.text for finding in scanned.findings)
    if stored == target:
        return
    made = to_syntax(data, scanned, target)
    assert not scan(made).findings
    assert behind(made) == b""
    assert "PatientName" not in read(made)


def test_the_same_behind_implicit_elements() -> None:
    made_up = struct.pack("<HHI", 0x0009, 0x1001, 4) + b"abcd" + struct.pack("<HHI", 0x0010, 0x0010, 6) + b"Other "
    data = instance(IMPLICIT_LE) + made_up
    scanned = scan(data)
    assert any("after the data set" in finding.text for finding in scanned.findings)
    for target in (EXPLICIT_LE, JPEG_LS, RLE):
        made = to_syntax(data, scanned, target)
        assert behind(made) == b""
        assert "PatientName" not in read(made)


@pytest.mark.parametrize("target", [EXPLICIT_LE, IMPLICIT_LE, RLE])
def test_what_the_conversion_changed_does_not_stand_behind_as_it_was(target: str) -> None:
    """Whoever takes the last of two would see other colours, or other pixels."""
    colours = pixels(40, 40, PIXELS * 3, samples=3, photometric="RGB") | {0x00280006: us(0x00280006, 0)}
    plain = part10(dataset(colours))
    coded = to_syntax(plain, scan(plain), "1.2.840.10008.1.2.4.90")
    early = el(0x00280004, "CS", "YBR_RCT")
    assert early in coded
    tables = el(0x7FE00001, "OV", bytes(8)) + el(0x7FE00002, "OV", bytes(8))
    data = coded.replace(early, b"") + early + us(0x00280006, 0) + tables + el(PIXEL_DATA, "OW", bytes(len(PIXELS) * 3))
    scanned = scan(data)
    assert scanned.text("PhotometricInterpretation") == "YBR_RCT"
    made = read(to_syntax(data, scanned, target))
    assert made.PhotometricInterpretation == "RGB"
    assert made.PlanarConfiguration == (1 if target == RLE else 0)
    assert made.pixel_array.reshape(-1).tolist() == list(PIXELS * 3)
    assert (0x7FE00001 in made, 0x7FE00002 in made) == (False, False)


@pytest.mark.parametrize("order", ["<", ">"])
def test_pixel_data_of_a_vr_with_a_short_length(order: str) -> None:
    """Whatever VR a writer gives them, what stands behind them begins where they end."""
    made = pixels(40, 40, b"") | {0x7FE10010: el(0x7FE10010, "LO", "maker ")}
    del made[PIXEL_DATA]
    syntax = EXPLICIT_LE if order == "<" else EXPLICIT_BE
    data = instance(syntax, {0x7FE10010: made[0x7FE10010]})
    longer = el(PIXEL_DATA, "OB" if order == "<" else "OW", b"", length=len(PIXELS), order=order)
    if longer not in data:
        longer = el(PIXEL_DATA, "OB", b"", length=len(PIXELS), order=order)
    assert longer in data
    data = data.replace(longer, el(PIXEL_DATA, "US", b"", length=len(PIXELS), order=order))
    for target in (IMPLICIT_LE, RLE):
        again = read(to_syntax(data, scan(data), target))
        assert again[0x7FE10010].value == "maker"
        assert again.pixel_array.size == len(PIXELS)


def test_fragments_without_an_end_have_nothing_behind_them() -> None:
    data = instance(JPEG_LS)
    cut = data[:-8]
    assert scan(cut).frames is not None
    assert read(to_syntax(cut, scan(cut), EXPLICIT_LE)).pixel_array.tobytes() == PIXELS
