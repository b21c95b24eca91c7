"""Who checks a transaction of storage commitment: one thread at a time, until it gives it back, its lease runs out or its process ends."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from archive.db.tables import commitment
from archive.services import deliveries
from archive.services.core import Core
from archive.services.processes import is_alive, this_worker

LEASE = timedelta(hours=1)
_C = commitment.c


class Lost(Exception):
    """Another has the transaction by now, or has closed it."""


def take(core: Core, key: int) -> str | None:
    """Take a transaction that waits and return under which name; None when another has it or it is checked."""
    at, holder = core.clock(), f"{this_worker()}/{threading.get_ident()}"
    with core.database.begin(durable=False) as tx:
        row = tx.execute(sa.select(_C.state, _C.leased_by, _C.leased_until).where(_C.id == key).with_for_update()).first()
        if row is None or row.state != "checking" or not free(row, at):
            return None
        tx.execute(sa.update(commitment).where(_C.id == key).values(leased_by=holder, leased_until=at + LEASE))
    return holder


def keep(tx: sa.Connection, key: int, holder: str, at: datetime) -> None:
    """Hold a transaction for longer; what is written of it goes into the same transaction of the database.

    Raises:
        Lost.
    """
    if not tx.execute(sa.update(commitment).where(_mine(key, holder)).values(leased_until=at + LEASE)).rowcount:
        raise Lost


def later(core: Core, key: int, holder: str) -> None:
    """Give a transaction back that could not be checked to its end; it waits longer each time."""
    with core.database.begin(durable=False) as tx:
        attempts = tx.execute(sa.select(_C.attempts).where(_mine(key, holder))).scalar()
        if attempts is not None:
            tx.execute(sa.update(commitment).where(_C.id == key).values(
                attempts=attempts + 1, run_at=core.clock() + deliveries.backoff(attempts + 1), leased_by="", leased_until=None
            ))


def free(row: Any, at: datetime) -> bool:
    """Whether nobody has a transaction."""
    return not row.leased_by or row.leased_until is None or row.leased_until <= at or not is_alive(row.leased_by.partition("/")[0])


def _mine(key: int, holder: str) -> sa.ColumnElement[bool]:
    return sa.and_(_C.id == key, _C.state == "checking", _C.leased_by == holder)
