"""Where each frame of an instance lies in its Part 10 stream.

Source: PS3.5 8.1, 8.2, A.4; PS3.3 C.7.6.3.1.8 (extended offset table).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from archive.errors import NotFound

Piece = tuple[int, int]
"""Offset and length in the Part 10 stream."""

MPEG = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (*range(100, 109), *("100.1", "101.1", "102.1", "103.1", "104.1", "105.1", "106.1")))
"""Video: the fragments are one bit stream, served as one frame."""
RLE = "1.2.840.10008.1.2.5"
_MARKED = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (*range(50, 67), 70, 80, 81, *range(90, 94), 201, 202, 203))
"""JPEG and its kind: a code stream ends with a marker."""
SUBSAMPLED = frozenset({"YBR_FULL_422", "YBR_PARTIAL_422"})
"""Photometric interpretations whose native frames hold chrominance for every second pixel only (PS3.3 C.7.6.3.1.2)."""


@dataclass(slots=True)
class PixelElement:
    """What the scanner saw of the pixel data element."""

    tag: int
    vr: str
    offset: int  # of the value
    length: int | None = None  # None: encapsulated
    offset_table: bytes = b""
    fragments: list[Piece] = field(default_factory=list)
    ends: list[bool] = field(default_factory=list)  # whether a fragment ends an image: EOI in its last bytes


@dataclass(frozen=True, slots=True)
class FrameTable:
    """The frames of one instance, numbered from 0.

    Native frames follow each other from `offset`, `frame_bits` each; encapsulated ones are runs of `fragments` starting at `first`.
    """

    kind: Literal["native", "encapsulated"]
    count: int
    offset: int = 0
    frame_bits: int = 0
    word_bits: int = 8  # 16 where bytes are swapped in pairs: samples of up to 8 bits as OW in big endian
    fragments: tuple[Piece, ...] = ()
    first: tuple[int, ...] = ()

    def pieces(self, n: int) -> tuple[Piece, ...]:
        """Return where frame n lies: fragments without their item headers, or the bytes that cover a native frame.

        Raises:
            NotFound: there is no such frame.
        """
        if not 0 <= n < self.count:
            raise NotFound("there is no such frame")
        if self.kind == "encapsulated":
            end = self.first[n + 1] if n + 1 < len(self.first) else len(self.fragments)
            return self.fragments[self.first[n] : end]
        start = n * self.frame_bits
        first = start // self.word_bits
        words = -(-(start + self.frame_bits) // self.word_bits) - first
        return ((self.offset + first * self.word_bits // 8, words * self.word_bits // 8),)

    def bit_offset(self, n: int) -> int:
        """Return how many bits of the pieces belong to the frame before: 1-bit native frames are not byte-aligned.

        Where bytes are swapped in pairs they count after swapping.
        """
        return n * self.frame_bits % self.word_bits if self.kind == "native" else 0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        if self.kind == "native":
            table = {"kind": self.kind, "count": self.count, "offset": self.offset, "frame_bits": self.frame_bits}
            return table | ({"word_bits": self.word_bits} if self.word_bits != 8 else {})
        return {"kind": self.kind, "count": self.count, "fragments": [list(piece) for piece in self.fragments], "first": list(self.first)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> FrameTable:
        """Return what `to_json` was made from."""
        return cls(
            kind=value["kind"],
            count=value["count"],
            offset=value.get("offset", 0),
            frame_bits=value.get("frame_bits", 0),
            word_bits=value.get("word_bits", 8),
            fragments=tuple((piece[0], piece[1]) for piece in value.get("fragments", ())),
            first=tuple(value.get("first", ())),
        )


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of a data set that say how large a frame is; None where absent or no number."""

    rows: int | None
    columns: int | None
    samples: int | None
    bits_allocated: int | None
    frames: int | None
    subsampled: bool = False  # YBR_FULL_422 and its kind hold two samples a pixel when native

    @property
    def frame_bits(self) -> int:
        """Bits of one native frame; 0 when they are not known."""
        if not self.rows or not self.columns or not self.bits_allocated or min(self.rows, self.columns, self.bits_allocated) < 0:
            return 0
        samples = 1 if self.samples is None else max(self.samples, 0)
        bits = self.rows * self.columns * samples * self.bits_allocated
        return bits // 3 * 2 if self.subsampled and samples == 3 else bits


def native(pixel: PixelElement, shape: Shape, *, little: bool = True) -> tuple[FrameTable | None, list[str]]:
    """Return the table of uncompressed pixel data, and what is wrong with it. Only frames that are wholly there count."""
    bits = shape.frame_bits
    if not bits or pixel.length is None:
        return None, ["the size of a frame is not known"]
    wanted = 1 if shape.frames is None else shape.frames
    there = pixel.length * 8 // bits
    faults = [] if there >= wanted else ["fewer frames than NumberOfFrames says, or the last is cut short"]
    word = 16 if not little and pixel.vr == "OW" and (shape.bits_allocated or 0) <= 8 else 8
    return FrameTable("native", max(0, min(there, wanted)), pixel.offset, bits, word), faults


