"""One frame from its native samples into a compressed transfer syntax, by the libraries that can.

What an encoder would not keep bit by bit (bits outside Bits Stored, samples of one bit, floating point) is refused rather than altered,
and so are stored bits that do not lie lowest in their words, where no code stream has them.
The one lossy encoder makes single frames alone: an instance that lost something would be another instance (PS3.3 C.7.6.1.1.5).

Source: PS3.5 8.2, G; PS3.3 C.7.6.3.1.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from archive.dicom.layout import Layout
from archive.errors import NotAcceptable

RLE, JPEG_LS, JPEG_2000 = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"
JPEG_LOSSLESS, JPEG_LOSSLESS_14, JPEG_BASELINE = (f"1.2.840.10008.1.2.4.{n}" for n in (70, 57, 50))

BASELINE_QUALITY = 95
"""Of frames asked for in JPEG Baseline; chrominance keeps its resolution."""

_COLOURS = frozenset({"RGB", "YBR_FULL"})
_GREYS = frozenset({"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"})
_TURNS = threading.BoundedSemaphore(max(1, (os.cpu_count() or 1) // 2))
"""Encoders take seconds of a whole processor: what stores and answers must not wait for all of them."""
_Encode = Callable[[Layout, bytes], bytes]


@dataclass(frozen=True, slots=True)
class Encoder:
    """How frames come into one transfer syntax; `photometric` tells what RGB becomes, `planar` the Planar Configuration of colours."""

    encode: _Encode
    bits: frozenset[int]  # of Bits Allocated
    planar: int
    of_rgb: str = "RGB"
    smallest: int = 1  # rows and columns
    photometric: frozenset[str] = _COLOURS | _GREYS
    whole: bool = False  # whether every bit of a sample has to be in use, without a sign

    def takes(self, layout: Layout) -> bool:
        """Whether the transfer syntax has a place for pixels of this kind."""
        kept = layout.bits_allocated in self.bits and layout.dtype.kind != "f" and layout.samples in (1, 3)
        large = min(layout.rows, layout.columns) >= self.smallest
        shown = layout.photometric in self.photometric & (_GREYS if layout.samples == 1 else _COLOURS)
        whole = not layout.signed and layout.bits_stored == layout.bits_allocated
        return kept and large and shown and not layout.low and (whole or not self.whole)


def _colour_by_pixel(layout: Layout, frame: bytes) -> bytes:
    """Return native samples in the order R1 G1 B1 R2 …"""
    if layout.samples == 1 or not layout.planar:
        return frame
    array = np.frombuffer(frame, layout.dtype.newbyteorder("<")).reshape(layout.samples, layout.rows, layout.columns)
    return array.transpose(1, 2, 0).tobytes()


def _stored_bits(layout: Layout, frame: bytes) -> bytes:
    """Return the bits that are stored, by pixel: a codec without a sign takes negative numbers as those (PS3.5 8.2.3)."""
    words = np.frombuffer(_colour_by_pixel(layout, frame), f"<u{layout.dtype.itemsize}")
    return (words & ((1 << layout.bits_stored) - 1)).astype(words.dtype).tobytes()


def _rle(layout: Layout, frame: bytes) -> bytes:
    from rle.utils import encode_pixel_data

    encoded: bytes = encode_pixel_data(
        _colour_by_pixel(layout, frame), byteorder="<", rows=layout.rows, columns=layout.columns, samples_per_pixel=layout.samples,
        bits_allocated=layout.bits_allocated,
    )
    return encoded


def _jpeg_ls(layout: Layout, frame: bytes) -> bytes:
    import jpeg_ls

    encoded = jpeg_ls.encode_pixel_data(
        _stored_bits(layout, frame), rows=layout.rows, columns=layout.columns, samples_per_pixel=layout.samples,
        bits_stored=max(layout.bits_stored, 2), planar_configuration=0,
    )
    return bytes(encoded)


def _jpeg_2000(layout: Layout, frame: bytes) -> bytes:
    from openjpeg.utils import encode_buffer

    samples = _colour_by_pixel(layout, frame)
    if layout.bits_stored <= 8 < layout.bits_allocated:  # the library takes a byte a sample then
        samples = np.frombuffer(samples, layout.dtype.newbyteorder("<")).astype(f"{layout.dtype.kind}1").tobytes()
    encoded: bytes = encode_buffer(
        samples, layout.columns, layout.rows, layout.samples, layout.bits_stored, layout.signed,
        photometric_interpretation=1 if layout.photometric == "RGB" else 0, use_mct=True,
    )
    return encoded


def _jpeg_lossless(layout: Layout, frame: bytes) -> bytes:
    from archive.dicom.isolated import codec

    request = {
        "rows": layout.rows, "columns": layout.columns, "samples": layout.samples, "photometric": layout.photometric,
        "bits_allocated": layout.bits_allocated, "bits_stored": layout.bits_stored, "signed": int(layout.signed),
    }
    encoded = codec.encode(request, _colour_by_pixel(layout, frame))
    if not encoded:
        raise NotAcceptable("the frame cannot be encoded in that transfer syntax", reason="no-codec")
    return encoded


def _jpeg_baseline(layout: Layout, frame: bytes) -> bytes:
    from PIL import Image

    mode = "L" if layout.samples == 1 else "RGB" if layout.photometric == "RGB" else "YCbCr"
    image = Image.frombytes(mode, (layout.columns, layout.rows), _colour_by_pixel(layout, frame))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=BASELINE_QUALITY, subsampling=0)
    return out.getvalue()


ENCODERS: dict[str, Encoder] = {
    JPEG_LS: Encoder(_jpeg_ls, frozenset({8, 16}), planar=0),
    JPEG_2000: Encoder(_jpeg_2000, frozenset({8, 16}), planar=0, of_rgb="YBR_RCT", smallest=32),  # six resolutions, always
    JPEG_LOSSLESS: Encoder(_jpeg_lossless, frozenset({8, 16}), planar=0),
    RLE: Encoder(_rle, frozenset({8, 16, 32}), planar=1),
    JPEG_LOSSLESS_14: Encoder(_jpeg_lossless, frozenset({8, 16}), planar=0),
}
"""By transfer syntax, those without loss; the first is what is chosen where several would do."""

LOSSY: dict[str, Encoder] = {
    JPEG_BASELINE: Encoder(
        _jpeg_baseline, frozenset({8}), planar=0, of_rgb="YBR_FULL", photometric=frozenset({"MONOCHROME1", "MONOCHROME2"}) | _COLOURS,
        whole=True,
    ),
}
"""For single frames, asked for by name."""


def require(layout: Layout, transfer_syntax_uid: str) -> Encoder:
    """Return the encoder of a compressed transfer syntax for pixels of this kind.

    Raises:
        NotAcceptable: there is no encoder for it, or it has no place for them.
    """
    encoder = ENCODERS.get(transfer_syntax_uid) or LOSSY.get(transfer_syntax_uid)
    if encoder is None:
        raise NotAcceptable("there is no encoder for this transfer syntax", reason="no-codec")
    if not encoder.takes(layout):
        raise NotAcceptable("pixels of this kind have no place in that transfer syntax", reason="no-codec")
    return encoder


def encode(layout: Layout, frame: bytes, transfer_syntax_uid: str) -> bytes:
    """Return the native little endian samples of one frame in a compressed transfer syntax.

    Raises:
        NotAcceptable: as `require`, or bits would be lost.
    """
    encoder = require(layout, transfer_syntax_uid)
    _require_stored_bits(layout, frame)
    try:
        with _TURNS:
            return encoder.encode(layout, frame)
    except NotAcceptable:
        raise
    except Exception as error:  # codecs raise whatever they like
        raise NotAcceptable("the frame cannot be encoded in that transfer syntax", reason="no-codec") from error


def _require_stored_bits(layout: Layout, frame: bytes) -> None:
    """Refuse a frame with something outside Bits Stored, such as an old overlay: encoders, or decoders later, lose it.

    Raises:
        NotAcceptable.
    """
    unused = layout.bits_allocated - layout.bits_stored
    if not unused:
        return
    values = np.frombuffer(frame, layout.dtype.newbyteorder("<"))
    if not np.array_equal(np.right_shift(np.left_shift(values, unused), unused), values):
        message = "the pixels hold more than their stored bits, which that transfer syntax would lose"
        raise NotAcceptable(message, reason="no-codec", remedy="accept transfer-syntax=*, which gives instances as they are stored")
