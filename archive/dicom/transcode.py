"""A whole instance from the transfer syntax it is stored in to another one, without loss.

Everything goes by explicit VR little endian: frames are decoded, then encoded one by one. What an encoder would not keep bit by bit (bits
outside Bits Stored, samples of one bit, floating point) is refused rather than altered. Its UIDs stay, as nothing of it changes.

Source: PS3.5 8.2, A.4, G; PS3.3 C.7.6.3.1.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from archive.dicom.decode import Layout, layout_of, pixel_element, refused
from archive.dicom.part10 import Scanned, meta, scan
from archive.dicom.pixels import to_explicit_le
from archive.dicom.reencode import element, explicit_little
from archive.dicom.transfer import EXPLICIT_LE, IMPLICIT_LE
from archive.errors import NotAcceptable

RLE, JPEG_LS, JPEG_2000 = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"
_PIXEL_DATA, _PLANAR, _PHOTOMETRIC = 0x7FE00010, 0x00280006, 0x00280004
_EXTENDED_TABLES = (0x7FE00001, 0x7FE00002)
_ITEM, _SEQUENCE_END = struct.pack("<HH", 0xFFFE, 0xE000), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
_MOST_OFFSET = 0xFFFFFFFE

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


def _colour_by_pixel(layout: Layout, frame: bytes) -> bytes:
    """Return native samples in the order R1 G1 B1 R2 …"""
    if layout.samples == 1 or not layout.planar:
        return frame
    array = np.frombuffer(frame, layout.dtype.newbyteorder("<")).reshape(layout.samples, layout.rows, layout.columns)
    return array.transpose(1, 2, 0).tobytes()


def _rle(layout: Layout, frame: bytes) -> bytes:
    from rle.utils import encode_pixel_data

    encoded: bytes = encode_pixel_data(
        _colour_by_pixel(layout, frame), byteorder="<", rows=layout.rows, columns=layout.columns, samples_per_pixel=layout.samples,
        bits_allocated=layout.bits_allocated,
    )
    return encoded


def _jpeg_ls(layout: Layout, frame: bytes) -> bytes:
    import jpeg_ls

    # JPEG-LS knows no sign: negative numbers are kept as the bits that are stored (PS3.5 8.2.3).
    words = np.frombuffer(_colour_by_pixel(layout, frame), f"<u{layout.dtype.itemsize}")
    masked = (words & ((1 << layout.bits_stored) - 1)).astype(words.dtype)
    encoded = jpeg_ls.encode_pixel_data(
        masked.tobytes(), rows=layout.rows, columns=layout.columns, samples_per_pixel=layout.samples,
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


ENCODERS: dict[str, Encoder] = {
    JPEG_LS: Encoder(_jpeg_ls, frozenset({8, 16}), planar=0),
    JPEG_2000: Encoder(_jpeg_2000, frozenset({8, 16}), planar=0, of_rgb="YBR_RCT", smallest=32),  # six resolutions, always
    RLE: Encoder(_rle, frozenset({8, 16, 32}), planar=1),
}
"""By transfer syntax; the first is what is chosen where several would do."""

OFFERED = frozenset({EXPLICIT_LE, *ENCODERS})
"""Transfer syntaxes an instance can be asked for that is stored in another one."""


def can_encode(scanned: Scanned, transfer_syntax_uid: str) -> bool:
    """Whether an instance that can be decoded can also be had in that transfer syntax; its pixels may still say no."""
    encoder = ENCODERS.get(transfer_syntax_uid)
    if encoder is None:
        return transfer_syntax_uid in (EXPLICIT_LE, IMPLICIT_LE)
    if scanned.frames is None:
        return False
    allocated, samples = scanned.number("BitsAllocated"), scanned.number("SamplesPerPixel") or 1
    smallest = min(scanned.number("Rows") or 0, scanned.number("Columns") or 0)
    return allocated in encoder.bits and samples in (1, 3) and smallest >= encoder.smallest


def to_syntax(part10: bytes, scanned: Scanned, transfer_syntax_uid: str) -> bytes:
    """Return the whole instance in that transfer syntax.

    Raises:
        NotAcceptable: one of decode.REFUSALS; there is no encoder, or it would not keep every bit.
    """
    native = to_explicit_le(part10, scanned)
    if transfer_syntax_uid == EXPLICIT_LE:
        return native
    encoder = ENCODERS.get(transfer_syntax_uid)
    if encoder is None:
        raise refused("no-codec")
    with _TURNS:
        return _compressed(native, transfer_syntax_uid, encoder)


def _compressed(native: bytes, transfer_syntax_uid: str, encoder: Encoder) -> bytes:
    plain = scan(native)
    if plain.frames is None:
        raise refused("no-pixels")
    layout = layout_of(plain, *pixel_element(native[: plain.frames.offset], plain))
    _require_whole(layout, plain, encoder)
    size = layout.pixels * layout.bits_allocated // 8
    start = plain.frames.offset
    encoded = []
    for n in range(plain.frames.count):
        frame = native[start + n * size : start + (n + 1) * size]
        if len(frame) != size:
            raise refused("short")
        _require_stored_bits(layout, frame)
        encoded.append(_encoded(encoder, layout, frame))
    replace = dict.fromkeys(_EXTENDED_TABLES, b"") | {_PIXEL_DATA: encapsulated(encoded)}
    if layout.samples > 1:
        replace[_PLANAR] = element(_PLANAR, "US", struct.pack("<H", encoder.planar))
        if layout.photometric == "RGB" and encoder.of_rgb != "RGB":
            replace[_PHOTOMETRIC] = element(_PHOTOMETRIC, "CS", encoder.of_rgb.encode("ascii"))
    words = "SS" if plain.number("PixelRepresentation") == 1 else "US"
    body = explicit_little(native, plain.dataset_offset, False, True, replace, words)
    return meta(plain.sop_class_uid, plain.sop_instance_uid, transfer_syntax_uid) + b"".join(body)


def _require_whole(layout: Layout, plain: Scanned, encoder: Encoder) -> None:
    """Refuse what the transfer syntax has no place for.

    Raises:
        NotAcceptable.
    """
    kept = layout.bits_allocated in encoder.bits and layout.dtype.kind != "f" and layout.samples in (1, 3)
    photometric = _GREYS if layout.samples == 1 else _COLOURS
    if not kept or layout.photometric not in photometric or plain.frames is None or plain.frames.kind != "native":
        message = "pixels of this kind have no place in that transfer syntax"
        raise NotAcceptable(message, reason="no-codec")


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


def _encoded(encoder: Encoder, layout: Layout, frame: bytes) -> bytes:
    try:
        return encoder.encode(layout, frame)
    except NotAcceptable:
        raise
    except Exception as error:  # codecs raise whatever they like
        message = "the frame cannot be encoded in that transfer syntax"
        raise NotAcceptable(message, reason="no-codec") from error


def encapsulated(frames: list[bytes]) -> bytes:
    """Return Pixel Data of one fragment a frame, with a basic offset table while 32 bits suffice (PS3.5 A.4)."""
    items, offsets, at = [], [], 0
    for frame in frames:
        padded = frame + b"\0" * (len(frame) % 2)
        items += [_ITEM, struct.pack("<I", len(padded)), padded]
        offsets.append(at)
        at += 8 + len(padded)
    table = struct.pack(f"<{len(offsets)}I", *offsets) if offsets and offsets[-1] <= _MOST_OFFSET else b""
    head = struct.pack("<HH2sHI", _PIXEL_DATA >> 16, _PIXEL_DATA & 0xFFFF, b"OB", 0, 0xFFFFFFFF)
    return b"".join((head, _ITEM, struct.pack("<I", len(table)), table, *items, _SEQUENCE_END))
