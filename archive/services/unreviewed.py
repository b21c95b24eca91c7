"""Break-glass that nobody has reviewed yet: after three days it is an alert, and a line of `archive doctor`."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from archive.db.tables import break_glass

REVIEWED_WITHIN = timedelta(hours=72)
_B = break_glass.c


def overdue(tx: sa.Connection, at: datetime) -> list[Any]:
    """Return id, principal and start of what waits for its review longer than that."""
    late = sa.select(_B.id, _B.principal_id, _B.started_at).where(_B.reviewed_at.is_(None), _B.started_at <= at - REVIEWED_WITHIN)
    return list(tx.execute(late.order_by(_B.id)).all())


def waiting(tx: sa.Connection) -> int:
    """Return how many wait for their review."""
    return int(tx.execute(sa.select(sa.func.count()).select_from(break_glass).where(_B.reviewed_at.is_(None))).scalar_one())
