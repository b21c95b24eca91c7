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
"""Of an object of which nothing was found: what lies damaged in a segment that was not done with then may be it."""
_NAME = "untaken/"
_MINE = archive_state.c.name.startswith(_NAME, autoescape=True)


def note(tx: sa.Connection, verdicts: Mapping[bytes, str], within: Collection[bytes] = ()) -> None:
    """Remember objects, each with its verdict: empty for one that was promised to nobody by this index, and of which nothing is told.

    `within` are the segments in which one of which nothing was found may lie damaged.
    """
    forget(tx, verdicts.keys())
    places = " ".join((NOWHERE, *sorted(one.hex() for one in within)))
    values = {one: f"{places} " if verdict == NOWHERE else verdict for one, verdict in verdicts.items()}
    for some in batches(sorted(values)):
        tx.execute(sa.insert(archive_state), [{"name": _NAME + one.hex(), "value": values[one]} for one in some])


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
    return {bytes.fromhex(row.name.removeprefix(_NAME)): row.value.partition(" ")[0] for row in rows}


def suspect(tx: sa.Connection) -> frozenset[bytes] | None:
    """Return the segments in which one of which nothing was found may lie damaged; None: in any, for it was noted without them."""
    there = tx.execute(sa.select(archive_state.c.value).where(_MINE, archive_state.c.value.startswith(NOWHERE))).scalars().all()
    if NOWHERE in there:
        return None
    return frozenset(bytes.fromhex(one) for value in there for one in value.split()[1:])


def told(tx: sa.Connection) -> Iterator[Found]:
    """Yield those that may have been promised."""
    for one, verdict in noted(tx).items():
        if verdict not in ("", NOWHERE):  # that event is told of by itself
            yield verdict, f"object {one.hex()} could not be taken in after an index was put back or rebuilt; it stays where it lies", ""
