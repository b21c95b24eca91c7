"""A data set from one native encoding to little endian, explicit VR or implicit, element by element, with replacements.

Sequences get undefined lengths, so nothing is measured before it is written; group lengths are left out. Long values are not copied.

Source: PS3.5 7.1, 7.5, A.1, A.2.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from archive.dicom.dictionary import vr_of
from archive.dicom.layout import refused
from archive.dicom.metadata import past_fragments
from archive.dicom.nesting import ENDLESS, KNOWN, OVER, item_end, past_delimiter, sequence_end
from archive.dicom.pieces import Piece
from archive.dicom.runs import UNDEFINED
from archive.dicom.structure import FRAGMENTED, PIXEL_TAGS, odd_header
from archive.dicom.values import LONG, SHORT, WIDTH, swapped
from archive.dicom.zeros import goes_on, past_zeros

_VRS = {code: code.decode("ascii") for code in SHORT | LONG}
_LONG_VRS = frozenset(code.decode("ascii") for code in LONG)
_ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED)
_ITEM_END = struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
_SEQUENCE_END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)

LONG_VALUE = 64 << 10
"""From here on a value is a piece of its own, and lies where it was."""

Changed = Mapping[int, Iterable[Piece]]
"""Whole elements by tag; empty: left out."""
OfIcon = Callable[[bytes, int, int], Changed]
"""Given buffer, start and end of an item of an Icon Image Sequence in explicit little endian, returns what changes of it."""

_ICONS, _PIXEL_REPRESENTATION = 0x00880200, 0x00280103


@dataclass(slots=True)
class _Open:
    """What is being read: the items of a sequence, or the elements of an item."""

    is_item: bool
    stop: int
    bound: int
    kind: int
    implicit: bool
    loose: bool
    words: str  # US or SS
    tag: int = 0  # of a sequence
    changed: Changed = field(default_factory=dict)  # of an item
    todo: list[int] = field(default_factory=list)


def element(tag: int, vr: str, value: bytes, *, explicit: bool = True) -> bytes:
    """Return one element in little endian, padded to even length."""
    if len(value) & 1:
        value += _padding(vr)
    return header(tag, vr, len(value), explicit=explicit) + value


def header(tag: int, vr: str, length: int, *, explicit: bool = True) -> bytes:
    """Return what stands before a value of that even length in little endian."""
    if not explicit:
        return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, length)
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode("ascii"))
    if vr in _LONG_VRS:
        return head + struct.pack("<HI", 0, length)
    if length > 0xFFFF:  # PS3.5 6.2.2: too long for its VR's 16 bits
        return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, b"UN", 0, length)
    return head + struct.pack("<H", length)


def _padding(vr: str) -> bytes:
    return b"\0" if vr in WIDTH or vr in {"OB", "UI", "UN"} else b" "


def _long(tag: int, vr: str, value: memoryview, *, explicit: bool) -> Iterator[Piece]:
    """Yield a long value with what stands before it, and after it where its length is odd."""
    odd = len(value) & 1
    yield header(tag, vr, len(value) + odd, explicit=explicit)
    yield value
    if odd:
        yield _padding(vr)


def little_endian(  # noqa: C901, PLR0912, PLR0915 # one pass over the bytes
    buffer: bytes, start: int, implicit: bool, little: bool, replace: Changed, words: str, *, explicit: bool = True,
    icon: OfIcon | None = None, behind: int = 0,
) -> Generator[Piece, None, int]:
    """Yield the data set that begins at `start` in little endian, with VRs or (not `explicit`) without; return its greatest tag.

    `replace` gives elements for tags of the data set itself, each once; those it lacks are added in order, and pixel data come no sooner
    than their own. `words` is the VR, US or SS, of what PixelRepresentation decides, but in items that have their own. `behind` is the
    greatest tag so far where the pixel data have been passed: behind them, what cannot be an element ends the data set, as it did for
    the scanner.

    Raises:
        NotAcceptable: goes-on.
    """
    order = "<" if little else ">"
    head, short, long = (struct.Struct(order + form).unpack_from for form in ("HH", "H", "I"))
    of_root = sorted(replace)
    stack: list[_Open] = []
    position, end = start, len(buffer)
    last, past = behind, behind > 0
    while True:
        top = stack[-1] if stack else None
        stop = top.stop if top is not None else end
        if position + 8 > stop:
            if top is None:
                break
            position = stop
            yield _ITEM_END if top.is_item else _SEQUENCE_END
            stack.pop()
            continue
        group, number = head(buffer, position)
        length = long(buffer, position + 4)[0]
        if top is not None and not top.is_item:
            if group == 0xFFFE and number == 0xE000:
                position += 8
                place = item_end(position, length, stop, top.bound)
                inside: Changed = {}
                if top.tag == _ICONS and icon is not None and little and not top.implicit:
                    inside = icon(buffer, position, place[0])
                stack.append(_Open(True, *place, top.implicit, top.loose, top.words, 0, inside, sorted(inside)))
                yield _ITEM
                continue
            position = position + 8 if group == 0xFFFE and number == 0xE0DD and top.kind != OVER else stop
            yield _SEQUENCE_END
            stack.pop()
            continue
        if group == 0xFFFE:
            if top is None:
                if number == 0xE000 or past:
                    break
                position += 8
                continue
            position = past_delimiter(position, number, stop, top.kind)
            yield _ITEM_END
            stack.pop()
            continue

        tag = group << 16 | number
        now_implicit = implicit if top is None else top.implicit
        loose = top is not None and top.loose
        vr = "" if now_implicit and not loose else _VRS.get(buffer[position + 4 : position + 6], "")
        if vr and vr not in _LONG_VRS:
            length, before = short(buffer, position + 6)[0], 8
        elif vr:
            if position + 12 > stop:
                position = stop
                continue
            length, before = long(buffer, position + 8)[0], 12
        elif not tag and top is None and not any(buffer[position : position + 8]):
            if not past:
                position = past_zeros(lambda at, count: buffer[at : at + count], position, end)
                if position + 8 <= end and goes_on(buffer[position : position + 8], implicit, head):
                    continue
                if buffer[position:].strip(b"\0"):
                    raise refused("goes-on")  # others may read on: what is made would lack that, and pass for whole
            break
        elif now_implicit:
            vr, before = vr_of(tag), 8
            if top is None and past and tag <= last and vr == "UN":
                break
        elif top is None and past:
            break
        else:
            vr, length, before, now_implicit, _ = odd_header(tag, buffer[position + 4 : position + 6], short(buffer, position + 6)[0])
            if length < 0:
                length = long(buffer, position + (8 if before == 12 else 4))[0] if position + 12 <= stop else 0
        within = words if top is None else top.words
        vr = within if vr == "xs" else vr
        position += before
        changed, todo = (replace, of_root) if top is None else (top.changed, top.todo)
        while todo and todo[0] < tag and todo[0] not in PIXEL_TAGS:
            yield from changed[todo.pop(0)]
        items = vr == "SQ" or (length == UNDEFINED and vr not in FRAGMENTED)
        if top is None:
            last, past = max(last, tag), past or (tag in PIXEL_TAGS and not items)
        if length == UNDEFINED and not items:
            if top is None and tag in PIXEL_TAGS and replace.keys().isdisjoint(PIXEL_TAGS):
                raise refused("goes-on")  # an older scanner ended before them: they would be left out
            position = past_fragments(buffer, position, stop, head, long)
            if tag in todo:
                todo.remove(tag)
                yield from changed[tag]
            continue
        if items:
            inner, bound, over = sequence_end(position, length, stop, ENDLESS if top is None else top.bound)
            un = vr == "UN"
            stack.append(_Open(False, inner, bound, OVER if over else KNOWN, now_implicit or un, loose or un, within, tag))
            yield header(tag, "SQ", UNDEFINED, explicit=explicit)
            continue
        if position + length > stop:
            position = stop
            continue
        at, position = position, position + length
        if tag == _PIXEL_REPRESENTATION and top is not None and length > 1:
            top.words = "SS" if short(buffer, at)[0] == 1 else "US"
        if tag in changed:
            if tag in todo:  # else it stands twice, or came sooner, as elements against the order of tags make it
                todo.remove(tag)
                yield from changed[tag]
        elif not number or group in (0x0000, 0x0002):
            continue
        elif length >= LONG_VALUE and (little or vr == "UN"):
            yield from _long(tag, vr, memoryview(buffer)[at:position], explicit=explicit)
        else:
            value = buffer[at:position]
            yield element(tag, vr, value if little or vr == "UN" else swapped(vr, value), explicit=explicit)
    while of_root:
        yield from replace[of_root.pop(0)]
    return last
