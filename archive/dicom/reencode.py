"""A data set from one native encoding to explicit VR little endian, element by element, with replacements.

Sequences get undefined lengths, so nothing is measured before it is written; group lengths are left out.

Source: PS3.5 7.1, 7.5, A.2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from archive.dicom.dictionary import vr_of
from archive.dicom.metadata import past_fragments
from archive.dicom.nesting import ENDLESS, KNOWN, OVER, item_end, past_delimiter, sequence_end
from archive.dicom.runs import UNDEFINED
from archive.dicom.structure import FRAGMENTED, odd_header
from archive.dicom.values import LONG, SHORT, swapped

_VRS = {code: code.decode("ascii") for code in SHORT | LONG}
_LONG_VRS = frozenset(code.decode("ascii") for code in LONG)
_ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED)
_ITEM_END = struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
_SEQUENCE_END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


@dataclass(slots=True)
class _Open:
    """What is being read: the items of a sequence, or the elements of an item."""

    is_item: bool
    stop: int
    bound: int
    kind: int
    implicit: bool
    loose: bool


def element(tag: int, vr: str, value: bytes) -> bytes:
    """Return one element in explicit VR little endian, padded to even length."""
    if len(value) & 1:
        value += b"\0" if vr in {"OB", "UI", "UN"} else b" "
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode("ascii"))
    if vr in _LONG_VRS:
        return head + struct.pack("<HI", 0, len(value)) + value
    if len(value) > 0xFFFF:  # PS3.5 6.2.2: too long for its VR's 16 bits
        return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, b"UN", 0, len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def explicit_little(  # noqa: C901, PLR0912, PLR0915 # one pass over the bytes
    buffer: bytes, start: int, implicit: bool, little: bool, replace: Mapping[int, bytes], words: str
) -> Iterator[bytes]:
    """Yield the data set that begins at `start` in explicit VR little endian.

    `replace` gives whole elements for tags of the data set itself (empty: left out); those it lacks are added in order. `words` is the
    VR, US or SS, of what PixelRepresentation decides.
    """
    order = "<" if little else ">"
    head, short, long = (struct.Struct(order + form).unpack_from for form in ("HH", "H", "I"))
    todo = sorted(replace)
    stack: list[_Open] = []
    position, end = start, len(buffer)
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
                stack.append(_Open(True, *item_end(position, length, stop, top.bound), top.implicit, top.loose))
                yield _ITEM
                continue
            position = position + 8 if group == 0xFFFE and number == 0xE0DD and top.kind != OVER else stop
            yield _SEQUENCE_END
            stack.pop()
            continue
        if group == 0xFFFE:
            if top is None:
                if number == 0xE000:
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
            length, header = short(buffer, position + 6)[0], 8
        elif vr:
            if position + 12 > stop:
                position = stop
                continue
            length, header = long(buffer, position + 8)[0], 12
        elif not tag and top is None and not any(buffer[position : position + 8]):
            break
        elif now_implicit:
            vr, header = vr_of(tag), 8
        else:
            vr, length, header, now_implicit, _ = odd_header(tag, buffer[position + 4 : position + 6], short(buffer, position + 6)[0])
            if length < 0:
                length = long(buffer, position + (8 if header == 12 else 4))[0] if position + 12 <= stop else 0
        vr = words if vr == "xs" else vr
        position += header
        if top is None:
            while todo and todo[0] < tag:
                yield replace[todo.pop(0)]
        if length == UNDEFINED and vr in FRAGMENTED:
            position = past_fragments(buffer, position, stop, head, long)
            if top is None and todo and todo[0] == tag:
                yield replace[todo.pop(0)]
            continue
        if length == UNDEFINED or vr == "SQ":
            inner, bound, over = sequence_end(position, length, stop, ENDLESS if top is None else top.bound)
            un = vr == "UN"
            stack.append(_Open(False, inner, bound, OVER if over else KNOWN, now_implicit or un, loose or un))
            yield struct.pack("<HH2sHI", group, number, b"SQ", 0, UNDEFINED)
            continue
        if position + length > stop:
            position = stop
            continue
        value = buffer[position : position + length]
        position += length
        if top is None and todo and todo[0] == tag:
            yield replace[todo.pop(0)]
        elif number and group not in (0x0000, 0x0002):
            yield element(tag, vr, value if little or vr == "UN" else swapped(vr, value))
    while todo:
        yield replace[todo.pop(0)]
