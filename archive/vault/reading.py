"""Plaintext of a record wherever it lies, through reused working space."""

from __future__ import annotations

from collections.abc import Iterator

from archive.vault.buffers import Buffers
from archive.vault.container import CHUNK_LOG2, HEADER_BYTES, TAG_BYTES, Opener
from archive.vault.disk import padded
from archive.vault.segment_store import SegmentStore

_BATCH = 4  # chunks read at once
_PLAIN_BYTES = _BATCH << CHUNK_LOG2

AT_ONCE_BYTES = _PLAIN_BYTES
"""A record of at most so many bytes is fetched in one piece."""


class RecordReader:
    """Reads and opens chunks; any thread."""

    def __init__(self, segments: SegmentStore) -> None:
        """Read from `segments`."""
        self._segments = segments
        self._sealed = Buffers(HEADER_BYTES + _PLAIN_BYTES + _BATCH * TAG_BYTES)
        self._plain = Buffers(_PLAIN_BYTES)

    def plaintext(self, segment_id: bytes, offset: int, opener: Opener, start: int, length: int) -> Iterator[memoryview]:
        """Yield plaintext [start, start + length) of the record at `offset`; a view is valid until the next one.

        Raises:
            SealBroken: V01, V02 or V07.
            VaultUnavailable.
        """

        def read(at: int, into: memoryview) -> int:
            return self._segments.read_into(segment_id, offset + at, into)

        size = opener.header.chunk_bytes
        if size > _PLAIN_BYTES:  # only other writers make such chunks
            yield from opener.open_range(read, start, length, memoryview(bytearray(size + TAG_BYTES)), memoryview(bytearray(size)))
            return
        sealed, plain = self._sealed.take(), self._plain.take()
        try:
            yield from opener.open_range(read, start, length, sealed, plain)
        finally:
            self._sealed.give(sealed)
            self._plain.give(plain)

    def fetch(self, segment_id: bytes, offset: int, record_bytes: int, *, once: bool = False) -> tuple[memoryview, int]:
        """Return a buffer that begins with a record of at most `AT_ONCE_BYTES`, and how many bytes of it there were.

        `give` takes the buffer back. `once`: nobody is likely to read it again soon.

        Raises:
            SealBroken: V01.
            VaultUnavailable.
        """
        buffer = self._sealed.take()
        if once:
            return buffer, min(record_bytes, self._segments.read_into(segment_id, offset, buffer[: padded(record_bytes)], once=True))
        return buffer, self._segments.read_into(segment_id, offset, buffer[:record_bytes])

    def give(self, buffer: memoryview) -> None:
        """Take back what `fetch` gave."""
        self._sealed.give(buffer)

    def whole(self, buffer: memoryview, came: int, opener: Opener) -> Iterator[memoryview]:
        """Yield the whole plaintext of a record that was fetched, in one view, and take its buffer back after that.

        Raises:
            SealBroken: V02 or V07.
        """
        plain = self._plain.take()
        try:
            yield opener.open_part(buffer[:came], 0, opener.header.length, plain)
        finally:
            self._plain.give(plain)
            self._sealed.give(buffer)

    def part(self, record: memoryview, opener: Opener, start: int, length: int) -> bytes:
        """Return that plaintext of what came of a record that was fetched.

        Raises:
            SealBroken: V02 or V07.
        """
        plain = self._plain.take()
        try:
            return bytes(opener.open_part(record, start, length, plain))
        finally:
            self._plain.give(plain)

    def collect(self, segment_id: bytes, offset: int, opener: Opener, start: int, length: int) -> bytes:
        """Return that plaintext in one piece.

        Raises:
            As plaintext.
        """
        return b"".join([bytes(view) for view in self.plaintext(segment_id, offset, opener, start, length)])
