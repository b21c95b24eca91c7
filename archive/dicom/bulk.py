"""Where the value of a BulkDataURI lies in its Part 10 stream, and any part of it, without the rest of the instance.

The headers of elements are read through a window, values are stepped over, so that a part of a value of any length costs little memory.
The way through the data set is that of `metadata.dataset_json`, which made the URI.

Source: PS3.18 8.3.5 and F.2.6, PS3.5 7.5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from archive.dicom.dictionary import vr_of
from archive.dicom.metadata import LEFT_OUT, PIXEL_PATHS, encoding
from archive.dicom.nesting import ENDLESS, OPEN, item_end, past_delimiter, sequence_end
from archive.dicom.part10 import Scanned
from archive.dicom.runs import READ, UNDEFINED
from archive.dicom.structure import FRAGMENTED, PIXEL_TAGS, odd_header
from archive.dicom.values import BINARY, LONG, SHORT, WIDTH, sample_vr, swapped
from archive.dicom.zeros import goes_on, past_zeros
from archive.errors import NotFound

WINDOW_BYTES = 256 << 10
Read = Callable[[int, int], bytes]
"""Bytes of the Part 10 stream (inflated where it is deflated) from an offset, fewer at its end."""
Chunks = Callable[[int, int], Iterator[bytes | memoryview]]
"""The same, piece by piece."""

_VRS = {code: code.decode("ascii") for code in SHORT | LONG}
_LONG_VRS = frozenset(code.decode("ascii") for code in LONG)


@dataclass(frozen=True, slots=True)
class Value:
    """Where a value lies: pieces of the stream that follow each other; `swap` is its VR where its bytes are in big endian."""

    pieces: tuple[tuple[int, int], ...]
    swap: str = ""

    @property
    def length(self) -> int:
        """Bytes of the whole value."""
        return sum(length for _, length in self.pieces)

    def part(self, chunks: Chunks, start: int, length: int) -> Iterator[bytes | memoryview]:
        """Yield bytes [start, start + length) of the value in little endian; each piece is valid until the next one."""
        if self.swap:
            yield from self._swapped(chunks, start, length)
            return
        for offset, size in self.pieces:
            taken = min(size - start, length)
            if taken > 0:
                yield from chunks(offset + start, taken)
                start, length = start + taken, length - taken
            start -= size

    def _swapped(self, chunks: Chunks, start: int, length: int) -> Iterator[bytes]:
        (offset, size), width = self.pieces[0], WIDTH.get(self.swap, 1)
        first, last = start // width * width, min(size, (start + length + width - 1) // width * width)
        at, left = first, b""
        for chunk in chunks(offset + first, last - first):
            raw = left + bytes(chunk)
            whole = len(raw) // width * width
            left = raw[whole:]
            made = swapped(self.swap, raw[:whole])
            yield made[max(0, start - at) : max(0, start + length - at)]
            at += whole
        yield left[max(0, start - at) : max(0, start + length - at)]  # what does not fill a word is as it was


class Window:
    """Bytes of the stream by offset, as much as a header needs; one block is kept."""

    def __init__(self, read: Read, length: int) -> None:
        self._read, self.length = read, length
        self._start, self._block = 0, b""

    def get(self, at: int, count: int) -> bytes:
        """Return `count` bytes; zeros stand for what lies behind the end."""
        begin = at - self._start
        if begin < 0 or begin + count > len(self._block):
            self._start, begin = at, 0
            self._block = self._read(at, min(max(WINDOW_BYTES, count), max(0, self.length - at)))
        return self._block[begin : begin + count].ljust(count, b"\0")


@dataclass(slots=True)
class _Sequence:
    """An open sequence, and what to go back to after it; `path` is None where the value does not lie in it."""

    path: str | None
    items: int
    stop: int
    bound: int
    over: bool
    implicit: bool
    loose: bool
    outer_path: str | None
    end: int
    outer_bound: int
    outer_kind: int
    outer_implicit: bool
    outer_loose: bool


def find(read: Read, length: int, scanned: Scanned, path: str) -> Value:
    """Return where the value of `path` lies in the stream of that length; one encapsulated frame without its items.

    Raises:
        NotFound: no such value, or pixel data of several encapsulated frames, which are served frame by frame, or said to be native.
    """
    table = scanned.frames
    if table is not None and table.kind == "encapsulated" and path in PIXEL_PATHS:
        if table.count != 1 or scanned.mislabelled:
            raise NotFound("pixel data of several frames are served frame by frame")
        return Value(table.pieces(0))
    start = scanned.dataset_offset
    first = read(0, start + 8)
    found = _walk(Window(read, length), start, *encoding(first, scanned), path)
    if found is None:
        raise NotFound("there is no such bulk data")
    if path in PIXEL_PATHS and found.swap:
        return replace(found, swap=sample_vr(found.swap, scanned.number("BitsAllocated")))
    return found


def _walk(  # noqa: C901, PLR0911, PLR0912, PLR0915 # one pass, as dataset_json
    window: Window, start: int, implicit: bool, little: bool, path: str
) -> Value | None:
    head, short, long, _, _ = READ["<" if little else ">"]
    get, end, bound, kind, loose = window.get, window.length, ENDLESS, OPEN, False
    prefix: str | None = ""
    position = start
    stack: list[_Sequence] = []
    between = False
    while True:
        if between:
            level = stack[-1]
            if position + 8 <= level.stop:
                raw = get(position, 8)
                length = long(raw, 4)[0]
                if head(raw, 0) == (0xFFFE, 0xE000):
                    position += 8
                    end, bound, kind = item_end(position, length, level.stop, level.bound)
                    level.items += 1
                    prefix = None if level.path is None else f"{level.path}/{level.items}/"
                    implicit, loose, between = level.implicit, level.loose, False
                    continue
                position = position + 8 if head(raw, 0) == (0xFFFE, 0xE0DD) and not level.over else level.stop
            else:
                position = level.stop
            stack.pop()
            if level.path is not None:
                return None  # the path led here
            prefix, end, bound, kind, between = level.outer_path, level.end, level.outer_bound, level.outer_kind, False
            implicit, loose = level.outer_implicit, level.outer_loose
            continue
        if position + 8 > end:
            if not stack:
                return None
            position, between = end, True
            continue
        raw = get(position, 12)
        group, number = head(raw, 0)
        if group == 0xFFFE:
            if not stack:
                if number == 0xE000:
                    return None
                position += 8
                continue
            position = past_delimiter(position, number, end, kind)
            between = True
            continue
        tag = group << 16 | number
        vr = "" if implicit and not loose else _VRS.get(raw[4:6], "")
        inner = implicit
        if vr and vr not in _LONG_VRS:
            length = short(raw, 6)[0]
            position += 8
        elif vr:
            if position + 12 > end:
                position = end
                continue
            length = long(raw, 8)[0]
            position += 12
        elif not tag and not stack and not any(raw[:8]):
            position = past_zeros(get, position, end)
            if position + 8 > end or not goes_on(get(position, 8), implicit, head):
                return None
            continue
        elif implicit:
            vr, length = vr_of(tag), long(raw, 4)[0]
            position += 8
        else:
            vr, length, header, inner, _ = odd_header(tag, raw[4:6], short(raw, 6)[0])
            if length < 0:
                length = long(raw, 8 if header == 12 else 4)[0] if position + 12 <= end else 0
            position += header
        known = vr_of(tag) if vr == "UN" else vr
        swap = "" if little or (vr == "UN" and known != "UN") else known
        name = f"{tag:08X}"
        wanted = prefix is not None and prefix + name == path
        within = prefix + name if prefix is not None and path.startswith(f"{prefix}{name}/") else None
        if tag in PIXEL_TAGS and not stack:
            stop = position if length == UNDEFINED else min(position + length, end)
            return Value(((position, stop - position),), swap) if name == path else None
        if known == "SQ" or (length == UNDEFINED and vr not in FRAGMENTED):
            stop, inner_bound, over = sequence_end(position, length, end, bound)
            if wanted:
                return None
            un = vr == "UN"
            stack.append(_Sequence(
                within, 0, stop, inner_bound, over, inner or un, loose or un, prefix, end, bound, kind, implicit, loose
            ))
            between = True
            continue
        if length == UNDEFINED:
            stop = _past_fragments(window, position, end, little)
            if wanted:
                return Value(((position, stop - position),))  # of bytes, in either byte order
            if within is not None:
                return None
            position = stop
            continue
        stop = position + length
        if stop > end:
            position = end
            continue
        if wanted and number and group not in LEFT_OUT and known in BINARY and length:
            return Value(((position, length),), swap)
        if wanted or within is not None:
            return None  # where a tag stands twice, the first counts
        position = stop


def _past_fragments(window: Window, position: int, end: int, little: bool) -> int:
    """Return where encapsulated data inside an item or a private element end."""
    head, _, long, _, _ = READ["<" if little else ">"]
    while position + 8 <= end:
        raw = window.get(position, 8)
        group, number = head(raw, 0)
        if group != 0xFFFE or number != 0xE000:
            return position + 8 if group == 0xFFFE and number == 0xE0DD else position
        position += 8 + int(long(raw, 4)[0])
    return end
