"""The tree as a table: complete subtrees are kept, everything else is computed from them.

Source: docs/format.md 7.
"""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa

from archive.db.prepared import Prepared
from archive.db.tables import ledger_leaf, ledger_node
from archive.errors import LedgerBroken
from archive.ledger.tree import Lookup, leaf_hash, node_hash

PAGE = 4096
_LAST = Prepared(sa.select(sa.func.max(ledger_leaf.c.n)))
_LEAVES = Prepared(
    sa.select(ledger_leaf.c.n, ledger_leaf.c.data, ledger_leaf.c.hash)
    .where(ledger_leaf.c.n >= sa.bindparam("start"), ledger_leaf.c.n < sa.bindparam("stop"))
    .order_by(ledger_leaf.c.n)
)
_HASHES = Prepared(
    sa.select(ledger_node.c.position, ledger_node.c.hash)
    .where(
        ledger_node.c.level == sa.bindparam("at_level"), ledger_node.c.position >= sa.bindparam("start"),
        ledger_node.c.position < sa.bindparam("stop"),
    )
    .order_by(ledger_node.c.position)
)


def size(tx: sa.Connection) -> int:
    """Return the number of leaves; the next one's number."""
    last = _LAST.scalar(tx, {})
    return 0 if last is None else int(last) + 1


def leaves(tx: sa.Connection, start: int, end: int) -> Iterator[list[tuple[int, bytes, bytes]]]:
    """Yield number, data and stored hash of the leaves [start, end) that are there, in pages."""
    for first in range(start, end, PAGE):
        rows = _LEAVES.all(tx, {"start": first, "stop": min(first + PAGE, end)})
        yield [(row.n, bytes(row.data), bytes(row.hash)) for row in rows]


def stored(tx: sa.Connection, level: int, start: int, end: int) -> dict[int, bytes]:
    """Return the kept subtree hashes of one level (1 and up) at positions [start, end)."""
    return {row.position: bytes(row.hash) for row in _HASHES.all(tx, {"at_level": level, "start": start, "stop": end})}


def lookup(tx: sa.Connection) -> Lookup:
    """Return a view of the log as it stands in this transaction.

    A subtree whose row is not there is computed from what is below it.
    """
    known: dict[tuple[int, int], bytes] = {}

    def find(level: int, position: int) -> bytes:
        found = known.get((level, position))
        if found is None:
            found = known[level, position] = _read(tx, level, position) or node_hash(
                find(level - 1, position * 2), find(level - 1, position * 2 + 1)
            )
        return found

    return find


def _read(tx: sa.Connection, level: int, position: int) -> bytes | None:
    if level:
        return stored(tx, level, position, position + 1).get(position)
    row = _LEAVES.first(tx, {"start": position, "stop": position + 1})
    if row is None:
        message = f"event {position} is missing from the ledger"
        raise LedgerBroken(message, remedy="run 'archive ledger verify'", verdict="V11")
    return bytes(row.hash)


def integrate(tx: sa.Connection, old: int, new: int) -> None:
    """Keep the subtrees that the leaves [old, new) complete; each leaf is hashed again on the way.

    Raises:
        LedgerBroken: a leaf is missing or not what was recorded (V11).
    """
    fresh: list[bytes] = []
    for page in leaves(tx, old, new):
        for n, data, digest in page:
            if n != old + len(fresh) or leaf_hash(data) != digest:
                message = f"event {old + len(fresh)} of the ledger is missing or was changed"
                raise LedgerBroken(message, remedy="run 'archive ledger verify'", verdict="V11")
            fresh.append(digest)
    if len(fresh) != new - old:
        message = f"event {old + len(fresh)} of the ledger is missing"
        raise LedgerBroken(message, remedy="run 'archive ledger verify'", verdict="V11")
    find = lookup(tx)
    level, start = 0, old
    while start >> 1 != (start + len(fresh)) >> 1:
        if start & 1:
            start -= 1
            fresh.insert(0, find(level, start))
        fresh = [node_hash(fresh[i], fresh[i + 1]) for i in range(0, len(fresh) - 1, 2)]
        level, start = level + 1, start >> 1
        tx.execute(sa.insert(ledger_node), [
            {"level": level, "position": start + i, "hash": digest} for i, digest in enumerate(fresh)
        ])
