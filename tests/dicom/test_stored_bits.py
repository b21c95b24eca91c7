"""Bits outside Bits Stored: no part of what is shown, kept by conversions, wherever in their words the stored ones lie."""

from __future__ import annotations

import io
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from archive.dicom.encode import ENCODERS, RLE
from archive.dicom.isolated import codec
from archive.dicom.part10 import scan
from archive.dicom.pixels import decode_frame, frame_explicit_le, render
from archive.dicom.recipe import Recipe
from archive.dicom.transfer import DEFLATED_FRAMES, EXPLICIT_LE, IMPLICIT_LE
from archive.errors import NotAcceptable
from tests.dicom.conftest import dataset, el, item, part10, pixels, to_syntax, us
from tests.dicom.test_pixels import parts

SIDE = 64
RAMP = (np.arange(SIDE * SIDE) % 4096).astype("<u2").reshape(SIDE, SIDE)
WINDOW = {0x00281050: el(0x00281050, "DS", "2048"), 0x00281051: el(0x00281051, "DS", "4096")}
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"


def image(words: np.ndarray[Any, Any], *, stored: int = 12, high: int = 11, signed: int = 0, syntax: str = EXPLICIT_LE) -> bytes:
    raw = words.tobytes()
    made = pixels(SIDE, SIDE, raw, bits=16) | WINDOW | {
        0x00280101: us(0x00280101, stored), 0x00280102: us(0x00280102, high), 0x00280103: us(0x00280103, signed),
    }
    if syntax != EXPLICIT_LE:
        coded = code_stream(raw, syntax)
        content = item(b"") + item(coded + b"\0" * (len(coded) & 1)) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
        made[0x7FE00010] = el(0x7FE00010, "OB", content, length=0xFFFFFFFF)
    return part10(dataset(made), syntax)


def code_stream(raw: bytes, syntax: str) -> bytes:
    """All 16 bits of each word, as encoders keep them that look at Bits Allocated."""
    if syntax == RLE:
        from rle.utils import encode_pixel_data

        rle: bytes = encode_pixel_data(raw, byteorder="<", rows=SIDE, columns=SIDE, samples_per_pixel=1, bits_allocated=16)
        return rle
    if syntax == DEFLATED_FRAMES:
        deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        return deflate.compress(raw) + deflate.flush()
    samples = {"samples": 1, "photometric": "MONOCHROME2", "bits_allocated": 16, "bits_stored": 16, "signed": 0}
    return codec.encode({"rows": SIDE, "columns": SIDE} | samples, raw)


def shown(data: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(render(*parts(data), Recipe("png"))))).astype(int)


SYNTAXES = [EXPLICIT_LE, RLE, DEFLATED_FRAMES, JPEG_LOSSLESS]


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(("shift", "junk"), [(4, 0), (4, 9), (2, 0x8003)])
def test_stored_bits_are_shown_wherever_high_bit_puts_them(syntax: str, shift: int, junk: int, tmp_path: Path) -> None:
    words = (RAMP << shift | junk).astype("<u2")
    data = image(words, high=11 + shift, syntax=syntax)
    assert np.array_equal(decode_frame(*parts(data)), RAMP)
    assert np.array_equal(shown(data), shown(image(RAMP)))
    if syntax == EXPLICIT_LE:
        (tmp_path / "left.dcm").write_bytes(data)
        subprocess.run(["dcm2pnm", "+Ww", "2048", "4096", str(tmp_path / "left.dcm"), str(tmp_path / "left.pgm")], check=True)
        assert np.abs(shown(data) - np.asarray(Image.open(tmp_path / "left.pgm"))).max() <= 1


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_so_are_signed_ones(syntax: str) -> None:
    values = RAMP.astype("<i2") - 2048
    words = (values.astype("<i2") << 4).astype("<i2") | np.int16(5)
    data = image(words, high=15, signed=1, syntax=syntax)
    assert np.array_equal(decode_frame(*parts(data)), values)


@pytest.mark.parametrize("high", [3, 15, 16, 40000])
def test_a_high_bit_that_cannot_be_is_not_believed(high: int) -> None:
    assert np.array_equal(decode_frame(*parts(image(RAMP, high=high))), RAMP)


@pytest.mark.parametrize("syntax", SYNTAXES[1:])
@pytest.mark.parametrize(("words", "high"), [(RAMP | 0x8000, 11), (RAMP << 4 | 3, 15)])
def test_a_conversion_keeps_every_bit(syntax: str, words: np.ndarray[Any, Any], high: int) -> None:
    """An overlay in the bits above (PS3.3 C.9.2, retired) is as much of the instance as what it lies over."""
    data = image(words.astype("<u2"), high=high, syntax=syntax)
    for target in (EXPLICIT_LE, IMPLICIT_LE):
        made = to_syntax(data, scan(data), target)
        assert pydicom.dcmread(io.BytesIO(made)).PixelData == words.astype("<u2").tobytes()
        assert np.array_equal(shown(made), shown(data))
    assert frame_explicit_le(*parts(data)) == words.astype("<u2").tobytes()
    for target in ENCODERS:
        if target != syntax:
            with pytest.raises(NotAcceptable):
                to_syntax(data, scan(data), target)


def test_a_code_stream_has_no_place_for_words_whose_stored_bits_lie_higher() -> None:
    """Small values fit, but whoever decodes them would look for them where High Bit says."""
    data = image((RAMP % 16 << 4).astype("<u2"), high=15)
    for target in ENCODERS:
        with pytest.raises(NotAcceptable):
            to_syntax(data, scan(data), target)
