"""Long streams a piece at a time: read in order without holding more than the next of it, and handed on in pieces of a good size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

Piece = bytes | memoryview
"""Of a stream, in order; a view stays as it is."""

AHEAD_BYTES = 1 << 20
BLOCK_BYTES = 1 << 20
"""Shorter pieces are joined up to here, longer views cut: who takes one copies it, and each costs whoever sends it."""


@dataclass(slots=True)
class Stream:
    """A stream of which `read_range` returns bytes [at, at + count), fewer at its end; what follows next is read ahead. One thread."""

    length: int
    read_range: Callable[[int, int], bytes]
    _at: int = field(default=0, init=False)
    _held: bytes = field(default=b"", init=False, repr=False)

    @classmethod
    def of(cls, whole: bytes) -> Stream:
        """Return a stream that lies in memory."""
        return cls(len(whole), lambda at, count: whole[at : at + count])

    def read(self, at: int, count: int) -> bytes:
        """Return bytes [at, at + count), fewer at the end."""
        start = at - self._at
        if start < 0 or start + count > len(self._held):
            self._held = b""  # let go of before as much is read again
            self._held, self._at, start = self.read_range(at, max(count, AHEAD_BYTES)), at, 0
        return self._held[start : start + count]


def given_up(pieces: list[bytes]) -> Iterator[Piece]:
    """Yield pieces in order, and let go of each with the next."""
    pieces.reverse()
    while pieces:
        yield pieces.pop()


def gathered(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield the same bytes in pieces of a good size, so that none is copied more than once; long ones of their own as they are."""
    short: list[Piece] = []
    size = 0
    for piece in pieces:
        if len(piece) < BLOCK_BYTES:
            short.append(piece)
            size += len(piece)
            if size < BLOCK_BYTES:
                continue
        if short:
            yield b"".join(short)
            short, size = [], 0
        if len(piece) >= BLOCK_BYTES:
            yield from (piece,) if isinstance(piece, bytes) else (piece[at : at + BLOCK_BYTES] for at in range(0, len(piece), BLOCK_BYTES))
    if short:
        yield b"".join(short)
