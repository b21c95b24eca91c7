"""Records that a catch-up or a rebuild could not take in: they may hold what was acknowledged, so no replay sweeps them.

They stay where they lie and are told by verify, until a later catch-up, or a rebuild, can do what they say.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import sqlalchemy as sa

from archive.db.batches import batches
from archive.db.tables import archive_state
from archive.services.retrace import Found

NOWHERE = "V01"
"""Of an object of which nothing was found: anything that lies damaged may be it."""
_NAME = "untaken/"
_MINE = archive_state.c.name.startswith(_NAME, autoescape=True)


def note(tx: sa.Connection, verdicts: Mapping[bytes, str]) -> None:
    """Remember objects, each with its verdict: empty for one that was promised to nobody by this index, and of which nothing is told."""
    forget(tx, verdicts.keys())
    for some in batches(sorted(verdicts)):
        tx.execute(sa.insert(archive_state), [{"name": _NAME + one.hex(), "value": verdicts[one]} for one in some])


def forget(tx: sa.Connection, objects: Collection[bytes] | None = None) -> None:
    """Forget objects, or all of them: they were taken in, or are looked at again."""
    if objects is None:
        tx.execute(sa.delete(archive_state).where(_MINE))
        return
    for some in batches([_NAME + one.hex() for one in sorted(objects)]):
        tx.execute(sa.delete(archive_state).where(archive_state.c.name.in_(some)))


def noted(tx: sa.Connection) -> dict[bytes, str]:
    """Return them with their verdicts."""
    rows = tx.execute(sa.select(archive_state.c.name, archive_state.c.value).where(_MINE).order_by(archive_state.c.name))
    return {bytes.fromhex(row.name.removeprefix(_NAME)): row.value for row in rows}


def told(tx: sa.Connection) -> Iterator[Found]:
    """Yield those that may have been promised."""
    for one, verdict in noted(tx).items():
        if verdict not in ("", NOWHERE):  # that event is told of by itself
            yield verdict, f"object {one.hex()} could not be taken in after an index was put back or rebuilt; it stays where it lies", ""
