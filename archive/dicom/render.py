"""A decoded frame to an image people look at: modality and VOI transformation, palette, colour space, size.

Source: PS3.3 C.11.1, C.11.2, C.7.6.3.1; PS3.4 N.2.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from archive.dicom.decode import Array, Frame, Layout, refused
from archive.dicom.values import Element

Document = dict[str, Element]
"""A data set in the DICOM JSON Model whose binary values lie in `Luts.binary`."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the data set says about showing its frames: the JSON Model, and its binary values by path."""

    document: Document
    binary: dict[str, bytes]
    index: int = 0

    def first(self, keyword_tag: str, default: float | None = None) -> float | None:
        """Return the first value as a number: of the frame's functional groups, of the shared ones, else of the data set."""
        values = self.values(keyword_tag)
        return values[0] if values else default

    def values(self, tag: str) -> list[float]:
        """Return the finite numbers of a value, found as in `first`."""
        for dataset in self._places():
            found = [number for value in dataset.get(tag, {}).get("Value", []) if (number := _number(value)) is not None]
            if found:
                return found
        return []

    def word(self, tag: str) -> str:
        """Return the first value as text, found as in `first`."""
        for dataset in self._places():
            values = dataset.get(tag, {}).get("Value")
            if values and isinstance(values[0], str):
                return values[0]
        return ""

    def item(self, tag: str) -> tuple[Document, str] | None:
        """Return the first item of a sequence of the data set, and the path of its values."""
        items = self.document.get(tag, {}).get("Value")
        return (items[0], f"{tag}/1/") if items else None

    def _places(self) -> list[Document]:
        """Return where a value may lie, nearest first."""
        places: list[Document] = []
        for tag, n in (("52009230", self.index), ("52009229", 0)):
            items = self.document.get(tag, {}).get("Value", [])
            if n < len(items):
                for group in items[n].values():
                    places.extend(group.get("Value", [])[:1] if group.get("vr") == "SQ" else [])
        return [*places, self.document]


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def image_of(layout: Layout, frame: Frame, header: Header, window: tuple[float, float] | None) -> Image.Image:
    """Return the frame as an 8-bit grey or RGB image.

    Raises:
        NotAcceptable: no-image.
    """
    if layout.samples == 3:
        return Image.fromarray(_colour(layout, frame))
    if layout.samples != 1:
        raise refused("no-image")
    if frame.photometric == "PALETTE COLOR":
        return Image.fromarray(_palette(frame.array, header))
    return Image.fromarray(_grey(layout, frame, header, window))


def encode(image: Image.Image, *, max_size: tuple[int, int] | None, form: Literal["png", "jpeg"], quality: int) -> bytes:
    """Return the image as PNG or JPEG, made no larger than `max_size` in its own proportions."""
    if max_size is not None:
        image.thumbnail((max(1, max_size[0]), max(1, max_size[1])), Image.Resampling.BILINEAR, reducing_gap=2.0)
    out = io.BytesIO()
    if form == "png":
        image.save(out, "PNG", compress_level=4)
    else:
        image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def _colour(layout: Layout, frame: Frame) -> Array:
    array = frame.array
    if array.dtype.kind not in "ui":
        raise refused("no-image")
    shift = layout.bits_stored - 8
    eight = np.clip(array >> shift if shift > 0 else array, 0, 255).astype(np.uint8)
    if frame.photometric in {"YBR_FULL", "YBR_FULL_422"}:
        return _rgb(eight)
    if frame.photometric not in {"RGB", "YBR_ICT", "YBR_RCT", ""}:
        raise refused("no-image")
    return np.ascontiguousarray(eight)


def _rgb(ybr: Array) -> Array:
    """Return RGB of YBR_FULL (PS3.3 C.7.6.3.1.2)."""
    y, b, r = (ybr[..., n].astype(np.float32) - (128 if n else 0) for n in range(3))
    rgb = np.stack((y + 1.402 * r, y - 0.344136 * b - 0.714136 * r, y + 1.772 * b), axis=-1)
    return np.clip(rgb + 0.5, 0, 255).astype(np.uint8)


def _palette(array: Array, header: Header) -> Array:
    """Return RGB through the palette colour lookup tables (PS3.3 C.7.6.3.1.5 and .6)."""
    channels = []
    for number in (1, 2, 3):
        raw = header.binary.get(f"0028120{number}", b"")
        segmented = header.binary.get(f"0028122{number}", b"")
        descriptor = header.document.get(f"0028110{number}", {}).get("Value", [])
        if not (raw or segmented) or len(descriptor) != 3 or not all(isinstance(value, int) for value in descriptor):
            raise refused("no-image")
        entries, first, bits = descriptor[0] % 65536 or 65536, descriptor[1], descriptor[2]
        table = _table(raw or _unsegmented(segmented, entries, bits), entries, bits)
        channels.append(table[np.clip(array.astype(np.int64) - first, 0, len(table) - 1)])
    return np.stack(channels, axis=-1)


