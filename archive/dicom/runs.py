"""Runs of ordinary elements, gone through without a second look.

Nearly every element of a data set has a VR it may have, comes after the one before it, and lies wholly in the piece at hand. Those are
taken here, in as few steps as Python needs; whatever else comes is left to `structure.Structure`, which would have taken these to the
same end.

Source: PS3.5 7.1.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from archive.dicom.attributes import SCANNED
from archive.dicom.dictionary import vr_of
from archive.dicom.pushed import Pushed
from archive.dicom.values import LONG, SHORT

UNDEFINED = 0xFFFFFFFF
MAX_VALUE = 64 << 10
"""The longest value kept for the index."""
READ = {order: tuple(struct.Struct(order + form).unpack_from for form in ("HH", "H", "I", "HH2sH", "HHI")) for order in "<>"}
"""Readers of element headers in either byte order."""
_PLAIN_SHORT = {code: code.decode("ascii") for code in SHORT}
_PLAIN_LONG = {code: code.decode("ascii") for code in LONG - {b"SQ", b"UN"}}
_LAST_ODD = 0x0007FFFF
"""Up to here lie the command and file meta groups, which do not belong into a data set."""
_FIRST_PIXEL = 0x7FE00000


@dataclass(slots=True)
class Level:
    """An open sequence or item; `end` and `bound` are offsets in the data set, -1 when undefined."""

    is_item: bool
    end: int
    bound: int  # the nearest known end of this level or one around it
    implicit: bool
    loose: bool  # inside UN: explicit elements are taken too


class Runs(Pushed):
    """What a parser of one data set has seen so far, and how it goes through a run."""

    def __init__(self, *, implicit: bool, little: bool, elements: int) -> None:
        """Nothing is here yet; there may be `elements` elements at most."""
        super().__init__()
        self.implicit = implicit
        self.little = little
        self.values: dict[int, tuple[str, bytes]] = {}
        self.past_header = False  # everything an index needs lies before here, unless tags are out of order
        self._elements = elements
        self._count = 0
        self._seen: set[int] = set()
        self._head, self._short, self._long, self._explicit, self._plain = READ["<" if little else ">"]

    def _run(self, position: int, last: int) -> tuple[int, int]:
        """Go through root elements that are as they should be and wholly here; say where the first other one begins and the last tag.

        It may stop anywhere: what it does not take is taken by `_parse`, with the same result.
        """
        buffer, here = self._buffer, len(self._buffer)
        end = here - 12
        explicit, plain, long, implicit = self._explicit, self._plain, self._long, self.implicit
        values, seen, wanted = self.values, self._seen, SCANNED
        shorts, longs = _PLAIN_SHORT, _PLAIN_LONG
        left = self._elements - self._count
        least = max(last, _LAST_ODD)
        while position <= end and left > 0:
            start = position + 8
            if implicit:
                group, element, length = plain(buffer, position)
                tag = group << 16 | element
                vr = vr_of(tag)
                if vr == "SQ":
                    break
            else:
                group, element, code, length = explicit(buffer, position)
                tag = group << 16 | element
                if code in shorts:
                    vr = shorts[code]
                elif code in longs:
                    vr, length = longs[code], long(buffer, start)[0]
                    start += 4
                else:
                    break
            stop = start + length
            if not least < tag < _FIRST_PIXEL or stop > here or length == UNDEFINED:
                break
            if tag in wanted:
                if length > MAX_VALUE:
                    break
                values[tag] = (vr, bytes(buffer[start:stop]))
            elif length > MAX_VALUE:
                self.past_header = True
            seen.add(tag)
            left -= 1
            least, position = tag, stop
        self._count = self._elements - left
        return position, last if least == _LAST_ODD else least

    def _run_item(self, position: int, level: Level) -> int:  # noqa: C901 # one loop
        """Like `_run` inside of an item."""
        if level.loose:
            return position
        buffer, base, here = self._buffer, self._base, len(self._buffer)
        end = min(here - 12, level.end - base - 1) if level.end >= 0 else here - 12
        bound = here if level.bound < 0 else min(here, level.bound - base)
        if self._keep >= 0:
            bound = min(bound, self._keep + MAX_VALUE)
        head, short, long, implicit = self._head, self._short, self._long, level.implicit
        left = self._elements - self._count
        while position <= end and left > 0:
            group, element = head(buffer, position)
            if group == 0xFFFE:
                break
            stop = position + 8
            if implicit:
                length = long(buffer, position + 4)[0]
                if length == UNDEFINED or vr_of(group << 16 | element) == "SQ":
                    break
            else:
                code = bytes(buffer[position + 4 : stop - 2])
                if code in _PLAIN_SHORT:
                    length = short(buffer, position + 6)[0]
                elif code in _PLAIN_LONG:
                    length = long(buffer, stop)[0]
                    stop += 4
                    if length == UNDEFINED:
                        break
                else:
                    break
            stop += length
            if stop > bound:
                break
            left -= 1
            position = stop
        self._count = self._elements - left
        return position
