"""Frames in the forms that clients ask for.

`part10_head` is the stream up to `scanned.head_bytes` (of a deflated instance: `part10.inflate`'s answer); `frame` the bytes of
`scanned.frames.pieces(index)` joined.

Source: PS3.18 8.7.3, PS3.5 A.2.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from archive.dicom import header
from archive.dicom import render as _render
from archive.dicom.decode import DECODABLE, Array, Frame, decode
from archive.dicom.layout import (
    Layout,
    layout_of,
    native_bits,
    packed_pairs,
    pixel_element,
    refused,
    require_label,
    stored_bytes,
    subsampled,
    value_bytes,
)
from archive.dicom.part10 import Scanned
from archive.dicom.recipe import Recipe
from archive.dicom.smaller import jpeg_2000
from archive.dicom.transfer import EXPLICIT_BE, EXPLICIT_LE, UNCOMPRESSED
from archive.dicom.values import swapped


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
        NotAcceptable: one of layout.REFUSALS.
    """
    if scanned.frames is None:
        raise refused("no-pixels")
    require_label(scanned)
    # Of a deflated instance `head_bytes` is how long it was deflated.
    end = scanned.frames.offset if scanned.deflated else scanned.head_bytes
    head = part10_head[:end]
    layout = layout_of(scanned, *pixel_element(head, scanned))
    if subsampled(layout) and scanned.frames.kind == "native":
        _require_halved(layout, value_bytes(head, scanned), scanned.number("NumberOfFrames") or 1)
    return layout


def _require_halved(layout: Layout, length: int, frames: int) -> None:
    """Refuse native pixel data with all of the chroma that they say they hold half of: each frame would begin in another.

    Raises:
        NotAcceptable: more-samples.
    """
    if length >= layout.pixels * layout.bits_allocated // 8 * frames:
        raise refused("more-samples")


def decode_frame(part10_head: bytes, scanned: Scanned, frame: bytes, index: int = 0) -> Array:
    """Return one frame as (rows, columns) or (rows, columns, samples); colours as PhotometricInterpretation says.

    Raises:
        NotAcceptable: one of layout.REFUSALS.
    """
    return decode(stored_layout(part10_head, scanned), frame, index).array


def frame_explicit_le(part10_head: bytes, scanned: Scanned, frame: bytes, index: int = 0) -> bytes:
    """Return one frame's pixels as explicit VR little endian has them, without padding.

    Sample order and colours agree with the metadata as stored, but for what decoding joins: YBR_FULL_422 becomes YBR_FULL, YBR_ICT and
    YBR_RCT become RGB. A 1-bit frame begins at the first byte's lowest bit.

    Raises:
        NotAcceptable: one of layout.REFUSALS.
    """
    return explicit_le(stored_layout(part10_head, scanned), frame, index)


def explicit_le(layout: Layout, frame: bytes, index: int) -> bytes:
    """Return one frame of that stored layout as `frame_explicit_le` does.

    Raises:
        NotAcceptable: one of layout.REFUSALS.
    """
    if layout.transfer_syntax_uid in UNCOMPRESSED:
        return native_le(layout, frame, index)
    return bytes_of(layout, decode(replace(layout, whole=True), frame, index))


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


def native_alone(layout: Layout, frame: bytes, index: int) -> bytes:
    """Return one uncompressed frame as it is stored, but from its own first byte on: it may begin and end within bytes of others.

    Raises:
        NotAcceptable: one of layout.REFUSALS.
    """
    if not packed_pairs(layout):
        return native_le(layout, frame, index) if native_bits(layout) % 8 else frame
    ordered = native_le(layout, frame, index)
    return swapped("OW", ordered + bytes(len(ordered) % 2))


def frame_layout(part10_head: bytes, scanned: Scanned) -> Layout:
    """Return the layout of what `frame_explicit_le` gives.

    Raises:
        NotAcceptable: one of layout.REFUSALS.
    """
    return explicit_layout(stored_layout(part10_head, scanned))


def explicit_layout(layout: Layout) -> Layout:
    """Return what a stored layout becomes by `explicit_le`."""
    if layout.transfer_syntax_uid in UNCOMPRESSED:
        return replace(layout, transfer_syntax_uid=EXPLICIT_LE)
    photometric = {"YBR_FULL_422": "YBR_FULL", "YBR_ICT": "RGB", "YBR_RCT": "RGB"}.get(layout.photometric, layout.photometric)
    return replace(layout, transfer_syntax_uid=EXPLICIT_LE, photometric=photometric)


def bytes_of(layout: Layout, frame: Frame) -> bytes:
    """Return a decoded frame in explicit VR little endian, in the order of samples its data set has."""
    array = frame.array
    if layout.bits_allocated == 1:
        return np.packbits(array.astype(np.uint8).ravel(), bitorder="little").tobytes()
    if layout.samples > 1 and layout.planar:
        array = array.transpose(2, 0, 1)
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def require_frames(scanned: Scanned, count: int) -> None:
    """Refuse an instance that lacks frames it says it has, or has others besides: made into another form it would pass for whole.

    Raises:
        NotAcceptable: few-frames, more-frames.
    """
    said = scanned.number("NumberOfFrames")
    wanted = 1 if said is None else said
    if count != wanted or wanted < 1:
        raise refused("few-frames" if 0 <= count < wanted else "more-frames")


def render(part10_head: bytes, scanned: Scanned, frame: bytes, recipe: Recipe, index: int = 0) -> bytes:
    """Return one frame as a PNG or JPEG image.

    The VOI transformation is the recipe's, else the data set's (functional groups too), else the range of the frame's values.

    Raises:
        NotAcceptable: one of layout.REFUSALS.
        InvalidRequest: the viewport's region lies outside the image.
    """
    layout = stored_layout(part10_head, scanned)
    told = header.read(part10_head, scanned, index)
    high = _render.oblong(told)
    fit = _render.fit_of(layout, recipe, high)
    decoded = jpeg_2000(layout, frame, fit) or decode(layout, frame, index, fit)
    image = _render.image_of(layout, decoded, told, recipe.window)
    return _render.encode(image, recipe, high)
