"""transcode: an instance whose pixel data are not what it says they are is refused, and never made into one that is silently wrong."""

from __future__ import annotations

import zlib
from functools import partial

import pytest

from archive.dicom.part10 import inflate, scan
from archive.dicom.pixels import decode_frame, frame_explicit_le, render
from archive.dicom.recipe import Recipe
from archive.dicom.transcode import JPEG_LS, RLE, can_encode, frame_in
from archive.dicom.transfer import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE
from archive.errors import NotAcceptable
from tests.dicom.conftest import el, part10, to_syntax
from tests.dicom.test_transcode import big_endian, read, small

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:pydicom")

def said(data: bytes, before: str, after: str | None) -> bytes:
    """The same with another NumberOfFrames."""
    changed = data.replace(el(0x00280008, "IS", before), b"" if after is None else el(0x00280008, "IS", after))
    assert changed != data
    return changed

@pytest.mark.parametrize("number", [None, "0", "-1", "1", "2"])
@pytest.mark.parametrize("stored", [EXPLICIT_LE, EXPLICIT_BE, JPEG_LS, RLE])
def test_an_instance_of_more_frames_than_it_says_is_not_converted_to_one_of_so_many(stored: str, number: str | None) -> None:
    native = small(frames=3)
    data = big_endian(native) if stored == EXPLICIT_BE else native if stored == EXPLICIT_LE else to_syntax(native, scan(native), stored)
    if stored == EXPLICIT_BE:
        order = {"order": ">"}
        data = data.replace(el(0x00280008, "IS", "3", **order), b"" if number is None else el(0x00280008, "IS", number, **order))
    else:
        data = said(data, "3", number)
    for syntax in (EXPLICIT_LE, JPEG_LS, RLE):
        if syntax == stored:
            continue
        if stored == EXPLICIT_BE and syntax == EXPLICIT_LE and number in (None, "1", "2"):  # as they are
            assert read(to_syntax(data, scan(data), syntax)).PixelData == read(native).PixelData
            continue
        assert not can_encode(scan(data), syntax) or stored in (EXPLICIT_LE, EXPLICIT_BE)
        with pytest.raises(NotAcceptable) as refused:
            to_syntax(data, scan(data), syntax)
        assert refused.value.reason == "more-frames"

@pytest.mark.parametrize("said_to_be", [EXPLICIT_LE, IMPLICIT_LE, "1.2.840.10008.1.2.1.99"])
def test_encapsulated_pixel_data_that_are_said_to_be_native_are_no_samples(said_to_be: str) -> None:
    """A code stream of noise is longer than its samples: it would be a picture of nothing."""
    native = small(bits=8, stored=8)
    coded = to_syntax(native, scan(native), RLE)
    body = coded[scan(coded).dataset_offset :]
    if said_to_be == "1.2.840.10008.1.2.1.99":
        deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        body = deflate.compress(body) + deflate.flush()
    data = part10(body, said_to_be)
    scanned = scan(data)
    assert scanned.frames is not None
    assert scanned.frames.kind == "encapsulated"
    whole = inflate(data, scanned)
    frame = b"".join(whole[at : at + length] for at, length in scanned.frames.pieces(0))
    assert len(frame) >= 40 * 40
    head = whole if scanned.deflated else whole[: scanned.head_bytes]
    for ask in (
        lambda: decode_frame(head, scanned, frame), lambda: frame_explicit_le(head, scanned, frame),
        lambda: render(head, scanned, frame, Recipe("png")), lambda: frame_in(head, scanned, frame, JPEG_LS),
        *(partial(to_syntax, data, scanned, target) for target in (EXPLICIT_LE, IMPLICIT_LE, JPEG_LS, RLE)),
    ):
        with pytest.raises(NotAcceptable) as refused:
            ask()
        assert refused.value.reason == "mislabelled"
    assert not can_encode(scanned, EXPLICIT_LE)


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "YBR_PARTIAL_422"])
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("syntax", [EXPLICIT_LE, "1.2.840.10008.1.2.1.99"])
def test_native_chroma_of_every_pixel_is_not_taken_for_that_of_every_second(photometric: str, frames: int, syntax: str) -> None:
    """What decompresses without looking leaves the photometric interpretation of the code stream: frames would begin in one another."""
    whole = small(bits=8, stored=8, samples_per_pixel=3, photometric=photometric, frames=frames)
    halved = whole.replace(
        el(0x7FE00010, "OB", b"", length=40 * 40 * 3 * frames), el(0x7FE00010, "OB", b"", length=40 * 40 * 2 * frames))
    halved = halved[: len(halved) - 40 * 40 * frames]
    for data, right in ((whole, False), (halved, True)):
        if syntax != EXPLICIT_LE:
            deflate, body = zlib.compressobj(wbits=-zlib.MAX_WBITS), data[scan(data).dataset_offset :]
            data = part10(deflate.compress(body) + deflate.flush(), syntax)
        scanned = scan(data)
        assert scanned.frames is not None
        read_all = inflate(data, scanned)
        head = read_all if scanned.deflated else read_all[: scanned.head_bytes]
        frame = b"".join(read_all[at : at + length] for at, length in scanned.frames.pieces(0))
        asked = [partial(ask, head, scanned, frame) for ask in (decode_frame, frame_explicit_le)]
        asked += [partial(render, head, scanned, frame, Recipe("png"))]
        asked += [partial(to_syntax, data, scanned, RLE)] if photometric == "YBR_FULL_422" else []
        for ask in asked:
            if right:
                assert len(ask())
                continue
            with pytest.raises(NotAcceptable) as refused:
                ask()
            assert refused.value.reason in {"more-samples", "more-frames"}
        assert read(to_syntax(data, scanned, IMPLICIT_LE)).PixelData == read(data).PixelData
