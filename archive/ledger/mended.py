"""Sealed bodies that do not open any more in a damaged index, taken from the files beside it where those have them.

Source: docs/format.md 6.2, 7.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from archive.db.tables import audit_event, ledger_leaf
from archive.errors import LedgerBroken
from archive.keys.keyring import Keyring
from archive.ledger.bodies import Bodies, commitment
from archive.ledger.files import WIDTH, tile_path

_PAGE = 1000
_BODIES = (
    sa.select(ledger_leaf.c.n, audit_event.c.n.label("event"), audit_event.c.body, ledger_leaf.c.data)
    .outerjoin(audit_event, audit_event.c.n == ledger_leaf.c.n)
    .where(ledger_leaf.c.n > sa.bindparam("last")).order_by(ledger_leaf.c.n).limit(_PAGE)
)


def mend(tx: sa.Connection, keyring: Keyring, directory: Path) -> list[int]:
    """Put the bodies that do not open right from the ledger's files, and return the numbers of those that still do not, or are gone."""
    bodies, last, left = Bodies(keyring), -1, []
    while rows := tx.execute(_BODIES, {"last": last}).all():
        last = rows[-1].n
        for row in rows:
            if _opens(bodies, row.n, bytes(row.body or b""), bytes(row.data)):
                continue
            kept = b"" if row.event is None else _kept(directory, row.n)
            if _opens(bodies, row.n, kept, bytes(row.data)):
                tx.execute(sa.update(audit_event).where(audit_event.c.n == row.n).values(body=kept))
            else:
                left.append(row.n)
    return left


def _opens(bodies: Bodies, n: int, sealed: bytes, leaf: bytes) -> bool:
    """Whether it is the body of that event, or erased: only that its key was destroyed does that."""
    try:
        opened = bodies.open(n, sealed) if sealed else None
        said: Any = msgspec.json.decode(leaf)
        return bodies.erased(sealed) if opened is None else commitment(*opened).hex() == said["c"]
    except (LedgerBroken, msgspec.DecodeError, KeyError, TypeError):
        return False


def _kept(directory: Path, n: int) -> bytes:
    """Return the body that the widest of its files has, or nothing."""
    index, within = divmod(n, WIDTH)
    whole = directory / tile_path("bodies", index)
    parts = sorted(whole.with_name(f"{whole.name}.p").glob("*"), key=lambda path: int(path.name) if path.name.isdecimal() else 0)
    for path in (whole, *reversed(parts)):
        try:
            data = path.read_bytes()
        except OSError:
            continue
        at = 0
        for _ in range(within):
            at += 4 + int.from_bytes(data[at : at + 4], "big")
        return data[at + 4 : at + 4 + int.from_bytes(data[at : at + 4], "big")]
    return b""
