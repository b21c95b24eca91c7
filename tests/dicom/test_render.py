"""render: windows, lookup tables, palettes and colours show what they should."""

from __future__ import annotations

import io
import signal
import struct
import tracemalloc
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut

from archive.dicom.layout import layout_of
from archive.dicom.part10 import scan
from archive.dicom.pixels import decode_frame, render
from archive.dicom.recipe import Recipe, Viewport, Window, thumbnail
from archive.dicom.smaller import JPEG_2000, jpeg_2000
from archive.errors import InvalidRequest, NotAcceptable
from tests.dicom.conftest import dataset, el, item, part10, pixels, sequence, to_explicit_le, us
from tests.dicom.test_pixels import JFIF_RGB, NOT_THEIRS, PYDICOM, encapsulated, images, parts, theirs


def shown(data: bytes, n: int = 0, **options: Any) -> np.ndarray[Any, Any]:
    head, scanned, frame = parts(data, n)
    return np.asarray(Image.open(io.BytesIO(render(head, scanned, frame, Recipe("png", **options), n))))


def grey(values: list[int], extra: dict[int, bytes] | None = None, *, bits: int = 16, photometric: str = "MONOCHROME2") -> bytes:
    raw = struct.pack(f"<{len(values)}{'H' if bits == 16 else 'B'}", *values)
    return part10(dataset(pixels(1, len(values), raw + b"\0" * (len(raw) & 1), bits=bits, photometric=photometric) | (extra or {})))


JPEG, JPEG_2000_LOSSLESS = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90"
WINDOW = {0x00281050: el(0x00281050, "DS", "100"), 0x00281051: el(0x00281051, "DS", "101")}


def test_the_window_of_the_data_set_is_applied_to_modality_units() -> None:
    rescale = {0x00281052: el(0x00281052, "DS", "-1000"), 0x00281053: el(0x00281053, "DS", "2")}
    # (x - 99.5) / 100 + 0.5 of 2 * stored - 1000
    assert shown(grey([500, 525, 550, 575, 600], WINDOW | rescale)).tolist() == [[0, 1, 129, 255, 255]]
    assert shown(grey([0, 50, 100, 150], WINDOW)).tolist() == [[0, 1, 129, 255]]


def test_a_given_window_counts_before_the_data_sets() -> None:
    assert shown(grey([0, 50, 100, 150], WINDOW), window=Window(50.5, 101)).tolist() == [[0, 128, 255, 255]]
    assert shown(grey([0, 50, 100, 150]), window=Window(75, 1)).tolist() == [[0, 0, 255, 255]]


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


def test_a_window_narrower_than_a_whole_number_is_one_of_fractions() -> None:
    rescale = {0x00281052: el(0x00281052, "DS", "0"), 0x00281053: el(0x00281053, "DS", "0.001")}
    window = {0x00281050: el(0x00281050, "DS", "0.05"), 0x00281051: el(0x00281051, "DS", "0.1")}
    assert shown(grey([0, 25, 50, 75, 100], rescale | window)).tolist() == [[0, 64, 128, 191, 255]]
    assert shown(grey([0, 25, 50, 75, 100], rescale), window=Window(0.05, 0.1)).tolist() == [[0, 64, 128, 191, 255]]


def test_lookup_tables() -> None:
    lut = el(0x00283002, "US", struct.pack("<3H", 3, 10, 8)) + el(0x00283006, "OW", struct.pack("<3H", 0, 100, 255))
    assert shown(grey([0, 10, 11, 12, 99], {0x00283010: sequence(0x00283010, item(lut))})).tolist() == [[0, 0, 100, 255, 255]]
    modality = el(0x00283002, "US", struct.pack("<3H", 3, 0, 16)) + el(0x00283006, "OW", struct.pack("<3H", 5, 105, 205))
    assert shown(grey([0, 1, 2], {0x00283000: sequence(0x00283000, item(modality))})).tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("vr", ["OW", "US"])
