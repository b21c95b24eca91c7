"""icons: encapsulated icons are native in what an instance is converted to, within bounds; what cannot be decoded is left out."""

from __future__ import annotations

import io
import struct
import time
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.pixels import pixel_array

from archive.dicom import icons
from archive.dicom.encode import JPEG_2000, JPEG_BASELINE, JPEG_LOSSLESS, JPEG_LS, RLE
from archive.dicom.part10 import scan
from archive.dicom.transcode import frame_in
from archive.dicom.transfer import EXPLICIT_LE, IMPLICIT_LE
from tests.dicom.conftest import dataset, el, item, part10, pixels, sequence, to_syntax, us

SIDE = 36
UNCOMPRESSED = (EXPLICIT_LE, IMPLICIT_LE)


def values(*, bits: int = 8, colour: bool = False, side: int = SIDE) -> np.ndarray[Any, Any]:
    shape = (side, side, 3) if colour else (side, side)
    return np.random.default_rng(5).integers(0, 1 << bits, shape).astype(f"<u{bits // 8}")


def code_stream(array: np.ndarray[Any, Any], syntax: str) -> bytes:
    bits, colour = array.dtype.itemsize * 8, array.ndim == 3
    made = pixels(*array.shape[:2], array.tobytes(), bits=bits, samples=3 if colour else 1, photometric="RGB" if colour else "MONOCHROME2")
    data = part10(dataset(made | ({0x00280006: us(0x00280006, 0)} if colour else {})))
    scanned = scan(data)
    return frame_in(data[: scanned.head_bytes], scanned, data[scanned.head_bytes :], syntax)


def fragments(*parts: bytes, table: bytes = b"") -> bytes:
    content = b"".join(item(part + b"\0" * (len(part) & 1)) for part in (table, *parts))
    return el(0x7FE00010, "OB", content + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0), length=0xFFFFFFFF)


def encapsulated(array: np.ndarray[Any, Any], syntax: str, *, stream: bytes | None = None) -> dict[int, bytes]:
    colour = array.ndim == 3
    photometric = "MONOCHROME2" if not colour else "YBR_RCT" if syntax == JPEG_2000 else "YBR_FULL" if syntax == JPEG_BASELINE else "RGB"
    made = pixels(*array.shape[:2], b"", bits=array.dtype.itemsize * 8, samples=3 if colour else 1, photometric=photometric)
    made[0x7FE00010] = fragments(code_stream(array, syntax) if stream is None else stream)
    return made | ({0x00280006: us(0x00280006, 0)} if colour else {})


def joined(elements: dict[int, bytes]) -> bytes:
    return b"".join(value for _, value in sorted(elements.items()))


def with_icon(icon: dict[int, bytes] | bytes, syntax: str, *, undefined: bool = False, extra: dict[int, bytes] | None = None) -> bytes:
    content = icon if isinstance(icon, bytes) else joined(icon)
    made = encapsulated(values(bits=16), syntax if syntax != JPEG_BASELINE else JPEG_LS)
    made[0x00880200] = sequence(0x00880200, item(content, undefined=undefined), undefined=undefined)
    return part10(dataset(made | (extra or {})), syntax)


def read(data: bytes) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(data))


def shown(icon: pydicom.Dataset, syntax: str) -> np.ndarray[Any, Any]:
    icon.file_meta = pydicom.dataset.FileMetaDataset()
    icon.file_meta.TransferSyntaxUID = syntax
    return pixel_array(icon, raw=True)


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("target", [*UNCOMPRESSED, RLE, JPEG_LS])
@pytest.mark.parametrize("stored", [RLE, JPEG_LS, JPEG_2000, JPEG_LOSSLESS])
@pytest.mark.parametrize("colour", [False, True])
def test_an_icon_stays_in_what_is_converted(stored: str, target: str, colour: bool, undefined: bool) -> None:
    array = values(colour=colour)
    data = with_icon(encapsulated(array, stored), stored, undefined=undefined)
    if stored == target:
        return
    made = read(to_syntax(data, scan(data), target))
    assert np.array_equal(pixel_array(made), values(bits=16))
    [icon] = made.IconImageSequence
    assert (icon.Rows, icon.Columns, icon.BitsAllocated) == (SIDE, SIDE, 8)
    assert icon.PhotometricInterpretation == ("RGB" if colour else "MONOCHROME2")
    assert np.array_equal(shown(icon, EXPLICIT_LE), array)
    assert not icon["PixelData"].is_undefined_length


