"""Explicit VR little endian, as reencode.py writes it, to implicit VR little endian.

Its sequences have undefined lengths, so the elements of every depth are rewritten one after the other and nothing is measured.

Source: PS3.5 7.1.3, A.1.
"""

from __future__ import annotations

import struct

from archive.dicom.values import LONG

_SHORT_HEADER, _LONG_HEADER = 8, 12


def implicit_little(dataset: bytes) -> bytes:
    """Return the data set with implicit VRs; its private elements lose theirs."""
    out: list[bytes | memoryview] = []
    view = memoryview(dataset)
    tag_of, short, long = struct.Struct("<HH").unpack_from, struct.Struct("<H").unpack_from, struct.Struct("<I").unpack_from
    at, end = 0, len(dataset)
    while at + _SHORT_HEADER <= end:
        if tag_of(dataset, at)[0] == 0xFFFE:
            out.append(view[at : at + _SHORT_HEADER])
            at += _SHORT_HEADER
            continue
        vr = dataset[at + 4 : at + 6]
        length, header = (long(dataset, at + 8)[0], _LONG_HEADER) if vr in LONG else (short(dataset, at + 6)[0], _SHORT_HEADER)
        out += [view[at : at + 4], struct.pack("<I", length)]
        at += header
        if vr != b"SQ":
            out.append(view[at : at + length])
            at += length
    return b"".join(out)
