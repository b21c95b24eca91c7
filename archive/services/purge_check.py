"""Whether what is gone for good went as the ledger says, and stays gone (V12, V15; docs/format.md 2.5)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import sqlalchemy as sa

from archive.access import policy
from archive.db.tables import audit_event, held, instance, purged, purged_key, statement
from archive.errors import LedgerBroken, SealBroken
from archive.ledger import objects
from archive.services import retrace
from archive.services.core import Core
from archive.services.purged import Place, announced, keys_of, places_of
from archive.services.retrace import Found
from archive.vault.disk import BLOCK

_TOKEN = policy.system("verify")
_ZEROS = bytes(BLOCK)


def gone(core: Core, tx: sa.Connection) -> Iterator[Found]:
    """Yield purges that no event proves, or that an event says and the tables do not, and what came back."""
    told = retrace.said(tx)
    unread = keyless(core, tx)
    for leaf in told.unjust:
        if not any(number == leaf and _unread(tx, name, leaf) for name, number in unread.items()):
            yield "V12", f"event {leaf} purged what had not been rejected", ""
    said: dict[bytes, tuple[int, Place]] = {}
    keys: dict[bytes, int] = {}
    for leaf in sorted(set(told.purged.values())):
        try:
            change = announced(core, tx, leaf)
        except LedgerBroken as error:
            yield error.verdict, error.message, ""
            continue
        said.update({one: (leaf, place) for one, place in places_of(change)})
        keys.update(dict.fromkeys(keys_of(change), leaf))
    yield from _rows(core, tx, said)
    yield from _keys(core, tx, keys)
    for table in (instance, held):
        back = sa.select(table.c.sop_instance_uid).join(purged, purged.c.object_id == table.c.object_id)
        for row in policy.run_as(tx, _TOKEN, back):
            yield "V12", "a purged instance was brought back", row.sop_instance_uid


def keyless(core: Core, tx: sa.Connection) -> dict[str, int]:
    """Return the pseudonym of each study whose key was destroyed, and by which event.

    Changes before it may have been sealed under that key, as earlier releases did: of those a rebuild has no statement.
    """
    found: dict[str, int] = {}
    for leaf in sorted(set(tx.execute(sa.select(purged_key.c.leaf)).scalars())):
        with suppress(LedgerBroken):
            found[core.keyring.pseudonym("ledger/study", announced(core, tx, leaf)["study"]).hex()] = leaf
    return found


def _unread(tx: sa.Connection, name: str, before: int) -> bool:
    known = sa.exists(sa.select(1).select_from(statement).where(statement.c.leaf == audit_event.c.n))
    query = sa.select(audit_event.c.n).where(
        audit_event.c.n < before, audit_event.c.kind.in_(("rejected", "reconciled")),
        audit_event.c.n.in_(objects.about(bytes.fromhex(name))), sa.not_(known),
    )
    return tx.execute(query.limit(1)).first() is not None


def _rows(core: Core, tx: sa.Connection, said: dict[bytes, tuple[int, Place]]) -> Iterator[Found]:
    left = dict(said)
    block = memoryview(bytearray(BLOCK))
    for row in tx.execute(sa.select(purged).order_by(purged.c.segment_id, purged.c.record_offset)).all():
        segment_id = bytes(row.segment_id)
        if left.pop(bytes(row.object_id), None) != (row.leaf, (segment_id.hex(), row.record_offset, row.record_bytes)):
            yield "V12", f"object {bytes(row.object_id).hex()} was purged by no event, or otherwise", ""
            continue
        if row.freed_at is None:
            continue  # a start or the upkeep does it
        try:
            count = core.vault.segments.read_into(segment_id, row.record_offset, block)
        except SealBroken:
            continue  # gone with its segment
        if bytes(block[:count]) != _ZEROS[:count]:
            yield "V15", f"a purged record lies at {row.record_offset} of {segment_id.hex()}.seg", ""
    for one in left:
        yield "V12", f"nothing says that object {one.hex()} was purged, but its event", ""


def _keys(core: Core, tx: sa.Connection, said: dict[bytes, int]) -> Iterator[Found]:
    left = dict(said)
    for row in tx.execute(sa.select(purged_key)).all():
        if left.pop(bytes(row.key_id), None) != row.leaf:
            yield "V12", f"key {bytes(row.key_id).hex()} was destroyed by no event", ""
        elif row.destroyed_at is not None and core.keystore.state(bytes(row.key_id)) in ("active", "retiring"):
            yield "V12", f"key {bytes(row.key_id).hex()} was destroyed, and is back", ""
    for one in left:
        yield "V12", f"nothing says that key {one.hex()} is to be destroyed, but its event", ""
