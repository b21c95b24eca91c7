"""The head of a stream without what is long in it, so that reading a header costs no memory by what else lies before the pixel data.

Raw data, documents and private values of gigabytes stand in data sets as any other element. Nobody who reads a whole header wants their
bytes: metadata name them by an address, and pictures are made without them.

Source: PS3.5 7.1, 7.5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from archive.dicom.bulk import Read, Window
from archive.dicom.dictionary import vr_of
from archive.dicom.layout import refused
from archive.dicom.metadata import encoding
from archive.dicom.part10 import Scanned
from archive.dicom.runs import READ, UNDEFINED
from archive.dicom.structure import FRAGMENTED, PIXEL_TAGS
from archive.dicom.values import BINARY, LONG, SHORT
from archive.dicom.zeros import goes_on, past_zeros

_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD


DRAWN_GROUPS = frozenset({0x0028, 0x5200})
"""Where pixels, their lookup tables and the functional groups of frames are described."""
SHORT_VALUE_BYTES = 4096
"""Of the other groups nothing longer says how a frame is drawn."""
MOST_DRAWN_BYTES = 128 << 20
"""Functional groups of a hundred thousand frames are shorter."""


def slim(read: Read, length: int, scanned: Scanned, most: int, left: int = 0) -> bytes:
    """Return the first `length` bytes of a stream that is not deflated; of binary values of more than `most` bytes only `left` are there.

    That is for those of the data set itself, not of items. From the first element on that is not as simple as elements are, everything
    is as it was.
    """
    return _slim(read, length, scanned, lambda _tag, vr: most if vr in BINARY else length, left, length)


def drawn(read: Read, length: int, scanned: Scanned, most: int) -> bytes:
    """Return the same without any long value or sequence that says nothing of how frames are drawn: many of them are long together.

    Raises:
        NotAcceptable: too-large; what is left takes more than MOST_DRAWN_BYTES.
    """

    def longest(tag: int, vr: str) -> int:
        if tag >> 16 not in DRAWN_GROUPS:
            return SHORT_VALUE_BYTES
        return most if vr in BINARY else length

    return _slim(read, length, scanned, longest, 0, MOST_DRAWN_BYTES)


def _slim(read: Read, length: int, scanned: Scanned, longest: Callable[[int, str], int], left: int, bound: int) -> bytes:
    start = scanned.dataset_offset
    implicit, little = encoding(read(0, start + 8), scanned)
    walk = _Walk(Window(read, length), implicit, little)
    order: Literal["little", "big"] = "little" if little else "big"
    pieces: list[bytes] = []
    at, done, dropped = start, 0, 0
    while (found := walk.element(at := walk.past_zeros(at))) is not None:
        tag, vr, value, size = found
        if tag in PIXEL_TAGS or (stop := walk.past(vr, value, size)) is None:
            break
        if stop - value > longest(tag, vr):
            if value - dropped > bound:
                break
            wide = 4 if implicit or value - at == 12 else 2
            pieces += [read(done, value - wide - done), left.to_bytes(wide, order), read(value, left) if left else b""]
            dropped += stop - value - left
            done = stop
        at = stop
    if length - dropped > bound:
        raise refused("too-large")
    return b"".join((*pieces, read(done, length - done)))


class _Walk:
    """Steps over elements as they should be, reading their headers alone."""

    def __init__(self, window: Window, implicit: bool, little: bool) -> None:
        self._get, self._end, self._implicit = window.get, window.length, implicit
        self._head, self._short, self._long, _, _ = READ["<" if little else ">"]

    def element(self, at: int) -> tuple[int, str, int, int] | None:
        """Return tag, VR ("SQ" for what has items), start and length of the value; None where there is no such element."""
        if at + 8 > self._end:
            return None
        raw = self._get(at, 12)
        group, number = self._head(raw, 0)
        tag, code = group << 16 | number, raw[4:6]
        if not tag or group == 0xFFFE:
            return None
        if self._implicit:
            size = self._long(raw, 4)[0]
            vr = vr_of(tag)
            return tag, "SQ" if size == UNDEFINED and vr not in FRAGMENTED else vr, at + 8, size
        if code in SHORT:
            return tag, code.decode("ascii"), at + 8, self._short(raw, 6)[0]
        if code not in LONG or at + 12 > self._end:
            return None
        vr, size = code.decode("ascii"), self._long(raw, 8)[0]
        return tag, vr_of(tag) if vr == "UN" and size != UNDEFINED else vr, at + 12, size

    def past_zeros(self, at: int) -> int:
        """Return where an element behind zeros begins, `at` where there are none or none stands behind them."""
        there = past_zeros(self._get, at, self._end)
        if there == at or there + 8 > self._end or not goes_on(self._get(there, 8), self._implicit, self._head):
            return at
        return there

    def past(self, vr: str, value: int, size: int) -> int | None:
        """Return where a value ends; None where that is not known."""
        stop = value + size if size != UNDEFINED else self._past_items(value) if vr == "SQ" else None
        return stop if stop is not None and stop <= self._end else None

    def _past_items(self, at: int) -> int | None:
        """Return where a sequence of undefined length ends; nesting is counted, not called."""
        within = [_SEQUENCE_END]
        while within:
            if at + 8 > self._end:
                return None
            raw = self._get(at, 8)
            group, number = self._head(raw, 0)
            tag, size = group << 16 | number, self._long(raw, 4)[0]
            if tag == within[-1]:
                within.pop()
                at += 8
            elif within[-1] == _SEQUENCE_END:
                if tag != _ITEM:
                    return None
                at += 8
                if size == UNDEFINED:
                    within.append(_ITEM_END)
                else:
                    at += size
            elif (found := self.element(at)) is None:
                return None
            else:
                _, vr, at, size = found
                if size != UNDEFINED:
                    at += size
                elif vr == "SQ":
                    within.append(_SEQUENCE_END)
                else:
                    return None
        return at
