"""Headers that differ in values alone: what the one before was found to be, without going through it again.

The instances of a series repeat each other's header: the same elements, most of the same lengths, a few other values. A parser never looks
into the value of a plain element. So where every byte that differs lies inside of such values, it would stand after this header as it stood
after the other: that state is taken over, and only the values that changed are read.

Whatever differs elsewhere (a length, a sequence that is indexed, the character set) makes it another header, which is gone through from its
beginning.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass

from archive.dicom.part10 import Limits
from archive.dicom.runs import Level
from archive.dicom.structure import Begun, Structure
from archive.dicom.values import LONG, Element

KEPT = 8
"""Headers of other lengths, or of series that come by turns."""
LONGEST = 64 << 10
_TO_LEARN = 4
"""Who sends nothing alike pays for so many attempts, and for one more with every thirty-two headers that were alike."""
_RECOVERS = 32
_CHARACTER_SET = 0x00080005
_RUN = re.compile(rb"[^\0]+", re.DOTALL).finditer

Encoding = tuple[bool, bool, str, Limits]
"""Implicit VR, little endian, the character set of a data set that names none, and what it is bounded by."""


@dataclass(frozen=True, slots=True)
class _Header:
    """One that was gone through: its bytes as a number, and where in it the values lie that may be others."""

    encoding: Encoding
    length: int
    number: int
    following: bytes
    starts: tuple[int, ...]
    stops: tuple[int, ...]
    tags: tuple[int, ...]
    begun: Begun
    wanted: frozenset[int]
    attributes: dict[str, Element]


@dataclass(frozen=True, slots=True)
class Found:
    """A header that is known: how long it is and what a parser knows after it.

    `tags` are those whose values it holds, `attributes` what those were read as before some of them `changed`.
    """

    length: int
    begun: Begun
    tags: frozenset[int]
    attributes: dict[str, Element]
    changed: frozenset[int]


class _Places(Structure):
    """A parser that notes where the values of plain elements lie."""

    def __init__(self, *, implicit: bool, little: bool, limits: Limits) -> None:
        super().__init__(implicit=implicit, little=little, nesting=limits.nesting, elements=limits.elements)
        self.places: list[tuple[int, int, int]] = []

    def _run(self, position: int, last: int) -> tuple[int, int]:
        after, last = super()._run(position, last)
        self._note_places(position, after, implicit=self.implicit)
        return after, last

    def _run_item(self, position: int, level: Level) -> int:
        after = super()._run_item(position, level)
        if self._keep < 0:  # the bytes of a sequence that is wanted are a value themselves
            self._note_places(position, after, implicit=level.implicit, inside=True)
        return after

    def _note_places(self, position: int, after: int, *, implicit: bool, inside: bool = False) -> None:
        """Note the values of these elements, which are plain; inside of an item nobody reads them."""
        while position < after:
            group, element = self._head(self._buffer, position)
            start = position + 8
            if implicit:
                length = self._long(self._buffer, position + 4)[0]
            elif bytes(self._buffer[position + 4 : position + 6]) in LONG:
                length, start = self._long(self._buffer, position + 8)[0], position + 12
            else:
                length = self._short(self._buffer, position + 6)[0]
            position = start + length
            tag = group << 16 | element
            if length and (inside or tag != _CHARACTER_SET):
                self.places.append((self._base + start, self._base + position, -1 if inside else tag))


class Alike:
    """Remembers a few headers for the scanners of one sender; used by one thread, let go with it."""

    def __init__(self) -> None:
        """Remember none."""
        self._headers: list[_Header] = []
        self._to_learn = float(_TO_LEARN)

    @property
    def learns(self) -> bool:
        """Whether a header that is not known should be learnt."""
        return self._to_learn >= 1

    def find(self, encoding: Encoding, data: memoryview) -> Found | None:
        """Return what is known of the header that `data` begin with, or None."""
        for number, header in enumerate(self._headers):
            length = header.length
            if header.encoding != encoding or data[length : length + 4] != header.following:
                continue
            changed = _changed(header, bytes(data[:length]))
            if changed is None:
                continue
            if number:
                self._headers.insert(0, self._headers.pop(number))
            self._to_learn = min(_TO_LEARN, self._to_learn + 1 / _RECOVERS)
            values = dict(header.begun.values)
            for tag, start, stop in changed:
                if tag in values:
                    values[tag] = values[tag][0], bytes(data[start:stop])
            return Found(length, header.begun.of(values), header.wanted, header.attributes, frozenset(tag for tag, _, _ in changed))
        return None

    def learn(
        self, encoding: Encoding, header: bytes, following: bytes, values: dict[int, tuple[str, bytes]], attributes: dict[str, Element]
    ) -> None:
        """Remember a header that ends before its pixel data.

        `values` are all of its data set, and `attributes` what they were read as, none of them odd.
        """
        self._to_learn -= 1
        parser = _Places(implicit=encoding[0], little=encoding[1], limits=encoding[3])
        parser.feed(memoryview(header))
        begun = parser.begun
        if begun is None or begun.offset != len(header) or begun.values != values or not parser.places:
            return  # something lies behind the pixel data, or reaches into them
        starts, stops, tags = zip(*sorted(parser.places), strict=True)
        kept = _Header(
            encoding, len(header), int.from_bytes(header, "little"), following, starts, stops, tags, begun, frozenset(values),
            dict(attributes),
        )
        self._headers = [kept, *self._headers[: KEPT - 1]]


def _changed(header: _Header, data: bytes) -> list[tuple[int, int, int]] | None:
    """Return tag, start and stop of each value that is another, None where something else is."""
    difference = int.from_bytes(data, "little") ^ header.number
    found: list[tuple[int, int, int]] = []
    last = -1
    for run in _RUN(difference.to_bytes(header.length, "little")):
        place = bisect_right(header.starts, run.start()) - 1
        if place < 0 or run.end() > header.stops[place]:
            return None
        if place != last:
            found.append((header.tags[place], header.starts[place], header.stops[place]))
            last = place
    return found
