"""Frames and whole instances in the forms that clients ask for.

`part10_head` is the stream up to `scanned.head_bytes` (of a deflated instance: `part10.inflate`'s answer); `frame` the bytes of
`scanned.frames.pieces(index)` joined.

Source: PS3.18 8.7.3, PS3.5 A.2.
"""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np

from archive.dicom import header
from archive.dicom import render as _render
from archive.dicom.decode import (
    DECODABLE,
    Array,
    Frame,
    Layout,
    decode,
    layout_of,
    native_bits,
    pixel_element,
    refused,
    stored_bytes,
    subsampled,
)
from archive.dicom.metadata import encoding
from archive.dicom.part10 import STORED_LIMITS, Limits, Scanned, inflate, meta
from archive.dicom.recipe import Recipe
from archive.dicom.reencode import element, explicit_little
from archive.dicom.smaller import jpeg_2000
from archive.dicom.transfer import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE, UNCOMPRESSED
from archive.dicom.values import swapped
from archive.errors import InvalidInstance

MAX_INSTANCE_BYTES = 2 << 30
"""The largest pixel data that `to_explicit_le` makes: more does not fit one element of its kind everywhere."""


def can_decode(scanned: Scanned) -> bool:
    """Whether there is a decoder for the instance's transfer syntax, or nothing to decode."""
    return scanned.frames is None or scanned.transfer_syntax_uid in DECODABLE


def samples(scanned: Scanned) -> int:
    """Return how many samples a frame is said to have; 0 when that is not said."""
    per_pixel = scanned.number("SamplesPerPixel")
    return (scanned.number("Rows") or 0) * (scanned.number("Columns") or 0) * (1 if per_pixel is None else per_pixel)


def stored_layout(part10_head: bytes, scanned: Scanned) -> Layout:
    """Return the layout of frames as they are stored.

    Raises:
        NotAcceptable: one of decode.REFUSALS.
    """
    if scanned.frames is None:
        raise refused("no-pixels")
    if scanned.deflated:
        return layout_of(scanned, *pixel_element(part10_head[: scanned.frames.offset], scanned))
    return layout_of(scanned, *pixel_element(part10_head[: scanned.head_bytes], scanned))


def decode_frame(part10_head: bytes, scanned: Scanned, frame: bytes, index: int = 0) -> Array:
    """Return one frame as (rows, columns) or (rows, columns, samples); colours as PhotometricInterpretation says.

    Raises:
        NotAcceptable: one of decode.REFUSALS.
    """
    return decode(stored_layout(part10_head, scanned), frame, index).array


def frame_explicit_le(part10_head: bytes, scanned: Scanned, frame: bytes, index: int = 0) -> bytes:
    """Return one frame's pixels as explicit VR little endian has them, without padding.

    Sample order and colours agree with the metadata as stored, but for what decoding joins: YBR_FULL_422 becomes YBR_FULL, YBR_ICT and
    YBR_RCT become RGB. A 1-bit frame begins at the first byte's lowest bit.

    Raises:
        NotAcceptable: one of decode.REFUSALS.
    """
    layout = stored_layout(part10_head, scanned)
    if layout.transfer_syntax_uid in UNCOMPRESSED:
        return native_le(layout, frame, index)
    return _bytes_of(layout, decode(layout, frame, index))


