"""Data sets of many kinds, and what damage makes of them."""

from __future__ import annotations

import random
import struct

import pydicom.datadict

from archive.dicom.attributes import SCANNED
from archive.dicom.transfer import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE
from tests.dicom.conftest import LONG, UIDS, part10

_UNDEFINED = 0xFFFFFFFF
_WORDS = {"US": "H", "SS": "h", "UL": "I", "FL": "f", "FD": "d"}
_TEXTS = {
    "AS": "034Y", "CS": "ORIGINAL", "DA": "20240229", "DS": "1.5", "DT": "20240229101500", "IS": "12", "LO": "Text", "LT": "Long text",
    "PN": "Doe^Jane", "SH": "Short", "ST": "Some text", "TM": "101500", "UI": "1.2.3.4.5", "UT": "Text", "UR": "https://x",
}
_TAGS = [
    *SCANNED, 0x00081140, 0x00081155, 0x00080100, 0x00080104, 0x00400100, 0x00321064, 0x00082218, 0x00091001, 0x00091010, 0x00420011,
    0x00281201, 0x00189004, 0x52009229,
]


class _Writer:
    """Encodes elements as one transfer syntax has them."""

    def __init__(self, made: random.Random, syntax: str) -> None:
        self.made, self.syntax, self.order = made, syntax, ">" if syntax == EXPLICIT_BE else "<"
        self.implicit = syntax == IMPLICIT_LE

    def head(self, tag: int, vr: str, length: int) -> bytes:
        group, element = tag >> 16, tag & 0xFFFF
        if self.implicit:
            return struct.pack(self.order + "HHI", group, element, length)
        if vr in LONG:
            return struct.pack(self.order + "HH2sHI", group, element, vr.encode(), 0, length)
        return struct.pack(self.order + "HH2sH", group, element, vr.encode(), min(length, 0xFFFF))

    def delimiter(self, element: int, length: int = 0) -> bytes:
        return struct.pack(self.order + "HHI", 0xFFFE, element, length)

    def value(self, vr: str) -> bytes:
        if vr in _WORDS:
            return struct.pack(self.order + _WORDS[vr], self.made.choice((0, 1, 8, 16, 127)))
        if vr not in _TEXTS:
            return self.made.randbytes(self.made.choice((0, 2, 8, 30)))
        text = self.made.choice((_TEXTS[vr], _TEXTS[vr], f"{_TEXTS[vr]}\\{_TEXTS[vr]}", "", "Ä" if vr in {"LO", "PN", "SH", "LT"} else "1"))
        raw = text.encode(self.made.choice(("latin-1", "utf-8")))
        return raw + (b"\0" if vr == "UI" else b" ") * (len(raw) & 1)

    def element(self, tag: int, depth: int = 0) -> bytes:
        vr = _vr(tag)
        if vr == "SQ":
            return self.sequence(tag, depth)
        if vr in {"OB", "OW"} and self.made.random() < 0.2:
            raw = self.delimiter(0xE000) + self.delimiter(0xE000, 4) + b"abcd" + self.delimiter(0xE0DD)
            return self.head(tag, vr, _UNDEFINED) + raw
        raw = self.value(vr)
        return self.head(tag, vr, len(raw)) + raw

    def sequence(self, tag: int, depth: int) -> bytes:
        content = b"".join(self.item(depth) for _ in range(self.made.choice((0, 1, 1, 2))))
        vr = "UN" if self.made.random() < 0.1 else "SQ"
        if vr == "UN" and self.made.random() < 0.5:
            inside = _Writer(self.made, IMPLICIT_LE)
            content = b"".join(inside.item(depth) for _ in range(self.made.choice((0, 1, 2))))
        if self.made.random() < 0.5:
            return self.head(tag, vr, _UNDEFINED) + content + self.delimiter(0xE0DD)
        return self.head(tag, vr, len(content)) + content

    def item(self, depth: int) -> bytes:
        tags = sorted(self.made.sample(_TAGS, self.made.choice((0, 1, 2, 4))))
        content = b"".join(self.element(tag, depth + 1) for tag in tags if depth < 3 or _vr(tag) != "SQ")
        if self.made.random() < 0.5:
            return self.delimiter(0xE000, _UNDEFINED) + content + self.delimiter(0xE00D)
        return self.delimiter(0xE000, len(content)) + content


