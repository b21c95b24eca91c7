"""A purge brought to its end: keys overwritten, then bytes (docs/format.md 2.5). Again is harmless; a start and the upkeep do what is left.

What is destroyed is what the sealed body of a `purged` event proves, never what a row says alone.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from archive.access import policy
from archive.db.tables import held, instance, purged, purged_key, segment
from archive.errors import LedgerBroken
from archive.services import receipts
from archive.services.core import Core
from archive.services.purged import announced, keys_of, places_of
from archive.vault.vault import Location

log = logging.getLogger("archive.services")
_TOKEN = policy.system("shred")
_BATCH = 200


@dataclass(slots=True)
class Finished:
    """What was destroyed now; `refused` are events that do not prove what rows say of them."""

    keys: int = 0
    records: int = 0
    bytes: int = 0
    refused: int = 0


def finish(core: Core) -> Finished:
    """Destroy what is announced and still there.

    Raises:
        DatabaseUnavailable, VaultUnavailable.
    """
    done = Finished()
    forget_segments(core)
    with core.database.read() as tx:
        leaves = set(tx.execute(sa.select(purged.c.leaf).where(purged.c.freed_at.is_(None)).distinct()).scalars())
        leaves |= set(tx.execute(sa.select(purged_key.c.leaf).where(purged_key.c.destroyed_at.is_(None))).scalars())
    for leaf in sorted(leaves):
        try:
            with core.database.read() as tx:
                change = announced(core, tx, leaf)
        except LedgerBroken as error:
            done.refused += 1
            log.error("what is to be purged is not proved by its event (%s); run 'archive verify'", error.verdict)
            continue
        _keys(core, leaf, change, done)
        _records(core, leaf, change, done)
    if done.keys or done.records:
        core.database.checkpoint(patient=False)  # the log still has the pages with the rows as they were
    return done


def forget_segments(core: Core) -> None:
    """Drop the rows of segments that went with what was purged: of an index that is older than that, whose purge was done again.

    Raises:
        DatabaseUnavailable, VaultUnavailable.
    """
    due = sa.select(segment.c.id).where(segment.c.id.in_(sa.select(purged.c.segment_id).where(purged.c.freed_at.is_(None))))
    with core.database.read() as tx:
        noted = {bytes(one) for one in tx.execute(due).scalars()}
    for segment_id in noted - {file.segment_id for file in core.vault.segments.files()} if noted else ():
        if not _names(core, segment_id, 0, 1 << 62):
            with core.database.begin() as tx:
                tx.execute(sa.delete(segment).where(segment.c.id == segment_id))


def _keys(core: Core, leaf: int, change: dict[str, Any], done: Finished) -> None:
    due = sa.select(purged_key.c.key_id).where(purged_key.c.leaf == leaf, purged_key.c.destroyed_at.is_(None))
    with core.database.read() as tx:
        noted = {bytes(one) for one in tx.execute(due).scalars()}
    successor = bytes.fromhex(change["fresh"]) if "fresh" in change else None
    if successor in noted:  # by an earlier release: what the study has now
        with core.database.begin() as tx:
            tx.execute(sa.delete(purged_key).where(purged_key.c.key_id == successor, purged_key.c.leaf == leaf))
    for key_id in sorted(noted.intersection(keys_of(change))):
        at = core.clock()
        core.keystore.shred(key_id, at=at, reason="shred" if change.get("shred") else "purge", successor=successor)
        with core.database.begin() as tx:
            tx.execute(sa.update(purged_key).where(purged_key.c.key_id == key_id).values(destroyed_at=at))
            if change.get("shred") and tx.execute(due.limit(1)).first() is None:
                receipts.give(core, tx, change, leaf=leaf, at=at)
        done.keys += 1


def _records(core: Core, leaf: int, change: dict[str, Any], done: Finished) -> None:
    places = dict(places_of(change))
    due = sa.select(purged).where(purged.c.leaf == leaf, purged.c.freed_at.is_(None)).order_by(purged.c.segment_id, purged.c.record_offset)
    with core.database.read() as tx:
        rows = [row for row in tx.execute(due).all() if places.get(bytes(row.object_id)) == _place(row)]
    for start in range(0, len(rows), _BATCH):
        some = rows[start : start + _BATCH]
        freed = []
        for row in some:
            if _named(core, row):
                done.refused += 1
                log.error("a row names what an event purged; run 'archive verify'")
                continue
            core.vault.erase(Location(bytes(row.segment_id), row.record_offset, row.record_bytes))
            done.records += 1
            done.bytes += row.record_bytes
            freed.append(row.object_id)
        with core.database.begin() as tx:
            tx.execute(sa.update(purged).where(purged.c.object_id.in_(freed)).values(freed_at=core.clock()))


def _place(row: Any) -> tuple[str, int, int]:
    return bytes(row.segment_id).hex(), row.record_offset, row.record_bytes


def _named(core: Core, row: Any) -> bool:
    """Whether a row says that something lies there: then it is not touched."""
    return _names(core, row.segment_id, row.record_offset, row.record_bytes)


def _names(core: Core, segment_id: bytes, offset: int, length: int) -> bool:
    with core.database.read() as tx:
        return any(
            policy.run_as(tx, _TOKEN, sa.select(table.c.id).where(
                table.c.segment_id == segment_id, table.c.record_offset < offset + length,
                table.c.record_offset + table.c.record_bytes > offset,
            ).limit(1)).first() is not None
            for table in (instance, held)
        )