@pytest.mark.parametrize("tag", [0x00283000, 0x00283010])
def test_lookup_tables_of_bytes(vr: str, tag: int) -> None:
    """Entries of 8 bits lie as pixels of 8 bits allocated do, two in a word (PS3.3 C.11.1.1.1); some writers give each a word."""
    shades = [0, 10, 40, 200, 255]
    for raw in (bytes([*shades, 0]), struct.pack("<5H", *shades)):
        lut = el(0x00283002, "US", struct.pack("<3H", 5, 0, 8)) + el(0x00283006, vr, raw)
        window = {0x00281050: el(0x00281050, "DS", "127.5"), 0x00281051: el(0x00281051, "DS", "256")} if tag == 0x00283000 else {}
        data = grey([0, 1, 2, 3, 4, 9], {tag: sequence(tag, item(lut))} | window)
        assert np.abs(shown(data).astype(int) - [[*shades, 255]]).max() <= 1


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


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "YBR_FULL_422"])
@pytest.mark.parametrize("adobe", [False, True])
@pytest.mark.parametrize("viewport", [None, Viewport(8, 8)])
def test_a_jpeg_whose_components_are_called_red_green_and_blue_has_those(photometric: str, adobe: bool, viewport: Viewport | None) -> None:
    colours = np.zeros((64, 64, 3), np.uint8)
    colours[:32, :, 0], colours[32:, :, 2], colours[:, :32, 1] = 220, 200, 60
    out = io.BytesIO()
    Image.fromarray(colours).save(out, "JPEG", quality=98, subsampling=0, keep_rgb=True)
    stream = out.getvalue()
    assert stream[2:4] == b"\xff\xee"
    if not adobe:
        stream = stream[:2] + stream[4 + int.from_bytes(stream[4:6], "big") :]
    data = encapsulated(stream, JPEG, 64, 64, samples=3).replace(el(0x00280004, "CS", "RGB"), el(0x00280004, "CS", photometric))
    seen = shown(data, viewport=viewport).astype(int)
    expected = colours if viewport is None else colours[4::8, 4::8]
    far = len(seen) // 8  # from where colours meet
    assert np.abs(seen - expected)[far :: 5 * far, far :: 5 * far].max() <= 3
    plain = to_explicit_le(data, scan(data))
    assert np.abs(shown(plain).astype(int) - colours).max() <= 3


def test_halved_and_partial_chrominance() -> None:
    halved = pixels(1, 4, bytes((76, 76, 85, 255, 150, 150, 44, 21)), samples=3, photometric="YBR_FULL_422")
    assert np.abs(shown(part10(dataset(halved))).astype(int) - [[[254, 0, 0]] * 2 + [[0, 255, 1]] * 2]).max() <= 2
    # ITU-R BT.601: red, black and white within the studio's range.
    partial = pixels(1, 3, bytes((82, 90, 240, 16, 128, 128, 235, 128, 128)), samples=3, photometric="YBR_PARTIAL_420")
    partial[0x7FE00010] = el(0x7FE00010, "OB", bytes((82, 90, 240, 16, 128, 128, 235, 128, 128, 0)))
    assert np.abs(shown(part10(dataset(partial))).astype(int) - [[[255, 0, 0], [0, 0, 0], [255, 255, 255]]]).max() <= 3


def test_shades_of_8_bits_are_shown_as_they_are() -> None:
    assert shown(grey([10, 20, 30], bits=8)).tolist() == [[10, 20, 30]]
    segments = {0x00620001: el(0x00620001, "CS", "LABELMAP")}
    assert shown(grey([0, 1, 2], segments, bits=8)).tolist() == [[0, 128, 255]]


def test_padding_may_be_a_range() -> None:
    padding = {0x00280120: us(0x00280120, 60000), 0x00280121: us(0x00280121, 65535)}
    assert shown(grey([10, 20, 30, 61000, 65535], padding)).tolist() == [[0, 128, 255, 255, 255]]