def _vr(tag: int) -> str:
    if tag >> 16 & 1:
        return "SQ" if tag == 0x00091010 else "LO"
    return pydicom.datadict.dictionary_VR(tag).split(" ")[0]


def dataset(made: random.Random, syntax: str) -> list[bytes]:
    """Return the top-level elements of a data set."""
    writer = _Writer(made, syntax)
    tags = {tag for tag in made.sample(_TAGS, made.choice((5, 15, 30))) if tag not in UIDS}
    parts = {tag: writer.element(tag) for tag in tags}
    for tag, uid in UIDS.items():
        raw = uid.encode() + b"\0" * (len(uid) & 1)
        parts[tag] = writer.head(tag, "UI", len(raw)) + raw
    if made.random() < 0.5:
        raw = made.choice((b"ISO_IR 100", b"ISO_IR 192", b"\\ISO 2022 IR 149", b"nonsense"))
        parts[0x00080005] = writer.head(0x00080005, "CS", len(raw)) + raw
    if made.random() < 0.5:
        parts[0x7FE00010] = writer.head(0x7FE00010, "OW", 8) + bytes(8)
    return [parts[tag] for tag in sorted(parts)]


def damage(made: random.Random, body: bytearray, order: str) -> None:
    """Change something at random places, most often where structure is."""
    group = struct.pack(order + "H", 0xFFFE)
    for _ in range(made.choice((1, 1, 2, 3))):
        at = made.randrange(len(body) + 1)
        if made.random() < 0.5 and (marks := [n for n in range(len(body) - 8) if body[n : n + 2] == group]):
            at = made.choice(marks) + made.choice((0, 0, 2, 4, 8))
        kind = made.randrange(8)
        if kind == 0 and at < len(body):
            body[at] = made.choice((0, 1, 8, 0xDD, 0xE0, 0xFE, 0xFF, made.randrange(256)))
        elif kind == 1:
            body[at:at] = struct.pack(order + "HHI", 0xFFFE, made.choice((0xE000, 0xE00D, 0xE0DD)), made.choice((0, 0, 0, 4, _UNDEFINED)))
        elif kind == 2:
            body[at : at + made.choice((1, 2, 4, 8, 12))] = b""
        elif kind == 3:
            body[at:at] = body[at : at + made.choice((8, 12, 20, 40))]
        elif kind == 4 and at + 4 <= len(body):
            body[at : at + 4] = struct.pack(order + "I", made.choice((0, 2, 8, 20, 100, _UNDEFINED)))
        elif kind == 5:
            start, stop = made.randrange(len(body) + 1), made.choice((8, 20, 60))
            body[at:at] = body[start : start + stop]
        elif kind == 6 and at + 2 <= len(body):
            body[at : at + 2] = made.choice((b"SQ", b"UN", b"OB", b"US", b"LO", b"\0\0", b"??", b"ZZ"))
        else:
            body[at:at] = bytes(made.choice((4, 8, 16)))


def instance(seed: int) -> bytes:
    """Return a Part 10 file whose data set is damaged."""
    made = random.Random(seed)
    syntax = made.choice((EXPLICIT_LE, EXPLICIT_LE, IMPLICIT_LE, EXPLICIT_BE))
    elements = dataset(made, syntax)
    if made.random() < 0.2:
        made.shuffle(elements)
    body = bytearray(b"".join(elements))
    damage(made, body, ">" if syntax == EXPLICIT_BE else "<")
    return part10(bytes(body), syntax)
