"""Reads the file meta of Part 10 files, plainly, so that tests know what a sender would send."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sendable:
    """What C-STORE sends of a file."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_set: bytes


def sendable(path: Path) -> Sendable | None:
    """Return what a sender would send, or None for a file without a usable file meta."""
    data = path.read_bytes()
    if data[128:132] != b"DICM":
        return None
    at, meta = 132, {}
    while at + 8 <= len(data):
        group, number = struct.unpack_from("<HH", data, at)
        if group != 2:
            break
        if data[at + 4 : at + 6] in (b"OB", b"UN", b"OW", b"SQ", b"UT", b"UC", b"UR"):
            start, length = at + 12, struct.unpack_from("<I", data, at + 8)[0]
        else:
            start, length = at + 8, struct.unpack_from("<H", data, at + 6)[0]
        meta[number] = data[start : start + length]
        at = start + length
    names = [meta.get(number, b"").rstrip(b"\0 ").decode("ascii", "replace") for number in (0x0002, 0x0003, 0x0010)]
    if not all(names) or at >= len(data):
        return None
    return Sendable(path, *names, data[at:])