@pytest.mark.parametrize("extra", [
    {}, WINDOW, {0x00280120: us(0x00280120, 700)}, {0x00281052: el(0x00281052, "DS", "-30.5"), 0x00281053: el(0x00281053, "DS", "-0.25")},
    {0x00281056: el(0x00281056, "CS", "SIGMOID"), 0x00281050: el(0x00281050, "DS", "1500"), 0x00281051: el(0x00281051, "DS", "700")},
])
@pytest.mark.parametrize("signed", [0, 1])
def test_large_frames_look_as_their_parts_do(extra: dict[int, bytes], signed: int) -> None:
    # A frame of more pixels than there are values goes through a table of them, a small one does not.
    values = [(n * 7919) % 3000 for n in range(300 * 300)]
    values[:2] = 0, 2999
    ends = [0, 2999]

    def of(rows: int, columns: int, some: list[int]) -> bytes:
        elements = pixels(rows, columns, struct.pack(f"<{len(some)}H", *some), bits=16) | {0x00280103: us(0x00280103, signed)} | extra
        return part10(dataset(elements))

    large = shown(of(300, 300, values)).ravel()
    for start in (2, 5000, 60000):
        small = shown(of(1, 102, ends + values[start : start + 100])).ravel()
        assert np.array_equal(small[2:], large[start : start + 100])


