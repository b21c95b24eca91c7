"""What leads searches, kept whole: rows that table access_study lacks are found, told and made good (docs/access.md)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta

import sqlalchemy as sa

from archive.db.tables import archive_state
from archive.index import access_study
from archive.services.core import Core
from archive.services.retrace import Found

LOG = logging.getLogger("archive.services")
HEALED = "access_study_healed"
TOLD_FOR = timedelta(days=30)
STUDIES_AT_MOST = 500


def led(core: Core, tx: sa.Connection) -> Iterator[Found]:
    """Yield how many rows are missing, and how many nothing explains."""
    if count := access_study.missing(tx, core.clock()):
        yield "V10", f"{count} entries that lead searches to what a grant speaks about are missing", ""
    if count := access_study.superfluous(tx):
        yield "V10", f"{count} entries that lead searches belong to no grant or say otherwise than their study", ""


def heal(core: Core, at: datetime) -> bool:
    """Make good what is missing of some studies; return whether there may be more.

    Raises:
        DatabaseUnavailable.
    """
    with core.database.read() as tx:
        studies = access_study.lacking(tx, at, STUDIES_AT_MOST)
    if not studies:
        return False
    with core.database.begin() as tx:
        added = access_study.complete(tx, at, studies)
        if added:
            tx.execute(sa.delete(archive_state).where(archive_state.c.name == HEALED))
            tx.execute(sa.insert(archive_state).values(name=HEALED, value=at.isoformat()))
    LOG.warning("searches lacked entries of %d studies; %d entries were added", len(studies), added)
    return added > 0 and len(studies) == STUDIES_AT_MOST


def healed_at(tx: sa.Connection) -> datetime | None:
    """Return when something was last made good."""
    value = tx.execute(sa.select(archive_state.c.value).where(archive_state.c.name == HEALED)).scalar()
    return None if value is None else datetime.fromisoformat(value)
