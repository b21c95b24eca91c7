"""Memory that the requests of a process share while they come in.

Who sends slowly may hold what nobody else asks for. Once it is short, whoever waits for it has the largest of the slow ones ended.
"""

from __future__ import annotations

import threading
import time

from archive.errors import Unavailable
from archive.web.body import Body

LATER = "send it again later, or as application/dicom"
SLOWEST = 512 << 10
"""Bytes a second, on the whole, of a request that others wait for."""
GRACE_S = 3.0
"""So long nobody is slow, and so long nothing may come of what others wait for."""
_LOOK_S = 0.25


class Held:
    """What one request has taken of a room while its body comes in."""

    def __init__(self, room: Room, body: Body, *, most: int, wait_s: float) -> None:
        """Nothing yet."""
        self.size = 0
        self.body = body
        self._room = room
        self._most = most
        self._wait_s = wait_s

    def add(self, count: int) -> None:
        """Take more.

        Raises:
            OverflowError: than one may hold. Unavailable: others hold too much.
        """
        if self.size + count > self._most:
            raise OverflowError
        self._room.take(count, self._wait_s)
        self.size += count


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
                slow = max((one for one in self._held if one.body.slow(now, SLOWEST, GRACE_S)), key=lambda one: one.size, default=None)
                if slow is not None:
                    slow.body.interrupt()
                self._changed.wait(min(_LOOK_S, until - now))
            self._free -= count

    def give_back(self, count: int) -> None:
        """Let others have it."""
        with self._changed:
            self._free += count
            self._changed.notify_all()
