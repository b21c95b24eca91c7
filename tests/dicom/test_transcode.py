"""transcode: every decodable file of the corpus into every transfer syntax that is offered, pixel by pixel as pydicom reads it."""

from __future__ import annotations

import io
import struct
import subprocess
import threading
import time
import tracemalloc
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import pixel_array

from archive.dicom import transcode
from archive.dicom.encode import JPEG_LOSSLESS_14
from archive.dicom.part10 import Scanned, scan
from archive.dicom.pieces import Stream
from archive.dicom.pixels import decode_frame, frame_explicit_le
from archive.dicom.transcode import ENCODERS, JPEG_BASELINE, JPEG_LOSSLESS, JPEG_LS, RLE, can_encode, frame_in
from archive.dicom.transfer import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE
from archive.errors import InvalidInstance, NotAcceptable
from tests.dicom.conftest import UIDS, dataset, el, part10, pixels, to_explicit_le, to_syntax, us

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:pydicom")

MOST_BYTES = 2 << 20
OF_A_KIND = 3
"""What takes an encoder seconds says no more than a smaller one, and the thirtieth slice of a series no more than the third."""
_KIND = ("PhotometricInterpretation", "SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation", "PlanarConfiguration")
_PIXELS = {"PixelData", "PixelRepresentation", "PhotometricInterpretation", "PlanarConfiguration"}


def read(data: bytes) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(data))


