"""Table `segment` follows the files: a row before the first record, its end when the file is cut."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from archive.db.engine import Database
from archive.db.tables import segment
from archive.services.clock import Clock

FIRST_RECORD = 4096


@dataclass(frozen=True, slots=True)
class Noted:
    """What the index says of a segment: its hash where that is known, its length once it is closed."""

    sha256: str | None = None
    closed_bytes: int | None = None


def noted(database: Database) -> dict[str, Noted]:
    """Return what the index says of segments that hold something, by their names.

    Raises:
        DatabaseUnavailable.
    """
    with database.read() as tx:
        rows = tx.execute(sa.select(segment).where(sa.or_(segment.c.used > 0, segment.c.replay_from > FIRST_RECORD)))
        return {
            row.name: Noted(None if row.sha256 is None else bytes(row.sha256).hex(), row.used if row.state == "closed" else None)
            for row in rows
        }


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
