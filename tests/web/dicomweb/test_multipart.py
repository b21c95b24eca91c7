"""Multipart bodies: the reader against every way of cutting them, the writer against two readers."""

from __future__ import annotations

import email
import email.policy
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archive.web.body import Dropped
from archive.web.dicomweb.multipart import HEADER_BYTES, PART_HEADER_BYTES, Malformed, Reader, Writer
from tests.web.samples import multipart


def blocks(data: bytes, size: int) -> Callable[[], bytes]:
    """Return a `read` that gives `size` bytes at a time."""
    left = iter([data[at : at + size] for at in range(0, len(data), size)])
    return lambda: next(left, b"")


def parts(data: bytes, boundary: str = "b", size: int = 7) -> list[tuple[dict[str, str], bytes]]:
    return [(part.headers, b"".join(bytes(chunk) for chunk in part.chunks())) for part in Reader(blocks(data, size), boundary)]


DICOM = {"content-type": "application/dicom"}


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 1000])
@pytest.mark.parametrize(
    "body",
    [
        multipart(b"one", b"two"),
        multipart(b"one", b"two", lead=""),
        multipart(b"one", b"two", end="\n", lead=""),
        multipart(b"one", b"two", end="\n", lead="\n"),
        multipart(b"one", b"two", lead="some text\r\nmore --b text\r\n"),
        multipart(b"one", b"two") + b"\r\nepilogue --b\r\n--b--",
        multipart(b"one", b"two") + b"\r\n",
        multipart(b"one", b"two").replace(b"--b\r\n", b"--b \t\r\n"),
        multipart(b"one", b"two", content_type="application/dicom\r\nContent-Length: 3\r\nX-Folded: a\r\n b"),
    ],
)
def test_a32_shapes_of_body(body: bytes, size: int) -> None:
    found = parts(body, size=size)
    assert [content for _, content in found] == [b"one", b"two"]
    assert [headers["content-type"] for headers, _ in found] == ["application/dicom"] * 2


@pytest.mark.parametrize("boundary", ["b", "0f3cf5c0-70e0-41ef-baef-c6f9f65ec3e1", "=_?:(a/b)'+.x=", "a b", "-", "--", "-" * 70])
def test_a32_odd_boundaries(boundary: str) -> None:
    contents = [b"", b"x", b"\r\n", b"--", f"--{boundary[:-1]}".encode(), f"\n--{boundary}".encode()]
    body = multipart(*contents, boundary=boundary)
    for size in (1, 4, 4096):
        assert [content for _, content in parts(body, boundary, size)] == contents


def test_a06_a_part_without_headers() -> None:
    assert parts(multipart(b"one", content_type=None)) == [({}, b"one")]


def test_a07_no_part_at_all() -> None:
    for body in (b"", b"\r\n", b"nothing here", b"--", b"--c\r\n\r\nx\r\n--c--"):
        with pytest.raises(Malformed):
            parts(body)
    assert parts(b"--b--") == []


def test_a35_a_body_cut_anywhere_is_dropped_never_whole() -> None:
    body = multipart(b"one", b"two")
    for end in range(3, len(body) - 1):
        with pytest.raises((Dropped, Malformed)):
            parts(body[:end], size=4)


def test_headers_are_bounded() -> None:
    with pytest.raises(Malformed):
        parts(b"--b\r\nX: " + b"x" * (HEADER_BYTES + 10), size=1000)
    with pytest.raises(Malformed):
        parts(b"--b\r\n" + b"X: y\r\n" * 100 + b"\r\n", size=1000)


@pytest.mark.parametrize("part", [b"\n--b\n" + b"a:\n" * 60 + b"\n", b"\n--b\n\n" + b"\n--bx" * 36], ids=["headers", "content"])
def test_parts_are_read_in_the_time_of_their_bytes(part: bytes) -> None:
    count = 2_000_000 // len(part)
    left = iter([part * count + b"\n--b--"])  # of which each line must not be a copy
    began = time.process_time()
    assert sum(1 for _ in Reader(lambda: next(left, b""), "b")) == count
    assert time.process_time() - began < 12


def test_a_preamble_is_bounded() -> None:
    with pytest.raises(Malformed):
        parts(b"x" * (1 << 20), size=4096)


@pytest.mark.parametrize("boundary", ["", "x" * 257])
def test_a_boundary_is_bounded(boundary: str) -> None:
    with pytest.raises(Malformed):
        Reader(blocks(b"", 1), boundary)