def samples(data: bytes) -> np.ndarray[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pixel_array(read(data), raw=False)


def rest(found: pydicom.Dataset) -> dict[str, object]:
    """Every element but those the encoding decides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {str(element.tag): str(element) for element in found if element.keyword not in _PIXELS and element.tag.group != 0x7FE0}


@pytest.fixture(scope="module")
def natives(corpus_files: list[Path]) -> list[tuple[str, bytes]]:
    """The smallest decodable files of each kind in explicit little endian, as the encoders begin; test_pixels compares with pydicom's."""
    found: dict[tuple[object, ...], list[tuple[str, bytes]]] = {}
    for path in corpus_files:
        data = path.read_bytes()
        try:
            scanned = scan(data)
            if scanned.frames is None or len(data) > MOST_BYTES:
                continue
            native = to_explicit_le(data, scanned)
        except (InvalidInstance, NotAcceptable):
            continue
        if len(native) <= MOST_BYTES:
            read_back = pydicom.dcmread(io.BytesIO(native), stop_before_pixels=True)
            kind = (*(read_back.get(keyword) for keyword in _KIND), scanned.frames.count > 1)
            found.setdefault(kind, []).append((path.name, native))
    return [one for kind in found.values() for one in sorted(kind, key=lambda named: (len(named[1]), named[0]))[:OF_A_KIND]]


def taken(natives: list[tuple[str, bytes]], syntax: str) -> Iterator[tuple[str, bytes, bytes]]:
    refused: list[tuple[str, str]] = []
    for name, native in natives:
        scanned = scan(native)
        if not can_encode(scanned, syntax):
            continue
        try:
            yield name, native, to_syntax(native, scanned, syntax)
        except NotAcceptable as refusal:
            refused.append((name, refusal.reason))
    assert all(reason for _, reason in refused), refused


@pytest.mark.parametrize("syntax", sorted(ENCODERS.keys() - {JPEG_LOSSLESS_14}))  # whose code streams are those of JPEG_LOSSLESS
def test_every_sample_of_the_corpus_is_kept(natives: list[tuple[str, bytes]], syntax: str) -> None:
    count = 0
    for name, native, made in taken(natives, syntax):
        before, after = read(native), read(made)
        assert after.file_meta.TransferSyntaxUID == syntax, name
        assert after.SOPInstanceUID == before.SOPInstanceUID, name
        assert rest(after) == rest(before), name
        ours = scan(made).frames
        assert ours is not None
        assert ours.count == scan(native).frames.count, name  # type: ignore[union-attr]
        np.testing.assert_array_equal(samples(made), samples(native), err_msg=f"{name} by pydicom")
        count += 1
    assert count >= 20, count


@pytest.mark.parametrize("syntax", sorted(ENCODERS))
def test_what_is_decoded_again_is_what_was_encoded(natives: list[tuple[str, bytes]], syntax: str) -> None:
    for name, native, made in taken(natives[::4], syntax):
        again = read(to_explicit_le(made, scan(made)))
        np.testing.assert_array_equal(again.pixel_array, read(native).pixel_array, err_msg=name)


def small(*, bits: int = 16, stored: int = 12, signed: int = 0, samples_per_pixel: int = 1, photometric: str = "MONOCHROME2",
          planar: int = 0, frames: int = 1, side: int = 40) -> bytes:
    random = np.random.default_rng(7)
    low, high = (-(1 << (stored - 1)), 1 << (stored - 1)) if signed else (0, 1 << stored)
    values = random.integers(low, high, side * side * samples_per_pixel * frames).astype(f"<{'i' if signed else 'u'}{bits // 8}")
    elements = {
        0x00280002: us(0x00280002, samples_per_pixel), 0x00280004: el(0x00280004, "CS", photometric),
        0x00280008: el(0x00280008, "IS", str(frames)), 0x00280010: us(0x00280010, side), 0x00280011: us(0x00280011, side),
        0x00280100: us(0x00280100, bits), 0x00280101: us(0x00280101, stored), 0x00280102: us(0x00280102, stored - 1),
        0x00280103: us(0x00280103, signed), 0x7FE00010: el(0x7FE00010, "OW" if bits > 8 else "OB", values.tobytes()),
    }
    if samples_per_pixel > 1:
        elements[0x00280006] = us(0x00280006, planar)
    return part10(dataset(elements), EXPLICIT_LE)


KINDS: dict[str, dict[str, Any]] = {
    "12 of 16": {}, "16 of 16": {"stored": 16}, "signed": {"signed": 1}, "signed 16": {"signed": 1, "stored": 16},
    "8 bits": {"bits": 8, "stored": 8}, "inverted": {"photometric": "MONOCHROME1"}, "frames": {"frames": 3},
    "colour": {"bits": 8, "stored": 8, "samples_per_pixel": 3, "photometric": "RGB"},
    "colour by plane": {"bits": 8, "stored": 8, "samples_per_pixel": 3, "photometric": "RGB", "planar": 1},
    "YBR": {"bits": 8, "stored": 8, "samples_per_pixel": 3, "photometric": "YBR_FULL"},
    "odd length": {"bits": 8, "stored": 8, "side": 41, "frames": 2},
}


@pytest.mark.parametrize("syntax", sorted(ENCODERS))
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_pixel(kind: str, syntax: str) -> None:
    data = small(**KINDS[kind])
    made = to_syntax(data, scan(data), syntax)
    before, after = read(data), read(made)
    np.testing.assert_array_equal(samples(made), samples(data))
    back = read(to_explicit_le(made, scan(made)))
    np.testing.assert_array_equal(back.pixel_array, before.pixel_array)
    assert back.PhotometricInterpretation == before.PhotometricInterpretation
    assert (after.BitsAllocated, after.BitsStored, after.PixelRepresentation) == (
        before.BitsAllocated, before.BitsStored, before.PixelRepresentation)
    assert "LossyImageCompression" not in after
    if before.SamplesPerPixel == 3:
        assert after.PlanarConfiguration == ENCODERS[syntax].planar
        asked = ENCODERS[syntax].of_rgb if before.PhotometricInterpretation == "RGB" else before.PhotometricInterpretation
        assert after.PhotometricInterpretation == asked


def big_endian(native: bytes, frames: int | None = None) -> bytes:
    """The same with its first frames."""
    found = read(native)
    kept, found.file_meta.TransferSyntaxUID = found.pixel_array[:frames], EXPLICIT_BE
    again = pydicom.Dataset.from_json(found.to_json_dict())  # what was read as little endian is not written otherwise
    again.file_meta, again.PixelData = found.file_meta, kept.astype(">u2").tobytes()
    out = io.BytesIO()
    again.save_as(out, implicit_vr=False, little_endian=False, enforce_file_format=True)
    return out.getvalue()


@pytest.mark.parametrize("order", [EXPLICIT_BE, JPEG_LS, RLE])
def test_an_instance_that_lacks_frames_is_not_made_into_one_that_has_none_of_them(order: str) -> None:
    native = small(frames=3)
    if order == EXPLICIT_BE:
        short = big_endian(native, 2)
    else:
        found = read(to_syntax(native, scan(native), order))
        found.PixelData = encapsulate(list(generate_frames(found.PixelData, number_of_frames=3))[:2])
        out = io.BytesIO()
        found.save_as(out, implicit_vr=False, little_endian=True, enforce_file_format=True)
        short = out.getvalue()
    assert scan(short).frames.count == 2  # type: ignore[union-attr]
    for syntax in (EXPLICIT_LE, JPEG_LS, RLE):
        with pytest.raises(NotAcceptable) as refused:
            to_syntax(short, scan(short), syntax)
        assert refused.value.reason == "few-frames"


def test_native_pixel_data_that_lack_a_frame_are_sent_as_they_are_and_not_encoded() -> None:
    short = small(frames=3).replace(el(0x00280008, "IS", "3"), el(0x00280008, "IS", "4"))
    assert read(to_explicit_le(short, scan(short))).PixelData == read(short).PixelData
    with pytest.raises(NotAcceptable) as refused:
        to_syntax(short, scan(short), JPEG_LS)
    assert refused.value.reason == "few-frames"


def test_large_instances_are_made_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    data = small(frames=3)
    scanned, real_compressed, lock = scan(data), transcode._compressed, threading.Lock()
    under_way, most = 0, 0

    def compressed(*given: Any) -> Iterator[bytes | memoryview]:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.05)
        made = real_compressed(*given)
        with lock:
            under_way -= 1
        return made

    def most_at_once() -> int:
        nonlocal most
        most = 0
        with ThreadPoolExecutor(4) as pool:
            assert len(set(pool.map(lambda _: to_syntax(data, scanned, JPEG_LS), range(4)))) == 1
        return most

    monkeypatch.setattr(transcode, "_compressed", compressed)
    assert most_at_once() > 1
    monkeypatch.setattr(transcode, "LARGE_BYTES", 1000)
    assert most_at_once() == 1


