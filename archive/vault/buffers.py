"""Aligned buffers used again and again: fresh pages cost more than the cryptography done in them."""

from __future__ import annotations

import mmap
import threading

_WHOLE = 2  # idle buffers that stay as they are
_SMALL_BYTES = 1 << 20  # what the others keep: more than most instances need


class Buffers:
    """A pool of page-aligned buffers of one size; any thread takes and gives."""

    def __init__(self, size: int, keep: int = 8) -> None:
        """Hand out buffers of `size` bytes and keep at most `keep` idle ones, most of which hold little memory."""
        self.size = size
        self._keep = keep
        self._whole: list[memoryview] = []
        self._emptied: list[memoryview] = []
        self._lock = threading.Lock()

    def take(self) -> memoryview:
        """Return a buffer; what it holds is arbitrary."""
        with self._lock:
            if idle := self._whole or self._emptied:
                return idle.pop()
        return memoryview(mmap.mmap(-1, self.size))

    def give(self, buffer: memoryview) -> None:
        """Take a buffer back; the caller keeps no view of it."""
        with self._lock:
            if len(self._whole) < min(_WHOLE, self._keep):
                self._whole.append(buffer)
                return
        if self.size > _SMALL_BYTES:
            _empty(buffer)
        with self._lock:
            if len(self._whole) + len(self._emptied) < self._keep:
                self._emptied.append(buffer)


def _empty(buffer: memoryview) -> None:
    """Return what lies behind the first part to the system: several large objects at once must not be felt for ever."""
    memory = buffer.obj
    if isinstance(memory, mmap.mmap) and hasattr(mmap, "MADV_REMOVE"):
        memory.madvise(mmap.MADV_REMOVE, _SMALL_BYTES, len(buffer) - _SMALL_BYTES)


def aligned_copy(data: bytes) -> memoryview:
    """Return page-aligned memory of the same length holding `data`."""
    view = memoryview(mmap.mmap(-1, len(data)))
    view[:] = data
    return view
