"""The newest time the signed ledger knows: where the clock of a process begins, and what it hears of the clocks of others."""

from __future__ import annotations

import threading
from contextlib import suppress
from datetime import datetime

import sqlalchemy as sa

from archive.db.engine import Database
from archive.db.tables import audit_event
from archive.errors import ArchiveError
from archive.ledger import checkpoints
from archive.services.clock import Clock, SteadyClock

LOOK_EVERY_S = 10.0


def hear(clock: Clock, database: Database) -> None:
    """Let the archive's clock go back no further than that; what cannot be read now is not heard."""
    if isinstance(clock, SteadyClock):
        with suppress(ArchiveError), database.read() as tx:
            for at in newest(tx):
                clock.heard(at)


def keep_hearing(clock: Clock, database: Database, every_s: float = LOOK_EVERY_S) -> threading.Event:
    """Do that again and again, for as long as the process lives or until what is returned is set.

    A clock that nobody asked for an hour has not seen that hour, and one that began later may be behind those that saw more.
    """

    stop = threading.Event()

    def run() -> None:
        while not stop.wait(every_s):
            clock()
            hear(clock, database)

    threading.Thread(target=run, name="clock", daemon=True).start()
    return stop


def newest(tx: sa.Connection) -> list[datetime]:
    """Return when the last event and the last checkpoint were, as far as there are any."""
    event = tx.execute(sa.select(audit_event.c.at).order_by(audit_event.c.n.desc()).limit(1)).scalar()
    signed = checkpoints.latest(tx)
    return [at for at in (event, None if signed is None else signed.at) if at is not None]
