"""What stands behind the pixel data: private groups, digital signatures, elements against the order of tags.

Bytes there that are no element end the data set, as they did for the scanner.

Source: PS3.5 7.1, A.4.
"""

from __future__ import annotations

from collections.abc import Callable

from archive.dicom.layout import value_bytes
from archive.dicom.metadata import INLINE_BYTES, dataset_json, encoding, past_fragments, text_of, words_of
from archive.dicom.part10 import Scanned
from archive.dicom.reencode import little_endian
from archive.dicom.runs import READ
from archive.dicom.values import Element

MOST_BYTES = 1 << 20
"""What is longer is none of the metadata."""
_LEAST_BYTES = 8
"""The delimiter of fragments, which nearly every compressed instance ends with."""

Read = Callable[[int, int], bytes]
"""Bytes of the Part 10 stream (inflated where it is deflated) from an offset, fewer at its end."""


def tail_of(read: Read, length: int, scanned: Scanned, head: bytes, most: int | None = None) -> bytes:
    """Return what lies behind the pixel data of a stream of that length, nothing where it is more than `most` bytes or next to none.

    `head` ends with the header of the pixel data.
    """
    table = scanned.frames
    assert table is not None
    if table.kind == "native":
        start = table.offset + value_bytes(head, scanned)
    else:
        at, size = table.fragments[-1] if table.fragments else (scanned.head_bytes, 0)
        start = at + size
    rest = length - start
    if rest <= 0 or (most is not None and not _LEAST_BYTES < rest <= most):
        return b""
    tail = read(start, rest)
    if table.kind == "native":
        return tail
    head_of, _, long, _, _ = READ["<"]
    return tail[past_fragments(tail, 0, len(tail), head_of, long) :]


def joined(document: dict[str, Element], tail: bytes, head: bytes, scanned: Scanned) -> dict[str, Element]:
    """Return the DICOM JSON of a data set with that of its tail. What stands before the pixel data counts first.

    Elements with binary values that are not for metadata themselves are left out: no address leads behind the pixel data.
    """
    long: set[str] = set()

    def binary(path: str, vr: str, buffer: bytes, start: int, stop: int) -> Element | None:  # noqa: ARG001
        if stop - start > INLINE_BYTES:
            long.add(path[:8])
        return None

    last = max(int(name, 16) for name in document)
    plain = b"".join(little_endian(tail, 0, *encoding(head, scanned), {}, words_of(scanned), behind=last))
    found = dataset_json(plain, 0, False, True, binary, text=text_of(scanned))
    return dict(sorted(({name: element for name, element in found.items() if name not in long} | document).items()))
