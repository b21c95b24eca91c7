"""render: windows, lookup tables, palettes and colours show what they should."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from archive.dicom.decode import layout_of
from archive.dicom.part10 import scan
from archive.dicom.pixels import render
from archive.errors import NotAcceptable
from tests.dicom.conftest import dataset, el, item, part10, pixels, sequence, us
from tests.dicom.test_pixels import PYDICOM, TWELVE_BIT, images, parts, theirs


def shown(data: bytes, n: int = 0, **options: Any) -> np.ndarray[Any, Any]:
    head, scanned, frame = parts(data, n)
    arguments = {"window": None, "max_size": None, **options}
    return np.asarray(Image.open(io.BytesIO(render(head, scanned, frame, index=n, **arguments))))


def grey(values: list[int], extra: dict[int, bytes] | None = None, *, bits: int = 16, photometric: str = "MONOCHROME2") -> bytes:
    raw = struct.pack(f"<{len(values)}{'H' if bits == 16 else 'B'}", *values)
    return part10(dataset(pixels(1, len(values), raw + b"\0" * (len(raw) & 1), bits=bits, photometric=photometric) | (extra or {})))


WINDOW = {0x00281050: el(0x00281050, "DS", "100"), 0x00281051: el(0x00281051, "DS", "101")}


def test_the_window_of_the_data_set_is_applied_to_modality_units() -> None:
    rescale = {0x00281052: el(0x00281052, "DS", "-1000"), 0x00281053: el(0x00281053, "DS", "2")}
    # (x - 99.5) / 100 + 0.5 of 2 * stored - 1000
    assert shown(grey([500, 525, 550, 575, 600], WINDOW | rescale)).tolist() == [[0, 1, 129, 255, 255]]
    assert shown(grey([0, 50, 100, 150], WINDOW)).tolist() == [[0, 1, 129, 255]]


def test_a_given_window_counts_before_the_data_sets() -> None:
    assert shown(grey([0, 50, 100, 150], WINDOW), window=(50.5, 101)).tolist() == [[0, 128, 255, 255]]
    assert shown(grey([0, 50, 100, 150]), window=(75, 1)).tolist() == [[0, 0, 255, 255]]


def test_without_a_window_the_whole_range_is_shown() -> None:
    assert shown(grey([10, 20, 30])).tolist() == [[0, 128, 255]]
    padding = {0x00280120: us(0x00280120, 65535)}
    assert shown(grey([10, 20, 30, 65535], padding)).tolist() == [[0, 128, 255, 255]]
    assert shown(grey([7, 7])).tolist() == [[128, 128]]


def test_monochrome1_is_inverted() -> None:
    """D27."""
    assert shown(grey([10, 20, 30], photometric="MONOCHROME1")).tolist() == [[255, 127, 0]]


def test_sigmoid_and_exact_windows() -> None:
    exact = {
        0x00281056: el(0x00281056, "CS", "LINEAR_EXACT"),
        0x00281050: el(0x00281050, "DS", "50"),
        0x00281051: el(0x00281051, "DS", "100"),
    }
    assert shown(grey([0, 50, 100], exact)).tolist() == [[0, 128, 255]]
    sigmoid = exact | {0x00281056: el(0x00281056, "CS", "SIGMOID")}
    assert shown(grey([0, 50, 100], sigmoid)).tolist() == [[30, 128, 225]]


def test_lookup_tables() -> None:
    lut = el(0x00283002, "US", struct.pack("<3H", 3, 10, 8)) + el(0x00283006, "OW", struct.pack("<3H", 0, 100, 255))
    assert shown(grey([0, 10, 11, 12, 99], {0x00283010: sequence(0x00283010, item(lut))})).tolist() == [[0, 0, 100, 255, 255]]
    modality = el(0x00283002, "US", struct.pack("<3H", 3, 0, 16)) + el(0x00283006, "OW", struct.pack("<3H", 5, 105, 205))
    assert shown(grey([0, 1, 2], {0x00283000: sequence(0x00283000, item(modality))})).tolist() == [[0, 128, 255]]


def test_the_frames_own_window_is_used() -> None:
    """D26."""

    def groups(center: str) -> bytes:
        voi = el(0x00281050, "DS", center) + el(0x00281051, "DS", "1")
        return item(sequence(0x00289132, item(voi)))

    elements = pixels(1, 2, struct.pack("<4H", 10, 20, 10, 20), bits=16) | {
        0x00280008: el(0x00280008, "IS", "2"),
        0x52009230: sequence(0x52009230, groups("15"), groups("5")),
    }
    data = part10(dataset(elements))
    assert shown(data, 0).tolist() == [[0, 255]]
    assert shown(data, 1).tolist() == [[255, 255]]


def test_palette_colours() -> None:
    luts = {}
    for n, table in enumerate(([0, 255], [128, 0], [255, 7]), 1):
        luts[0x00281100 + n] = el(0x00281100 + n, "US", struct.pack("<3H", 2, 1, 16))
        luts[0x00281200 + n] = el(0x00281200 + n, "OW", struct.pack("<2H", *(value << 8 for value in table)))
    assert shown(grey([0, 1, 2, 9], luts, bits=8, photometric="PALETTE COLOR")).tolist() == [
        [[0, 128, 255], [0, 128, 255], [255, 0, 7], [255, 0, 7]]
    ]
    with pytest.raises(NotAcceptable) as caught:
        shown(grey([0, 1], bits=8, photometric="PALETTE COLOR"))
    assert caught.value.reason == "no-image"


def test_segmented_palettes(corpus: Path) -> None:
    segments = struct.pack("<11H", 0, 2, 0, 512, 1, 2, 2560, 2, 1, 0, 0)  # two values, a line of two, the first segment again
    luts = {}
    for n in (1, 2, 3):
        luts[0x00281100 + n] = el(0x00281100 + n, "US", struct.pack("<3H", 6, 0, 16))
        luts[0x00281220 + n] = el(0x00281220 + n, "OW", segments)
    assert shown(grey(list(range(6)), luts, bits=8, photometric="PALETTE COLOR"))[0, :, 0].tolist() == [0, 2, 6, 10, 0, 2]
    data = (corpus / PYDICOM / "gdcm-US-ALOKA-16.dcm").read_bytes()
    read = pydicom.dcmread(io.BytesIO(data))
    expected = pydicom.pixels.apply_color_lut(read.pixel_array, read) >> 8
    assert np.abs(shown(data).astype(int) - expected).max() <= 1


def test_colours() -> None:
    rgb16 = part10(dataset(pixels(1, 1, struct.pack("<3H", 65535, 256, 0), bits=16, samples=3, photometric="RGB")))
    assert shown(rgb16).tolist() == [[[255, 1, 0]]]
    ybr = part10(dataset(pixels(1, 1, bytes((76, 85, 255, 0)), samples=3, photometric="YBR_FULL")))
    assert np.abs(shown(ybr).astype(int) - [[[254, 0, 0]]]).max() <= 2
    planar = pixels(1, 2, bytes((1, 2, 3, 4, 5, 6)), samples=3, photometric="RGB") | {0x00280006: us(0x00280006, 1)}
    assert shown(part10(dataset(planar))).tolist() == [[[1, 3, 5], [2, 4, 6]]]


def test_bit_masks_show_ones_as_white() -> None:
    ones = part10(dataset(pixels(2, 4, b"\xff\0", bits=1)))
    assert shown(ones).tolist() == [[255] * 4] * 2


def test_colour_images_of_the_corpus_equal_pydicoms_rgb(corpus: Path) -> None:
    compared = 0
    for path, data, scanned in images(sorted((corpus / PYDICOM).glob("*.dcm"))):
        if scanned.number("SamplesPerPixel") != 3 or scanned.number("BitsStored") != 8:
            continue
        expected = theirs(data, 0, raw=False)
        assert np.abs(shown(data).astype(int) - expected).max() <= 2, path.name
        compared += 1
    assert compared > 15


def test_the_images_of_the_corpus_show_something(corpus: Path) -> None:
    for name in (
        "MR2_J2KR.dcm",
        "JPEG-LL.dcm",
        "OBXXXX1A_rle.dcm",
        "gdcm-US-ALOKA-16.dcm",
        "vlut_04.dcm",
        "parametric_map_float.dcm",
        "liver.dcm",
    ):
        assert shown((corpus / PYDICOM / name).read_bytes()).std() > 5, name


def test_every_decodable_image_can_be_shown_small(corpus_files: list[Path]) -> None:
    for path, data, scanned in images(corpus_files):
        if path.name == TWELVE_BIT:
            continue
        head, _, frame = parts(data)
        jpeg = render(head, scanned, frame, window=None, max_size=(64, 48), format="jpeg")
        image = Image.open(io.BytesIO(jpeg))
        assert image.format == "JPEG"
        assert image.width <= 64
        assert image.height <= 48


def test_quality_makes_a_smaller_image_and_size_keeps_proportions() -> None:
    values = [(n * 7919) % 256 for n in range(200 * 100)]
    data = part10(dataset(pixels(100, 200, bytes(values))))
    head, scanned, frame = parts(data)
    small = render(head, scanned, frame, window=None, max_size=None, format="jpeg", quality=10)
    large = render(head, scanned, frame, window=None, max_size=None, format="jpeg", quality=95)
    assert len(small) < len(large)
    assert Image.open(io.BytesIO(render(head, scanned, frame, window=None, max_size=(100, 100)))).size == (100, 50)


def test_layouts_take_the_default_of_one_sample() -> None:
    elements = pixels(2, 2, b"abcd")
    del elements[0x00280002]
    layout = layout_of(scan(part10(dataset(elements))))
    assert (layout.samples, layout.pixels) == (1, 4)
