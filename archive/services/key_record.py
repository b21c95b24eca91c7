"""What the ledger says of the archive's keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from archive.db.tables import audit_event
from archive.ledger.audit import Kind
from archive.services.core import Core

_AT_ONCE = 50


def said(core: Core, tx: sa.Connection, *kinds: Kind) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and detail of events of these kinds, newest first; verification names those that do not open."""
    n = audit_event.c.n
    query = sa.select(n).where(audit_event.c.kind.in_([kind.label for kind in kinds])).order_by(n.desc()).limit(_AT_ONCE)
    numbers = tx.execute(query).scalars().all()
    while numbers:
        bodies = core.ledger.bodies(tx, numbers)
        yield from ((number, bodies[number]["detail"]) for number in numbers if number in bodies)
        numbers = tx.execute(query.where(n < numbers[-1])).scalars().all()
