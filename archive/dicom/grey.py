"""Stored grey values to the 8 bits a screen shows: modality, VOI and presentation transformation.

Frames of up to 16 bits are looked up in a table made once of every value they could hold, so that the arithmetic does not grow with
the image.

Source: PS3.3 C.11.1, C.11.2, C.11.6.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from archive.dicom.decode import Array, Frame
from archive.dicom.header import Document, Header
from archive.dicom.layout import Layout
from archive.dicom.recipe import Window

Seen = Callable[[], Array | None]
"""Which of the values the frame really holds, as a mask; None: all of them."""


def eight_bits(layout: Layout, frame: Frame, header: Header, window: Window | None) -> Array:
    """Return the frame as shown, 0 black and 255 white."""
    array = frame.array
    if array.dtype.kind not in "ui" or array.itemsize > 2 or array.size <= 1 << 8 * array.itemsize:
        return _shades(array, lambda: None, layout, frame.photometric, header, window)
    places = array.view(f"u{array.itemsize}")
    every = np.arange(int(places.max()) + 1, dtype=places.dtype)

    def seen() -> Array:
        mask = np.zeros(every.size, bool)
        mask[places] = True
        return mask

    shades: Array = _shades(every.view(array.dtype), seen, layout, frame.photometric, header, window)[places]
    return shades


def _shades(stored: Array, seen: Seen, layout: Layout, photometric: str, header: Header, window: Window | None) -> Array:
    # In place from here on: of a large frame every copy is some hundred megabytes.
    values = _modality(stored, layout, header)
    grey = np.nan_to_num(_voi(values, stored, seen, layout, header, window), copy=False, nan=0.0)
    grey *= 255
    grey += 0.5
    shades = np.clip(grey, 0, 255, out=grey).astype(np.uint8)
    return 255 - shades if photometric == "MONOCHROME1" or header.word("20500020") == "INVERSE" else shades


def _modality(stored: Array, layout: Layout, header: Header) -> Array:
    """Return values in the modality's units (PS3.3 C.11.1)."""
    lut = _lut(header.item("00283000"), header)
    if lut is not None:
        return lut.of(stored).astype(np.float32)
    values: Array = stored.astype(np.float32 if layout.bits_allocated <= 16 else np.float64)
    slope, intercept = header.first("00281053", 1.0) or 1.0, header.first("00281052", 0.0) or 0.0
    if (slope, intercept) != (1.0, 0.0):
        np.multiply(values, slope, out=values, dtype=values.dtype)
        np.add(values, intercept, out=values, dtype=values.dtype)
    return values


def _voi(values: Array, stored: Array, seen: Seen, layout: Layout, header: Header, window: Window | None) -> Array:
    """Return grey between 0 and 1 (PS3.3 C.11.2); what was in `values` may be gone."""
    if window is None and layout.bits_allocated > 1:
        lut = _lut(header.item("00283010"), header)
        if lut is not None:
            return lut.of(np.nan_to_num(values)) / np.float32(max(1, (1 << lut.bits) - 1))
        centers, widths = header.values("00281050"), header.values("00281051")
        if centers and widths and widths[0] > 0:
            function = header.word("00281056")
            window = Window(centers[0], widths[0], function if function in {"LINEAR_EXACT", "SIGMOID"} else "LINEAR")  # type: ignore[arg-type]
    if window is None:
        return _unwindowed(values, stored, seen, layout, header)
    if window.function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - window.center) / window.width, -60, 60)))
    # LINEAR's half steps mean whole numbers, and it has no width below 1: whoever says one means fractions.
    if window.function == "LINEAR_EXACT" or stored.dtype.kind == "f" or window.width < 1:
        return _ramp(values, window.center, window.width, 0.5)
    if window.width == 1:  # C.11.2.1.2.1: a threshold
        return (values > window.center - 0.5).astype(np.float32)
    return _ramp(values, window.center - 0.5, window.width - 1, 0.5)


def _ramp(values: Array, low: float, span: float, start: float = 0.0) -> Array:
    """Turn values into `(values - low) / span + start`."""
    values -= low
    values /= span
    values += start
    return values


def _unwindowed(values: Array, stored: Array, seen: Seen, layout: Layout, header: Header) -> Array:
    """Return grey where nothing says what is of interest: from the smallest to the largest value there is, padding aside."""
    if _is_picture(stored, layout, header):
        return _ramp(values, 0.0, (1 << layout.bits_stored) - 1)
    mask = seen()
    here, raw = (values, stored) if mask is None else (values[mask], stored[mask])
    finite = np.isfinite(here)
    kept = here if finite.all() else here[finite]
    padding = header.first("00280120")
    if padding is not None and stored.dtype.kind in "ui":
        limit = header.first("00280121", padding)
        assert limit is not None
        real = here[(raw < min(padding, limit)) | (raw > max(padding, limit))]
        kept = real if real.size else kept
    if not kept.size:
        return np.zeros_like(values)
    low, high = float(kept.min()), float(kept.max())
    if stored.dtype.kind == "u" and high <= 1 and low >= 0:
        return values  # bit masks: 1 is white even where nothing else is
    if high <= low:
        low, high = low - 1, high + 1  # one value only: grey, and what is padding apart from it
    return _ramp(values, low, high - low)


def _is_picture(stored: Array, layout: Layout, header: Header) -> bool:
    """Whether values are shades already, as 8-bit screen captures and ultrasound have them; segments' numbers are not."""
    segments = "00620001" in header.document
    modality = any(tag in header.document for tag in ("00281053", "00283000"))
    return stored.dtype.kind == "u" and layout.bits_stored == 8 and not segments and not modality and header.first("00280120") is None


class _Lut:
    """A lookup table: entries, the value the first of them is for, and how many bits an entry has (PS3.3 C.11.1.1.1)."""

    __slots__ = ("bits", "entries", "first")

    def __init__(self, entries: Array, first: int, bits: int) -> None:
        self.entries, self.first, self.bits = entries, first, bits

    def of(self, values: Array) -> Array:
        """Return the entry of each value; what lies before or behind the table has its first or last entry."""
        return self.entries[np.clip(values.astype(np.int64) - self.first, 0, len(self.entries) - 1)]


def _lut(item: tuple[Document, str] | None, header: Header) -> _Lut | None:
    if item is None:
        return None
    document, path = item
    descriptor = document.get("00283002", {}).get("Value", [])
    if len(descriptor) != 3 or not all(isinstance(value, int) for value in descriptor):
        return None
    raw = header.binary.get(path + "00283006")
    if raw is None:
        data = document.get("00283006", {}).get("Value", [])
        raw = (np.array([value for value in data if isinstance(value, int)], np.int64) & 0xFFFF).astype("<u2").tobytes()
    count = descriptor[0] % 65536 or 65536
    packed = descriptor[2] <= 8 and count <= len(raw) <= count + 1  # as pixels of 8 bits allocated are; some writers give each a word
    entries = np.frombuffer(raw if packed else raw[: len(raw) & ~1], np.uint8 if packed else "<u2")[:count]
    return _Lut(entries, descriptor[1], max(1, min(16, descriptor[2]))) if len(entries) else None
