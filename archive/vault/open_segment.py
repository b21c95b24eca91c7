"""One segment while it is written: its tail, its group sync, and which of its records are settled."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from archive.vault.disk import BLOCK, O_DIRECT, Disk

_ONLY_READ = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NOTED_EVERY = 4 << 20  # bytes that a start reads again at most, beside what waits


def lock(fd: int, *, wait: bool = False) -> None:
    """Mark the open file as being written by this process, until its descriptor is closed.

    Raises:
        OSError: another process has it, and this one does not `wait`.
    """
    fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def in_use(fd: int) -> bool:
    """Whether another descriptor holds the file's lock; else `fd` holds it until closed."""
    try:
        lock(fd)
    except BlockingIOError:
        return True
    return False


def held(path: Path) -> bool:
    """Whether somebody holds the lock of a file; nobody does where there is none.

    Raises:
        OSError: it cannot be told.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in _ONLY_READ:
            raise
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return in_use(fd)
    finally:
        os.close(fd)


class Progress:
    """Which records of a segment still wait for their rows.

    While one does the segment's lock stays held, though nothing more is written: whoever gets the lock of a segment knows that no
    living process has anything in it to settle.
    """

    def __init__(self) -> None:
        """Start behind the head."""
        self.end = BLOCK
        self.closed = False
        self._noted = BLOCK
        self._waiting: set[int] = set()
        self._lock = threading.Lock()
        self._fd: int | None = None

    def begin(self, offset: int, end: int) -> None:
        """Note a record at `offset`, the segment then going up to `end`."""
        with self._lock:
            self._waiting.add(offset)
            self.end = end

    def settle(self, offset: int) -> None:
        """Forget the record: committed, or failed for good."""
        with self._lock:
            self._waiting.discard(offset)
            if not self._waiting:
                self._let_go()

    def keep_lock(self, fd: int) -> None:
        """Take over the descriptor of a segment that is closed, which holds its lock, until nothing waits."""
        with self._lock:
            self._fd = fd
            if not self._waiting:
                self._let_go()

    def let_go(self) -> None:
        """Give the lock up, whatever waits: this process writes no more, or holds too many."""
        with self._lock:
            self._let_go()

    def _let_go(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    @property
    def locked(self) -> bool:
        """Whether the lock of a closed segment is held here: then nobody else has it."""
        return self._fd is not None

    @property
    def over(self) -> bool:
        """Whether nothing of the segment waits and nothing more comes."""
        return self.closed and not self._waiting

    def low(self, besides: Collection[int]) -> int:
        """Return the lowest offset still waiting, leaving `besides` out; the end when none is."""
        with self._lock:
            return min(self._waiting.difference(besides), default=self.end)

    def due(self, besides: Collection[int]) -> int | None:
        """Return `low` when the start after a crash would otherwise read much again: every few MiB, and once closed."""
        low = self.low(besides)
        if not self.closed and low - self._noted < _NOTED_EVERY:
            return None
        self._noted = low
        return low


class Remembered(dict[bytes, Progress]):
    """Progress by segment; the oldest that are over are dropped, for a server makes segments for years."""

    KEPT = 256
    LOCKED = 128  # descriptors; more than that only a re-keying leaves, which has a lock of its own

    def __setitem__(self, segment_id: bytes, progress: Progress) -> None:
        """Add one."""
        super().__setitem__(segment_id, progress)
        # Copies: large records add theirs beside this.
        for one in [one for one in list(self.values()) if one.locked][: -self.LOCKED]:
            one.let_go()
        for old, before in list(self.items())[: -self.KEPT]:
            if before.over:
                self.pop(old, None)


class OpenSegment:
    """A segment file with a descriptor for writing."""

    def __init__(self, segment_id: bytes, fd: int, size: int, created_at: datetime, progress: Progress) -> None:
        """Take over `fd`, `size` bytes of which are allocated."""
        self.segment_id = segment_id
        self.fd = fd
        self.size = size
        self.created_at = created_at
        self.progress = progress
        self.tail = BLOCK  # where the next record goes
        self.used = BLOCK  # behind the last good record
        self.writers = 0
        self.retired = False
        self.failed = False
        self._written = 0
        self._synced = 0
        self._count_lock = threading.Lock()
        self._leader = threading.Lock()

    def fits(self, length: int) -> bool:
        """Whether a record of `length` bytes may still go here."""
        return not self.failed and self.tail + length <= self.size

    def take(self, length: int) -> int:
        """Give out the next `length` bytes; the caller holds the store's lock."""
        offset = self.tail
        self.tail += length
        self.writers += 1
        self.progress.begin(offset, self.tail)
        return offset

    def keep(self, end: int) -> None:
        """Note that a record up to `end` is durable."""
        with self._count_lock:
            self.used = max(self.used, end)

    def sync(self, disk: Disk) -> None:
        """Return when everything this thread has written is on the disk.

        Whoever holds the leader's lock syncs for all that had written by then. After one failed sync nothing unsynced is ever
        trusted again: the kernel drops the pages and reports the failure once.

        Raises:
            OSError.
        """
        with self._count_lock:
            self._written += 1
            ticket = self._written
        with self._leader:
            if self._synced >= ticket:
                return
            if self.failed:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            with self._count_lock:
                upto = self._written
            try:
                disk.fdatasync(self.fd)
            except OSError:
                self.failed = True
                raise
            self._synced = upto

    def make_buffered(self) -> None:
        """Write through the page cache from now on."""
        flags = fcntl.fcntl(self.fd, fcntl.F_GETFL)
        fcntl.fcntl(self.fd, fcntl.F_SETFL, flags & ~O_DIRECT)


@dataclass(frozen=True, slots=True)
class Written:
    """A record that its segment has, not yet known to be on the disk."""

    segment: OpenSegment
    offset: int
    length: int

    def undo(self, disk: Disk) -> None:
        """Leave a hole in its place."""
        with contextlib.suppress(OSError):
            disk.punch(self.segment.fd, self.offset, self.length)
        self.segment.progress.settle(self.offset)