def test_an_icon_of_odd_length_without_a_planar_configuration_and_in_fragments() -> None:
    array = values(side=35)
    plain = encapsulated(array, JPEG_LS)
    stream = code_stream(array, JPEG_LS)
    plain[0x7FE00010] = fragments(stream[:100], stream[100:], table=bytes(4))
    data = with_icon(plain, JPEG_LS, extra={0x00880140: el(0x00880140, "UI", "1.2.3")})
    made = read(to_syntax(data, scan(data), EXPLICIT_LE))
    assert made.IconImageSequence[0].PixelData == array.tobytes() + b"\0"
    assert made.StorageMediaFileSetUID == "1.2.3"

    colours = encapsulated(values(colour=True), JPEG_LS)
    del colours[0x00280006]
    data = with_icon(colours, JPEG_LS)
    [icon] = read(to_syntax(data, scan(data), EXPLICIT_LE)).IconImageSequence
    assert icon.PlanarConfiguration == 0
    assert [element.tag for element in icon] == sorted(element.tag for element in icon)


def test_native_icons_and_what_is_around_them_stay_as_they_are() -> None:
    native = pixels(2, 2, b"abcd")
    data = with_icon(native, JPEG_LS)
    [icon] = read(to_syntax(data, scan(data), EXPLICIT_LE)).IconImageSequence
    assert (icon.Rows, icon.PixelData) == (2, b"abcd")


@pytest.mark.parametrize("broken", ["stream", "size", "syntax", "no shape"])
def test_an_icon_that_cannot_be_decoded_is_left_out(broken: str) -> None:
    array = values()
    made = encapsulated(array, JPEG_LS)
    if broken == "stream":
        made[0x7FE00010] = fragments(b"no image at all")
    elif broken == "size":
        made[0x00280010] = us(0x00280010, SIDE - 1)
    elif broken == "syntax":
        made[0x7FE00010] = fragments(code_stream(array, JPEG_2000))
    else:
        del made[0x00280010]
    data = with_icon(made, JPEG_LS)
    again = read(to_syntax(data, scan(data), EXPLICIT_LE))
    assert np.array_equal(pixel_array(again), values(bits=16))
    assert "PixelData" not in again.IconImageSequence[0]


def test_a_large_icon_is_left_out_and_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(icons, "decode", lambda *_: pytest.fail("it is decoded"))
    made = encapsulated(values(), JPEG_LS) | {0x00280010: us(0x00280010, 65535), 0x00280011: us(0x00280011, 200)}
    data = with_icon(made, JPEG_LS)
    assert "PixelData" not in read(to_syntax(data, scan(data), EXPLICIT_LE)).IconImageSequence[0]


def test_icons_without_end_cost_no_more_than_a_few() -> None:
    small, count = joined(encapsulated(values(), JPEG_LS)), 1000
    many = {0x00880200: sequence(0x00880200, *[item(small)] * count)}
    data = part10(dataset(encapsulated(values(bits=16), JPEG_LS) | many), JPEG_LS)
    again = read(to_syntax(data, scan(data), EXPLICIT_LE))
    found = again.IconImageSequence
    assert len(found) == count
    assert all(one.PixelData == values().tobytes() for one in found[:100])
    assert "PixelData" not in found[-1]
    # Items that never end, each of which would have to be read to the end of all of them.
    endless = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE00D, 0) for _ in range(100_000))
    many[0x00880200] = el(0x00880200, "SQ", endless)
    data = part10(dataset(encapsulated(values(bits=16), JPEG_LS) | many), JPEG_LS)
    scanned, began = scan(data), time.process_time()
    to_syntax(data, scanned, EXPLICIT_LE)
    assert time.process_time() - began < 5


def test_an_icon_with_loss_has_the_colours_it_says() -> None:
    """Baseline JPEG beside 16-bit pixel data makes no sense, but JPEG Baseline beside 8-bit ones does."""
    ramp = np.stack([np.tile(np.arange(SIDE, dtype=np.uint8) * 7, (SIDE, 1))] * 3, axis=-1)
    icon = encapsulated(ramp, JPEG_BASELINE) | {0x00280004: el(0x00280004, "CS", "YBR_FULL_422")}
    image = encapsulated(ramp, JPEG_BASELINE)
    image[0x00880200] = sequence(0x00880200, item(joined(icon)))
    data = part10(dataset(image), JPEG_BASELINE)
    for syntax in (EXPLICIT_LE, RLE):
        [small] = read(to_syntax(data, scan(data), syntax)).IconImageSequence
        assert small.PhotometricInterpretation == "YBR_FULL"
        assert np.abs(shown(small, EXPLICIT_LE)[..., 0].astype(int) - ramp[..., 0]).max() <= 4