def peak_of(data: bytes, scanned: Scanned, syntax: str) -> tuple[int, int]:
    """The most memory a conversion takes, and how much of that is what comes out of it."""
    tracemalloc.start()
    try:
        pieces = transcode.to_syntax(Stream.of(data), scanned, syntax)
        return tracemalloc.get_traced_memory()[1], sum(len(one) for one in pieces if isinstance(one, bytes))
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("order", [EXPLICIT_LE, EXPLICIT_BE, IMPLICIT_LE, RLE])
@pytest.mark.parametrize("syntax", [EXPLICIT_LE, IMPLICIT_LE, RLE, JPEG_LS])
def test_a_conversion_holds_what_comes_out_and_no_more_than_a_frame_of_what_goes_in(order: str, syntax: str) -> None:
    native, size, frames = small(side=512, frames=24), 512 * 512 * 2, 24
    data = native if order == EXPLICIT_LE else big_endian(native) if order == EXPLICIT_BE else to_syntax(native, scan(native), order)
    scanned = scan(data)
    peak, made = peak_of(data, scanned, syntax)
    assert peak < made + 6 * size + (4 << 20)
    back = to_syntax(data, scanned, syntax)
    plain = to_explicit_le(back, scan(back))
    assert [frame_explicit_le(*one_frame(plain, n), n) for n in range(frames)] == [
        frame_explicit_le(*one_frame(native, n), n) for n in range(frames)
    ]
    assert rest(read(back)) == rest(read(native))


