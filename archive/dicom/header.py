"""What a data set says about showing its frames: of the frame's own functional groups, of the shared ones, else of the data set.

Source: PS3.3 C.7.6.16.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

from archive.dicom.metadata import PIXEL_PATHS, Binary, dataset_json, encoding
from archive.dicom.part10 import Scanned
from archive.dicom.runs import UNDEFINED
from archive.dicom.values import LONG, SHORT, Element, swapped

Document = dict[str, Element]
"""A data set in the DICOM JSON Model whose binary values lie in `Header.binary`."""

LONGEST_VALUE_BYTES = 1 << 18
"""No lookup table is longer."""

FEW_FRAMES = 8
"""Up to so many, reading the functional groups of them all costs no more than finding one frame's."""

_PER_FRAME, _SHARED = "52009230", "52009229"
_GROUPS, _ITEM, _ITEM_END, _SEQUENCE_END = 0x52009230, 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD


@dataclass(frozen=True, slots=True)
class Header:
    """The JSON Model of a data set, and its binary values by path, as frame `index` (from 0) sees them.

    `own` holds the frame's functional groups where the document was read without anybody's.
    """

    document: Document
    binary: dict[str, bytes]
    index: int = 0
    own: Document | None = None

    def first(self, tag: str, default: float | None = None) -> float | None:
        """Return the first value as a number: of the frame's functional groups, of the shared ones, else of the data set."""
        values = self.values(tag)
        return values[0] if values else default

    def values(self, tag: str) -> list[float]:
        """Return the finite numbers of a value, found as in `first`."""
        for dataset in self._places():
            found = [number for value in dataset.get(tag, {}).get("Value", []) if (number := _number(value)) is not None]
            if found:
                return found
        return []

    def word(self, tag: str) -> str:
        """Return the first value as text, found as in `first`."""
        for dataset in self._places():
            values = dataset.get(tag, {}).get("Value")
            if values and isinstance(values[0], str):
                return values[0]
        return ""

    def item(self, tag: str) -> tuple[Document, str] | None:
        """Return the first item of a sequence of the data set, and the path of its values."""
        items = self.document.get(tag, {}).get("Value")
        return (items[0], f"{tag}/1/") if items else None

    def _places(self) -> list[Document]:
        """Return where a value may lie, nearest first."""
        groups = [] if self.own is None else [self.own]
        for tag, n in ((_PER_FRAME, self.index), (_SHARED, 0)):
            items = self.document.get(tag, {}).get("Value", [])
            groups += items[n : n + 1]
        places = [group["Value"][0] for item in groups for group in item.values() if group.get("vr") == "SQ" and group.get("Value")]
        return [*places, self.document]


def read(part10_head: bytes, scanned: Scanned, index: int) -> Header:
    """Return the header of frame `index` (from 0); `part10_head` is the stream up to the pixel data at least."""
    coding = encoding(part10_head, scanned)
    if scanned.frames is not None and scanned.frames.count > FEW_FRAMES:
        try:
            place = _groups_of(part10_head, scanned.dataset_offset, *coding, index)
        except (struct.error, _Odd):
            place = None  # the careful way reads whatever can be read
        if place is not None:
            end, start, stop = place
            binary: dict[str, bytes] = {}
            document = dataset_json(part10_head[:end], scanned.dataset_offset, *coding, _keeping(binary))
            own = dataset_json(part10_head[start:stop], 0, *coding, _keeping({}))
            return Header(document, binary, index, own)
    return read_whole(part10_head, scanned, index)


def read_whole(part10_head: bytes, scanned: Scanned, index: int) -> Header:
    """Return the same as `read`, having read the functional groups of every frame."""
    binary: dict[str, bytes] = {}
    coding = encoding(part10_head, scanned)
    document: dict[str, Any] = dataset_json(part10_head, scanned.dataset_offset, *coding, _keeping(binary))
    return Header(document, binary, index)


def _keeping(binary: dict[str, bytes]) -> Binary:
    """Return what puts binary values into `binary`."""
    def keep(path: str, vr: str, buffer: bytes, start: int, stop: int) -> Element:
        if path not in PIXEL_PATHS and stop - start <= LONGEST_VALUE_BYTES:
            raw = buffer[start:stop]
            binary[path] = swapped(vr[1:], raw) if vr.startswith("=") else raw
        return {"vr": vr.lstrip("=")}

    return keep


class _Odd(Exception):
    """A structure that only the careful way understands."""


class _Walk:
    """Steps over elements and sequences without reading them."""

    def __init__(self, buffer: bytes, implicit: bool, little: bool) -> None:
        order = "<" if little else ">"
        self.buffer, self.implicit = buffer, implicit
        self._head, self._short, self._long = (struct.Struct(order + form).unpack_from for form in ("HH", "H", "I"))

    def tag(self, position: int) -> int:
        group, element = self._head(self.buffer, position)
        return int(group << 16 | element)

    def value(self, position: int) -> tuple[int, int]:
        """Return where the value of the element at `position` begins and ends; its end is -1 when only its items tell."""
        if self.implicit:
            length, start = self._long(self.buffer, position + 4)[0], position + 8
        else:
            vr = self.buffer[position + 4 : position + 6]
            if vr in SHORT:
                length, start = self._short(self.buffer, position + 6)[0], position + 8
            elif vr in LONG and vr != b"UN":
                length, start = self._long(self.buffer, position + 8)[0], position + 12
                if length == UNDEFINED and vr != b"SQ":
                    raise _Odd
            else:
                raise _Odd
        if length == UNDEFINED:
            return start, -1
        if start + length > len(self.buffer):
            raise _Odd
        return start, start + length

    def past(self, position: int) -> int:
        """Return where the element behind the one at `position` begins."""
        start, stop = self.value(position)
        if stop >= 0:
            return stop
        while (tag := self.tag(start)) == _ITEM:
            _, start = self.item(start)
        if tag != _SEQUENCE_END:
            raise _Odd
        return start + 8

    def item(self, position: int) -> tuple[int, int]:
        """Return where the elements of the item at `position` end, and where what follows the item begins."""
        length = self._long(self.buffer, position + 4)[0]
        position += 8
        if length != UNDEFINED:
            if position + length > len(self.buffer):
                raise _Odd
            return position + length, position + length
        while self.tag(position) != _ITEM_END:
            if self.tag(position) >> 16 == 0xFFFE:
                raise _Odd
            position = self.past(position)
        return position, position + 8


def _groups_of(buffer: bytes, position: int, implicit: bool, little: bool, index: int) -> tuple[int, int, int] | None:
    """Return where the functional groups of all frames begin, and where those of one frame begin and end; None: there are none.

    Raises:
        struct.error, _Odd: the data set is not that simple.
    """
    walk = _Walk(buffer, implicit, little)
    while position + 8 <= len(buffer) and walk.tag(position) < _GROUPS:
        position = walk.past(position)
    if position + 8 > len(buffer) or walk.tag(position) != _GROUPS:
        return None
    at, stop = walk.value(position)
    for n in range(index + 1):
        if at == stop or walk.tag(at) != _ITEM:
            return None
        end, following = walk.item(at)
        if n == index:
            return position, at + 8, end
        at = following
    return None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
