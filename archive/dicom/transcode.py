"""Frames and whole instances from the transfer syntax they are stored in to another one, instances without loss.

An instance goes by explicit VR little endian: frames are decoded, then encoded one by one. Its UIDs stay, as nothing of it changes.

Source: PS3.5 A.4; PS3.3 C.7.6.3.1.
"""

from __future__ import annotations

import struct
import threading
from contextlib import nullcontext
from dataclasses import replace

from archive.dicom.decode import Layout, decode, layout_of, pixel_element, refused, subsampled
from archive.dicom.encode import ENCODERS, JPEG_2000, JPEG_BASELINE, JPEG_LOSSLESS, JPEG_LS, LOSSY, RLE, Encoder, encode, require
from archive.dicom.part10 import STORED_LIMITS, Limits, Scanned, meta, scan
from archive.dicom.pixels import can_decode, frame_explicit_le, frame_layout, require_frames, samples, to_explicit_le
from archive.dicom.reencode import element, explicit_little
from archive.dicom.transfer import EXPLICIT_LE, IMPLICIT_LE

_PIXEL_DATA, _PLANAR, _PHOTOMETRIC = 0x7FE00010, 0x00280006, 0x00280004
_EXTENDED_TABLES = (0x7FE00001, 0x7FE00002)
_ITEM, _SEQUENCE_END = struct.pack("<HH", 0xFFFE, 0xE000), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
_MOST_OFFSET = 0xFFFFFFFE

LARGE_BYTES = 256 << 20
"""Instances that are larger, decoded or not, are made one after the other: each takes its size several times over in memory."""

_one_large = threading.Lock()

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


def to_syntax(part10: bytes, scanned: Scanned, transfer_syntax_uid: str, limits: Limits = STORED_LIMITS) -> bytes:
    """Return the whole instance in that transfer syntax.

    Raises:
        NotAcceptable: one of decode.REFUSALS; there is no encoder, or it would not keep every bit.
    """
    with _one_large if max(len(part10), _decoded_bytes(scanned)) > LARGE_BYTES else nullcontext():
        native = to_explicit_le(part10, scanned, limits)
        if transfer_syntax_uid == EXPLICIT_LE:
            return native
        encoder = ENCODERS.get(transfer_syntax_uid)
        if encoder is None:
            raise refused("no-codec")
        return _compressed(native, transfer_syntax_uid, encoder)


def _decoded_bytes(scanned: Scanned) -> int:
    frames = 0 if scanned.frames is None else scanned.frames.count
    return samples(scanned) * frames * (scanned.number("BitsAllocated") or 0) // 8


def frame_in(part10_head: bytes, scanned: Scanned, frame: bytes, transfer_syntax_uid: str, index: int = 0) -> bytes:
    """Return one frame in a transfer syntax of ENCODERS or LOSSY; `part10_head` and `frame` as in `pixels`.

    Raises:
        NotAcceptable: one of decode.REFUSALS; there is no encoder, or it would not keep every bit.
    """
    if not can_decode(scanned):
        raise refused("no-codec")
    stored = frame_layout(part10_head, scanned)
    # Before anything is decoded: what has no place there is said at once.
    require(replace(stored, photometric="YBR_FULL") if subsampled(stored) else stored, transfer_syntax_uid)
    layout, native = _native(stored, frame_explicit_le(part10_head, scanned, frame, index))
    return encode(layout, native, transfer_syntax_uid)


def _native(layout: Layout, native: bytes) -> tuple[Layout, bytes]:
    """Return layout and samples of an uncompressed frame with every sample of every pixel."""
    layout = replace(layout, transfer_syntax_uid=EXPLICIT_LE)
    if not subsampled(layout):
        return layout, native
    whole = decode(layout, native)
    array = whole.array.astype(layout.dtype.newbyteorder("<"), copy=False)
    return replace(layout, photometric=whole.photometric, planar=False), array.tobytes()


def _compressed(native: bytes, transfer_syntax_uid: str, encoder: Encoder) -> bytes:
    plain = scan(native)
    if plain.frames is None:
        raise refused("no-pixels")
    if plain.frames.kind != "native":
        raise refused("no-frames")
    require_frames(plain, plain.frames.count)
    stored = layout_of(plain, *pixel_element(native[: plain.frames.offset], plain))
    size = plain.frames.frame_bits // 8
    start = plain.frames.offset
    encoded = []
    layout = stored
    for n in range(plain.frames.count):
        frame = native[start + n * size : start + (n + 1) * size]
        if len(frame) != size:
            raise refused("short")
        layout, whole = _native(stored, frame)
        encoded.append(encode(layout, whole, transfer_syntax_uid))
    elements = dict.fromkeys(_EXTENDED_TABLES, b"") | {_PIXEL_DATA: encapsulated(encoded)}
    if layout.samples > 1:
        elements[_PLANAR] = element(_PLANAR, "US", struct.pack("<H", encoder.planar))
        photometric = encoder.of_rgb if layout.photometric == "RGB" else layout.photometric
        if photometric != stored.photometric:
            elements[_PHOTOMETRIC] = element(_PHOTOMETRIC, "CS", photometric.encode("ascii"))
    words = "SS" if plain.number("PixelRepresentation") == 1 else "US"
    body = explicit_little(native, plain.dataset_offset, False, True, elements, words)
    return meta(plain.sop_class_uid, plain.sop_instance_uid, transfer_syntax_uid) + b"".join(body)


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


__all__ = [
    "ENCODERS", "JPEG_2000", "JPEG_BASELINE", "JPEG_LOSSLESS", "JPEG_LS", "LOSSY", "OFFERED", "RLE", "can_encode", "encapsulated",
    "frame_in", "to_syntax",
]
