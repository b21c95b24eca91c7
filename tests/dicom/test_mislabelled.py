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
