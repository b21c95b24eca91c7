"""Descriptors for reading segments, through the page cache: records are read at any offset."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from archive.errors import SealBroken
from archive.vault.disk import BLOCK, O_DIRECT, translated

KEPT = 16
"""Opening costs 3 us; an open file is one of the descriptors a process may have."""

_PIECE_BYTES = 1 << 20


class _Reader:
    """A descriptor closed when nobody uses it any more."""

    __slots__ = ("fd",)

    def __init__(self, path: Path, flags: int = 0) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


class Readers:
    """The last descriptors used, shared between threads."""

    def __init__(self, path: Callable[[bytes], Path], keep: int = KEPT) -> None:
        """Find files by `path(segment_id)` and keep `keep` of them open."""
        self._path = path
        self._keep = keep
        self._open: OrderedDict[bytes, _Reader] = OrderedDict()
        self._lock = threading.Lock()

    def _reader(self, segment_id: bytes) -> _Reader:
        with self._lock:
            reader = self._open.get(segment_id)
            if reader is not None:
                self._open.move_to_end(segment_id)
                return reader
        try:
            reader = _Reader(self._path(segment_id))
        except FileNotFoundError:
            message = "the segment's file is missing"
            raise SealBroken(message, verdict="V01", remedy="bring the segment back from a backup") from None
        except OSError as error:
            raise translated(error, "opening a segment") from error
        with self._lock:
            self._open[segment_id] = reader
            while len(self._open) > self._keep:
                self._open.popitem(last=False)
        return reader

    def read_into(self, segment_id: bytes, offset: int, into: memoryview, *, direct: bool = False) -> int:
        """Read until `into` is full or the file ends; with `direct` past the page cache where that is possible.

        Raises:
            SealBroken: V01.
            VaultUnavailable.
        """
        cached = self._reader(segment_id)
        if direct:
            with suppress(OSError):  # refused, or something is wrong that the other way tells
                return _fill(_Reader(self._path(segment_id), O_DIRECT), offset, into)
        try:
            return _fill(cached, offset, into)
        except OSError as error:
            raise translated(error, "reading a segment") from error

    def next_data(self, segment_id: bytes, offset: int) -> int | None:
        """Return a block boundary at or after `offset` before which there is only a hole, None at the end."""
        reader = self._reader(segment_id)
        try:
            if offset >= os.fstat(reader.fd).st_size:
                return None
            found = os.lseek(reader.fd, offset, os.SEEK_DATA) if hasattr(os, "SEEK_DATA") else offset
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            if error.errno == errno.EINVAL:
                return offset
            raise translated(error, "reading a segment") from error
        return max(offset, found - found % BLOCK)

    def digest(self, segment_id: bytes, *, direct: bool) -> bytes:
        """Return SHA-256 of the whole file; with `direct` past the page cache where that is possible.

        What is read once would push out of the cache what is read often, and filling it costs more than the hash.

        Raises:
            SealBroken: V01.
            VaultUnavailable.
        """
        cached = self._reader(segment_id)
        sha256, offset, piece = hashlib.sha256(), 0, memoryview(mmap.mmap(-1, _PIECE_BYTES))
        try:
            reader = _Reader(self._path(segment_id), O_DIRECT) if direct else cached
        except OSError:
            reader = cached
        while True:
            try:
                count = os.preadv(reader.fd, [piece], offset)
            except OSError as error:
                # Refused: by the file system, or behind a piece that did not end at a block.
                if error.errno != errno.EINVAL or reader is cached:
                    raise translated(error, "reading a segment") from error
                reader = cached
                continue
            if not count:
                return sha256.digest()
            sha256.update(piece[:count])
            offset += count

    def forget(self, segment_id: bytes) -> None:
        """Drop the descriptor of a file that is gone."""
        with self._lock:
            self._open.pop(segment_id, None)

    def close(self) -> None:
        """Drop every descriptor."""
        with self._lock:
            self._open.clear()


def _fill(reader: _Reader, offset: int, into: memoryview) -> int:
    done = 0
    while done < len(into) and (count := os.preadv(reader.fd, [into[done:]], offset + done)):
        done += count
    return done
