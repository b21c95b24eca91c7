"""A push parser for the structure of one data set: it follows lengths and nesting, keeps only the few values asked for.

Bytes come in pieces of any size; memory is bounded by MAX_VALUE bytes for each wanted attribute, whatever the data set holds. No
recursion: nesting lies on a stack of its own.

Source: PS3.5 7.1, 7.5, A.4, 6.2.2 (UN).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from archive.dicom.attributes import SCANNED
from archive.dicom.dictionary import vr_of
from archive.dicom.frames import PixelElement
from archive.dicom.pushed import PAST_END
from archive.dicom.runs import MAX_VALUE, UNDEFINED, Level, Runs
from archive.dicom.values import LONG, SHORT
from archive.dicom.zeros import goes_on
from archive.errors import InvalidInstance

MAX_TABLE = 8 << 20
"""The longest offset table kept."""
PIXEL_TAGS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
OFFSET_TABLES = frozenset({0x7FE00001, 0x7FE00002})
FRAGMENTED = frozenset({"OB", "OW", "OF", "OD", "OL", "OV"})
"""VRs whose undefined length means encapsulated fragments, not items."""
_ODD_VR = frozenset({b"\0\0", b"??", b"  ", b"--"})
_TOO_MANY = "the data set has more elements than the limit"
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD


def odd_header(tag: int, code: bytes, short_length: int) -> tuple[str, int, int, bool, str]:
    """Read the header of an element of explicit VR whose VR is none: VR, length, header bytes, whether implicit, what is wrong.

    A negative length stands in 32 bits: at byte 8 of a header of 12 bytes, at byte 4 of one of 8.
    """
    if code in _ODD_VR:
        return vr_of(tag), short_length, 8, False, "an element without a VR"
    if code.isalpha() and code.isupper():
        # PS3.5 6.2.2: a VR not known yet has two reserved bytes and a length of 32 bits; some writers use 16.
        return "UN", short_length or -1, 8 if short_length else 12, False, "an unknown VR"
    return vr_of(tag), -1, 8, True, "an implicit element in an explicit data set"


@dataclass(frozen=True, slots=True)
class Begun:
    """What a parser knows that stands between two elements of a data set, with nothing open and nothing noted."""

    offset: int
    values: dict[int, tuple[str, bytes]]
    seen: frozenset[int]
    count: int
    past_header: bool

    def of(self, values: dict[int, tuple[str, bytes]]) -> Begun:
        """Return the same with other values."""
        return Begun(self.offset, values, self.seen, self.count, self.past_header)


class Structure(Runs):
    """The parser of one data set; `feed` it, then `finish`."""

    def __init__(self, *, implicit: bool, little: bool, nesting: int, elements: int) -> None:
        """The encoding is settled by the caller; a UN sequence inside may switch to implicit VR."""
        super().__init__(implicit=implicit, little=little, elements=elements)
        self.tables: dict[int, bytes] = {}
        self.findings: list[tuple[int, str]] = []
        self.pixel: PixelElement | None = None
        self._nesting = nesting
        self._levels: list[Level] = []
        self._depth = 0
        self._keep_tag = 0
        self._last = 0  # the greatest tag before the first byte that is fed

    @property
    def begun(self) -> Begun | None:
        """What another parser could go on from; None where something is open, was noted or is kept besides."""
        if self._levels or self.findings or self.tables or self.pixel or self.trailing or self._skip or self._keep >= 0:
            return None
        return Begun(self.offset, self.values, frozenset(self._seen), self._count, self.past_header)

    def go_on(self, begun: Begun) -> None:
        """Be where another parser stood; before anything is fed. What is fed comes after that."""
        self.values, self._seen, self._count, self.past_header = begun.values, set(begun.seen), begun.count, begun.past_header
        self._base, self._last = begun.offset, max(begun.seen, default=0)

    def _note(self, tag: int, text: str) -> None:
        if len(self.findings) < 100:
            self.findings.append((tag, text))

    def _parse(self) -> Iterator[int]:  # noqa: C901, PLR0912, PLR0915 # one loop is the point: see the module's text
        """Walk the data set; each yielded number is how many bytes from the position are wanted before going on."""
        buffer, position, end = self._buffer, self._position, len(self._buffer)
        levels = self._levels
        head, short, long = self._head, self._short, self._long
        last = self._last
        while True:
            while levels and levels[-1].end >= 0 and self._base + position >= levels[-1].end:
                self._close(position)
            if not levels:
                position, last = self._run(position, last)
            elif levels[-1].is_item:
                position = self._run_item(position, levels[-1])
                if 0 <= levels[-1].end <= self._base + position:
                    continue
            if levels and 0 <= levels[-1].bound < self._base + position + 8:
                # Nothing is read that lies behind the end of what holds it, not even in part, and not a delimiter either.
                yield from self._resync(position)
                buffer, position, end = self._buffer, self._position, len(self._buffer)
                continue
            if end - position < 8:
                self._position = position
                yield 8
                buffer, position, end = self._buffer, self._position, len(self._buffer)
                if end - position < 8:
                    self._end(bytes(buffer[position:]))
                    return
            self._count += 1
            if self._count > self._elements:
                raise InvalidInstance(_TOO_MANY, reason="too-large")
            if 0 <= self._keep < position - MAX_VALUE:
                self._drop()
            group, element = head(buffer, position)
            tag = group << 16 | element
            level = levels[-1] if levels else None
            at = self._base + position
            if level is not None and not level.is_item:
                # Between items.
                length = long(buffer, position + 4)[0]
                if tag == _ITEM:
                    stop = -1 if length == UNDEFINED else at + 8 + length
                    if level.bound < 0 or stop <= level.bound:
                        levels.append(Level(True, stop, level.bound if stop < 0 else stop, level.implicit, level.loose))
                        position += 8
                        continue
                elif tag == _SEQUENCE_END:
                    position += 8
                    if level.end >= 0:
                        self._note(tag, "a delimiter in a sequence of defined length")
                    self._close(position)
                    continue
                yield from self._resync(position)
                buffer, position, end = self._buffer, self._position, len(self._buffer)
                continue
            if group == 0xFFFE:
                if level is not None and tag == _ITEM_END:
                    position += 8
                    if level.end >= 0:
                        self._note(tag, "a delimiter in an item of defined length")
                    self._close(position)
                    continue
                if level is not None and tag == _SEQUENCE_END and level.end < 0:
                    self._note(tag, "an item without its delimiter")
                    self._close(position)
                    continue
                if level is None and self.pixel is None and tag in (_ITEM_END, _SEQUENCE_END) and not long(buffer, position + 4)[0]:
                    self._note(tag, "a delimiter without a sequence")
                    position += 8
                    continue
                if level is None:
                    if self.pixel is None:
                        raise InvalidInstance("an item outside of a sequence")
                    self._trail()
                    return
                yield from self._resync(position)
                buffer, position, end = self._buffer, self._position, len(self._buffer)
                continue

            # An element.
            implicit = self.implicit if level is None else level.implicit
            code = bytes(buffer[position + 4 : position + 6])
            header = 8
            explicit = not implicit or (level is not None and level.loose)
            if explicit and code in SHORT:
                vr, length = code.decode("ascii"), short(buffer, position + 6)[0]
            elif explicit and code in LONG:
                vr, header = code.decode("ascii"), 12
            elif level is None and not tag and not any(buffer[position : position + 8]):
                if self.pixel is None:
                    self._position = position
                    yield from self._past_zeros()
                    buffer, position, end = self._buffer, self._position, len(self._buffer)
                    if end - position >= 8 and goes_on(bytes(buffer[position : position + 8]), self.implicit, head):
                        self._note(tag, "zeros between elements")
                        continue
                self._trail()
                return
            elif implicit:
                vr, length = vr_of(tag), long(buffer, position + 4)[0]
            elif level is None and self.pixel is not None:
                self._trail()
                return
            else:
                vr, length, header, implicit, fault = odd_header(tag, code, short(buffer, position + 6)[0])
                self._note(tag, fault)
                if length < 0 and header == 8:
                    length = long(buffer, position + 4)[0]
            if header == 12:
                if end - position < 12:
                    self._position = position
                    yield 12
                    buffer, position, end = self._buffer, self._position, len(self._buffer)
                    if end - position < 12:
                        self._end(bytes(buffer[position:]))
                        return
                length = long(buffer, position + 8)[0]
            if level is None:
                if implicit and self.implicit and self.pixel is not None and tag <= last and vr_of(tag) == "UN":
                    self._trail()
                    return
                if tag <= last:
                    if tag in self._seen:
                        self._note(tag, "the element stands twice; the first counts")
                    elif not self.past_header or tag in SCANNED:
                        self._note(tag, "elements out of order")
                if group in (0, 2):
                    self._note(tag, "an element of the command or file meta group")
                last = max(last, tag)
                if group >= 0x7FE0:
                    self.past_header = True

            # Its value.
            start = position + header
            stop = self._base + start + (0 if length == UNDEFINED else length)
            if level is not None and 0 <= level.bound < stop:
                yield from self._resync(position)
                buffer, position, end = self._buffer, self._position, len(self._buffer)
                continue
            if length == UNDEFINED:
                if vr in FRAGMENTED:
                    self._position = start
                    yield from self._fragments(tag, vr, root=level is None)
                    buffer, position, end = self._buffer, self._position, len(self._buffer)
                    self._seen.add(tag)
                    continue
                if vr not in {"SQ", "UN"} and not implicit:
                    raise InvalidInstance("an element of undefined length that cannot have one")
                stop = -1
            wanted = level is None and tag in SCANNED and tag not in self._seen
            if length == UNDEFINED or vr == "SQ" or (vr == "UN" and vr_of(tag) == "SQ"):
                self._depth += 1
                if self._depth > self._nesting:
                    raise InvalidInstance("sequences are nested deeper than the limit", reason="too-deep")
                bound = (-1 if level is None else level.bound) if stop < 0 else stop
                loose = vr == "UN" or (level is not None and level.loose)
                levels.append(Level(False, stop, bound, implicit or vr == "UN", loose))
                if wanted:
                    self._keep, self._keep_tag = position, tag  # with its header, so that it is read again as it was here
                if level is None:
                    self._seen.add(tag)
                position = start
                if self._keep >= 0 and length != UNDEFINED and length > MAX_VALUE:
                    self._drop()
                continue
            stop_at = start + length
            if wanted or (level is None and tag in OFFSET_TABLES):
                limit = MAX_VALUE if wanted else MAX_TABLE
                if length > limit:
                    self._note(tag, "a value too long to index")
                else:
                    if stop_at > end:
                        self._position = start
                        yield length
                        buffer, start, end = self._buffer, self._position, len(self._buffer)
                        if end - start < length:
                            raise InvalidInstance(PAST_END)
                        stop_at = start + length
                    if wanted:
                        self.values[tag] = (vr, bytes(buffer[start:stop_at]))
                    else:
                        self.tables[tag] = bytes(buffer[start:stop_at])
            elif level is None:
                if tag in PIXEL_TAGS and self.pixel is None:
                    self.pixel = PixelElement(tag, vr, self._base + start, length)
                elif length > MAX_VALUE:
                    self.past_header = True
            if level is None:
                self._seen.add(tag)
            elif self._keep >= 0 and stop_at - self._keep > MAX_VALUE:
                self._drop()
            position = stop_at
            if stop_at > end:
                self._position = start
                yield from self._pass(length)
                buffer, position, end = self._buffer, self._position, len(self._buffer)

    def _fragments(self, tag: int, vr: str, *, root: bool) -> Iterator[int]:  # noqa: C901, PLR0912 # one loop
        """Go through encapsulated data; those of the data set's own pixel data are noted fragment by fragment."""
        pixel = PixelElement(tag, vr, self._base + self._position)
        if root and tag in PIXEL_TAGS and self.pixel is None:
            self.pixel = pixel
        bound = -1 if root else self._levels[-1].bound
        first = True
        while True:
            if 0 <= bound < self._base + self._position + 8:
                yield from self._resync(self._position)
                return
            yield from self._have(8)
            if len(self._buffer) - self._position < 8:
                if first or not root or len(self._buffer) > self._position:
                    raise InvalidInstance("the data end inside of encapsulated data")
                self._note(tag, "encapsulated data without its delimiter")
                return
            group, element = self._head(self._buffer, self._position)
            length = self._long(self._buffer, self._position + 4)[0]
            item = group << 16 | element
            if item != _ITEM or length == UNDEFINED:
                if item == _SEQUENCE_END:
                    self._position += 8
                elif first or length == UNDEFINED:
                    raise InvalidInstance("encapsulated data that hold no item")
                else:
                    self._note(tag, "encapsulated data without its delimiter")
                return
            self._count += 1
            if self._count > self._elements:
                raise InvalidInstance(_TOO_MANY, reason="too-large")
            self._position += 8
            if 0 <= bound < self._base + self._position + length:
                yield from self._resync(self._position)
                return
            if first:
                first = False
                if length <= MAX_TABLE and pixel is self.pixel:
                    yield from self._have(length)
                    pixel.offset_table = bytes(self._buffer[self._position : self._position + length])
                yield from self._pass(length)
                continue
            if pixel is not self.pixel:
                yield from self._pass(length)
                continue
            pixel.fragments.append((self._base + self._position, length))
            tail = min(length, 10)
            yield from self._pass(length - tail)
            yield from self._have(tail)
            pixel.ends.append(b"\xff\xd9" in bytes(self._buffer[self._position : self._position + tail]))
            yield from self._pass(tail)

    def _resync(self, position: int) -> Iterator[int]:
        """Leave what is broken inside a sequence or item of known length for its end.

        Raises:
            InvalidInstance: nothing around it has a known end.
        """
        level = self._levels[-1]
        self._note(0xFFFEE000, "the structure of a sequence is broken; it is passed over")
        if level.bound < 0:
            raise InvalidInstance("the structure of a sequence is broken")
        while self._levels[-1].end < 0:
            self._close(position)
        self._position = position
        yield from self._pass(level.bound - self._base - position)

    def _pass(self, length: int) -> Iterator[int]:
        """Move on as any parser does, without a wanted sequence that would grow too long by it."""
        if 0 <= self._keep < self._position + length - MAX_VALUE:
            self._drop()
        return super()._pass(length)

    def _close(self, position: int) -> None:
        """Leave the innermost sequence or item; a wanted sequence's bytes are then known."""
        level = self._levels.pop()
        if not level.is_item:
            self._depth -= 1
        if not self._levels and self._keep >= 0:
            self.values[self._keep_tag] = ("SQ", bytes(self._buffer[self._keep : position]))
            self._keep = -1

    def _drop(self) -> None:
        self._keep = -1
        self._note(self._keep_tag, "a sequence too long to index")

    def _trail(self) -> None:
        self._note(0, "bytes after the data set")
        self.trailing = True
        self._position = len(self._buffer)

    def _end(self, rest: bytes) -> None:
        if self._levels:
            raise InvalidInstance("the data end inside of a sequence")
        if rest:
            if self.pixel is None and any(rest):
                raise InvalidInstance(PAST_END)
            self._trail()
