"""Aligned buffers used again and again: fresh pages cost more than the cryptography done in them."""

from __future__ import annotations

import mmap
import threading


class Buffers:
    """A pool of page-aligned buffers of one size; any thread takes and gives."""

    def __init__(self, size: int, keep: int = 8) -> None:
        """Hand out buffers of `size` bytes and keep at most `keep` idle ones."""
        self.size = size
        self._keep = keep
        self._idle: list[memoryview] = []
        self._lock = threading.Lock()

    def take(self) -> memoryview:
        """Return a buffer; what it holds is arbitrary."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return memoryview(mmap.mmap(-1, self.size))

    def give(self, buffer: memoryview) -> None:
        """Take a buffer back; the caller keeps no view of it."""
        with self._lock:
            if len(self._idle) < self._keep:
                self._idle.append(buffer)


def aligned_copy(data: bytes) -> memoryview:
    """Return page-aligned memory of the same length holding `data`."""
    view = memoryview(mmap.mmap(-1, len(data)))
    view[:] = data
    return view
