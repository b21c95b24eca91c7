"""Colour frames to the RGB a screen shows: colour spaces and palettes.

Source: PS3.3 C.7.6.3.1.2, C.7.6.3.1.5, C.7.6.3.1.6, C.7.9.2.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from archive.dicom.decode import Array, Frame
from archive.dicom.header import Header
from archive.dicom.layout import Layout, refused

_RGB = frozenset({"RGB", "YBR_ICT", "YBR_RCT", ""})  # a decoder has undone ICT and RCT
_YBR_FULL = frozenset({"YBR_FULL", "YBR_FULL_422"})
_YBR_PARTIAL = frozenset({"YBR_PARTIAL_422", "YBR_PARTIAL_420"})


def samples(layout: Layout, frame: Frame) -> Image.Image:
    """Return a frame of three samples a pixel.

    Raises:
        NotAcceptable: no-image.
    """
    array = frame.array
    if array.dtype.kind not in "ui":
        raise refused("no-image")
    shift = layout.bits_stored - 8
    eight = np.ascontiguousarray(array if array.dtype == np.uint8 and shift <= 0 else _eight_bits(array, shift))
    if frame.photometric in _RGB:
        return Image.fromarray(eight)
    if frame.photometric in _YBR_PARTIAL:
        eight = _stretched(eight)
    elif frame.photometric not in _YBR_FULL:
        raise refused("no-image")
    return Image.frombuffer("YCbCr", (eight.shape[1], eight.shape[0]), eight, "raw", "YCbCr", 0, 1).convert("RGB")


def _eight_bits(array: Array, shift: int) -> Array:
    return np.clip(array >> shift if shift > 0 else array, 0, 255).astype(np.uint8)


def _stretched(eight: Array) -> Array:
    """Return YBR_FULL of YBR_PARTIAL: luminance from 16 to 235, chrominance from 16 to 240 (PS3.3 C.7.6.3.1.2)."""
    scaled = (eight.astype(np.float32) - (16, 128, 128)) * (255 / 219, 255 / 224, 255 / 224) + (0, 128, 128)
    eight_bits: Array = np.clip(scaled + 0.5, 0, 255).astype(np.uint8)
    return eight_bits


def palette(frame: Frame, header: Header) -> Image.Image:
    """Return a frame of palette indices in its colours.

    Raises:
        NotAcceptable: no-image.
    """
    channels = []
    for number in (1, 2, 3):
        raw = header.binary.get(f"0028120{number}", b"")
        segmented = header.binary.get(f"0028122{number}", b"")
        descriptor = header.document.get(f"0028110{number}", {}).get("Value", [])
        if not (raw or segmented) or len(descriptor) != 3 or not all(isinstance(value, int) for value in descriptor):
            raise refused("no-image")
        entries, first, bits = descriptor[0] % 65536 or 65536, descriptor[1], descriptor[2]
        channels.append((_table(raw or _unsegmented(segmented, entries, bits), entries, bits), first))
    array = frame.array
    if array.dtype.kind not in "ui":
        raise refused("no-image")
    every = array
    if array.itemsize <= 2:
        places = array.view(f"u{array.itemsize}")
        every = np.arange(1 << 8 * array.itemsize, dtype=places.dtype).view(array.dtype)
    colours = np.stack([table[np.clip(every.astype(np.int64) - first, 0, len(table) - 1)] for table, first in channels], axis=-1)
    return Image.fromarray(colours[places] if array.itemsize <= 2 else colours)


def _unsegmented(raw: bytes, entries: int, bits: int) -> bytes:
    """Return the entries that segments stand for, two bytes each.

    Raises:
        NotAcceptable: no-image, when the segments are damaged.
    """
    wide = bits > 8
    codes: list[int] = np.frombuffer(raw[: len(raw) & ~1], "<u2").tolist() if wide else list(raw)
    out: list[int] = []
    at = back = repeats = 0
    try:
        while len(out) < entries and at + 1 < len(codes):
            kind, count = codes[at : at + 2]
            at += 2
            if not count and (repeats or kind == 2):
                raise refused("no-image")  # what gives no entry could be repeated for ever
            if kind == 0:
                out.extend(codes[at : at + count])
                at += count
            elif kind == 1:
                out.extend(np.rint(np.linspace(out[-1], codes[at], count + 1)[1:]).astype(int).tolist())
                at += 1
            elif kind == 2 and not repeats:
                words = codes[at : at + 2] if wide else [codes[at] | codes[at + 1] << 8, codes[at + 2] | codes[at + 3] << 8]
                repeats, back = count, at + (2 if wide else 4)
                at = (words[0] | words[1] << 16) // (2 if wide else 1)  # a byte offset
                continue
            else:
                raise refused("no-image")
            if repeats:
                repeats -= 1
                at = at if repeats else back
    except (IndexError, ValueError) as error:
        raise refused("no-image") from error
    return np.array(out[:entries], "<u2").tobytes()


def _table(raw: bytes, entries: int, bits: int) -> Array:
    """Return a lookup table's entries as 8-bit values; entries of 8 bits may be stored in 16."""
    wide = len(raw) >= entries * 2
    table = np.frombuffer(raw[: len(raw) & ~1] if wide else raw, "<u2" if wide else np.uint8)[:entries]
    if not len(table):
        raise refused("no-image")
    if wide and (bits > 8 or int(table.max()) > 255):
        table = table >> 8
    return table.astype(np.uint8)