def test_a_small_picture_of_a_large_image_is_drawn_from_a_smaller_one(corpus_files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    compared = Counter[str]()
    for path, data, scanned in images(corpus_files):
        columns, rows = scanned.number("Columns") or 0, scanned.number("Rows") or 0
        syntax, colours = scanned.transfer_syntax_uid, scanned.number("SamplesPerPixel") == 3
        if (syntax != JPEG or not colours) and (syntax not in JPEG_2000 or colours):
            continue
        viewport = Viewport(columns // 8, rows // 8)
        small = shown(data, viewport=viewport).astype(int)
        with monkeypatch.context() as patched:
            patched.setattr("archive.dicom.render.fit_of", lambda *_: None)
            careful = shown(data, viewport=viewport).astype(int)
        assert small.shape == careful.shape, path.name
        # Without a window the range is that of what was decoded: the fewer pixels, the less of it is seen.
        assert np.abs(small - careful).mean() < (4 if columns > 256 else 10), path.name
        compared[syntax] += 1
    assert compared[JPEG] >= 2
    assert compared[JPEG_2000_LOSSLESS] >= 3


def test_a_lower_resolution_has_the_same_values(corpus: Path) -> None:
    # Of a flat image every resolution is the image.
    for name, precision in (("MR2_J2KR.dcm", 12), ("RG3_J2KI.dcm", 10), ("emri_small_jpeg_2k_lossless.dcm", 16)):
        head, scanned, frame = parts((corpus / PYDICOM / name).read_bytes())
        layout = layout_of(scanned)
        whole = decode_frame(head, scanned, frame).astype(int)
        small = jpeg_2000(layout, frame, (layout.columns // 4, layout.rows // 4))
        assert small is not None
        assert small.array.shape == (layout.rows // 4, layout.columns // 4)
        assert small.array.dtype == layout.dtype
        assert abs(small.array.mean() - whole.mean()) < whole.mean() / 50, precision
        assert jpeg_2000(layout, frame, (layout.columns // 2 + 1, layout.rows)) is None
        for broken in (frame[:40], frame[:60], b"\0" * 99, frame[:8] + b"\xff" * 30 + frame[38:]):
            assert jpeg_2000(layout, broken, (8, 8)) is None
            with pytest.raises(NotAcceptable):
                render(head, scanned, broken, thumbnail("png", (4, 4)))


def view(array: np.ndarray[Any, Any], viewport: Viewport) -> list[Any]:
    data = part10(dataset(pixels(*array.shape, array.tobytes() + b"\0" * (array.size & 1))))  # type: ignore[call-overload]
    return shown(data, viewport=viewport).tolist()


def test_a_viewport_shows_its_region_turned_and_scaled() -> None:
    """D21."""
    array = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    region = {"left": 1, "top": 2, "region_width": 3, "region_height": 2}
    part = array[2:4, 1:4]
    assert view(array, Viewport(3, 2, **region)) == part.tolist()
    assert view(array, Viewport(3, 2, **region, mirrored=True)) == part[:, ::-1].tolist()
    assert view(array, Viewport(3, 2, **region, upside_down=True)) == part[::-1].tolist()
    assert view(array, Viewport(100, 100, **region)) == part.tolist()
    assert np.asarray(view(array, Viewport(60, 60, enlarge=True))).shape == (40, 60)
    assert np.asarray(view(array, Viewport(3, 3))).shape == (2, 3)
    assert view(array, Viewport(2, 4, left=4)) == array[:, 4:].tolist()
    with pytest.raises(InvalidRequest):
        view(array, Viewport(10, 10, left=6))
    with pytest.raises(InvalidRequest):
        view(array, Viewport(10, 10, region_width=0.2))


def test_bit_masks_show_ones_as_white() -> None:
    ones = part10(dataset(pixels(2, 4, b"\xff\0", bits=1)))
    assert shown(ones).tolist() == [[255] * 4] * 2


# pydicom gives the palette of this big endian file with its bytes swapped; the little endian original is compared too.
@pytest.mark.parametrize("codes", [
    [2, 0, 0, 0],  # nothing, again and again
    [0, 1, 7, 0, 0, 2, 0, 6, 0],
    [0, 0] * 8000 + [2, 8000, 0, 0] * 8000,  # no end in sight
])  # fmt: skip
def test_segments_of_a_palette_that_never_fill_it_are_refused(codes: list[int]) -> None:
    segments = struct.pack(f"<{len(codes)}H", *codes)
    luts = {0x00281101 + n: el(0x00281101 + n, "US", struct.pack("<3H", 256, 0, 16)) for n in range(3)}
    luts |= {0x00281221 + n: el(0x00281221 + n, "OW", segments) for n in range(3)}

    def give_up(*_: object) -> None:
        message = "it goes on and on"
        raise AssertionError(message)

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, 10)
    try:
        with pytest.raises(NotAcceptable):
            shown(grey([0, 1], luts, bits=8, photometric="PALETTE COLOR"))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


SWAPPED_PALETTE = "OBXXXX1A_expb.dcm"
FUNCTIONAL = ("WindowCenter", "WindowWidth", "VOILUTFunction", "RescaleSlope", "RescaleIntercept")


def pydicoms(data: bytes, n: int) -> np.ndarray[Any, Any]:
    """Frame n as pydicom shows it, in 8 bits: its colours, else its modality and VOI transformation of the frame's own values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = pydicom.dcmread(io.BytesIO(data))
        array = theirs(data, n, raw=False)
        if read.SamplesPerPixel == 3:
            return array >> max(0, read.BitsStored - 8)
        if read.PhotometricInterpretation == "PALETTE COLOR":
            coloured = apply_color_lut(array, read)
            return coloured >> 8 if coloured.dtype == np.uint16 else coloured
        groups = [read.get("SharedFunctionalGroupsSequence", [None])[0], *read.get("PerFrameFunctionalGroupsSequence", [])[n : n + 1]]
        for group in (element for item in groups if item is not None for element in item if element.VR == "SQ" and element.value):
            for keyword in FUNCTIONAL:
                if keyword in group.value[0]:
                    setattr(read, keyword, group.value[0][keyword].value)
        shades = grey_of(read, array)
    inverse = read.PhotometricInterpretation == "MONOCHROME1" or read.get("PresentationLUTShape") == "INVERSE"
    return 255 - shades if inverse else shades


def grey_of(read: pydicom.Dataset, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    values = apply_modality_lut(array, read)
    windowed = bool(read.get("WindowWidth")) and array.dtype.kind in "ui"
    if read.get("VOILUTSequence") or windowed:
        seen = apply_voi_lut(values, read, index=0).astype(np.float64)
        if read.get("VOILUTSequence"):
            low, high = 0.0, 2.0 ** read.VOILUTSequence[0].LUTDescriptor[2] - 1
        else:  # what pydicom maps a window to
            half = 2.0 ** (read.BitsStored - 1)
            low, high = (-half, half - 1) if read.PixelRepresentation else (0.0, 2 * half - 1)
            slope, intercept = float(read.get("RescaleSlope", 1)), float(read.get("RescaleIntercept", 0))
            low, high = low * slope + intercept, high * slope + intercept
    elif array.dtype.kind == "f" and read.get("WindowWidth"):
        center, width = (float(np.atleast_1d(np.asarray(read[keyword].value, float))[0]) for keyword in ("WindowCenter", "WindowWidth"))
        seen, low, high = values, center - width / 2, center + width / 2
    elif read.BitsStored == 8 and "RescaleSlope" not in read and "SegmentationType" not in read and "PixelPaddingValue" not in read:
        seen, low, high = values, 0.0, 255.0
    else:
        seen = values
        padding, limit = read.get("PixelPaddingValue"), read.get("PixelPaddingRangeLimit", read.get("PixelPaddingValue"))
        real = values if padding is None else values[(array < min(padding, limit)) | (array > max(padding, limit))]
        real = real if real.size else values
        low, high = float(np.nanmin(real)), float(np.nanmax(real))
        if array.dtype.kind == "u" and low >= 0 and high <= 1:
            low, high = 0.0, 1.0
        elif low == high:
            low, high = low - 1, high + 1
    return np.clip((np.nan_to_num(seen) - low) / (high - low) * 255 + 0.5, 0, 255).astype(np.uint8)


def test_every_image_of_the_corpus_looks_as_pydicom_shows_it(corpus_files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("archive.dicom.render.oblong", lambda _: 1.0)  # which shows pixels as squares
    compared = Counter[str]()
    for path, data, scanned in images(corpus_files):
        if path.name in {*NOT_THEIRS, JFIF_RGB, SWAPPED_PALETTE, "GH1261.dcm"}:  # the last has a window that pydicom refuses
            continue
        assert scanned.frames is not None
        for n in {0, scanned.frames.count // 2}:
            ours, expected = shown(data, n), pydicoms(data, n)
            difference = np.abs(ours.astype(int) - expected)
            allowed = 2 if scanned.text("PhotometricInterpretation").startswith("YBR") else 1
            assert difference.max() <= allowed, (path.name, n, difference.max())
            compared[scanned.text("PhotometricInterpretation")] += 1
    assert compared["MONOCHROME2"] > 150
    assert {"MONOCHROME1", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_RCT", "YBR_ICT"} <= compared.keys()


def test_a_palette_is_the_same_in_big_endian(corpus: Path) -> None:
    little, big = (shown((corpus / PYDICOM / name).read_bytes()) for name in ("OBXXXX1A_rle.dcm", SWAPPED_PALETTE))
    assert np.array_equal(little, big)


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
    for _, data, _ in images(corpus_files):
        head, scanned, frame = parts(data)
        jpeg = render(head, scanned, frame, Recipe(viewport=Viewport(64, 48)))
        image = Image.open(io.BytesIO(jpeg))
        assert image.format == "JPEG"
        assert image.width <= 64
        assert image.height <= 48


def test_quality_makes_a_smaller_image_and_size_keeps_proportions() -> None:
    values = [(n * 7919) % 256 for n in range(200 * 100)]
    data = part10(dataset(pixels(100, 200, bytes(values))))
    head, scanned, frame = parts(data)
    small = render(head, scanned, frame, Recipe(quality=10))
    large = render(head, scanned, frame, Recipe(quality=95))
    assert len(small) < len(large)
    assert Image.open(io.BytesIO(render(head, scanned, frame, thumbnail("png", (100, 100))))).size == (100, 50)


def test_layouts_take_the_default_of_one_sample() -> None:
    elements = pixels(2, 2, b"abcd")
    del elements[0x00280002]
    layout = layout_of(scan(part10(dataset(elements))))
    assert (layout.samples, layout.pixels) == (1, 4)


@pytest.mark.parametrize(("bits", "stored", "most"), [(16, 16, 1), (16, 12, 1), (32, 32, 4)])
def test_a_picture_of_a_large_frame_is_made_beside_few_copies_of_it(bits: int, stored: int, most: int) -> None:
    side = 2048
    values = np.add.outer(np.arange(side), np.arange(side)).astype(f"<u{bits // 8}") % 4096
    made = pixels(side, side, b"", bits=bits) | {0x00280101: us(0x00280101, stored), 0x7FE00010: el(0x7FE00010, "OW", values.tobytes())}
    scanned = scan(data := part10(dataset(made)))
    head, frame = data[: scanned.head_bytes], values.tobytes()
    tracemalloc.start()
    try:
        render(head, scanned, frame, Recipe(form="jpeg"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most * len(frame)
