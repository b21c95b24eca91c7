"""Where sequences and items end, for everything that reads a whole data set as the scanner (`structure.Structure`) read it when it came.

Lengths may say more than there is, and delimiters stand where none belongs: whoever ends a sequence elsewhere than the scanner reads the
elements behind it on another level, and then metadata say what the index does not.

Source: PS3.5 7.5.
"""

from __future__ import annotations

from archive.dicom.runs import UNDEFINED

OPEN, KNOWN, OVER = range(3)
"""An item of undefined length, of a known one, and of one that runs over the end of something around it."""
ENDLESS = 1 << 62
"""The bound of what lies in nothing of known length."""


def sequence_end(position: int, length: int, end: int, bound: int) -> tuple[int, int, bool]:
    """Return where a sequence with items from `position` on ends at the latest, its bound, and whether it would end behind that around it.

    `end` and `bound` are those of what it lies in: where its bytes end, and where the innermost thing of known length does.
    """
    if length == UNDEFINED:
        return end, bound, False
    over = position + length > bound
    return min(end, position + length), bound if over else position + length, over


def item_end(position: int, length: int, end: int, bound: int) -> tuple[int, int, int]:
    """Return the same of an item with elements from `position` on, and which kind it is."""
    stop, inner, over = sequence_end(position, length, end, bound)
    return stop, inner, OVER if over else OPEN if length == UNDEFINED else KNOWN


def past_delimiter(position: int, element: int, end: int, kind: int) -> int:
    """Return where to look for the next item after an element of group FFFE at `position`, in an item up to `end`.

    Of its sequence's delimiter an item of known length takes no notice, and one that runs over what holds it of none at all.
    """
    if element == 0xE00D and kind != OVER:
        return position + 8
    return position if element == 0xE0DD and kind == OPEN else end