def test_compressed_frames_of_every_sample_are_not_said_to_lack_some() -> None:
    """A decoder gives all of them, whatever the code stream's data set says."""
    native = small(bits=8, stored=8, samples_per_pixel=3, photometric="YBR_FULL", frames=2)
    rle = to_syntax(native, scan(native), RLE)
    said = rle.replace(el(0x00280004, "CS", "YBR_FULL"), el(0x00280004, "CS", "YBR_FULL_422"))
    assert scan(said).text("PhotometricInterpretation") == "YBR_FULL_422"
    for syntax in (EXPLICIT_LE, JPEG_LS, RLE):
        made = to_syntax(said, scan(said), syntax)
        assert scan(made).text("PhotometricInterpretation") == "YBR_FULL"
        back = to_explicit_le(made, scan(made))
        for n in range(2):
            np.testing.assert_array_equal(decode_frame(*one_frame(back, n), n), decode_frame(*one_frame(native, n), n))


def test_what_was_lossy_stays_marked() -> None:
    data = small()
    marked = part10(data[scan(data).dataset_offset:].replace(us(0x00280103, 0), us(0x00280103, 0) + el(0x00282110, "CS", "01")),
                    EXPLICIT_LE)
    after = read(to_syntax(marked, scan(marked), JPEG_LS))
    assert (after.LossyImageCompression, after.SOPInstanceUID) == ("01", UIDS[0x00080018])


@pytest.mark.parametrize("syntax", sorted(ENCODERS))
def test_bits_that_would_be_lost_are_refused(syntax: str) -> None:
    data = bytearray(small())
    data[-1] |= 0x80  # an old overlay above Bits Stored
    with pytest.raises(NotAcceptable):
        to_syntax(bytes(data), scan(bytes(data)), syntax)


@pytest.mark.parametrize("syntax", [f"1.2.840.10008.1.2.4.{n}" for n in (50, 81, 91, 100)])
def test_nothing_lossy_is_offered(syntax: str) -> None:
    data = small()
    assert not can_encode(scan(data), syntax)
    with pytest.raises(NotAcceptable):
        to_syntax(data, scan(data), syntax)

def test_dcmtk_reads_lossless_jpeg_as_we_wrote_it(tmp_path: Path) -> None:
    """An independent decoder: pydicom's plugin for it is the library that encodes."""
    for n, (kind, given) in enumerate(KINDS.items()):
        data = small(**given)
        (tmp_path / f"{n}.dcm").write_bytes(to_syntax(data, scan(data), JPEG_LOSSLESS))
        subprocess.run(["dcmdjpeg", "+cn", str(tmp_path / f"{n}.dcm"), str(tmp_path / f"{n}-plain.dcm")], check=True)
        plain = read((tmp_path / f"{n}-plain.dcm").read_bytes())
        np.testing.assert_array_equal(pixel_array(plain, raw=True), pixel_array(read(data), raw=True), err_msg=kind)


def one_frame(data: bytes, n: int = 0) -> tuple[bytes, Scanned, bytes]:
    scanned = scan(data)
    assert scanned.frames is not None
    frame = b"".join(data[offset : offset + length] for offset, length in scanned.frames.pieces(n))
    return data[: scanned.head_bytes], scanned, frame


@pytest.mark.parametrize("syntax", sorted(ENCODERS))
@pytest.mark.parametrize("kind", ["frames", "colour by plane", "odd length"])
def test_a_frame_alone_is_the_frame_of_the_instance(kind: str, syntax: str) -> None:
    data = small(**KINDS[kind])
    whole = to_syntax(data, scan(data), syntax)
    for n in range(scan(data).frames.count):  # type: ignore[union-attr]
        head, scanned, frame = one_frame(data, n)
        alone = frame_in(head, scanned, frame, syntax, n)
        assert one_frame(whole, n)[2].rstrip(b"\0") == alone.rstrip(b"\0")
        # And out of another compressed form.
        other = to_syntax(data, scan(data), JPEG_LS if syntax != JPEG_LS else RLE)
        head, scanned, frame = one_frame(other, n)
        made = frame_in(head, scanned, frame, syntax, n)
        np.testing.assert_array_equal(
            decode_frame(whole[: scan(whole).head_bytes], scan(whole), made, n), decode_frame(*one_frame(data, n), n))


