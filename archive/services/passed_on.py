"""Whether every grant that was passed on still stands on what its events say it stands on (V12, docs/format.md 6.4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from archive.db.tables import grant_lineage, grants


def passed_on(tx: sa.Connection, given: Mapping[int, dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Yield grants that stand on others, or were passed on by others, than the events that gave them say."""
    there: dict[int, set[tuple[int, int]]] = {}
    for row in tx.execute(sa.select(grant_lineage)):
        there.setdefault(row.grant_id, set()).add((row.ancestor_id, row.giver_id))
    live = set(tx.execute(sa.select(grants.c.id).where(grants.c.revoked_at.is_(None))).scalars())
    for number in sorted(there.keys() | (live & given.keys())):
        said = set(_chain(number, given))
        # One that a rebuild brought back as ended stands on nothing any more.
        if there.get(number, set()) != said and (number in live or there.get(number)):
            yield "V12", f"grant {number} stands on other grants than it was passed on from", ""


def _chain(number: int, given: Mapping[int, dict[str, Any]]) -> Iterator[tuple[int, int]]:
    seen = {number}
    while event := given.get(number):
        parent = event.get("parent", 0)
        if not parent or parent in seen:
            return
        yield parent, event.get("giver", 0)
        seen.add(parent)
        number = parent
