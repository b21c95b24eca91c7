"""Zeros between the elements of a data set, for everything that reads one as the scanner (`structure.Structure`) read it when it came.

Eight zero bytes have the form of an element (0000,0000) without a value. Writers fill up with them; readers such as dcmtk and pydicom
pass them and read on, and so does the archive, as long as what stands behind them is an element. What is none ends the data set there.
Behind the pixel data zeros end it always.

Source: PS3.5 7.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from archive.dicom.dictionary import vr_of
from archive.dicom.values import LONG, SHORT

_LAST_ODD = 0x0007FFFF
"""Up to here lie the command and file meta groups, which do not belong into a data set."""
_LONGEST_PRIVATE = 0x10000
_MOST_AT_ONCE = 64 << 10


def past_zeros(get: Callable[[int, int], bytes], position: int, end: int) -> int:
    """Return where zeros from `position` on end, counted by eights; `get` returns bytes from an offset, so many or fewer."""
    step = 8
    while position + 8 <= end:
        part = get(position, min(step, end - position))
        zeros = len(part) - len(part.lstrip(b"\0"))
        position += zeros & ~7
        if zeros < len(part):
            break
        step = min(2 * step, _MOST_AT_ONCE)
    return position


def goes_on(raw: bytes, implicit: bool, head: Callable[[bytes, int], tuple[Any, ...]]) -> bool:
    """Whether the 8 bytes behind zeros begin an element: one with a VR, or in implicit VR one that is known or may be private."""
    group, number = head(raw, 0)
    tag = group << 16 | number
    if tag <= _LAST_ODD or group == 0xFFFE:
        return False
    if not implicit:
        return raw[4:6] in SHORT or raw[4:6] in LONG
    if vr_of(tag) != "UN":
        return True
    return bool(group & 1) and number >= 0x1000 and int.from_bytes(raw[4:8], "little") < _LONGEST_PRIVATE
