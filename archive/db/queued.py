"""A work on its way into a group commit, and how its thread is woken."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import sqlalchemy as sa

T = TypeVar("T")
Work = Callable[[sa.Connection], T]


class Queued:
    """What one thread waits for; fields are changed by whoever leads."""

    __slots__ = ("durable", "error", "leads", "result", "told", "work")

    def __init__(self, work: Work[Any], durable: bool) -> None:
        """Begin untold."""
        self.work = work
        self.durable = durable
        self.leads = False
        self.told = threading.Lock()  # free once told; an event costs fifty times as much to make
        self.told.acquire()
        self.error: Exception | None = None
        self.result: Any = None

    def wait(self) -> None:
        """Return once told."""
        self.told.acquire()

    def tell(self) -> None:
        """Wake the thread that waits: it leads now, or its work is done."""
        if self.told.locked():
            self.told.release()
