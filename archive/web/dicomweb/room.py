"""Memory that the requests of a process share while they come in.

Who sends slowly may hold what nobody else asks for. Once it is short, whoever waits for it has the largest of the slow ones ended.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from werkzeug.exceptions import RequestTimeout

from archive.errors import Unavailable

LATER = "send it again later, or as application/dicom"
SLOWEST = 512 << 10
"""Bytes a second, on the whole, of a request that others wait for."""
GRACE_S = 3.0
"""So long nobody is slow, and so long nothing may come of what others wait for."""
_LOOK_S = 0.25


class Held:
    """What one request has taken; `end` has its sender told that it was too slow."""

    def __init__(self, room: Room, end: Callable[[], None], *, most: int, wait_s: float) -> None:
        """Nothing yet."""
        self.size = 0
        self._room = room
        self._end = end
        self._most = most
        self._wait_s = wait_s
        self._begun = self._last = time.monotonic()
        self._coming = True
        self._over = False

    def add(self, count: int) -> None:
        """Take more.

        Raises:
            OverflowError: than one may hold. RequestTimeout: others waited for it. Unavailable: they hold too much.
        """
        if self._over:
            raise RequestTimeout
        if self.size + count > self._most:
            raise OverflowError
        self._coming, asked = False, time.monotonic()
        self._room.take(count, self._wait_s)
        self._last = time.monotonic()
        self._begun += self._last - asked  # the wait was for others
        self._coming = True
        self.size += count

    def whole(self) -> None:
        """All of it has come."""
        self._coming = False

    def slow(self, now: float) -> bool:
        """Whether its sender keeps others waiting."""
        if not self._coming or self._over:
            return False
        return now - self._last > GRACE_S or (now - self._begun > GRACE_S and self.size < SLOWEST * (now - self._begun))

    def end(self) -> None:
        """Have it give back what it holds, as soon as its thread comes to it."""
        self._over = True
        self._end()


class Room:
    """So many bytes, and who holds them."""

    def __init__(self, size: int) -> None:
        """All of it is free."""
        self._free = size
        self._changed = threading.Condition()
        self._held: set[Held] = set()

    def enter(self, held: Held) -> None:
        """Note a request that will hold some."""
        with self._changed:
            self._held.add(held)

    def leave(self, held: Held) -> None:
        """Take back what it holds."""
        with self._changed:
            self._held.discard(held)
        self.give_back(held.size)

    def take(self, count: int, wait_s: float) -> None:
        """Take some.

        Raises:
            Unavailable: the others hold it, for longer than `wait_s`.
        """
        until = time.monotonic() + wait_s
        with self._changed:
            while self._free < count:
                now = time.monotonic()
                if now >= until:
                    message = "too many requests of metadata and bulk data at once"
                    raise Unavailable(message, remedy=LATER)
                slow = max((one for one in self._held if one.slow(now)), key=lambda one: one.size, default=None)
                if slow is not None:
                    slow.end()
                self._changed.wait(min(_LOOK_S, until - now))
            self._free -= count

    def give_back(self, count: int) -> None:
        """Let others have it."""
        with self._changed:
            self._free += count
            self._changed.notify_all()
