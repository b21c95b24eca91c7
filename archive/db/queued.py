"""A work on its way into a group commit, and how its thread is woken."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar, cast

import sqlalchemy as sa

WAIT_AT_MOST_S = 0.002
T = TypeVar("T")
Work = Callable[[sa.Connection], T]


class Queued(Generic[T]):
    """What one thread waits for; fields are changed by whoever leads."""

    __slots__ = ("durable", "error", "leads", "result", "told", "work")

    def __init__(self, work: Work[T], durable: bool) -> None:
        """Begin untold."""
        self.work = work
        self.durable = durable
        self.leads = False
        self.told = threading.Lock()  # free once told; an event costs fifty times as much to make
        self.told.acquire()
        self.error: Exception | None = None
        self.result: T | None = None

    def again(self) -> None:
        """Be as new, to be queued once more."""
        self.leads, self.error, self.result = False, None, None
        self.told.acquire(blocking=False)

    def get(self) -> T:
        """Return what the work returned, or raise what it or its commit raised."""
        if self.error is not None:
            raise self.error
        return cast("T", self.result)

    def wait(self) -> None:
        """Return once told."""
        self.told.acquire()

    def tell(self) -> None:
        """Wake the thread that waits: it leads now, or its work is done."""
        if self.told.locked():
            self.told.release()


class Coming:
    """Counts the threads that will soon queue something, so that whoever is to commit can wait for them."""

    def __init__(self) -> None:
        """None is coming."""
        self._number, self._changed = 0, threading.Condition(threading.Lock())
        self._here = threading.local()

    def begin(self) -> None:
        """Say that this thread will."""
        with self._changed:
            self._number += 1
        self._here.coming = True

    def arrive(self) -> None:
        """Say that it has, or that it will not; again is harmless."""
        if getattr(self._here, "coming", False):
            self._here.coming = False
            with self._changed:
                self._number -= 1
                if not self._number:
                    self._changed.notify()

    def wait(self) -> None:
        """Return when nobody is coming any more, or after a moment."""
        with self._changed:
            self._changed.wait_for(lambda: not self._number, WAIT_AT_MOST_S)
