"""bulk: any part of any value, against the walk over the whole data set that made its URI."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archive.dicom import bulk
from archive.dicom.metadata import bulk_value, dataset_json, encoding
from archive.dicom.part10 import Scanned, inflate, scan
from archive.dicom.structure import PIXEL_TAGS
from archive.dicom.transfer import EXPLICIT_BE, IMPLICIT_LE
from archive.dicom.values import Element
from archive.errors import InvalidInstance, NotFound
from tests.dicom.conftest import UIDS, dataset, el, im, item, part10, pixels, sequence

PIXELS = {f"{tag:08X}" for tag in PIXEL_TAGS}
PIECE = 7
MOST_BYTES = 1 << 20


class Counted:
    """A stream that says how much of it was read."""

    def __init__(self, data: bytes) -> None:
        self.data, self.read_bytes = data, 0

    def read(self, at: int, count: int) -> bytes:
        self.read_bytes += max(0, min(count, len(self.data) - at))
        return self.data[at : at + count]

    def chunks(self, at: int, count: int) -> Iterator[bytes]:
        for start in range(at, at + count, PIECE):
            yield self.read(start, min(PIECE, at + count - start))


def paths(whole: bytes, scanned: Scanned) -> list[str]:
    found: list[str] = []

    def binary(path: str, vr: str, _buffer: bytes, start: int, stop: int) -> Element:
        if stop > start:
            found.append(path)
        return {"vr": vr}

    dataset_json(whole, scanned.dataset_offset, *encoding(whole, scanned), binary)
    return found


def test_every_value_of_the_corpus(corpus_files: list[Path]) -> None:
    compared = 0
    for path in corpus_files:
        data = path.read_bytes()
        if len(data) > MOST_BYTES:
            continue
        try:
            scanned = scan(data)
        except InvalidInstance:
            continue
        whole = inflate(data, scanned)
        for name in dict.fromkeys(paths(whole, scanned)):
            stream = Counted(whole)
            try:
                expected = bulk_value(data, scanned, name)
            except NotFound:
                with pytest.raises(NotFound):
                    bulk.find(stream.read, len(whole), scanned, name)
                continue
            value = bulk.find(stream.read, len(whole), scanned, name)
            assert value.length == len(expected), (path.name, name)
            start, count = len(expected) // 3, min(50, len(expected))
            assert b"".join(value.part(stream.chunks, start, count)) == expected[start : start + count], (path.name, name)
            compared += 1
    assert compared > 500, compared


NESTED = dataset({
    0x00091001: el(0x00091001, "OB", b"\1\2"), 0x00091002: el(0x00091002, "UN", b"\3\4"),
    0x00091003: el(0x00091003, "UN", struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + im(0x00091004, b"ab") + struct.pack(
        "<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0), length=0xFFFFFFFF),
    0x60031010: sequence(0x60031010, item(b""), item(el(0x60031011, "OW", bytes(range(200)) * 50), undefined=True), undefined=True),
    **pixels(2, 2, b"abcd"),
})


_TWICE = el(0x00420011, "OB", b""), el(0x00420011, "OB", b"second")
_HOLDING = item(el(0x60031011, "OB", b"value "))


@pytest.mark.parametrize(("first", "second", "path"), [
    (*_TWICE, "00420011"),
    (el(0x00420011, "LO", "text"), _TWICE[1], "00420011"),
    (sequence(0x00420011), _TWICE[1], "00420011"),
    (sequence(0x60031010), sequence(0x60031010, _HOLDING), "60031010/1/60031011"),
    (sequence(0x60031010, undefined=True), sequence(0x60031010, _HOLDING), "60031010/1/60031011"),
    (el(0x60031010, "OB", b"\1\2"), sequence(0x60031010, _HOLDING), "60031010/1/60031011"),
    (el(0x60031010, "OB", item(b"") + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0), length=0xFFFFFFFF),
     sequence(0x60031010, _HOLDING), "60031010/1/60031011"),
    (sequence(0x60031010, item(b"")), sequence(0x60031010, item(b""), _HOLDING), "60031010/2/60031011"),
    (sequence(0x60031010, item(_TWICE[0] + _TWICE[1])), b"", "60031010/1/00420011"),
], ids=range(9))
def test_what_stands_twice_counts_the_first_time(first: bytes, second: bytes, path: str) -> None:
    data = part10(dataset() + first + second)
    scanned = scan(data)
    for how in (bulk_value, _read):
        with pytest.raises(NotFound):
            how(data, scanned, path)
    other = part10(dataset() + sequence(0x60031010, _HOLDING) + el(0x00420011, "OB", b"first ") + first + second)
    scanned = scan(other)
    assert {how(other, scanned, "00420011") for how in (bulk_value, _read)} == {b"first "}
    assert {how(other, scanned, "60031010/1/60031011") for how in (bulk_value, _read)} == {b"value "}


@pytest.mark.parametrize("path", ["60031010/1/60031011", "60031010/3/60031011", "60031010", "00100010", "", "../7FE00010", "7FE00011",
                                  "60031010/2/60031012", "00091001/1/00091001"])
def test_what_is_not_there(path: str) -> None:
    data = part10(NESTED)
    with pytest.raises(NotFound):
        bulk.find(Counted(data).read, len(data), scan(data), path)


@given(st.data())
def test_any_part_of_any_value(data: st.DataObject) -> None:
    big = b"".join(el(tag, "UI", uid.encode() + b"\0" * (len(uid) & 1), order=">") for tag, uid in sorted(UIDS.items()))
    big += el(0x00281201, "OW", bytes(range(97)), order=">") + el(0x00660016, "OF", bytes(range(41)), order=">")
    big += el(0x7FE00009, "OD", bytes(range(80)), order=">")
    implicit = b"".join(im(tag, uid.encode() + b"\0" * (len(uid) & 1)) for tag, uid in sorted(UIDS.items()))
    implicit += im(0x00091010, b"private") + im(0x00281201, bytes(range(60))) + im(0x7FE00010, b"abcdef")
    stream = data.draw(st.sampled_from([part10(NESTED), part10(big, EXPLICIT_BE), part10(implicit, IMPLICIT_LE)]))
    scanned = scan(stream)
    path = data.draw(st.sampled_from(paths(stream, scanned)))
    expected = bulk_value(stream, scanned, path)
    start = data.draw(st.integers(0, len(expected)))
    count = data.draw(st.integers(0, len(expected) - start))
    counted = Counted(stream)
    value = bulk.find(counted.read, len(stream), scanned, path)
    assert value.length == len(expected)
    assert b"".join(value.part(counted.chunks, start, count)) == expected[start : start + count]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.data())
def test_any_part_of_a_value_in_pieces(sizes: list[int], data: st.DataObject) -> None:
    """The fragments of one frame, between them the headers of items."""
    stream, pieces = b"", []
    for size in sizes:
        stream += b"header.."
        pieces.append((len(stream), size))
        stream += bytes(range(len(stream), len(stream) + size))
    whole = b"".join(stream[at : at + size] for at, size in pieces)
    start = data.draw(st.integers(0, len(whole)))
    count = data.draw(st.integers(0, len(whole) - start))
    value = bulk.Value(tuple(pieces))
    assert value.length == len(whole)
    assert b"".join(value.part(Counted(stream).chunks, start, count)) == whole[start : start + count]


@given(st.data())
def test_damaged_headers_are_never_an_error(data: st.DataObject) -> None:
    stream = bytearray(part10(NESTED))
    scanned = scan(bytes(stream))
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(scanned.dataset_offset + 8, len(stream) - 1))] = data.draw(st.integers(0, 255))
    for path in ("60031010/2/60031011", "00091002", "7FE00010"):
        found: list[bytes | None] = []
        for how in (bulk_value, _read):
            try:
                found.append(how(bytes(stream), scanned, path))
            except NotFound:
                found.append(None)
        assert found[0] == found[1]


def _read(stream: bytes, scanned: Scanned, path: str) -> bytes:
    counted = Counted(stream)
    value = bulk.find(counted.read, len(stream), scanned, path)
    return b"".join(value.part(counted.chunks, 0, value.length))


def test_what_lies_between_is_stepped_over() -> None:
    long = {0x00091001 + n: el(0x00091001 + n, "OB", bytes(1 << 20)) for n in range(8)}
    data = part10(dataset({**long, 0x00420011: el(0x00420011, "OB", bytes(1 << 20) + b"end.")}))
    stream = Counted(data)
    value = bulk.find(stream.read, len(data), scan(data), "00420011")
    assert b"".join(value.part(stream.chunks, (1 << 20) - 2, 6)) == b"\0\0end."
    assert stream.read_bytes < 10 * bulk.WINDOW_BYTES < len(data) // 3