def encapsulated(
    pixel: PixelElement, shape: Shape, transfer_syntax_uid: str, extended: tuple[int, ...] = (), lengths: tuple[int, ...] = ()
) -> tuple[FrameTable | None, list[str]]:
    """Return the table of encapsulated pixel data, and what is wrong with it.

    Frame boundaries come from the offset tables, else the number of fragments, else the end-of-image markers of the fragments. `lengths`
    are those of the extended table's frames. Where nothing tells the boundaries, or two of these contradict each other and nothing
    decides between them, the table holds no frame: one must not pass for another.
    """
    fragments = tuple(pixel.fragments)
    wanted = 1 if shape.frames is None else shape.frames
    faults: list[str] = []
    if not fragments:
        return FrameTable("encapsulated", 0), ["the pixel data holds no fragment"]
    told, doubt = ([], False) if transfer_syntax_uid in MPEG else _told(pixel, transfer_syntax_uid, extended, lengths, faults)
    if len(told) > 1:
        faults.append("the offset tables contradict each other")
    if any(len(first) < wanted for first in told):
        faults.append("the offset table names fewer frames than NumberOfFrames")
    first = _decided(told, pixel, wanted, transfer_syntax_uid, doubt=doubt)
    if not first:
        faults.append("the boundaries of the frames are not known")
    elif len(first) != wanted and transfer_syntax_uid not in MPEG:
        faults.append("the number of frames found differs from NumberOfFrames")
    return FrameTable("encapsulated", len(first), fragments=fragments, first=first), faults


def _told(
    pixel: PixelElement, transfer_syntax_uid: str, extended: tuple[int, ...], lengths: tuple[int, ...], faults: list[str]
) -> tuple[list[tuple[int, ...]], bool]:
    """Return what the offset tables say, each but once, and whether one that is not believed names several frames."""
    told: list[tuple[int, ...]] = []
    doubt = False
    for offsets, sizes in ((extended, lengths), (_words(pixel.offset_table), ())):
        if not offsets:
            continue
        first = _by_offsets(tuple(pixel.fragments), offsets, sizes)
        if first is None:
            faults.append("the offset table points elsewhere than at fragments")
            doubt = doubt or len(offsets) > 1
        elif transfer_syntax_uid in _MARKED and _cuts_through(pixel, first):
            faults.append("the offset table contradicts the fragments")
            doubt = True
        elif first not in told:
            told.append(first)
    return told, doubt


def _decided(
    told: list[tuple[int, ...]], pixel: PixelElement, wanted: int, transfer_syntax_uid: str, *, doubt: bool
) -> tuple[int, ...]:
    """Return where frames begin: as two of the offset tables, NumberOfFrames and the fragments say, and none of the others does."""
    exact = [first for first in told if len(first) == wanted]
    if len(exact) == 1:
        return exact[0]
    others = _by_fragments(pixel, wanted, transfer_syntax_uid)
    if not told:
        return () if doubt and wanted <= 1 < len(pixel.fragments) else others
    if exact or others in told or len(others) == wanted > 1:
        return others if others in told or not exact else ()
    # Of NumberOfFrames and the table one is wrong.
    sure = [first for first in told if _fits(pixel, first, transfer_syntax_uid)]
    return sure[0] if len(sure) == 1 else ()


def _words(table: bytes) -> tuple[int, ...]:
    whole = memoryview(table[: len(table) // 4 * 4])
    return tuple(int.from_bytes(whole[at : at + 4], "little") for at in range(0, len(whole), 4))


def _by_offsets(fragments: tuple[Piece, ...], offsets: tuple[int, ...], lengths: tuple[int, ...] = ()) -> tuple[int, ...] | None:
    start = fragments[0][0]
    # Offsets count from the first fragment's item header.
    index = {offset - start: n for n, (offset, _) in enumerate(fragments)}
    first = [index.get(offset, -1) for offset in offsets]
    if first[0] != 0 or any(one >= other for one, other in pairwise(first)):
        return None
    if lengths:
        there = [sum(length for _, length in fragments[one:other]) for one, other in pairwise((*first, len(fragments)))]
        if len(there) != len(lengths) or any(not 0 <= one - other <= 1 for one, other in zip(there, lengths, strict=True)):
            return None  # a fragment is padded to even length, a frame is not
    return tuple(first)


def _cuts_through(pixel: PixelElement, first: tuple[int, ...]) -> bool:
    """Whether an image ends inside of a frame: its end, or another one, would pass for a part of this one."""
    for begin, end in pairwise((*first, len(pixel.fragments))):
        full = [n for n in range(begin, end) if pixel.fragments[n][1]]
        if any(pixel.ends[n] for n in full[:-1]):
            return True
    return False


def _fits(pixel: PixelElement, first: tuple[int, ...], transfer_syntax_uid: str) -> bool:
    """Whether each fragment is a frame, or an image ends before each frame."""
    full = [n for n, (_, length) in enumerate(pixel.fragments) if length]
    if len(first) == len(full):
        return True
    before = [bisect_left(full, begin) - 1 for begin in first[1:]]
    return transfer_syntax_uid in _MARKED and all(n >= 0 and pixel.ends[full[n]] for n in before)


def _by_fragments(pixel: PixelElement, wanted: int, transfer_syntax_uid: str) -> tuple[int, ...]:
    count = len(pixel.fragments)
    if transfer_syntax_uid in MPEG:
        return (0,)
    full = tuple(n for n, (_, length) in enumerate(pixel.fragments) if length)
    if wanted < count and len(full) == wanted:  # an empty one begins nothing
        return full
    if wanted == count or transfer_syntax_uid == RLE:  # PS3.5 A.4.2: an RLE frame is one fragment
        return tuple(range(count))
    if wanted > count and (transfer_syntax_uid not in _MARKED or all(pixel.ends[n] for n in full[:-1])):
        return tuple(range(count))
    if wanted <= 1:
        return (0,)
    starts = (*full[:1], *(n for before, n in pairwise(full) if pixel.ends[before]))
    # What looks like a marker may be none, and a marker may lie in two fragments.
    told = len(starts) > 1 if wanted > count else len(starts) == wanted
    return starts if told or len(starts) == len(full) else ()
