"""Big endian: a frame alone and pixel data as one value are what the frames of the data set are in little endian."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from archive.dicom.bulk import find
from archive.dicom.metadata import bulk_value
from archive.dicom.part10 import scan
from archive.dicom.pixels import frame_explicit_le, native_alone, stored_layout
from archive.dicom.transfer import EXPLICIT_BE
from tests.dicom.conftest import UIDS, el, part10, us
from tests.dicom.test_pixels import PYDICOM, parts


def image(pixels: bytes, *, rows: int, columns: int, bits: int, frames: int, vr: str) -> bytes:
    body = b"".join(el(tag, "UI", uid.encode() + b"\0" * (len(uid) & 1), order=">") for tag, uid in sorted(UIDS.items()))
    body += us(0x00280002, 1, ">") + el(0x00280004, "CS", "MONOCHROME2", order=">") + el(0x00280008, "IS", str(frames), order=">")
    body += us(0x00280010, rows, ">") + us(0x00280011, columns, ">") + us(0x00280100, bits, ">") + us(0x00280101, bits, ">")
    body += us(0x00280102, bits - 1, ">") + us(0x00280103, 0, ">") + el(0x7FE00010, vr, pixels, order=">")
    return part10(body, EXPLICIT_BE)


def swapped_pairs(raw: bytes) -> bytes:
    return np.frombuffer(raw, "<u2").astype(">u2").tobytes()


@pytest.mark.parametrize("bits", [1, 8])
@pytest.mark.parametrize("vr", ["OB", "OW"])
def test_a_frame_alone_begins_with_its_own_first_word(bits: int, vr: str) -> None:
    values = np.random.default_rng(2).integers(0, 1 << bits, (5, 3, 3)).astype(np.uint8)
    packed = np.packbits(values.ravel(), bitorder="little").tobytes() if bits == 1 else values.tobytes()
    packed += b"\0" * (len(packed) & 1)
    data = image(packed if vr == "OB" else swapped_pairs(packed), rows=3, columns=3, bits=bits, frames=5, vr=vr)
    for n in range(5):
        head, scanned, frame = parts(data, n)
        alone = native_alone(stored_layout(head, scanned), frame, n)
        single = image(alone + b"\0" * (len(alone) & 1), rows=3, columns=3, bits=bits, frames=1, vr=vr)
        assert frame_explicit_le(*parts(single)) == frame_explicit_le(head, scanned, frame, n)


@pytest.mark.parametrize("name", ["SC_rgb_expb.dcm", "SC_rgb_expb_16bit.dcm", "SC_rgb_expb_32bit.dcm", "emri_small_big_endian.dcm"])
def test_pixel_data_as_one_value_are_those_of_the_frames(corpus: Path, name: str) -> None:
    data = (corpus / PYDICOM / name).read_bytes()
    scanned = scan(data)
    assert scanned.frames is not None
    frames = b"".join(frame_explicit_le(*parts(data, n), n) for n in range(scanned.frames.count))
    value = find(lambda at, count: data[at : at + count], len(data), scanned, "7FE00010")
    taken = b"".join(bytes(piece) for piece in value.part(lambda at, count: iter((data[at : at + count],)), 0, value.length))
    assert taken[: len(frames)] == frames
    assert bulk_value(data, scanned, "7FE00010") == taken


@pytest.mark.parametrize("bits", [32, 64])
def test_samples_of_several_words_too(bits: int) -> None:
    values = np.arange(12, dtype=f"<u{bits // 8}") * 0x01020304
    data = image(values.astype(f">u{bits // 8}").tobytes(), rows=3, columns=4, bits=bits, frames=1, vr="OW")
    value = find(lambda at, count: data[at : at + count], len(data), scan(data), "7FE00010")
    wanted = values.tobytes()
    for start, length in ((0, len(wanted)), (3, 20), (7, 1), (len(wanted) - 5, 5)):
        taken = b"".join(bytes(piece) for piece in value.part(lambda at, count: iter((data[at : at + count],)), start, length))
        assert taken == wanted[start : start + length]
