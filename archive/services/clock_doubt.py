"""Whether what is due by time alone, and cannot be undone, waits: a machine's clock may be years ahead until somebody sets it.

It waits for a day when the ledger knows nothing of the days before an opening, or when the clock jumped ahead while the archive ran.
What a person asks for is done at once. What is decided is kept in `archive_state`: a restart forgets no doubt, and `archive doctor`
tells of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from archive.db.tables import archive_state, audit_event
from archive.ledger import checkpoints
from archive.services.clock import machine_now
from archive.services.core import Core
from archive.services.last_backup import Check

log = logging.getLogger("archive.services")
SILENT = timedelta(days=2)
"""A ledger that knows nothing of so long says nothing of whether the clock is right."""
JUMP = timedelta(hours=1)
WAITS = timedelta(hours=24)
NAME = "clock_doubted"
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # the former goes on while a machine sleeps
_E = audit_event.c


def running_s() -> float:
    """Return the seconds of a clock that nobody sets."""
    return time.clock_gettime(_CLOCK)


@dataclass(frozen=True, slots=True)
class Doubt:
    """Until when what cannot be undone waits, by the machine's clock, and why."""

    until: datetime
    why: str

    def over(self, now: datetime) -> bool:
        """Whether nothing waits any more: its time is over, or the clock has been set back since."""
        return not timedelta(0) < self.until - now <= WAITS


class ClockDoubt:
    """Owned by the background worker."""

    def __init__(self, core: Core, running: Callable[[], float] = running_s) -> None:
        """Work on an opened archive; `running` is a clock that nobody sets, in seconds."""
        self._core = core
        self._running = running
        self._apart: float | None = None
        self._until_s: float | None = None

    def waits(self) -> bool:
        """Whether what cannot be undone waits now; to be asked again and again, so that a jump is seen.

        Raises:
            DatabaseUnavailable.
        """
        now, running = machine_now(self._core.clock), self._running()
        apart = now.timestamp() - running
        if self._apart is None or self._apart - apart > JUMP.total_seconds():
            self._begin(now, running)  # set back by so much it may be right now
            self._apart = apart
        elif apart - self._apart > JUMP.total_seconds():
            hours = (apart - self._apart) / 3600
            self._wait(now, running, f"the machine's clock was set ahead by {hours:.0f} hours to {now:%Y-%m-%d %H:%M} UTC")
            self._apart = apart
        self._apart = min(self._apart, apart)
        if self._until_s is not None and running >= self._until_s:
            self._keep(None)
            self._until_s = None
        return self._until_s is not None

    def _begin(self, now: datetime, running: float) -> None:
        with self._core.database.read() as tx:
            kept, silence = noted(tx), _silence(tx, now)
        self._until_s = None
        if kept is not None and not kept.over(now):
            self._until_s = running + (kept.until - now).total_seconds()
        elif silence is not None:
            first, last = silence
            self._wait(now, running, f"the ledger knows nothing from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC, "
                                     "so the machine's clock may be ahead")
        elif kept is not None:
            self._keep(None)

    def _wait(self, now: datetime, running: float, why: str) -> None:
        self._keep(Doubt(now + WAITS, why))
        self._until_s = running + WAITS.total_seconds()
        log.warning("%s; what is due by time alone is not purged or swept for a day", why, extra={"remedy": "look at the clock; run NTP"})

    def _keep(self, doubt: Doubt | None) -> None:
        with self._core.database.begin() as tx:
            tx.execute(sa.delete(archive_state).where(archive_state.c.name == NAME))
            if doubt is not None:
                tx.execute(sa.insert(archive_state).values(name=NAME, value=f"{doubt.until.isoformat()} {doubt.why}"))


def noted(tx: sa.Connection) -> Doubt | None:
    """Return what the background worker noted last."""
    value = tx.execute(sa.select(archive_state.c.value).where(archive_state.c.name == NAME)).scalar()
    if value is None:
        return None
    until, _, why = value.partition(" ")
    return Doubt(datetime.fromisoformat(until), why)


def check(tx: sa.Connection, now: datetime) -> list[Check]:
    """Return what `archive doctor` tells of it."""
    doubt = noted(tx)
    if doubt is None or doubt.over(now):
        return []
    return [Check("clock", "warning", f"{doubt.why}: nothing is purged or swept by its age until {doubt.until:%Y-%m-%d %H:%M} UTC",
                  "look at the machine's clock and run NTP; what is right by then goes on by itself, 'archive purge' works meanwhile")]


def _silence(tx: sa.Connection, now: datetime) -> tuple[datetime, datetime] | None:
    """Return from when to when the ledger knows nothing, where that is long and ended within the last day, or lasts still.

    The opening itself is in the ledger when this is asked, and so may be others since: they say nothing of how late it is.
    """
    before = now - WAITS
    last = tx.execute(sa.select(_E.n, _E.at).where(_E.at <= before).order_by(_E.at.desc(), _E.n.desc()).limit(1)).first()
    if last is None:
        return None  # an archive of today has nothing old
    after = tx.execute(sa.select(_E.at).where(_E.at > before, _E.at <= now).order_by(_E.at).limit(1)).scalar() or now
    signed = checkpoints.of_size(tx, last.n + 1)  # again and again, while nothing happened
    first = last.at if signed is None or not last.at < signed.at <= after else signed.at
    return (first, after) if after - first > SILENT else None