def test_memory_does_not_grow_with_a_part() -> None:
    block = bytes(64 << 10)
    total = 4096  # 256 MiB in all

    def read() -> Iterator[bytes]:
        yield b"--b\r\n\r\n"
        for _ in range(total):
            yield block
        yield b"\r\n--b--"

    reader = Reader(read().__next__, "b")
    seen = largest = 0
    for part in reader:
        for chunk in part.chunks():
            seen += len(chunk)
            largest = max(largest, len(reader._buffer))
    assert seen == total * len(block)
    assert largest < 1000


def test_a_part_left_halfway_is_skipped() -> None:
    found = []
    for part in Reader(blocks(multipart(b"x" * 100, b"two" * 20), 16), "b"):
        first = next(part.chunks())
        found.append(bytes(first[:2]))
    assert found == [b"xx", b"tw"]


def test_a_part_left_at_its_last_chunk_does_not_run_into_the_next() -> None:
    found = []
    for part in Reader(blocks(multipart(b"one", b"two"), 1000), "b"):
        for chunk in part.chunks():
            found.append(bytes(chunk))
            break
        assert b"".join(bytes(chunk) for chunk in part.chunks()) == b""
    assert found == [b"one", b"two"]


_PIECES = [b"\r", b"\n", b"\r\n", b"--b", b"--", b"-", b"b", b"\r\n--", b"\r\n--bX", b"\x00", b"data", b"\r\n--b-X"]
_CONTENT = st.lists(st.sampled_from(_PIECES), max_size=12)


@given(st.lists(_CONTENT.map(b"".join), min_size=1, max_size=4), st.integers(1, 40), st.sampled_from(["", "\r\n", "text\r\n"]))
def test_any_content_comes_through_any_split(contents: list[bytes], size: int, lead: str) -> None:
    # The delimiter itself must not stand in a part: that is what the sender's choice of boundary is for.
    contents = [
        one for one in contents if b"\r\n--b\r\n" not in one + b"\r\n" and b"\r\n--b\n" not in one and b"\r\n--b--" not in one + b"\r\n--b"
    ]
    assert [content for _, content in parts(multipart(*contents, lead=lead), size=size)] == contents


_RUBBISH = [b"--b", b"--b--", b"\r\n", b"\n", b"\r", b"X: y", b":", b" ", b"--", b"data", b"\x00", b"\xff"]


@settings(max_examples=300)
@given(st.lists(st.sampled_from(_RUBBISH), max_size=25), st.integers(1, 9))
def test_any_bytes_end_in_parts_or_a_clear_error(pieces: list[bytes], size: int) -> None:
    with suppress(Malformed, Dropped):
        parts(b"".join(pieces), size=size)


def written(contents: list[bytes], location: str) -> tuple[Writer, bytes]:
    writer = Writer("application/dicom")
    body = b"".join(
        writer.part_head(content_type="application/dicom; transfer-syntax=1.2.840.10008.1.2.1", content_location=location)
        + one
        + writer.part_tail
        for one in contents
    )
    return writer, body + writer.end


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=4))
def test_what_is_written_is_read_back(contents: list[bytes]) -> None:
    writer, body = written(contents, "https://h/x")
    assert [content for _, content in parts(body, writer.boundary, 50)] == contents


def test_pythons_own_reader_agrees() -> None:
    writer, body = written([b"one", b"two"], "https://h/x")
    message = email.message_from_bytes(b"Content-Type: " + writer.content_type.encode() + b"\r\n\r\n" + body, policy=email.policy.HTTP)
    assert [part.get_payload() for part in message.iter_parts()] == ["one", "two"]
    assert message.get_param("type") == "application/dicom"


def test_2a5_part_headers_are_short_and_the_transfer_syntax_is_bare() -> None:
    uid = "1." + "2" * 62
    writer = Writer("application/dicom")
    head = writer.part_head(
        content_type="application/dicom; transfer-syntax=1.2.840.10008.1.2.4.90",
        content_length="1" * 12,
        repr_digest="sha-256=:" + "x" * 44 + ":",
        content_location=f"https://a-long-host-name.example.org:8443/datastores/research/dicomweb/studies/{uid}/series/{uid}/instances/{uid}/frames/1",
    )
    assert len(head) < PART_HEADER_BYTES
    assert head.endswith(b"\r\n\r\n")
    assert b"transfer-syntax=1.2.840.10008.1.2.4.90\r\n" in head


def test_2a5_boundaries_are_never_the_same() -> None:
    assert len({Writer("a/b").boundary for _ in range(100)}) == 100
    assert len(Writer("a/b").boundary) == 40
