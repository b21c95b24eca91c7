"""One record while its bytes arrive: held in one reused buffer, sealed in place, streamed out when it grows long."""

from __future__ import annotations

import hashlib
import os
import zlib
from datetime import datetime

from archive.vault.buffers import Buffers, aligned_copy
from archive.vault.container import CHUNK_LOG2, HEADER_BYTES, TAG_BYTES, Kind, Sealer, Trailer
from archive.vault.disk import BLOCK, padded
from archive.vault.keystore import StudyKey
from archive.vault.refs import RecordRef
from archive.vault.segment_store import LargeRecord, SegmentStore

CHUNK_BYTES = 1 << CHUNK_LOG2
_STRIDE = CHUNK_BYTES + TAG_BYTES
BUFFER_BYTES = 6 << 20
"""Room for 4 MiB of Part 10 and its other sections; longer records stream through it."""


class RecordWriter:
    """Takes a Part 10 stream in any pieces; one thread.

    Up to `large_from` bytes nothing is sealed or written before `finish`, so an abort costs nothing and `key` and `kind` may still
    be changed. Beyond, chunks are sealed and written as they fill.
    """

    def __init__(
        self, segments: SegmentStore, buffers: Buffers, key: StudyKey, datastore: bytes, *,
        kind: int, at: datetime, large_from: int, essential: bool = False, object_id: bytes | None = None,
    ) -> None:
        """Start a record; `object_id` is given when a record is sealed again."""
        self.object_id = object_id or _object_id(at)
        self.part10_bytes = 0
        self._key, self._kind = key, Kind(kind)
        self._segments, self._buffers, self._datastore, self._at = segments, buffers, datastore, at
        self._large_from, self._essential = large_from, essential
        self._digest = hashlib.sha256()
        self._hashing = True
        self._buffer: memoryview | None = buffers.take()
        self._sealer: Sealer | None = None
        self._large: LargeRecord | None = None
        self._first_block: memoryview | None = None
        self._base = 0  # offset in the record of the buffer's first byte
        self._chunk = 0  # the chunk being filled,
        self._start = HEADER_BYTES  # where it starts in the buffer,
        self._fill = 0  # and how many plaintext bytes it has

    @property
    def sha256(self) -> bytes:
        """SHA-256 of what was written so far."""
        return self._digest.digest()

    def hashed_by(self, digest: hashlib._Hash) -> None:
        """Leave SHA-256 to the caller, who has `digest` cover every byte before it is written here: each is hashed once.

        Raises:
            ValueError: something was written already.
        """
        if self.part10_bytes:
            message = "the record has bytes that were hashed here"
            raise ValueError(message)
        self._digest, self._hashing = digest, False

    @property
    def large(self) -> bool:
        """Whether chunks are already sealed and written: key and kind are fixed then."""
        return self._sealer is not None

    @property
    def key(self) -> StudyKey:
        """The study's data key."""
        return self._key

    @key.setter
    def key(self, key: StudyKey) -> None:
        self._still_open()
        self._key = key

    @property
    def kind(self) -> Kind:
        """What the record holds."""
        return self._kind

    @kind.setter
    def kind(self, kind: int) -> None:
        self._still_open()
        self._kind = Kind(kind)

    def _still_open(self) -> None:
        if self._sealer is not None:
            message = "chunks of this record are sealed already; use Vault.reseal"
            raise ValueError(message)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the Part 10 stream.

        Raises:
            OutOfSpace, VaultUnavailable: the record is aborted.
        """
        view = memoryview(data).cast("B")
        if self._hashing:
            self._digest.update(view)
        self.part10_bytes += len(view)
        try:
            self._put(view)
            if self._large is None and self.part10_bytes > self._large_from:
                self._stream()
        except BaseException:
            self.abort()
            raise

    def finish(self, meta: bytes, statement: bytes, *, durable: bool = True) -> RecordRef:
        """Add the other sections, seal, and return the record's ref; it is durable then, or once `Vault.sync` has been called for it.

        Raises:
            OutOfSpace, VaultUnavailable: nothing remains.
        """
        try:
            return self._finish(zlib.compress(meta, 1) if meta else b"", statement, durable=durable)
        finally:
            self.abort()

    def _finish(self, meta: bytes, statement: bytes, *, durable: bool) -> RecordRef:
        trailer = Trailer(self.part10_bytes, len(meta), len(statement), self._digest.digest())
        for section in (meta, statement, trailer.to_bytes()):
            self._put(memoryview(section))
        sealer = self._seal_full_chunks()
        buffer = self._memory()
        sealer.chunk(self._chunk, buffer[self._start :], self._fill, last=True)
        length = self._chunk * CHUNK_BYTES + self._fill
        end = self._start + self._fill + TAG_BYTES
        whole = padded(end)
        buffer[end:whole] = bytes(whole - end)
        record_bytes = self._base + end
        header = sealer.header(length)
        if self._large is None:
            buffer[:HEADER_BYTES] = header
            location = self._segments.append(buffer[:whole], record_bytes, at=self._at, essential=self._essential, durable=durable)
        else:
            self._write_out(self._large, whole)
            assert self._first_block is not None
            self._first_block[:HEADER_BYTES] = header
            location = self._large.finish(self._first_block, record_bytes)
            self._large = None
        return RecordRef(location, self._key.key_id, self.object_id, self._datastore, length, self.part10_bytes, self._kind)

    def abort(self) -> None:
        """Leave nothing behind; harmless after finish or abort."""
        large, self._large = self._large, None
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            self._buffers.give(buffer)
        self._first_block = None
        if large is not None:
            large.abort()

    def _memory(self) -> memoryview:
        if self._buffer is None:
            message = "this record is finished or aborted"
            raise ValueError(message)
        return self._buffer

    def _put(self, view: memoryview) -> None:
        """Copy plaintext into the chunks, leaving room for their tags."""
        buffer = self._memory()
        while len(view):
            if self._fill == CHUNK_BYTES:
                self._next_chunk()
            count = min(len(view), CHUNK_BYTES - self._fill)
            at = self._start + self._fill
            buffer[at : at + count] = view[:count]
            self._fill += count
            view = view[count:]

    def _next_chunk(self) -> None:
        """Go on to the next chunk; the full one is therefore not the last."""
        if self._sealer is not None:
            self._sealer.chunk(self._chunk, self._memory()[self._start :], CHUNK_BYTES, last=False)
        self._chunk += 1
        self._start += _STRIDE
        self._fill = 0
        if self._start + _STRIDE > len(self._memory()):
            large = self._stream()
            ready = self._start - self._start % BLOCK
            self._write_out(large, ready)
            rest = bytes(self._memory()[ready : self._start])
            self._memory()[: len(rest)] = rest
            self._base += ready
            self._start -= ready

    def _seal_full_chunks(self) -> Sealer:
        """Seal every chunk before the one being filled, unless that has been done as they filled."""
        if self._sealer is None:
            self._sealer = Sealer(
                self._key.key, key_id=self._key.key_id, object_id=self.object_id, datastore=self._datastore, kind=self._kind,
            )
            for chunk in range(self._chunk):
                self._sealer.chunk(chunk, self._memory()[HEADER_BYTES + chunk * _STRIDE :], CHUNK_BYTES, last=False)
        return self._sealer

    def _stream(self) -> LargeRecord:
        """Give the record a segment of its own and seal from now on as chunks fill."""
        if self._large is None:
            self._large = self._segments.begin_large(at=self._at)
            self._seal_full_chunks()
        return self._large

    def _write_out(self, large: LargeRecord, end: int) -> None:
        """Write the buffer's first `end` bytes, keeping back the record's first block."""
        buffer = self._memory()
        skip = 0
        if self._base == 0:
            self._first_block = aligned_copy(bytes(buffer[:BLOCK]))
            skip = BLOCK
        if end > skip:
            large.write(self._base + skip, buffer[skip:end])


def _object_id(at: datetime) -> bytes:
    """Return a new object id: unique indexes over ids that follow the clock grow at their end, not in a page of their own for each."""
    return max(0, int(at.timestamp() * 1000)).to_bytes(8, "big")[2:] + os.urandom(10)
