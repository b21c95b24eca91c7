"""A parser's source: bytes pushed in pieces of any size, read by a generator that says how many it wants next."""

from __future__ import annotations

from collections.abc import Iterator

from archive.dicom.zeros import past_zeros
from archive.errors import InvalidInstance

PAST_END = "an element's length runs past the end of the data"
_NOTHING = memoryview(b"")


class Pushed:
    """Base of a push parser; the subclass walks the bytes in `_parse`.

    `_parse` yields how many bytes it wants from `_position`; it goes on when they are there or the data have ended. Between two
    yields it may use `_buffer` freely; after each, buffer and position are others.
    """

    def __init__(self) -> None:
        """Nothing is here yet."""
        self.trailing = False  # what still comes is not part of it
        self._buffer = _NOTHING
        self._position = 0  # in the buffer
        self._base = 0  # offset of the buffer in the data
        self._keep = -1  # from here on the buffer is kept, whatever the position
        self._pending = bytearray()  # joined at once: a list of pieces of one byte or none has no bound worth the name
        self._skip = 0
        self._want = 1
        self._steps = self._parse()

    @property
    def offset(self) -> int:
        """How far the data are understood."""
        return self._base + self._position

    def _parse(self) -> Iterator[int]:
        raise NotImplementedError

    def feed(self, data: memoryview) -> None:
        """Take the next bytes of the data set; nothing of `data` is referred to afterwards.

        Raises:
            InvalidInstance: this can be no data set within the limits.
        """
        if self.trailing:
            return
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            self._base += skipped
            data = data[skipped:]
            if not data:
                return
        if len(self._buffer) - self._position + len(self._pending) + len(data) < self._want:
            self._pending += data
            return
        self._gather(data)
        self._want = next(self._steps, 1)
        self._gather(_NOTHING)

    def finish(self) -> None:
        """Say that no more bytes come.

        Raises:
            InvalidInstance: the data set ends inside an element.
        """
        if self.trailing:
            return
        if not self._skip:
            self._gather(_NOTHING)
            # What it wants first may be here, all of it or none; only the next thing it wants shows it the end.
            while next(self._steps, 0) and not self._skip:
                pass
        if self._skip:
            raise InvalidInstance(PAST_END)

    def _gather(self, data: memoryview) -> None:
        """Drop what is understood from the buffer and put what came behind the rest, which is copied."""
        start = self._position if self._keep < 0 else min(self._keep, self._position)
        rest = self._buffer[start:]
        self._buffer = memoryview(b"".join((rest, self._pending, data))) if rest or self._pending else data
        self._base += start
        self._position -= start
        if self._keep >= 0:
            self._keep -= start
        self._pending.clear()

    def _pass(self, length: int) -> Iterator[int]:
        """Move the position by `length` bytes that need not be here yet, without keeping them unless a wanted sequence needs them."""
        there = len(self._buffer) - self._position
        if there >= length:
            self._position += length
            return
        if self._keep >= 0:
            yield length
            if len(self._buffer) - self._position < length:
                raise InvalidInstance(PAST_END)
            self._position += length
            return
        self._skip = length - there
        self._position += there
        yield 1

    def _past_zeros(self) -> Iterator[int]:
        """Move on by eights while there are zeros; then 8 bytes are there, or the data end."""
        while True:
            self._position = past_zeros(self._bytes_at, self._position, len(self._buffer))
            if len(self._buffer) - self._position >= 8:
                return
            yield 8
            if len(self._buffer) - self._position < 8:
                return

    def _bytes_at(self, at: int, count: int) -> bytes:
        return bytes(self._buffer[at : at + count])

    def _have(self, wanted: int) -> Iterator[int]:
        """Wait until `wanted` bytes are at the position, or the data ends."""
        if len(self._buffer) - self._position < wanted:
            yield wanted
