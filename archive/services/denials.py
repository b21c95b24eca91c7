"""A refusal is an event too: who asked for what they may not do is in the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from archive.access.subject import Subject
from archive.errors import Forbidden
from archive.ledger.audit import Event, Kind
from archive.services.core import Core


@contextmanager
def recorded(core: Core, subject: Subject) -> Iterator[None]:
    """Record a refusal that is raised inside, durably, and let it go on; not to be opened inside a write transaction.

    Raises:
        Forbidden, DatabaseUnavailable.
    """
    try:
        yield
    except Forbidden as refusal:
        event = Event(Kind.DENIED, outcome=8, subject=subject, detail={"why": refusal.message})
        core.database.group(lambda tx: core.ledger.record(tx, event, at=core.clock()), durable=True)
        raise