@pytest.mark.parametrize("syntax", sorted(ENCODERS))
def test_native_chroma_of_every_second_pixel_is_spread(syntax: str) -> None:
    """YBR_FULL_422 as stored holds four samples for two pixels (PS3.3 C.7.6.3.1.2); a code stream holds all of them."""
    long, short = (el(0x7FE00010, "OB", b"", length=40 * 40 * samples) for samples in (3, 2))
    whole = small(bits=8, stored=8, samples_per_pixel=3, photometric="YBR_FULL_422").replace(long, short)[: -40 * 40]
    scanned = scan(whole)
    assert scanned.frames is not None
    size = scanned.frames.frame_bits // 8
    assert size == 40 * 40 * 2
    made = to_syntax(whole, scanned, syntax)
    after = read(made)
    assert after.PhotometricInterpretation == "YBR_FULL"
    expected = decode_frame(*one_frame(whole))
    np.testing.assert_array_equal(pixel_array(after, raw=True), expected)
    assert (expected[:, 0::2, 1] == expected[:, 1::2, 1]).all()
    assert frame_in(*one_frame(whole), syntax).rstrip(b"\0") == one_frame(made)[2].rstrip(b"\0")


def test_frames_with_loss_are_of_8_bits_and_never_whole_instances() -> None:
    for kind, given in KINDS.items():
        data = small(**given)
        head, scanned, frame = one_frame(data)
        with pytest.raises(NotAcceptable):
            to_syntax(data, scanned, JPEG_BASELINE)
        if given.get("bits") != 8:
            with pytest.raises(NotAcceptable):
                frame_in(head, scanned, frame, JPEG_BASELINE)
            continue
        image = Image.open(io.BytesIO(frame_in(head, scanned, frame, JPEG_BASELINE)))
        assert (image.format, image.size) == ("JPEG", (scanned.number("Columns"), scanned.number("Rows"))), kind
        assert image.mode == ("L" if given.get("samples_per_pixel", 1) == 1 else "RGB")


@pytest.mark.parametrize("syntax", [f"1.2.840.10008.1.2.4.{n}" for n in (51, 81, 91, 92, 100, 110, 201)])
def test_a_frame_in_what_has_no_encoder_is_refused(syntax: str) -> None:
    with pytest.raises(NotAcceptable):
        frame_in(*one_frame(small()), syntax)


def test_what_is_changed_stands_once_and_the_pixel_data_last_where_elements_are_out_of_order() -> None:
    values = np.random.default_rng(1).integers(0, 255, (32, 32, 3), np.uint8)
    made = pixels(32, 32, values.tobytes(), samples=3, photometric="RGB") | {0x00280006: us(0x00280006, 0)}
    early = el(0x00321060, "LO", "Procedure") + el(0x7FE10010, "LO", "private ")
    native = part10(dataset(made | {0x00280002: early + made[0x00280002]}))
    scanned = scan(native)
    for uid, photometric, planar in ((transcode.JPEG_2000, "YBR_RCT", 0), (RLE, "RGB", 1)):
        data = to_syntax(native, scanned, uid)
        again = read(data)
        assert (again.PhotometricInterpretation, again.PlanarConfiguration) == (photometric, planar)
        assert np.array_equal(samples(data), values)
        assert [data.count(struct.pack("<HH2s", *tag)) for tag in ((0x28, 4, b"CS"), (0x28, 6, b"US"), (0x7FE0, 0x10, b"OB"))] == [1, 1, 1]
        assert scan(data).attributes.keys() == scanned.attributes.keys()
        assert scan(data).head_bytes > data.index(struct.pack("<HH2s", 0x28, 0x103, b"US"))
