"""Table `segment` follows the files: a row before the first record, its end when the file is cut."""

from __future__ import annotations

import sqlalchemy as sa

from archive.db.engine import Database
from archive.db.tables import segment
from archive.services.clock import Clock

FIRST_RECORD = 4096


class SegmentRows:
    """The three callbacks of vault.segments, each one durable transaction."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Write to the index."""
        self._database = database
        self._clock = clock

    def opened(self, segment_id: bytes, name: str) -> None:
        """A segment is about to take records; replay must know of it whatever happens."""
        values = {"id": segment_id, "name": name, "state": "open", "replay_from": FIRST_RECORD, "created_at": self._clock()}
        self._commit(sa.insert(segment).values(values))

    def closed(self, segment_id: bytes, used: int, replay_from: int) -> None:
        """A segment was cut to `used` bytes; what is unsettled in it stays above `replay_from`."""
        values = {"state": "closed", "used": used, "replay_from": replay_from, "closed_at": self._clock()}
        self._commit(sa.update(segment).where(segment.c.id == segment_id).values(values))

    def dropped(self, segment_id: bytes) -> None:
        """A segment's file is gone, with the one record it held."""
        self._commit(sa.delete(segment).where(segment.c.id == segment_id))

    def _commit(self, statement: sa.Executable) -> None:
        with self._database.begin() as tx:
            tx.execute(statement)
