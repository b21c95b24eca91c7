"""What was acknowledged: rollbacks that cannot be undone, each named by what it contradicts (docs/format.md 7)."""

from __future__ import annotations

import sqlalchemy as sa

from archive.ledger.audit import Kind
from archive.ledger.log import AuditFilter
from archive.services.core import Core


def acknowledged(core: Core, tx: sa.Connection, *, before: int | None = None) -> frozenset[str]:
    """Return the digests of the notes whose rollback someone has acknowledged, by an event older than `before` where that is given."""
    rows = core.ledger.search(tx, AuditFilter(kinds=(Kind.CHECKPOINT_ACKNOWLEDGED,), before=before, limit=1000))
    return frozenset(note for row in rows if row.body is not None for note in row.body["detail"]["notes"])