def _unsegmented(raw: bytes, entries: int, bits: int) -> bytes:
    """Return the entries that segments stand for, two bytes each.

    Raises:
        NotAcceptable: no-image, when the segments are damaged.

    Source: PS3.3 C.7.9.2.
    """
    wide = bits > 8
    codes: list[int] = np.frombuffer(raw[: len(raw) & ~1], "<u2").tolist() if wide else list(raw)
    out: list[int] = []
    at = back = repeats = 0
    try:
        while len(out) < entries and at + 1 < len(codes):
            kind, count = codes[at : at + 2]
            at += 2
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
    table = np.frombuffer(raw, "<u2" if wide else np.uint8)[:entries]
    if not len(table):
        raise refused("no-image")
    if wide and (bits > 8 or int(table.max()) > 255):
        table = table >> 8
    return table.astype(np.uint8)


def _grey(layout: Layout, frame: Frame, header: Header, window: tuple[float, float] | None) -> Array:
    values: Array = frame.array.astype(np.float32 if layout.bits_allocated <= 16 else np.float64)
    lut = header.item("00283000")
    if lut is not None and (table := _lut(lut, header)) is not None:
        values = table[0][np.clip(frame.array.astype(np.int64) - table[1], 0, len(table[0]) - 1)].astype(np.float32)
    else:
        slope, intercept = header.first("00281053", 1.0) or 1.0, header.first("00281052", 0.0) or 0.0
        if (slope, intercept) != (1.0, 0.0):
            values = np.add(np.multiply(values, slope, dtype=values.dtype), intercept, dtype=values.dtype)
    grey = _voi(values, frame, layout, header, window)
    inverted = frame.photometric == "MONOCHROME1" or header.word("20500020") == "INVERSE"
    eight = np.clip(np.nan_to_num(grey, nan=0.0) * 255 + 0.5, 0, 255).astype(np.uint8)
    return 255 - eight if inverted else eight


def _voi(values: Array, frame: Frame, layout: Layout, header: Header, window: tuple[float, float] | None) -> Array:
    """Return grey between 0 and 1."""
    function = header.word("00281056") if window is None else "LINEAR"
    if window is None and layout.bits_allocated > 1:
        lut = header.item("00283010")
        table = _lut(lut, header) if lut is not None else None
        if table is not None:
            entries = table[0][np.clip(np.nan_to_num(values).astype(np.int64) - table[1], 0, len(table[0]) - 1)]
            return entries / np.float32(max(1, (1 << table[2]) - 1))
        centers, widths = header.values("00281050"), header.values("00281051")
        window = (centers[0], widths[0]) if centers and widths and widths[0] > 0 else None
    if window is None:
        return _whole_range(values, frame, header)
    center, width = window
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -60, 60)))
    if function == "LINEAR_EXACT" or frame.array.dtype.kind == "f":  # LINEAR's half steps mean whole numbers
        return (values - center) / width + 0.5
    if width <= 1:  # PS3.3 C.11.2.1.2.1: a threshold
        return (values > center - 0.5).astype(np.float32)
    return (values - (center - 0.5)) / (width - 1) + 0.5


def _whole_range(values: Array, frame: Frame, header: Header) -> Array:
    """Return grey from the smallest to the largest value there is, padding aside."""
    seen = values[np.isfinite(values)]
    padding = header.first("00280120")
    if padding is not None and frame.array.dtype.kind in "ui":
        real = values[frame.array != padding]
        seen = real if real.size else seen
    if not seen.size:
        return np.zeros_like(values)
    low, high = float(seen.min()), float(seen.max())
    if frame.array.dtype.kind == "u" and high <= 1 and low >= 0:
        return values  # bit masks: 1 is white even where nothing else is
    return (values - low) / (high - low) if high > low else np.full_like(values, 0.5)


def _lut(item: tuple[Document, str], header: Header) -> tuple[Array, int, int] | None:
    """Return entries, first mapped value and bits of a lookup table (PS3.3 C.11.1.1.1)."""
    document, path = item
    descriptor = document.get("00283002", {}).get("Value", [])
    if len(descriptor) != 3 or not all(isinstance(value, int) for value in descriptor):
        return None
    raw = header.binary.get(path + "00283006")
    if raw is not None:
        table = np.frombuffer(raw[: len(raw) & ~1], "<u2")
    else:
        data = document.get("00283006", {}).get("Value", [])
        table = np.array([value for value in data if isinstance(value, int)], np.int64) & 0xFFFF
    entries = descriptor[0] % 65536 or 65536
    return (table[:entries], descriptor[1], max(1, min(16, descriptor[2]))) if len(table) else None
