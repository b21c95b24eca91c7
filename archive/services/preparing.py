"""Packs and thumbnails made before anybody asks: of series that have settled, while the machine has time for it.

What is not made here is made when it is asked for. Series are found by the instances that came since the last look; all of them are
looked at only now and then, because that reads every one.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

import sqlalchemy as sa

from archive.access import policy
from archive.db.tables import datastore, instance, series, series_pack
from archive.index import locate
from archive.services.core import Core
from archive.services.packs import Packs
from archive.services.pictures import Pictures

SETTLED_AFTER = timedelta(seconds=2)
PATIENCE = timedelta(minutes=1)
"""How long a series waits for an idle moment."""

LOOK_EVERY = timedelta(seconds=1)
SURVEY_EVERY = timedelta(hours=1)
PACKS_PER_TICK = 4
TOGETHER = 200
_TOKEN = policy.system("packs")
_STALE = sa.or_(series_pack.c.generation.is_(None), series_pack.c.generation != series.c.generation)
_SERIES = series.outerjoin(series_pack, series_pack.c.series_pk == series.c.id)


class Preparing:
    """Owned by one thread."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core
        self._packs, self._pictures = Packs(core), Pictures(core)
        self._due: dict[int, None] = {}
        self._newest = 0
        self._looked_at = self._surveyed_at = datetime.fromtimestamp(0, core.clock().tzinfo)

    def tick(self, at: datetime, *, busy: bool = False) -> None:
        """Make what some series lack; while others want the processors (`busy`) only for those that have waited long.

        Raises:
            ArchiveError: of one series, which is left to those who ask for it.
        """
        if abs(at - self._surveyed_at) >= SURVEY_EVERY:  # the clock may have been set back
            self._survey()
            self._surveyed_at = self._looked_at = at
        elif abs(at - self._looked_at) >= LOOK_EVERY:
            self._look()
            self._looked_at = at
        if self._due:
            before = at - (PATIENCE if busy else SETTLED_AFTER)
            for row in self._settled(before, at + PATIENCE):
                with self._core.database.read() as tx:
                    rows = locate.of_series(tx, _TOKEN, row.id)
                del self._due[row.id]
                if rows:
                    self._packs.build(rows, row.name)
                    self._pictures.prepare(rows[0].series_pk)

    def _survey(self) -> None:
        with self._core.database.read() as tx:
            self._newest = policy.run_as(tx, _TOKEN, sa.select(sa.func.max(instance.c.id))).scalar() or 0
            stale = sa.select(series.c.id).select_from(_SERIES).where(series.c.n_instances > 0, _STALE)
            self._due = dict.fromkeys(policy.run_as(tx, _TOKEN, stale).scalars())

    def _look(self) -> None:
        new = (
            sa.select(instance.c.series_pk, sa.func.max(instance.c.id)).where(instance.c.id > self._newest).group_by(instance.c.series_pk)
        )
        with self._core.database.read() as tx:
            rows: Sequence[Any] = policy.run_as(tx, _TOKEN, new).all()
        for key, newest in rows:
            self._due[key] = None
            self._newest = max(self._newest, newest)

    def _settled(self, before: datetime, after: datetime) -> list[Any]:
        """Return a few series that lack a pack and have not changed since; those that lack nothing are forgotten.

        One that changed `after` was noted by a clock that was ahead.
        """
        keys = list(islice(self._due, TOGETHER))
        wanted = (
            sa.select(series.c.id, series.c.updated_at, datastore.c.name)
            .select_from(_SERIES.join(datastore, datastore.c.id == series.c.datastore_id))
            .where(series.c.id.in_(keys), series.c.n_instances > 0, _STALE)
        )
        with self._core.database.read() as tx:
            stale: dict[int, Any] = {row.id: row for row in policy.run_as(tx, _TOKEN, wanted)}
        for key in keys:
            del self._due[key]
            if key in stale:
                self._due[key] = None  # behind the others
        return [row for key, row in stale.items() if not before <= row.updated_at <= after][:PACKS_PER_TICK]
