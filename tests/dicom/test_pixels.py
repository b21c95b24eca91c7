"""pixels, decode, render, reencode: values equal pydicom's, whole instances re-encode to the same, images show what they should."""

from __future__ import annotations

import io
import struct
import subprocess
import time
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.pixels import pixel_array

from archive.dicom.layout import REFUSALS, refused
from archive.dicom.part10 import Scanned, inflate, scan
from archive.dicom.pixels import can_decode, decode_frame, frame_explicit_le, render
from archive.dicom.recipe import Recipe
from archive.dicom.transcode import ENCODERS, frame_in
from archive.dicom.transfer import EXPLICIT_LE
from archive.errors import InvalidInstance, NotAcceptable
from tests.dicom.conftest import UIDS, dataset, el, im, item, part10, pixels, to_explicit_le, to_syntax, us

PYDICOM = "pydicom__pydicom-data/data"


def parts(data: bytes, n: int = 0) -> tuple[bytes, Scanned, bytes]:
    scanned = scan(data)
    whole = inflate(data, scanned)
    assert scanned.frames is not None
    frame = b"".join(whole[offset : offset + length] for offset, length in scanned.frames.pieces(n))
    return whole if scanned.deflated else whole[: scanned.head_bytes], scanned, frame


def theirs(data: bytes, n: int | None = None, *, raw: bool = True) -> np.ndarray[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pixel_array(pydicom.dcmread(io.BytesIO(data)), index=n, raw=raw)


# pydicom has no decoder for 12-bit JPEG with a licence we can ship; compared with dcmtk's below.
TWELVE_BIT = "CT0012.fragmented_no_bot_jpeg_baseline.51.dcm"
# pydicom gives stored YBR and another PhotometricInterpretation, we give the RGB that the data set speaks of.
JFIF_RGB = "GH195.dcm"
# pydicom cannot; compared with the same image stored otherwise below.
NOT_THEIRS = {
    TWELVE_BIT,
    "GH1339.dcm",
    "emri_small_jpeg_2k_lossless_too_short.dcm",
    "liver_deflate.dcm",
    "liver_nonbyte_aligned_deflate.dcm",
    "liver_rle.dcm",
    "liver_nonbyte_aligned_rle.dcm",
}


def images(files: list[Path]) -> list[tuple[Path, bytes, Scanned]]:
    found = []
    for path in files:
        data = path.read_bytes()
        try:
            scanned = scan(data)
        except InvalidInstance:
            continue
        if scanned.frames is not None:
            found.append((path, data, scanned))
    return found


def test_frames_equal_pydicoms(corpus_files: list[Path]) -> None:
    compared = 0
    for path, data, scanned in images(corpus_files):
        assert scanned.frames is not None
        for n in {0, scanned.frames.count // 2, scanned.frames.count - 1}:
            head, _, frame = parts(data, n)
            array = decode_frame(head, scanned, frame, n)
            if path.name in NOT_THEIRS:
                continue
            expected = theirs(data, n, raw=path.name != JFIF_RGB)
            if path.name == JFIF_RGB:
                assert np.abs(array.astype(int) - expected).max() <= 3
            else:
                assert np.array_equal(array, expected, equal_nan=array.dtype.kind == "f"), path.name
            assert array.dtype.kind == expected.dtype.kind
            compared += 1
    assert compared > 180


@pytest.mark.parametrize("name", ["liver_deflate", "liver_rle", "liver_expb", "liver_j2k"])
def test_one_bit_frames_are_the_same_however_stored(corpus: Path, name: str) -> None:
    for kind in ("", "_nonbyte_aligned"):
        plain = (corpus / PYDICOM / f"liver{kind}.dcm").read_bytes()
        other = corpus / PYDICOM / f"{name.replace('liver', 'liver' + kind)}.dcm"
        if not other.exists():
            continue
        for n in range(3):
            head, scanned, frame = parts(other.read_bytes(), n)
            assert np.array_equal(decode_frame(head, scanned, frame, n), theirs(plain, n)), (kind, n)
            assert frame_explicit_le(head, scanned, frame, n) == frame_explicit_le(*parts(plain, n), n), (kind, n)


@pytest.mark.parametrize(("keyword", "kind"), [("FloatPixelData", "<f4"), ("DoubleFloatPixelData", "<f8")])
@pytest.mark.parametrize("syntax", [EXPLICIT_LE, "1.2.840.10008.1.2.1.99"])
def test_floats_are_floats_however_their_data_set_is_stored(keyword: str, kind: str, syntax: str) -> None:
    values = (np.arange(3 * 40 * 30) // 300 / 7).astype(kind).reshape(3, 40, 30)
    written = pydicom.dcmread(io.BytesIO(part10(dataset(pixels(40, 30, b"", bits=8 * values.itemsize)))))
    del written.PixelData
    written.NumberOfFrames, written.ImageComments = 3, "again " * 1000  # deflated, the whole is shorter than what stands before the pixels
    setattr(written, keyword, values.tobytes())
    written.file_meta.TransferSyntaxUID = syntax
    out = io.BytesIO()
    written.save_as(out)
    for n in range(3):
        head, scanned, frame = parts(out.getvalue(), n)
        decoded = decode_frame(head, scanned, frame, n)
        assert (decoded.dtype.kind, np.array_equal(decoded, values[n])) == ("f", True)
        assert frame_explicit_le(head, scanned, frame, n) == values[n].tobytes()
        shown = np.asarray(Image.open(io.BytesIO(render(head, scanned, frame, Recipe(form="png"), n))))
        low, high = values[n].min(), values[n].max()
        assert np.abs(shown - (values[n] - low) / (high - low) * 255).max() <= 1
        for other in ENCODERS:
            with pytest.raises(NotAcceptable):
                frame_in(head, scanned, frame, other, n)
    for other in ENCODERS:
        with pytest.raises(NotAcceptable):
            to_syntax(out.getvalue(), scanned, other)
    plain = to_explicit_le(out.getvalue(), scanned)
    assert pydicom.dcmread(io.BytesIO(plain))[keyword].value == values.tobytes()


def test_twelve_bit_jpeg_is_decoded_as_dcmtk_does(corpus: Path, tmp_path: Path) -> None:
    source = next(corpus.rglob(TWELVE_BIT))
    subprocess.run(["dcmdjpeg", str(source), str(tmp_path / "plain.dcm")], check=True)
    for n in range(2):
        ours, plain = (decode_frame(*parts(path.read_bytes(), n), n) for path in (source, tmp_path / "plain.dcm"))
        assert np.array_equal(ours, plain)
        assert ours.max() > 1 << 10


def with_study(data: bytes) -> bytes:
    """The same file with the study and series UIDs it lacks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = pydicom.dcmread(io.BytesIO(data), force=True)
        read.StudyInstanceUID, read.SeriesInstanceUID = "1.2.3.1", "1.2.3.2"
        out = io.BytesIO()
        pydicom.dcmwrite(out, read, enforce_file_format=True)
    return out.getvalue()


@pytest.mark.parametrize("name", ["HTJ2KLossless_08_RGB.dcm", "HTJ2K_08_RGB.dcm", "JLSL_08_07_0_1F.dcm", "JLSL_16_15_1_1F.dcm"])
def test_codecs_of_files_that_name_no_study(corpus: Path, name: str) -> None:
    data = with_study((corpus / PYDICOM / name).read_bytes())
    head, scanned, frame = parts(data)
    array = decode_frame(head, scanned, frame)
    if name.startswith("HTJ2K"):
        assert array.shape == (scanned.number("Rows"), scanned.number("Columns"), 3)
        assert array.std() > 10
    else:
        assert np.array_equal(array, theirs(data, 0))


def test_lossless_codecs_give_the_uncompressed_original(corpus: Path) -> None:
    for plain, *coded in (
        (
            "emri_small.dcm",
            "emri_small_RLE.dcm",
            "emri_small_jpeg_2k_lossless.dcm",
            "emri_small_jpeg_ls_lossless.dcm",
            "emri_small_big_endian.dcm",
        ),
        ("SC_rgb_16bit_2frame.dcm", "SC_rgb_expb_16bit_2frame.dcm"),
        ("OBXXXX1A_expb.dcm", "OBXXXX1A_rle.dcm"),
        ("693_UNCR.dcm", "693_J2KR.dcm"),
    ):
        original = (corpus / PYDICOM / plain).read_bytes()
        table = scan(original).frames
        assert table is not None
        for name in coded:
            data = (corpus / PYDICOM / name).read_bytes()
            for n in range(table.count):
                assert frame_explicit_le(*parts(data, n), n) == frame_explicit_le(*parts(original, n), n), (name, n)


# --- frames as explicit VR little endian


def test_native_chroma_in_partial_range_is_shown_as_dcmtk_shows_it(tmp_path: Path) -> None:
    """YBR_PARTIAL_422 (retired): two pixels in four samples, luminance from 16 to 235 (PS3.3 C.7.6.3.1.2 of 2016)."""
    rows, columns = 12, 16
    random = np.random.default_rng(3)
    stored = np.empty((rows, columns // 2, 4), np.uint8)
    stored[..., :2] = random.integers(16, 236, (rows, columns // 2, 2))
    stored[..., 2:] = random.integers(100, 156, (rows, columns // 2, 2))
    elements = pixels(rows, columns, stored.tobytes(), samples=3, photometric="YBR_PARTIAL_422")
    data = part10(dataset({**elements, 0x00280006: us(0x00280006, 0)}))
    (tmp_path / "partial.dcm").write_bytes(data)
    subprocess.run(["dcm2pnm", "+op", str(tmp_path / "partial.dcm"), str(tmp_path / "partial.ppm")], check=True)
    theirs = np.asarray(Image.open(tmp_path / "partial.ppm")).astype(int)
    ours = np.asarray(Image.open(io.BytesIO(render(*parts(data), Recipe("png"))))).astype(int)
    assert ours.shape == theirs.shape == (rows, columns, 3)
    assert np.abs(ours - theirs).max() <= 3
    assert frame_explicit_le(*parts(data)) == stored.tobytes()


def test_uncompressed_frames_are_as_stored_and_have_the_right_length(corpus_files: list[Path]) -> None:
    for path, data, scanned in images(corpus_files):
        table = scanned.frames
        assert table is not None
        if table.kind != "native":
            continue
        head, _, frame = parts(data, table.count - 1)
        raw = frame_explicit_le(head, scanned, frame, table.count - 1)
        assert len(raw) == (table.frame_bits + 7) // 8, path.name
        if table.frame_bits % 8 == 0 and scanned.transfer_syntax_uid != "1.2.840.10008.1.2.2":
            assert raw == frame


@pytest.mark.parametrize(
    "name", ["SC_rgb_expb.dcm", "SC_rgb_expb_2frame.dcm", "SC_rgb_expb_16bit.dcm", "SC_rgb_expb_32bit.dcm", "emri_small_big_endian.dcm"]
)
def test_big_endian_is_swapped(corpus: Path, name: str) -> None:
    """D12."""
    data = (corpus / PYDICOM / name).read_bytes()
    head, scanned, frame = parts(data)
    expected = theirs(data, 0)
    assert frame_explicit_le(head, scanned, frame) == expected.astype(expected.dtype.newbyteorder("<")).tobytes()


def test_big_endian_bytes_as_words_with_odd_frames() -> None:
    frames = bytes(range(1, 19))
    padded = frames
    words = b"".join(bytes((padded[n + 1], padded[n])) for n in range(0, len(padded), 2))
    body = b"".join(el(tag, "UI", uid.encode() + b"\0" * (len(uid) & 1), order=">") for tag, uid in sorted(UIDS.items()))
    body += us(0x00280002, 1, ">") + el(0x00280004, "CS", "MONOCHROME2", order=">") + el(0x00280008, "IS", "2", order=">")
    body += us(0x00280010, 3, ">") + us(0x00280011, 3, ">") + us(0x00280100, 8, ">") + us(0x00280101, 8, ">")
    body += us(0x00280102, 7, ">") + us(0x00280103, 0, ">") + el(0x7FE00010, "OW", words, order=">")
    data = part10(body, "1.2.840.10008.1.2.2")
    for n in range(2):
        assert frame_explicit_le(*parts(data, n), n) == frames[n * 9 : n * 9 + 9]
        assert np.array_equal(decode_frame(*parts(data, n), n), theirs(data, n))


# --- whole instances


def test_whole_instances_re_encode_to_the_same_values(corpus_files: list[Path]) -> None:
    done = 0
    for path in corpus_files:
        data = path.read_bytes()
        try:
            scanned = scan(data)
        except InvalidInstance:
            continue
        plain = to_explicit_le(data, scanned)
        again = scan(plain)
        assert again.transfer_syntax_uid == "1.2.840.10008.1.2.1"
        assert not [finding for finding in again.findings if finding not in scanned.findings], path.name
        assert again.sop_instance_uid == scanned.sop_instance_uid
        changed = {"00280004", "00280006"}
        for name in scanned.attributes.keys() - changed:
            assert again.attributes[name] == scanned.attributes[name], (path.name, name)
        if scanned.frames is not None:
            assert again.frames is not None
            assert again.frames.count == scanned.frames.count, path.name
            for n in {0, scanned.frames.count - 1}:
                assert frame_explicit_le(*parts(plain, n), n) == frame_explicit_le(*parts(data, n), n), path.name
            if path.name not in NOT_THEIRS and path.name != JFIF_RGB:
                assert np.array_equal(theirs(plain, 0), theirs(data, 0), equal_nan=True), path.name
        done += 1
    assert done > 170


def elements_of(data: bytes) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
        return {name: value for name, value in read.to_json_dict(bulk_data_threshold=1 << 40).items() if not name.endswith("0000")}


@pytest.mark.parametrize(
    "name", ["emri_small_big_endian.dcm", "emri_small_jpeg_ls_lossless.dcm", "MR2_J2KR.dcm", "693_UNCR.dcm", "liver_expb.dcm"]
)
def test_the_header_survives_re_encoding(corpus: Path, name: str) -> None:
    data = (corpus / PYDICOM / name).read_bytes()
    assert elements_of(to_explicit_le(data, scan(data))) == elements_of(data)


def test_implicit_becomes_explicit_with_the_dictionarys_vrs() -> None:
    body = b"".join(im(tag, uid + "\0" * (len(uid) & 1)) for tag, uid in sorted(UIDS.items()))
    inner = item(im(0x00080100, "X "))
    body += im(0x00081140, inner) + im(0x00091001, b"\1\2") + im(0x00280103, b"\1\0") + im(0x00280106, b"\xfe\xff")
    data = part10(body, "1.2.840.10008.1.2")
    read = pydicom.dcmread(io.BytesIO(to_explicit_le(data, scan(data))))
    assert read.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert read[0x00081140][0].CodeValue == "X"
    assert (read[0x00091001].VR, read[0x00091001].value) == ("UN", b"\1\2")
    assert (read[0x00280106].VR, read[0x00280106].value) == ("SS", -2)


def test_a_decoded_jpeg_says_the_colours_it_has(corpus: Path) -> None:
    """D13."""
    for _, data, scanned in images(sorted((corpus / PYDICOM).glob("*.dcm"))):
        if scanned.transfer_syntax_uid == "1.2.840.10008.1.2.4.50" and scanned.text("PhotometricInterpretation") == "YBR_FULL_422":
            assert scan(to_explicit_le(data, scanned)).text("PhotometricInterpretation") == "YBR_FULL"
    ict = (corpus / PYDICOM / "US1_J2KI.dcm").read_bytes()
    plain = to_explicit_le(ict, scan(ict))
    assert scan(plain).text("PhotometricInterpretation") in {"RGB", "YBR_FULL"}
    assert np.array_equal(theirs(plain, 0, raw=False), theirs(ict, 0, raw=False))


# --- refusals


def reason(data: bytes, n: int = 0, frame: bytes | None = None) -> str:
    scanned = scan(data)
    whole = inflate(data, scanned)
    if frame is None:
        assert scanned.frames is not None
        frame = b"".join(whole[offset : offset + length] for offset, length in scanned.frames.pieces(n))
    with pytest.raises(NotAcceptable) as caught:
        decode_frame(whole[: scanned.head_bytes], scanned, frame, n)
    assert caught.value.reason in REFUSALS
    assert str(caught.value) == REFUSALS[caught.value.reason]
    with pytest.raises(NotAcceptable):
        render(whole[: scanned.head_bytes], scanned, frame, Recipe())
    return caught.value.reason


def encapsulated(frame: bytes, transfer_syntax_uid: str, rows: int, columns: int, *, bits: int = 8, samples: int = 1) -> bytes:
    elements = pixels(rows, columns, b"", bits=bits, samples=samples, photometric="RGB" if samples == 3 else "MONOCHROME2")
    content = item(b"") + item(frame + b"\0" * (len(frame) & 1)) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    elements[0x7FE00010] = el(0x7FE00010, "OB", content, length=0xFFFFFFFF)
    return part10(dataset(elements), transfer_syntax_uid)


def test_sizes_that_lie_are_refused_before_anything_is_allocated(hostile: Path, corpus: Path) -> None:
    tracemalloc.start()
    try:
        data = (hostile / "dims-lie.dcm").read_bytes()
        assert reason(data, frame=bytes(512)) == "too-large"
        for name in ("MR2_J2KR.dcm", "JPGLosslessP14SV1_1s_1f_8b.dcm", "emri_small_jpeg_ls_lossless.dcm", "emri_small_RLE.dcm"):
            coded = parts((corpus / PYDICOM / name).read_bytes())
            lying = encapsulated(coded[2], coded[1].transfer_syntax_uid, 20000, 20000, bits=8)
            assert reason(lying) == "size-lies", name
        jpeg = io.BytesIO()
        Image.new("L", (30, 20), 99).save(jpeg, "JPEG")
        assert reason(encapsulated(jpeg.getvalue(), "1.2.840.10008.1.2.4.50", 20000, 20000)) == "size-lies"
        assert reason(encapsulated(zlib.compress(bytes(50), wbits=-15), "1.2.840.10008.1.2.8.1", 20000, 20000)) == "short"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 << 20


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "YBR_PARTIAL_422"])
def test_chroma_of_pairs_where_one_pixel_has_no_other_makes_no_frame(photometric: str) -> None:
    data = part10(dataset(pixels(3, 3, bytes(range(20)), samples=3, photometric=photometric)))
    assert reason(data) == "no-shape"
    head, scanned, frame = parts(data)
    with pytest.raises(NotAcceptable):
        render(head, scanned, frame, Recipe("png"))
    for uid in ENCODERS:
        with pytest.raises(NotAcceptable):
            to_syntax(data, scanned, uid)
    assert pydicom.dcmread(io.BytesIO(to_explicit_le(data, scanned))).PixelData == bytes(range(20))


@pytest.mark.parametrize("content", [b"\0\0", b"\xff\xff", b"\xff\xd0"])
def test_a_long_frame_without_a_header_is_refused_at_once(content: bytes) -> None:
    data = encapsulated(b"\xff\xd8" + content * (16 << 20), "1.2.840.10008.1.2.4.50", 2, 2)
    began = time.process_time()
    assert reason(data) == "damaged"
    assert time.process_time() - began < 2


def test_a_jpeg_of_thousands_of_scans_is_refused_at_once() -> None:
    """Each goes over the whole image, and takes a few bytes."""
    out, side = io.BytesIO(), 2048
    Image.new("L", (side, side), 99).save(out, "JPEG", progressive=True)
    stream = out.getvalue()
    assert decode_frame(*parts(encapsulated(stream, "1.2.840.10008.1.2.4.50", side, side))).shape == (side, side)
    last = stream[stream.rindex(b"\xff\xda") : -2]
    data = encapsulated(stream[:-2] + last * 2000 + stream[-2:], "1.2.840.10008.1.2.4.50", side, side)
    began = time.process_time()
    assert reason(data) == "damaged"
    assert time.process_time() - began < 2


def test_other_refusals(hostile: Path) -> None:
    assert reason(part10(dataset(pixels(4, 4, bytes(8)))), frame=bytes(8)) == "short"
    assert reason(encapsulated(b"not a picture", "1.2.840.10008.1.2.4.50", 2, 2)) == "damaged"
    assert reason(encapsulated(b"not a picture", "1.2.840.10008.1.2.4.90", 2, 2)) == "damaged"
    assert reason(encapsulated(b"not a picture at all, no", "1.2.840.10008.1.2.5", 2, 2)) == "damaged"
    assert reason(encapsulated(b"anything", "1.2.840.10008.1.2.4.102", 2, 2)) == "no-codec"
    assert reason(part10(dataset(pixels(2, 2, bytes(12), bits=12))), frame=bytes(12)) == "no-shape"
    sr = scan(part10(dataset()))
    with pytest.raises(NotAcceptable) as caught:
        decode_frame(b"", sr, b"")
    assert caught.value.reason == "no-pixels"
    assert not can_decode(scan(encapsulated(b"x", "1.2.840.10008.1.2.4.102", 2, 2)))
    assert can_decode(sr)
    unknown = (hostile / "unknown-ts.dcm").read_bytes()
    with pytest.raises(NotAcceptable) as caught:
        to_explicit_le(unknown, scan(unknown))
    assert caught.value.reason == "no-frames"
    assert refused("no-codec").reason == "no-codec"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_code_streams_are_refused_or_decoded(corpus: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["emri_small_RLE.dcm", "emri_small_jpeg_2k_lossless.dcm", "emri_small_jpeg_ls_lossless.dcm"]))
    head, scanned, frame = parts((corpus / PYDICOM / name).read_bytes())
    broken = bytearray(frame)
    for _ in range(data.draw(st.integers(1, 5))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    try:
        array = decode_frame(head, scanned, bytes(broken))
    except NotAcceptable:
        return
    assert array.shape == (64, 64)
