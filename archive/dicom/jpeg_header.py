"""What the header of a JPEG or JPEG-LS stream says about its image, before anything of it is decoded.

Source: ISO/IEC 10918-1 B.2.2, ISO/IEC 14495-1 C.2.2.
"""

from __future__ import annotations


def coded_size(frame: bytes) -> tuple[int, int, int, int] | None:
    """Return rows, columns, components and precision as the frame header says, None where there is none."""
    at = 2
    while at + 9 < len(frame):
        if frame[at] != 0xFF:
            at += 1
            continue
        marker = frame[at + 1]
        if marker == 0xFF:
            at += 1
        elif 0xC0 <= marker <= 0xF7 and marker not in (0xC4, 0xC8, 0xCC, *range(0xD0, 0xF7)):
            rows, columns = int.from_bytes(frame[at + 5 : at + 7], "big"), int.from_bytes(frame[at + 7 : at + 9], "big")
            return rows, columns, frame[at + 9], frame[at + 4]
        elif marker in (0x01, *range(0xD0, 0xD9)):
            at += 2
        else:
            at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None
