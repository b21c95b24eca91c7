"""What the header of a JPEG or JPEG-LS stream says about its image, before anything of it is decoded.

Source: ISO/IEC 10918-1 B.1.1, B.2.2; ISO/IEC 14495-1 C.2.2.
"""

from __future__ import annotations

import re

_MARKER = re.compile(rb"\xff[^\xff]", re.DOTALL).search
_FRAME_HEADERS = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_MOST_MARKERS = 10_000
"""Before the frame header stand a few tables and comments; what goes on with markers for megabytes is no image."""


MOST_SCANS = 100
"""Encoders of progressive JPEG make a dozen; each goes over the whole image however few bytes it has."""


def many_scans(frame: bytes) -> bool:
    """Whether there are more than any encoder makes."""
    return frame.count(b"\xff\xda") > MOST_SCANS


def coded_size(frame: bytes) -> tuple[int, int, int, int] | None:
    """Return rows, columns, components and precision as the frame header says, None where there is none."""
    at = 2
    for _ in range(_MOST_MARKERS):
        found = _MARKER(frame, at)
        if found is None or found.start() + 9 >= len(frame):
            return None
        at = found.start()
        marker = frame[at + 1]
        if marker in _FRAME_HEADERS:
            rows, columns = int.from_bytes(frame[at + 5 : at + 7], "big"), int.from_bytes(frame[at + 7 : at + 9], "big")
            return rows, columns, frame[at + 9], frame[at + 4]
        at += 2 if marker in _ALONE else 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None