def native_le(layout: Layout, frame: bytes, index: int) -> bytes:
    """Return one uncompressed frame as `frame_explicit_le` does.

    Raises:
        NotAcceptable: short.
    """
    raw, skipped = stored_bytes(layout, frame, index)
    bits = native_bits(layout)
    if len(raw) * 8 < skipped + bits:
        raise refused("short")
    if bits % 8 or skipped % 8:
        unpacked = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")[skipped : skipped + bits]
        return np.packbits(unpacked, bitorder="little").tobytes()
    raw = raw[skipped // 8 : (skipped + bits) // 8]
    if layout.transfer_syntax_uid == EXPLICIT_BE and layout.dtype.itemsize > 1:
        return swapped({2: "OW", 4: "OL", 8: "OV"}[layout.dtype.itemsize], raw)
    return raw


def frame_layout(part10_head: bytes, scanned: Scanned) -> Layout:
    """Return the layout of what `frame_explicit_le` gives.

    Raises:
        NotAcceptable: one of decode.REFUSALS.
    """
    layout = stored_layout(part10_head, scanned)
    if layout.transfer_syntax_uid in UNCOMPRESSED:
        return replace(layout, transfer_syntax_uid=EXPLICIT_LE)
    photometric = {"YBR_FULL_422": "YBR_FULL", "YBR_ICT": "RGB", "YBR_RCT": "RGB"}.get(layout.photometric, layout.photometric)
    return replace(layout, transfer_syntax_uid=EXPLICIT_LE, photometric=photometric)


def _bytes_of(layout: Layout, frame: Frame) -> bytes:
    array = frame.array
    if layout.bits_allocated == 1:
        return np.packbits(array.astype(np.uint8).ravel(), bitorder="little").tobytes()
    if layout.samples > 1 and layout.planar:
        array = array.transpose(2, 0, 1)
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def require_frames(scanned: Scanned, count: int) -> None:
    """Refuse an instance that lacks frames it says it has: made into another form it would pass for whole.

    Raises:
        NotAcceptable: few-frames.
    """
    said = scanned.number("NumberOfFrames")
    if count < (1 if said is None else said):
        raise refused("few-frames")


def to_explicit_le(part10: bytes, scanned: Scanned, limits: Limits = STORED_LIMITS) -> bytes:
    """Return the whole instance in 1.2.840.10008.1.2.1, frames decoded; its UIDs stay.

    Raises:
        NotAcceptable: one of decode.REFUSALS.
    """
    try:
        whole = inflate(part10, scanned, limits)
    except InvalidInstance as error:
        raise refused("too-large") from error
    implicit, little = encoding(whole, scanned)
    changed: dict[int, bytes] = {}
    if scanned.frames is not None:
        changed = _pixel_elements(whole, scanned)
    elif scanned.head_bytes != len(part10) and scanned.transfer_syntax_uid not in (IMPLICIT_LE, EXPLICIT_LE):
        raise refused("no-frames")
    words = "SS" if scanned.number("PixelRepresentation") == 1 else "US"
    body = explicit_little(whole, scanned.dataset_offset, implicit, little, changed, words)
    return meta(scanned.sop_class_uid, scanned.sop_instance_uid, EXPLICIT_LE) + b"".join(body)


def _pixel_elements(whole: bytes, scanned: Scanned) -> dict[int, bytes]:
    """Return the elements that differ once pixel data are native little endian."""
    table = scanned.frames
    assert table is not None
    if table.kind == "native":
        head = whole[: table.offset]
        tag, vr = pixel_element(head, scanned)
        layout = layout_of(scanned, tag, vr)
        if layout.transfer_syntax_uid != EXPLICIT_BE:
            return {}
        require_frames(scanned, table.count)
        bits = table.frame_bits * table.count
        raw, _ = stored_bytes(layout, whole[table.offset : table.offset + (bits + 15) // 16 * 2], 0)
        if layout.dtype.itemsize > 1:
            raw = swapped({2: "OW", 4: "OL", 8: "OV"}[layout.dtype.itemsize], raw)
        kind = {0x7FE00008: "OF", 0x7FE00009: "OD"}.get(tag, vr)
        return {tag: element(tag, kind, raw[: (bits + 7) // 8])}
    require_frames(scanned, table.count)
    layout = layout_of(scanned)
    if layout.pixels * max(1, layout.bits_allocated // 8) * table.count > MAX_INSTANCE_BYTES:
        raise refused("too-large")
    frames: list[bytes] = []
    photometric = layout.photometric
    loose: list[Array] = []  # 1-bit frames follow each other bit by bit
    for n in range(table.count):
        frame = decode(layout, b"".join(whole[at : at + length] for at, length in table.pieces(n)), n)
        photometric = frame.photometric
        if layout.bits_allocated == 1:
            loose.append(frame.array.astype(np.uint8).ravel())
        else:
            frames.append(_bytes_of(layout, frame))
    value = np.packbits(np.concatenate(loose), bitorder="little").tobytes() if loose else b"".join(frames)
    replace = {
        0x7FE00001: b"",
        0x7FE00002: b"",
        0x7FE00010: element(0x7FE00010, "OW" if layout.bits_allocated > 8 else "OB", value),
    }
    if photometric != layout.photometric:
        replace[0x00280004] = element(0x00280004, "CS", photometric.encode("ascii"))
    if layout.samples > 1 and "00280006" not in scanned.attributes:
        replace[0x00280006] = element(0x00280006, "US", struct.pack("<H", 0))
    return replace


def render(part10_head: bytes, scanned: Scanned, frame: bytes, recipe: Recipe, index: int = 0) -> bytes:
    """Return one frame as a PNG or JPEG image.

    The VOI transformation is the recipe's, else the data set's (functional groups too), else the range of the frame's values.

    Raises:
        NotAcceptable: one of decode.REFUSALS.
        InvalidRequest: the viewport's region lies outside the image.
    """
    layout = stored_layout(part10_head, scanned)
    fit = _render.fit_of(layout, recipe)
    decoded = jpeg_2000(layout, frame, fit) or decode(layout, frame, index, fit)
    image = _render.image_of(layout, decoded, header.read(part10_head, scanned, index), recipe.window)
    return _render.encode(image, recipe)


__all__ = [
    "can_decode", "decode_frame", "frame_explicit_le", "frame_layout", "render", "require_frames", "samples", "subsampled",
    "to_explicit_le",
]
