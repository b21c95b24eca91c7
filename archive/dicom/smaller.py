"""Frames decoded at a lower resolution, for pictures much smaller than the image: JPEG 2000 keeps its resolutions apart.

Source: ISO/IEC 15444-1 B.5.
"""

from __future__ import annotations

import numpy as np

from archive.dicom.decode import Frame
from archive.dicom.isolated import codec
from archive.dicom.layout import Layout

JPEG_2000 = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203))


def jpeg_2000(layout: Layout, frame: bytes, fit: tuple[int, int] | None) -> Frame | None:
    """Return a grey frame no smaller than `fit` (columns, rows); None where the whole of it has to be decoded.

    What is damaged is None too: decoding the whole says how.
    """
    halvings = 0 if fit is None else min(layout.columns // fit[0], layout.rows // fit[1]).bit_length() - 1
    at = frame.find(b"\xff\x4f\xff\x51") if halvings > 0 and _plain(layout) else -1
    if at < 0 or len(frame) < at + 43 or frame[at + 42] & 0x80:
        return None
    request = {"rows": layout.rows, "columns": layout.columns, "samples": 1, "bits_allocated": layout.bits_allocated}
    precision = frame[at + 42] + 1
    raw, columns, rows, wide = codec.smaller(request, frame[at:], halvings)
    if not raw:
        return None
    array = np.frombuffer(raw, f"<u{wide // 8}").reshape(rows, columns)
    # Pillow moves samples to the top of their container.
    return Frame((array >> max(0, wide - precision)).astype(layout.dtype, copy=False), layout.photometric)


def _plain(layout: Layout) -> bool:
    """Whether samples are shades, which may be averaged, and Pillow gives them unchanged."""
    shades = layout.samples == 1 and layout.photometric in {"MONOCHROME1", "MONOCHROME2"} and layout.bits_allocated in (8, 16)
    return shades and not layout.signed and not layout.low and layout.transfer_syntax_uid in JPEG_2000
