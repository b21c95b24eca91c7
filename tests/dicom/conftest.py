"""The corpus as lists of files, and small instances built element by element."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from archive.dicom import transcode
from archive.dicom.part10 import Scanned, meta
from archive.dicom.pieces import Stream
from archive.dicom.transfer import EXPLICIT_LE

LONG = {"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"}
CT = "1.2.840.10008.5.1.4.1.1.2"


def el(tag: int, vr: str, value: bytes | str, *, length: int | None = None, order: str = "<") -> bytes:
    """One explicit element exactly as asked, padded only where a UID or text is odd."""
    raw = value.encode("latin-1") if isinstance(value, str) else value
    if isinstance(value, str) and len(raw) & 1:
        raw += b"\0" if vr == "UI" else b" "
    size = len(raw) if length is None else length
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF) + vr.encode()
    return head + (struct.pack(order + "HI", 0, size) if vr in LONG else struct.pack(order + "H", size)) + raw


def im(tag: int, value: bytes | str) -> bytes:
    """One implicit little endian element."""
    raw = value.encode("latin-1") if isinstance(value, str) else value
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(raw)) + raw


def item(content: bytes, *, undefined: bool = False) -> bytes:
    """One sequence item."""
    if undefined:
        return struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + content + struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content


def sequence(tag: int, *items: bytes, undefined: bool = False) -> bytes:
    """One explicit sequence."""
    content = b"".join(items)
    if undefined:
        return el(tag, "SQ", content + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0), length=0xFFFFFFFF)
    return el(tag, "SQ", content)


def us(tag: int, value: int, order: str = "<") -> bytes:
    """One US element."""
    return el(tag, "US", struct.pack(order + "H", value), order=order)


def to_syntax(data: bytes, scanned: Scanned, transfer_syntax_uid: str) -> bytes:
    """The whole instance in another transfer syntax, in one piece."""
    return b"".join(transcode.to_syntax(Stream.of(data), scanned, transfer_syntax_uid))


def to_explicit_le(data: bytes, scanned: Scanned) -> bytes:
    """The same, uncompressed."""
    return to_syntax(data, scanned, EXPLICIT_LE)


UIDS = {0x00080016: CT, 0x00080018: "1.2.3.4", 0x0020000D: "1.2.3.1", 0x0020000E: "1.2.3.2"}


def dataset(elements: dict[int, bytes] | None = None, *, uids: dict[int, str] | None = None) -> bytes:
    """The four UIDs and the given encoded elements, by tag."""
    parts = {tag: el(tag, "UI", uid) for tag, uid in (UIDS if uids is None else uids).items()}
    return b"".join(value for _, value in sorted((parts | (elements or {})).items()))


def part10(body: bytes, transfer_syntax_uid: str = EXPLICIT_LE, *, sop: str = "1.2.3.4") -> bytes:
    """A Part 10 file around a data set."""
    return meta(CT, sop, transfer_syntax_uid) + body


def pixels(rows: int, columns: int, data: bytes, *, bits: int = 8, samples: int = 1, photometric: str = "MONOCHROME2") -> dict[int, bytes]:
    """The image pixel module and native pixel data."""
    return {
        0x00280002: us(0x00280002, samples),
        0x00280004: el(0x00280004, "CS", photometric),
        0x00280010: us(0x00280010, rows),
        0x00280011: us(0x00280011, columns),
        0x00280100: us(0x00280100, bits),
        0x00280101: us(0x00280101, bits),
        0x00280102: us(0x00280102, bits - 1),
        0x00280103: us(0x00280103, 0),
        0x7FE00010: el(0x7FE00010, "OB" if bits <= 8 else "OW", data),
    }


@pytest.fixture(scope="session")
def corpus_files(corpus: Path) -> list[Path]:
    """Every DICOM file of the corpus that is not meant to be broken."""
    return sorted(
        path
        for path in corpus.rglob("*")
        if path.is_file() and path.suffix not in {".tsv", ".md", ".py", ".txt"} and "own__hostile" not in path.parts
    )


@pytest.fixture(scope="session")
def hostile(corpus: Path) -> Path:
    """The folder of broken files."""
    return corpus / "own__hostile"
