"""Frames and whole instances from the transfer syntax they are stored in to another one, instances without loss.

A whole instance is made frame by frame, each decoded and encoded again by itself: what comes out is in memory, and of what it is made
from the one frame. An instance keeps its UIDs, as nothing of it changes.

Source: PS3.5 A.4; PS3.3 C.7.6.3.1.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np

from archive.dicom.behind import tail_of
from archive.dicom.decode import Array, decode
from archive.dicom.encode import ENCODERS, JPEG_2000, JPEG_BASELINE, JPEG_LOSSLESS, JPEG_LS, LOSSY, RLE, Encoder, encode, require
from archive.dicom.frames import FrameTable
from archive.dicom.icons import Icons
from archive.dicom.layout import Layout, layout_of, pixel_element, refused, require_label, stored_bytes, subsampled, value_bytes
from archive.dicom.metadata import encoding, words_of
from archive.dicom.part10 import STORED_LIMITS, Limits, Scanned, inflate, meta
from archive.dicom.pieces import Piece, Stream, gathered, given_up
from archive.dicom.pixels import bytes_of, can_decode, explicit_layout, explicit_le, require_frames, samples, stored_layout
from archive.dicom.reencode import element, header, little_endian
from archive.dicom.transfer import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE
from archive.dicom.values import swapped
from archive.errors import InvalidInstance, NotAcceptable

_PIXEL_DATA, _PLANAR, _PHOTOMETRIC = 0x7FE00010, 0x00280006, 0x00280004
_EXTENDED_TABLES = (0x7FE00001, 0x7FE00002)
_ITEM, _SEQUENCE_END = struct.pack("<HH", 0xFFFE, 0xE000), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
_MOST_OFFSET = 0xFFFFFFFE

MAX_INSTANCE_BYTES = 2 << 30
"""The largest pixel data that are decoded into one instance: more does not fit one element of its kind everywhere."""

LARGE_BYTES = 256 << 20
"""Instances that are larger, decoded or not, are made one after the other: each is in memory as it comes out."""

_SWAPPED_BYTES = 1 << 20

_one_large = threading.Lock()

OFFERED = frozenset({EXPLICIT_LE, *ENCODERS})
"""Transfer syntaxes an instance can be asked for that is stored in another one."""


def can_encode(scanned: Scanned, transfer_syntax_uid: str) -> bool:
    """Whether an instance that can be decoded can also be had in that transfer syntax; its pixels may still say no."""
    encoder, table = ENCODERS.get(transfer_syntax_uid), scanned.frames
    if table is not None and (encoder is not None or table.kind == "encapsulated"):
        try:
            require_label(scanned)
            require_frames(scanned, table.count)
        except NotAcceptable:
            return False
    if encoder is None:
        return transfer_syntax_uid in (EXPLICIT_LE, IMPLICIT_LE)
    if table is None:
        return False
    allocated, samples = scanned.number("BitsAllocated"), scanned.number("SamplesPerPixel") or 1
    smallest = min(scanned.number("Rows") or 0, scanned.number("Columns") or 0)
    return allocated in encoder.bits and samples in (1, 3) and smallest >= encoder.smallest


def to_syntax(stream: Stream, scanned: Scanned, transfer_syntax_uid: str, limits: Limits = STORED_LIMITS) -> list[Piece]:
    """Return the whole instance in that transfer syntax, in pieces: its file meta information is the first, the others its data set.

    Raises:
        NotAcceptable: one of layout.REFUSALS; there is no encoder, or it would not keep every bit.
    """
    with _one_large if max(stream.length, _decoded_bytes(scanned)) > LARGE_BYTES else nullcontext():
        encoder = ENCODERS.get(transfer_syntax_uid)
        if encoder is not None:
            made = _compressed(_plain(stream, scanned, limits), scanned, transfer_syntax_uid, encoder)
        elif transfer_syntax_uid in (EXPLICIT_LE, IMPLICIT_LE):
            made = _uncompressed(stream, scanned, limits, explicit=transfer_syntax_uid == EXPLICIT_LE)
        else:
            raise refused("no-codec")
        return [meta(scanned.sop_class_uid, scanned.sop_instance_uid, transfer_syntax_uid), *gathered(made)]


def _decoded_bytes(scanned: Scanned) -> int:
    frames = 0 if scanned.frames is None else scanned.frames.count
    return samples(scanned) * frames * (scanned.number("BitsAllocated") or 0) // 8


def _plain(stream: Stream, scanned: Scanned, limits: Limits) -> Stream:
    """Return the stream, a deflated data set inflated."""
    if not scanned.deflated:
        return stream
    try:
        return Stream.of(inflate(stream.read(0, stream.length), scanned, limits))
    except InvalidInstance as error:
        raise refused("too-large") from error


def _head(stream: Stream, scanned: Scanned) -> bytes:
    """Return what `pixels` calls the head."""
    return stream.read(0, stream.length if scanned.deflated else scanned.head_bytes)


def _frames(stream: Stream, table: FrameTable) -> Iterator[bytes]:
    for n in range(table.count):
        yield b"".join(stream.read(at, length) for at, length in table.pieces(n))


def _dataset(
    stream: Stream, scanned: Scanned, changed: Mapping[int, Iterable[Piece]], *, explicit: bool = True, whole: bool = False
) -> Iterator[Piece]:
    """Yield the data set with elements that are changed; unless it is read `whole`, the pixel data are one of them."""
    words = words_of(scanned)
    head = stream.read(0, stream.length) if whole else _head(stream, scanned)
    implicit, little = encoding(head, scanned)
    icon = Icons(scanned, explicit=explicit).changed
    last = yield from little_endian(head, scanned.dataset_offset, implicit, little, changed, words, explicit=explicit, icon=icon)
    if len(head) < stream.length:
        there = dict.fromkeys(changed, ())  # already, whatever stands behind the pixel data
        tail = tail_of(stream.read, stream.length, scanned, head)
        yield from little_endian(tail, 0, implicit, little, there, words, explicit=explicit, icon=icon, behind=last)


# --- uncompressed ---


def _uncompressed(stream: Stream, scanned: Scanned, limits: Limits, *, explicit: bool) -> Iterator[Piece]:
    table = scanned.frames
    if table is None and scanned.head_bytes != stream.length and scanned.transfer_syntax_uid not in (IMPLICIT_LE, EXPLICIT_LE):
        raise refused("no-frames")
    require_label(scanned)
    plain = _plain(stream, scanned, limits)
    if table is None or (table.kind == "native" and scanned.transfer_syntax_uid != EXPLICIT_BE):
        return _dataset(plain, scanned, {}, explicit=explicit, whole=True)
    require_frames(scanned, table.count)
    changed = (_swapped if table.kind == "native" else _decoded)(plain, scanned, table, explicit=explicit)
    return _dataset(plain, scanned, changed, explicit=explicit)


def _pixel_element(tag: int, vr: str, frames: list[bytes], *, explicit: bool) -> Iterator[Piece]:
    length = sum(map(len, frames))
    return given_up([header(tag, vr, length + length % 2, explicit=explicit), *frames, bytes(length % 2)])


def _swapped(stream: Stream, scanned: Scanned, table: FrameTable, *, explicit: bool) -> dict[int, Iterable[Piece]]:
    """Return native pixel data of big endian, in little endian."""
    head = _head(stream, scanned)
    tag, vr = pixel_element(head, scanned)
    layout = layout_of(scanned, tag, vr)
    end = table.offset + value_bytes(head, scanned)
    blocks = []
    for at in range(table.offset, end, _SWAPPED_BYTES):
        raw, _ = stored_bytes(layout, stream.read(at, min(_SWAPPED_BYTES, end - at)), 0)
        if layout.dtype.itemsize > 1:
            raw = swapped({2: "OW", 4: "OL", 8: "OV"}[layout.dtype.itemsize], raw)
        blocks.append(raw)
    kind = {0x7FE00008: "OF", 0x7FE00009: "OD"}.get(tag, vr)
    return {tag: _pixel_element(tag, kind, blocks, explicit=explicit)}


def _decoded(stream: Stream, scanned: Scanned, table: FrameTable, *, explicit: bool) -> dict[int, Iterable[Piece]]:
    """Return the elements that differ once encapsulated pixel data are native."""
    layout = replace(_bounded(layout_of(scanned), table), whole=True)
    photometric = layout.photometric
    frames = []
    bits = _Bits()
    for n, stored in enumerate(_frames(stream, table)):
        frame = decode(layout, stored, n)
        photometric = frame.photometric
        frames.append(bits.more(frame.array) if layout.bits_allocated == 1 else bytes_of(layout, frame))
    frames.append(bits.last())
    kind = "OW" if layout.bits_allocated > 8 else "OB"
    changed: dict[int, Iterable[Piece]] = dict.fromkeys(_EXTENDED_TABLES, ())
    changed[_PIXEL_DATA] = _pixel_element(_PIXEL_DATA, kind, frames, explicit=explicit)
    if photometric != layout.photometric:
        changed[_PHOTOMETRIC] = [element(_PHOTOMETRIC, "CS", photometric.encode("ascii"), explicit=explicit)]
    if layout.samples > 1 and "00280006" not in scanned.attributes:
        changed[_PLANAR] = [element(_PLANAR, "US", struct.pack("<H", 0), explicit=explicit)]
    return changed


class _Bits:
    """1-bit frames follow each other bit by bit (PS3.5 8.1.1)."""

    def __init__(self) -> None:
        self._left = np.zeros(0, np.uint8)

    def more(self, frame: Array) -> bytes:
        bits = np.concatenate((self._left, frame.astype(np.uint8).ravel()))
        whole = bits.size & ~7
        self._left = bits[whole:]
        return np.packbits(bits[:whole], bitorder="little").tobytes()

    def last(self) -> bytes:
        return np.packbits(self._left, bitorder="little").tobytes()


def _bounded(layout: Layout, table: FrameTable) -> Layout:
    if table.kind == "encapsulated" and layout.pixels * max(1, layout.bits_allocated // 8) * table.count > MAX_INSTANCE_BYTES:
        raise refused("too-large")
    return layout


# --- compressed ---


def frame_in(part10_head: bytes, scanned: Scanned, frame: bytes, transfer_syntax_uid: str, index: int = 0) -> bytes:
    """Return one frame in a transfer syntax of ENCODERS or LOSSY; `part10_head` and `frame` as in `pixels`.

    Raises:
        NotAcceptable: one of layout.REFUSALS; there is no encoder, or it would not keep every bit.
    """
    return _Encoding.of(part10_head, scanned, transfer_syntax_uid).frame(frame, index)


@dataclass(frozen=True, slots=True)
class _Encoding:
    """From frames as they are stored to those of a compressed transfer syntax."""

    stored: Layout
    native: Layout
    full: Layout
    """With every sample of every pixel."""
    transfer_syntax_uid: str

    @classmethod
    def of(cls, part10_head: bytes, scanned: Scanned, transfer_syntax_uid: str) -> _Encoding:
        if not can_decode(scanned):
            raise refused("no-codec")
        stored = stored_layout(part10_head, scanned)
        native = full = explicit_layout(stored)
        if subsampled(native):
            full = replace(native, photometric="YBR_FULL" if native.photometric == "YBR_FULL_422" else native.photometric, planar=False)
        require(full, transfer_syntax_uid)  # before anything is decoded: what has no place there is said at once
        return cls(stored, native, full, transfer_syntax_uid)

    def frame(self, frame: bytes, index: int) -> bytes:
        samples = explicit_le(self.stored, frame, index)
        if self.full is not self.native:
            spread = decode(replace(self.native, whole=True), samples).array
            samples = spread.astype(self.native.dtype.newbyteorder("<"), copy=False).tobytes()
        return encode(self.full, samples, self.transfer_syntax_uid)


def _compressed(stream: Stream, scanned: Scanned, transfer_syntax_uid: str, encoder: Encoder) -> Iterator[Piece]:
    table = scanned.frames
    if table is None:
        raise refused("no-pixels")
    require_frames(scanned, table.count)
    head = _head(stream, scanned)
    if table.kind == "native" and value_bytes(head[: table.offset], scanned) * 8 // table.frame_bits > table.count:
        raise refused("more-frames")
    encoding = _Encoding.of(head, scanned, transfer_syntax_uid)
    layout = _bounded(encoding.full, table)
    frames = [encoding.frame(frame, n) for n, frame in enumerate(_frames(stream, table))]
    changed: dict[int, Iterable[Piece]] = dict.fromkeys(_EXTENDED_TABLES, ())
    changed[_PIXEL_DATA] = given_up(_encapsulated(frames))
    if layout.samples > 1:
        changed[_PLANAR] = [element(_PLANAR, "US", struct.pack("<H", encoder.planar))]
        photometric = encoder.of_rgb if layout.photometric == "RGB" else layout.photometric
        if photometric != encoding.stored.photometric:
            changed[_PHOTOMETRIC] = [element(_PHOTOMETRIC, "CS", photometric.encode("ascii"))]
    return _dataset(stream, scanned, changed)


def encapsulated(frames: list[bytes]) -> bytes:
    """Return Pixel Data of one fragment a frame, with a basic offset table while 32 bits suffice (PS3.5 A.4)."""
    return b"".join(_encapsulated(frames))


def _encapsulated(frames: list[bytes]) -> list[bytes]:
    items, offsets, at = [], [], 0
    for frame in frames:
        odd = len(frame) % 2
        items += [_ITEM, struct.pack("<I", len(frame) + odd), frame, bytes(odd)]
        offsets.append(at)
        at += 8 + len(frame) + odd
    table = struct.pack(f"<{len(offsets)}I", *offsets) if offsets and offsets[-1] <= _MOST_OFFSET else b""
    head = struct.pack("<HH2sHI", _PIXEL_DATA >> 16, _PIXEL_DATA & 0xFFFF, b"OB", 0, 0xFFFFFFFF)
    return [head, _ITEM, struct.pack("<I", len(table)), table, *items, _SEQUENCE_END]


__all__ = [
    "ENCODERS", "JPEG_2000", "JPEG_BASELINE", "JPEG_LOSSLESS", "JPEG_LS", "LOSSY", "OFFERED", "RLE", "can_encode", "encapsulated",
    "frame_in", "to_syntax",
]
