"""Segments on disk: append-only files of sealed records, written once, synced in groups (docs/format.md 2.1).

The index's table `segment` belongs to the services, which are told by three callbacks.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from pathlib import Path

from archive.errors import ArchiveError, OutOfSpace
from archive.keys import private_files
from archive.vault.buffers import aligned_copy
from archive.vault.disk import BLOCK, DISK, Disk, padded, room_in, translated
from archive.vault.large import LargeFile
from archive.vault.open_segment import OpenSegment, Progress, Remembered, Written, held, in_use, lock
from archive.vault.readers import Readers
from archive.vault.refs import Location, SegmentFile
from archive.vault.segment_store import LargeRecord, SegmentStore, head_block

__all__ = ["DiskSegments", "SegmentStore"]

log = logging.getLogger("archive.vault")

def _empty(fd: int) -> bool:
    """Whether nothing but a hole follows the head; False where the file system does not say."""
    try:
        return os.fstat(fd).st_size > BLOCK and os.lseek(fd, BLOCK, os.SEEK_DATA) < 0
    except OSError as error:
        return error.errno == errno.ENXIO


class DiskSegments:
    """Segments as files of one folder, preallocated and written past the page cache where the file system allows."""

    def __init__(
        self, folder: Path, *, disk: Disk = DISK, direct: bool = True, reserve: str = "5%", first_bytes: int = 16 << 20,
        segment_bytes: int = 256 << 20, grow_bytes: int = 64 << 20, max_age: timedelta = timedelta(hours=24),
        on_open: Callable[[bytes, str], None] = lambda _segment_id, _name: None,
        on_close: Callable[[bytes, int, int], None] = lambda _segment_id, _used, _replay_from: None,
        on_drop: Callable[[bytes], None] = lambda _segment_id: None,
    ) -> None:
        """Use `folder`, made if absent.

        `on_open(segment_id, name)` comes before a segment's first record and must be durable when it returns; if it raises there is
        no segment. `on_close(segment_id, used, replay_from)` comes after one was cut and `on_drop(segment_id)` before its file goes; what
        they miss the next start makes up for. The three run in the thread that appends or removes, so neither is done inside a database
        transaction.

        Raises:
            VaultUnavailable.
        """
        self._folder, self._disk, self._direct, self._reserve = folder, disk, direct, reserve
        self._first_bytes, self._segment_bytes, self._grow_bytes, self._max_age = first_bytes, segment_bytes, grow_bytes, max_age
        self._on_open, self._on_close, self._on_drop = on_open, on_close, on_drop
        self._lock = threading.RLock()
        self._open: OpenSegment | None = None
        self._progress = Remembered()
        self._unsynced: dict[Location, Written] = {}
        self._readers = Readers(self._path)
        try:
            private_files.make_directory(folder)
        except OSError as error:
            raise translated(error, "making the segments folder") from error

    @property
    def direct(self) -> bool:
        """Whether records are written past the page cache; False once the file system has refused."""
        return self._direct

    def _path(self, segment_id: bytes) -> Path:
        return self._folder / f"{segment_id.hex()}.seg"

    # --- writing ---------------------------------------------------------------------------------------------------------------

    def append(self, record: memoryview, record_bytes: int, *, at: datetime, essential: bool = False, durable: bool = True) -> Location:
        """Write one record; see SegmentStore."""
        self._room(0 if essential else None)
        segment, offset = self._take(len(record), at, essential=essential)
        written = Written(segment, offset, len(record))
        location = Location(segment.segment_id, offset, record_bytes)
        try:
            self._disk.pwrite(segment.fd, record, offset)
        except OSError as error:
            segment.failed = True
            self._undo([written])
            raise translated(error, "writing a record") from error
        if durable:
            self._sync([written])
        else:
            with self._lock:
                self._unsynced[location] = written
        return location

    def sync(self, locations: Collection[Location]) -> None:
        """Make records durable together; see SegmentStore."""
        with self._lock:
            found = [self._unsynced.pop(location, None) for location in locations]
        self._sync([written for written in found if written is not None])

    def _sync(self, records: list[Written]) -> None:
        try:
            for segment in {written.segment.segment_id: written.segment for written in records}.values():
                segment.sync(self._disk)
        except OSError as error:
            self._undo(records)
            raise translated(error, "writing a record") from error
        for written in records:
            written.segment.keep(written.offset + written.length)
            self._leave(written.segment)

    def _undo(self, records: list[Written]) -> None:
        for written in records:
            written.undo(self._disk)
            self._leave(written.segment)

    def _take(self, length: int, at: datetime, *, essential: bool) -> tuple[OpenSegment, int]:
        with self._lock:
            segment = self._open
            if segment is not None and (not segment.fits(length) or at - segment.created_at > self._max_age):
                self.roll()
                segment = None
            if segment is None:
                segment = self._open = self._create(self._next_size(length, essential=essential), at)
            return segment, segment.take(length)

    def _leave(self, segment: OpenSegment) -> None:
        with self._lock:
            segment.writers -= 1
            if segment.failed and self._open is segment:
                self.roll()
            elif segment.retired and not segment.writers:
                self._shut(segment)

    def _next_size(self, length: int, *, essential: bool) -> int:
        """Choose the size of a new segment: doubling with the archive, smaller on a disk that is nearly full."""
        need = BLOCK + length
        size = min(self._segment_bytes, self._first_bytes << min(32, sum(1 for _ in self._folder.glob("*.seg"))))
        room = self._room(0 if essential else None)
        while size > max(need, room):
            size //= 2
        if max(size, need) > room:
            raise OutOfSpace("the storage disk's reserve is reached", remedy="free space on the storage disk")
        return padded(max(size, need))

    def _room(self, reserve: int | None = None) -> int:
        """Return the bytes above the reserve; refuse when there are none."""
        return room_in(self._folder, self._reserve if reserve is None else "0", self._disk)

    def require_space(self) -> None:
        """Look at the reserve; see SegmentStore."""
        self._room()

    def _create(self, size: int, at: datetime) -> OpenSegment:
        """Make a segment, durable and announced; nothing remains of one that cannot be."""
        segment_id = os.urandom(16)
        path = self._path(segment_id)
        try:
            fd = self._new_file(path)
        except OSError as error:
            raise translated(error, "opening a segment") from error
        try:
            lock(fd, wait=True)  # a start beside us may just be looking at it
            if not os.fstat(fd).st_nlink:  # a start beside us took it for a leftover
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            self._disk.allocate(fd, 0, size)
            segment = OpenSegment(segment_id, fd, size, at, Progress())
            self._write_head(segment, aligned_copy(head_block(segment_id, at)))
            self._disk.fdatasync(segment.fd)
            self._disk.sync_folder(self._folder)
            self._on_open(segment_id, path.name)
            self._progress[segment_id] = segment.progress
        except Exception as error:
            with contextlib.suppress(OSError):
                self._disk.unlink(path)
            if isinstance(error, OSError):
                raise translated(error, "opening a segment") from error
            raise
        finally:
            if segment_id not in self._progress:
                os.close(fd)
        return segment

    def _new_file(self, path: Path) -> int:
        if self._direct:
            try:
                return self._disk.create(path, direct=True)
            except OSError as error:
                if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:
                    raise
                self._buffered(path)
        return self._disk.create(path, direct=False)

    def _write_head(self, segment: OpenSegment, head: memoryview) -> None:
        try:
            self._disk.pwrite(segment.fd, head, 0)
        except OSError as error:
            if not self._direct or error.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:
                raise
            # Some file systems take the flag at open and refuse the write.
            self._buffered(None)
            segment.make_buffered()
            self._disk.pwrite(segment.fd, head, 0)

    def _buffered(self, half_made: Path | None) -> None:
        if half_made is not None:
            self._disk.unlink(half_made)  # Linux refuses the flag after making the name
        self._direct = False
        log.info("segments are written through the page cache: O_DIRECT is refused")

    def _shut(self, segment: OpenSegment) -> None:
        """Cut and close a segment nobody writes to any more."""
        cut = False
        with contextlib.suppress(OSError):
            self._disk.truncate(segment.fd, segment.used)
            self._disk.fdatasync(segment.fd)
            cut = True
        segment.progress.end = segment.used
        segment.progress.closed = True
        try:
            if not cut:
                log.warning("a segment could not be cut to its length; it is done later")
            elif segment.used > BLOCK:
                self._closed(segment.segment_id, segment.used)
            else:
                with contextlib.suppress(OSError):
                    self._drop(segment.segment_id)
        finally:
            segment.progress.keep_lock(segment.fd)

    def _closed(self, segment_id: bytes, used: int) -> None:
        progress = self._progress.get(segment_id)  # None: nothing in it waits, and it was forgotten just now
        try:
            self._on_close(segment_id, used, used if progress is None else progress.low(()))
        except ArchiveError as error:
            log.warning("a closed segment could not be noted (%s); it is noted later", error.code)

    def _drop(self, segment_id: bytes) -> None:
        """Take a segment away in which nothing is left: first its row, so that a row without a file is a segment that was lost.

        Raises:
            OSError: the file stays, empty; the next start takes it away.
        """
        self._readers.forget(segment_id)
        try:
            self._on_drop(segment_id)
        except ArchiveError as error:
            log.warning("an empty segment could not be taken away (%s); it is done later", error.code)
            return
        self._disk.unlink(self._path(segment_id))
        self._disk.sync_folder(self._folder)

    def begin_large(self, *, at: datetime) -> LargeRecord:
        """Open a segment of its own; see SegmentStore."""
        if self._room() < BLOCK + self._grow_bytes:
            raise OutOfSpace("the storage disk's reserve is reached", remedy="free space on the storage disk")
        segment = self._create(BLOCK + self._grow_bytes, at)
        segment.take(0)
        return LargeFile(
            segment, self._disk, grow_bytes=self._grow_bytes, room=self._room, on_close=self._closed, on_drop=self._drop,
        )

    # --- reading ---------------------------------------------------------------------------------------------------------------

    def read_into(self, segment_id: bytes, offset: int, into: memoryview, *, once: bool = False) -> int:
        """Read from a segment; see SegmentStore."""
        return self._readers.read_into(segment_id, offset, into, direct=once and self._direct)

    def next_data(self, segment_id: bytes, offset: int) -> int | None:
        """Skip holes; see SegmentStore."""
        return self._readers.next_data(segment_id, offset)

    def digest(self, segment_id: bytes) -> bytes:
        """Hash the whole file; see SegmentStore."""
        return self._readers.digest(segment_id, direct=self._direct)

    # --- state -----------------------------------------------------------------------------------------------------------------

    def settle(self, location: Location) -> None:
        """Note that a record is settled; see SegmentStore."""
        if (progress := self._progress.get(location.segment_id)) is not None:
            progress.settle(location.offset)

    def replay_from(self, segment_id: bytes, *, besides: Collection[Location] = ()) -> int | None:
        """Return the safe replay position; see SegmentStore."""
        progress = self._progress.get(segment_id)
        if progress is None:
            return None
        return progress.low({one.offset for one in besides if one.segment_id == segment_id})

    def replay_due(self, location: Location) -> int | None:
        """Return the replay position when it is worth a write; see SegmentStore."""
        progress = self._progress.get(location.segment_id)
        return None if progress is None else progress.due({location.offset})

    def remove(self, location: Location) -> None:
        """Punch or unlink; see SegmentStore."""
        self._take_out(location, erase=False)

    def erase(self, location: Location) -> None:
        """Overwrite the first block, then punch or unlink; see SegmentStore."""
        self._take_out(location, erase=True)

    def _take_out(self, location: Location, *, erase: bool) -> None:
        path = self._path(location.segment_id)
        length = padded(location.record_bytes)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        except OSError as error:
            raise translated(error, "removing a record") from error
        alone = False
        try:
            size = os.fstat(fd).st_size
            if erase and location.offset < size:
                self._disk.pwrite(fd, memoryview(bytes(BLOCK)), location.offset)
                self._disk.fdatasync(fd)
            progress = self._progress.get(location.segment_id)
            ours = progress is not None and progress.locked
            if length:  # a hole of nothing is EINVAL
                self._disk.punch(fd, location.offset, length)
                self._disk.fdatasync(fd)
            alone = (location.offset == BLOCK and size <= BLOCK + length) or (erase and length > 0 and _empty(fd))
            alone = alone and (ours or not in_use(fd))
            self.settle(location)
            if alone:
                self._drop(location.segment_id)
        except OSError as error:
            raise translated(error, "removing a record") from error
        finally:
            os.close(fd)

    def open_segment(self) -> SegmentFile | None:
        """Return the open segment; see SegmentStore."""
        with self._lock:
            one = self._open
            return None if one is None else SegmentFile(one.segment_id, self._path(one.segment_id).name, one.size)

    def files(self) -> list[SegmentFile]:
        """List the folder; see SegmentStore."""
        found = []
        try:
            for path in sorted(self._folder.glob("*.seg")):
                with contextlib.suppress(ValueError, FileNotFoundError):
                    segment_id = bytes.fromhex(path.stem)
                    if self._path(segment_id) == path and len(segment_id) == 16:
                        found.append(SegmentFile(segment_id, path.name, path.stat().st_size))
        except OSError as error:
            raise translated(error, "listing the segments") from error
        return found

    def in_use(self, segment_id: bytes) -> bool:
        """Ask for the segment's lock; see SegmentStore."""
        try:
            return held(self._path(segment_id))
        except OSError as error:
            raise translated(error, "asking for a segment's lock") from error

    def finish_segment(self, segment_id: bytes, used: int) -> bool:
        """Cut a left-over segment; see SegmentStore."""
        try:
            fd = os.open(self._path(segment_id), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        except OSError as error:
            raise translated(error, "closing a segment") from error
        try:
            if in_use(fd):
                return False
            self._disk.truncate(fd, max(used, BLOCK))
            self._disk.fdatasync(fd)
        except OSError as error:
            raise translated(error, "closing a segment") from error
        finally:
            os.close(fd)
        return True

    def roll(self) -> None:
        """Retire the open segment; see SegmentStore."""
        with self._lock:
            segment, self._open = self._open, None
            if segment is not None:
                segment.retired = True
                if not segment.writers:
                    self._shut(segment)

    def close(self) -> None:
        """Close everything; see SegmentStore."""
        self.roll()
        for progress in list(self._progress.values()):
            progress.let_go()
        self._readers.close()
