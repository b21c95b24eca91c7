"""Segments in memory: the same contract without a disk, for tests and for trying things."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Collection
from datetime import datetime, timedelta

from archive.errors import SealBroken
from archive.vault.disk import BLOCK, padded
from archive.vault.open_segment import Progress
from archive.vault.refs import Location, SegmentFile
from archive.vault.segment_store import LargeRecord, head_block


class MemorySegments:
    """A SegmentStore of byte arrays."""

    def __init__(
        self, *, segment_bytes: int = 16 << 20, max_age: timedelta = timedelta(hours=24),
        on_open: Callable[[bytes, str], None] = lambda _segment_id, _name: None,
        on_close: Callable[[bytes, int, int], None] = lambda _segment_id, _used, _replay_from: None,
        on_drop: Callable[[bytes], None] = lambda _segment_id: None,
    ) -> None:
        """Start empty; the callbacks are those of DiskSegments."""
        self.held: dict[bytes, bytearray] = {}
        self._progress: dict[bytes, Progress] = {}
        self._writing: dict[bytes, datetime] = {}
        self._open: bytes | None = None
        self._ended = False
        self._segment_bytes, self._max_age = segment_bytes, max_age
        self._on_open, self._on_close, self._on_drop = on_open, on_close, on_drop
        self._lock = threading.RLock()

    def _create(self, at: datetime) -> bytes:
        segment_id = os.urandom(16)
        self._on_open(segment_id, f"{segment_id.hex()}.seg")
        self.held[segment_id] = bytearray(head_block(segment_id, at))
        self._progress[segment_id] = Progress()
        self._writing[segment_id] = at
        return segment_id

    def append(
        self, record: memoryview, record_bytes: int, *, at: datetime, essential: bool = False, durable: bool = True  # noqa: ARG002 # no reserve, no disk
    ) -> Location:
        """Keep a copy of the record."""
        with self._lock:
            segment_id = self._open
            if segment_id is not None and (
                len(self.held[segment_id]) + len(record) > self._segment_bytes or at - self._writing[segment_id] > self._max_age
            ):
                self.roll()
                segment_id = None
            if segment_id is None:
                segment_id = self._open = self._create(at)
            offset = len(self.held[segment_id])
            self.held[segment_id] += record
            self._progress[segment_id].begin(offset, offset + len(record))
            return Location(segment_id, offset, record_bytes)

    def sync(self, locations: Collection[Location]) -> None:
        """There is nothing more durable."""

    def begin_large(self, *, at: datetime) -> LargeRecord:
        """Open a segment of its own."""
        with self._lock:
            segment_id = self._create(at)
            self._progress[segment_id].begin(BLOCK, BLOCK)
            return _LargeMemory(self, segment_id)

    def read_into(self, segment_id: bytes, offset: int, into: memoryview, *, once: bool = False) -> int:  # noqa: ARG002 # memory alone
        """Copy out of a segment."""
        data = self.held.get(segment_id)
        if data is None:
            message = "the segment's file is missing"
            raise SealBroken(message, verdict="V01")
        piece = data[offset : offset + len(into)]
        into[: len(piece)] = piece
        return len(piece)

    def next_data(self, segment_id: bytes, offset: int) -> int | None:
        """There are no holes in memory."""
        return offset if offset < len(self.held.get(segment_id, b"")) else None

    def settle(self, location: Location) -> None:
        """Note that the record is settled."""
        if (progress := self._progress.get(location.segment_id)) is not None:
            progress.settle(location.offset)

    def replay_from(self, segment_id: bytes, *, besides: Collection[Location] = ()) -> int | None:
        """Return the safe replay position."""
        progress = self._progress.get(segment_id)
        return None if progress is None else progress.low({one.offset for one in besides if one.segment_id == segment_id})

    def replay_due(self, location: Location) -> int | None:
        """Return the replay position when it is worth a write."""
        progress = self._progress.get(location.segment_id)
        return None if progress is None else progress.due({location.offset})

    def remove(self, location: Location) -> None:
        """Zero the record, or drop a closed segment that holds nothing else."""
        with self._lock:
            data = self.held.get(location.segment_id)
            if data is None:
                return
            length = padded(location.record_bytes)
            alone = location.offset == BLOCK and len(data) <= BLOCK + length and location.segment_id not in self._writing
            if alone:
                del self.held[location.segment_id]
            else:
                data[location.offset : location.offset + length] = bytes(length)
        self.settle(location)
        if alone:
            self._on_drop(location.segment_id)

    def erase(self, location: Location) -> None:
        """Zero the record, or drop a segment of which nothing is left."""
        self.remove(location)
        data = self.held.get(location.segment_id)
        if data is not None and location.segment_id not in self._writing and not any(data[BLOCK:]):
            del self.held[location.segment_id]
            self._on_drop(location.segment_id)

    def open_segment(self) -> SegmentFile | None:
        """Return the segment that small records go to."""
        one = self._open
        return None if one is None else SegmentFile(one, f"{one.hex()}.seg", len(self.held[one]))

    def files(self) -> list[SegmentFile]:
        """Return every segment."""
        return [SegmentFile(one, f"{one.hex()}.seg", len(self.held[one])) for one in sorted(self.held)]

    def in_use(self, segment_id: bytes) -> bool:
        """Whether it is being written, or holds what is not settled."""
        progress = self._progress.get(segment_id)
        waits = progress is not None and not progress.over and not self._ended
        return segment_id in self._writing or waits

    def finish_segment(self, segment_id: bytes, used: int) -> bool:
        """Cut a segment nobody writes."""
        if self.in_use(segment_id):
            return False
        if segment_id in self.held:
            del self.held[segment_id][max(used, BLOCK) :]
        return True

    def digest(self, segment_id: bytes) -> bytes:
        """Hash the whole segment."""
        data = self.held.get(segment_id)
        if data is None:
            message = "the segment's file is missing"
            raise SealBroken(message, verdict="V01")
        return hashlib.sha256(data).digest()

    def require_space(self) -> None:
        """There is always room."""

    @property
    def direct(self) -> bool:
        """There is no page cache either."""
        return False

    def finished(self, segment_id: bytes) -> None:
        """Close one segment; for its large record."""
        with self._lock:
            del self._writing[segment_id]
            used = len(self.held[segment_id])
        progress = self._progress[segment_id]
        progress.closed = True
        self._on_close(segment_id, used, progress.low(()))

    def dropped(self, segment_id: bytes) -> None:
        """Remove one segment; for its large record."""
        with self._lock:
            del self._writing[segment_id]
            del self.held[segment_id]
            self._progress[segment_id].settle(BLOCK)
        self._on_drop(segment_id)

    def roll(self) -> None:
        """Close the open segment."""
        with self._lock:
            segment_id, self._open = self._open, None
            if segment_id is not None:
                self.finished(segment_id)

    def close(self) -> None:
        """Close everything."""
        self.roll()
        self._ended = True


class _LargeMemory:
    """A LargeRecord in memory."""

    def __init__(self, store: MemorySegments, segment_id: bytes) -> None:
        self._store = store
        self._segment_id = segment_id
        self._open = True

    def write(self, offset: int, data: memoryview) -> None:
        """Keep a copy of the blocks."""
        held = self._store.held[self._segment_id]
        end = BLOCK + offset + len(data)
        held.extend(bytes(max(0, end - len(held))))
        held[BLOCK + offset : end] = data

    def finish(self, first_block: memoryview, record_bytes: int) -> Location:
        """Put the first block in and close the segment."""
        held = self._store.held[self._segment_id]
        held[BLOCK : 2 * BLOCK] = first_block
        self._store._progress[self._segment_id].end = len(held)  # noqa: SLF001 # its own store
        self._open = False
        self._store.finished(self._segment_id)
        return Location(self._segment_id, BLOCK, record_bytes)

    def abort(self) -> None:
        """Remove the segment."""
        if self._open:
            self._open = False
            self._store.dropped(self._segment_id)
