"""The one clock: read by services, passed down as `at`.

What has ended must not count again because a clock was set back (docs/access.md), so the clock of a running archive stands still
until the machine's is where it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

Clock = Callable[[], datetime]
STANDS = timedelta(hours=25)
"""Set back by more than this the machine's clock is believed: it was far ahead before, and nobody waits for years."""
_MACHINE = partial(datetime.now, UTC)  # without a frame of Python's: an instance that is stored asks several times


def utc_now() -> datetime:
    """The machine's own clock."""
    return datetime.now(UTC)


class SteadyClock:
    """The clock of a running archive: not before the latest time it has seen, while the machine's is behind that by a little.

    Safe to share between threads; each process has its own, which hears of others' by the ledger (services/last_known.py).
    """

    __slots__ = ("_latest", "_lock", "_stands", "machine")

    def __init__(self, machine: Clock = _MACHINE, *, stands: timedelta = STANDS) -> None:
        """Go by the machine's clock, and stand still for as long as it is behind by `stands` at most."""
        self.machine = machine
        self._stands = stands
        self._lock = threading.Lock()
        self._latest = datetime.min.replace(tzinfo=UTC)

    def __call__(self) -> datetime:
        """Return the time."""
        with self._lock:
            now = self.machine()
            if now >= self._latest or self._latest - now > self._stands:
                self._latest = now
                return now
            return self._latest

    def heard(self, at: datetime) -> None:
        """Go back no further than a time that is known to have been, unless the machine's clock is behind it by too much."""
        with self._lock:
            if at > self._latest and at - self.machine() <= self._stands:
                self._latest = at


def machine_now(clock: Clock) -> datetime:
    """Return the time by the machine's own clock: what others' clocks are compared with, and what must go on while the archive's stands."""
    return clock.machine() if isinstance(clock, SteadyClock) else clock()
