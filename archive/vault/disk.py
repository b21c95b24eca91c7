"""The disk: the vault's only caller of pwrite, fdatasync, fallocate, truncate, rename, unlink and punch hole.

Every call that changes the disk is one numbered operation. `Disk.before` is the seam for faults: it is asked before each operation
and may raise (EIO, ENOSPC, a kill) or return a number of bytes, after which a write stops short.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import mmap
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from archive.errors import OutOfSpace, Unavailable, VaultUnavailable

BLOCK = 4096
"""The unit of O_DIRECT, of record alignment and of holes."""

O_DIRECT: int = getattr(os, "O_DIRECT", 0)
_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01
_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_ZEROS = memoryview(mmap.mmap(-1, 1 << 20))  # aligned, as O_DIRECT wants it


def padded(length: int) -> int:
    """Return `length` rounded up to whole blocks."""
    return -(-length // BLOCK) * BLOCK


def _no_fault(_number: int, _name: str) -> int | None:
    return None


class Disk:
    """The system's disk; tests replace `before`."""

    def __init__(self, before: Callable[[int, str], int | None] = _no_fault) -> None:
        """Number operations from 0; `before(number, name)` comes ahead of each."""
        self.before = before
        self._numbers = itertools.count()

    def _step(self, name: str) -> int | None:
        return self.before(next(self._numbers), name)

    def create(self, path: Path, *, direct: bool) -> int:
        """Make a new file (0600) and return a descriptor for writing, past the page cache when `direct`."""
        self._step("create")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | (O_DIRECT if direct else 0)
        return os.open(path, flags, 0o600)

    def pwrite(self, fd: int, data: memoryview, offset: int) -> None:
        """Write all of `data` at `offset`, going on after short writes from the last whole block."""
        stuck = 0
        while len(data):
            limit = self._step("pwrite")
            done = os.pwrite(fd, data if limit is None else data[:limit], offset)
            if done < len(data):
                done -= done % BLOCK  # O_DIRECT takes whole blocks only
            stuck = 0 if done else stuck + 1
            if stuck > 3:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            data = data[done:]
            offset += done

    def fdatasync(self, fd: int) -> None:
        """Return when the file's bytes, and the length needed to read them, are on the disk."""
        self._step("fdatasync")
        (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(fd)

    def sync_folder(self, folder: Path) -> None:
        """Return when the names in `folder` are on the disk."""
        self._step("sync_folder")
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        """Reserve the range; afterwards writing into it needs no new space, where the file system can."""
        self._step("allocate")
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(fd, offset, length)
            except OSError as error:
                # What the C library does in its place, a byte written in each block, O_DIRECT refuses (ext3, FAT).
                if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:
                    raise
            else:
                return
        os.ftruncate(fd, offset + length)

    def truncate(self, fd: int, length: int) -> None:
        """Cut the file to `length`."""
        self._step("truncate")
        os.ftruncate(fd, length)

    def punch(self, fd: int, offset: int, length: int) -> None:
        """Turn the range into zeros and give its space back where the file system can."""
        self._step("punch")
        if sys.platform == "linux":
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(length)) == 0:
                return
            code = ctypes.get_errno()
            if code not in {errno.EOPNOTSUPP, errno.ENOSYS}:
                raise OSError(code, os.strerror(code))
        end = offset + length
        while offset < end:
            offset += os.pwrite(fd, _ZEROS[: end - offset], offset)

    def rename(self, source: Path, target: Path) -> None:
        """Put `source` in the place of `target` in one step."""
        self._step("rename")
        source.replace(target)

    def unlink(self, path: Path) -> None:
        """Remove the file; absent is as good."""
        self._step("unlink")
        path.unlink(missing_ok=True)

    def space(self, folder: Path) -> tuple[int, int]:
        """Return bytes free to this user, and bytes in all."""
        stat = os.statvfs(folder)
        return stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize


DISK = Disk()
"""The disk of this process; modules take another one by argument."""


def reserve_bytes(text: str, total: int) -> int:
    """Return the bytes that `[storage] reserve` ("5%", "2GiB", "1000000") keeps free of a disk of `total` bytes.

    Raises:
        ValueError: not of that form.
    """
    if text.endswith("%"):
        return int(total * float(text[:-1]) / 100)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]iB|B|)", text)
    if match is None:
        message = f"{text!r} is not an amount of space"
        raise ValueError(message)
    return int(float(match[1]) * _UNITS[match[2]])


def room_in(folder: Path, reserve: str, disk: Disk) -> int:
    """Return the bytes free above the reserve.

    Raises:
        OutOfSpace: there are none.
        VaultUnavailable.
    """
    try:
        free, total = disk.space(folder)
    except OSError as error:
        raise translated(error, "looking for free space") from error
    kept = reserve_bytes(reserve, total)
    if kept >= total > 0:
        raise OutOfSpace("the reserve is larger than the storage disk", remedy="lower [storage] reserve")
    if free < kept:
        raise OutOfSpace("the storage disk's reserve is reached", remedy="free space on the storage disk")
    return free - kept


def translated(error: OSError, doing: str) -> Unavailable:
    """Return the archive's error for a system error while `doing` something to the vault."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return OutOfSpace(f"{doing}: the storage disk is full", remedy="free space on the storage disk")
    if error.errno == errno.EROFS:
        remedy = "mount it writable; look at the system log for disk errors"
        return VaultUnavailable(f"{doing}: the storage disk is read-only", remedy=remedy)
    remedy = "run 'archive doctor'; look at the system log for disk errors"
    return VaultUnavailable(f"{doing}: {os.strerror(error.errno or errno.EIO)}", remedy=remedy)
