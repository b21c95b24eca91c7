"""Which events are about a patient, study or series: rows for looking up what leaves say.

A leaf names its objects by pseudonym, so their rows come with the checkpoint that covers it, many at once and in order; until then the
leaves themselves are searched. An event with more objects than its leaf may name has its rows from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec
import sqlalchemy as sa

from archive.db import upsert
from archive.db.prepared import Prepared
from archive.db.tables import audit_object, checkpoint, ledger_leaf
from archive.ledger import nodes
from archive.ledger.audit import MAX_LEAF_OBJECTS

_KEYS = ("n", "position", "ref")
_INSERT = Prepared(sa.insert(audit_object), keys=_KEYS)
_COVERED = sa.select(sa.func.coalesce(sa.func.max(checkpoint.c.size), 0))


def record(tx: sa.Connection, n: int, refs: Sequence[bytes]) -> None:
    """Insert the rows of an event whose leaf does not name all of them; nothing for any other."""
    if len(refs) > MAX_LEAF_OBJECTS:
        _INSERT.many(tx, [{"n": n, "position": position, "ref": ref} for position, ref in enumerate(refs)])


def integrate(tx: sa.Connection, old: int, new: int) -> None:
    """Insert the rows of the events [old, new) whose leaves name every object."""
    rows: list[dict[str, Any]] = []
    for page in nodes.leaves(tx, old, new):
        for n, data, _hash in page:
            rows += [{"n": n, "position": position, "ref": ref} for position, ref in enumerate(named(data))]
    _keep(tx.dialect.name).many(tx, sorted(rows, key=lambda row: row["ref"]))


@cache
def _keep(engine: str) -> Prepared:
    """Rows of an earlier release were made with their event."""
    return Prepared(upsert.insert(audit_object, sqlite=engine == "sqlite").on_conflict_do_nothing(), keys=_KEYS)


def named(data: bytes) -> list[bytes]:
    """Return the objects of a leaf that names all of them; none of any other, nor of what is no leaf."""
    try:
        leaf = msgspec.json.decode(data, type=dict[str, Any])
        return [] if "om" in leaf else [bytes.fromhex(ref) for ref in leaf.get("ob", ())]
    except (msgspec.DecodeError, ValueError, TypeError):
        return []  # not what was recorded: the checkpoint refuses it and verification names it


def covered(tx: sa.Connection) -> int:
    """Return how many events have all their rows."""
    return int(tx.execute(_COVERED).scalar_one())


def about(ref: bytes) -> sa.ColumnElement[Any]:
    """Return the numbers of the events about an object, as a subquery."""
    kept = sa.select(audit_object.c.n).where(audit_object.c.ref == ref)
    fresh = sa.select(ledger_leaf.c.n).where(
        ledger_leaf.c.n >= _COVERED.scalar_subquery(), ledger_leaf.c.data.contains(ref.hex().encode())
    )
    return sa.union(kept, fresh).scalar_subquery()
