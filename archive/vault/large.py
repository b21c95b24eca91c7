"""A record too long for memory: sealed while it arrives into a segment of its own, its first block written last."""

from __future__ import annotations

import os
from collections.abc import Callable

from archive.errors import OutOfSpace
from archive.vault.disk import BLOCK, Disk, padded, translated
from archive.vault.open_segment import OpenSegment
from archive.vault.refs import Location


class LargeFile:
    """A segment_store.LargeRecord in a file."""

    def __init__(
        self, segment: OpenSegment, disk: Disk, *, grow_bytes: int,
        room: Callable[[], int], on_close: Callable[[bytes, int], None], on_drop: Callable[[bytes], None],
    ) -> None:
        """Take over a fresh segment; `room()` returns the bytes above the reserve or raises."""
        self._segment, self._disk, self._grow_bytes = segment, disk, grow_bytes
        self._room, self._on_close, self._on_drop = room, on_close, on_drop
        self._open = True

    def write(self, offset: int, data: memoryview) -> None:
        """Write whole blocks; see LargeRecord."""
        try:
            self._grow(BLOCK + offset + len(data))
            self._disk.pwrite(self._segment.fd, data, BLOCK + offset)
        except OSError as error:
            raise translated(error, "writing a large record") from error

    def _grow(self, end: int) -> None:
        while self._segment.size < end:
            if self._room() < self._grow_bytes:
                raise OutOfSpace("the storage disk's reserve is reached", remedy="free space on the storage disk")
            self._disk.allocate(self._segment.fd, self._segment.size, self._grow_bytes)
            self._segment.size += self._grow_bytes

    def finish(self, first_block: memoryview, record_bytes: int) -> Location:
        """Make the record whole; see LargeRecord."""
        segment = self._segment
        used = BLOCK + padded(record_bytes)
        try:
            self._disk.fdatasync(segment.fd)
            self._disk.pwrite(segment.fd, first_block, BLOCK)
            self._disk.truncate(segment.fd, used)
            self._disk.fdatasync(segment.fd)
        except OSError as error:
            raise translated(error, "writing a large record") from error
        self._open = False
        segment.used = segment.progress.end = used
        segment.progress.closed = True
        try:
            self._on_close(segment.segment_id, used)
        finally:
            segment.progress.keep_lock(segment.fd)
        return Location(segment.segment_id, BLOCK, record_bytes)

    def abort(self) -> None:
        """Unlink the segment; see LargeRecord."""
        if not self._open:
            return
        self._open = False
        segment = self._segment
        try:
            self._disk.truncate(segment.fd, BLOCK)  # what is left of a file without a row would be one that nobody wrote
            self._disk.fdatasync(segment.fd)
            self._on_drop(segment.segment_id)
        except OSError:
            pass  # then it keeps its row, and the next start removes both
        finally:
            segment.progress.closed = True
            segment.progress.settle(BLOCK)
            os.close(segment.fd)
