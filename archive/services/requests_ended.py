"""Requests for access after an index was lost: what was decided since the last snapshot does not wait again."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.db.tables import access_request

_DECIDED = frozenset({"granted", "refused", "withdrawn"})
_R = access_request.c


def later(tx: sa.Connection, said: dict[str, Any], by: int | None, at: datetime) -> None:
    """Take in an event that came after a snapshot of access."""
    if said["what"] in _DECIDED:
        tx.execute(sa.update(access_request).where(_R.id == said["request"], _R.state == "open").values(
            state=said["what"], decided_at=at, decided_by=by, note=said.get("note", ""), grant_id=said.get("grant") or None,
        ))
