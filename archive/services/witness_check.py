"""What witnesses agreed to, against the log as it is: for `archive ledger verify`, with the stored cosignatures alone.

Source: docs/format.md 7.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from archive.db.tables import witness, witness_cosignature
from archive.errors import LedgerBroken
from archive.ledger import checkpoints, cosignatures, nodes, notes, tree, witnessed
from archive.ledger.notes import Verifier
from archive.ledger.verify import Report
from archive.services.core import Core

_C = witness_cosignature.c


def findings(
    core: Core, tx: sa.Connection, report: Report, acknowledged: frozenset[str], *, anchors: Sequence[bytes], claims: Sequence[bytes]
) -> None:
    """Add what does not hold of the cosignatures, the checkpoints kept of witnesses (`anchors`), and what they claim.

    Both are read before `tx` looks at the log, which may go on meanwhile.
    """
    find, size = nodes.lookup(tx), nodes.size(tx)
    for one in anchors:
        try:
            checkpoints.check_anchor(tx, core.keyring, [one], acknowledged=acknowledged)
        except LedgerBroken as error:
            report.add("V14", error.message)
    try:
        witnessed.check_claims(tx, claims, acknowledged=acknowledged)
    except LedgerBroken as error:
        report.add("V14", error.message)
    for row in tx.execute(_rows()):
        if row.size > size or (_root(find, row.size) != bytes(row.root)):
            report.add("V14", f"the witness {row.witness} agreed to other events than the first {row.size}")
        elif not _vouched(core, row):
            report.add("V14", f"what the witness {row.witness} said of {row.size} events is not what it signed")


def agreeing(core: Core, tx: sa.Connection, keys: Sequence[Verifier]) -> list[tuple[Verifier, int, datetime | None]]:
    """Return of each key the largest size of this log it signed for, and when; 0 and None where it signed none."""
    find, size = nodes.lookup(tx), nodes.size(tx)
    best: dict[Verifier, tuple[int, datetime]] = {}
    for row in tx.execute(_rows().where(_C.size <= size)):
        said = _times(core, row, keys) if _root(find, row.size) == bytes(row.root) else {}
        best |= {key: (row.size, at) for key, at in said.items()}
    return [(key, *best.get(key, (0, None))) for key in keys]


def _rows() -> sa.Select[tuple[str, int, bytes, datetime, str, str]]:
    return (
        sa.select(_C.witness, _C.size, _C.root, _C.at, _C.line, witness.c.verifier_key)
        .outerjoin(witness, witness.c.name == _C.witness).order_by(_C.size)
    )


def _vouched(core: Core, row: sa.Row[tuple[str, int, bytes, datetime, str, str]]) -> bool:
    try:
        key = cosignatures.parse_key(row.verifier_key or "")
    except LedgerBroken:
        return False
    return bool(_times(core, row, [key]).get(key) == row.at)


def _times(
    core: Core, row: sa.Row[tuple[str, int, bytes, datetime, str, str]], keys: Sequence[Verifier]
) -> dict[Verifier, datetime]:
    try:
        text = notes.text_of(notes.origin_of(core.keyring.archive_uuid), row.size, bytes(row.root))
        return cosignatures.found(notes.parse(text + b"\n" + row.line.encode()), keys)
    except LedgerBroken:
        return {}


def _root(find: tree.Lookup, size: int) -> bytes:
    try:
        return tree.root(find, size)
    except LedgerBroken:
        return b""
