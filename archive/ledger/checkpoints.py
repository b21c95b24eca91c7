"""Checkpoints: the log's size and root, signed, and what must hold between one and the next.

Source: docs/format.md 7.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.access.subject import Subject
from archive.db.tables import checkpoint
from archive.errors import LedgerBroken
from archive.keys.keyring import Keyring
from archive.ledger import nodes, notes, objects, tree
from archive.ledger.audit import Event, Kind

MAX_LEAVES = 50_000
_ROLLED_BACK = "restore the newest copy; or, if it is lost: archive ledger acknowledge --reason TEXT"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A signed size and root of the log."""

    size: int
    root: bytes
    at: datetime
    note: bytes


def latest(tx: sa.Connection) -> Checkpoint | None:
    """Return the largest checkpoint, or None before the first."""
    row = tx.execute(sa.select(checkpoint).order_by(checkpoint.c.size.desc()).limit(1)).first()
    return None if row is None else Checkpoint(row.size, bytes(row.root), row.at, bytes(row.note))


def of_size(tx: sa.Connection, size: int) -> Checkpoint | None:
    """Return the checkpoint of a size, or None."""
    row = tx.execute(sa.select(checkpoint).where(checkpoint.c.size == size)).first()
    return None if row is None else Checkpoint(row.size, bytes(row.root), row.at, bytes(row.note))


def make(tx: sa.Connection, keyring: Keyring, at: datetime, *, heartbeat: bool = False) -> Checkpoint | None:
    """Sign the log as it stands, or return None when nothing is new; `heartbeat` signs the last size again.

    At most MAX_LEAVES are taken in at once: call again until None. Inside `locks.alone`, in a transaction that commits with FULL.

    Raises:
        LedgerBroken: the tree at the last checkpoint's size is not what was signed (V13), or a leaf is wrong (V11).
    """
    last = latest(tx)
    size = nodes.size(tx)
    old = 0 if last is None else last.size
    if size < old:
        message = f"the ledger holds {size} events, but {old} were signed"
        raise LedgerBroken(message, remedy=_ROLLED_BACK, verdict="V13")
    if last is not None:
        _check_signed(tx, keyring, last)
    if size == old and not (heartbeat and last is not None):
        return None
    size = min(size, old + MAX_LEAVES)
    nodes.integrate(tx, old, size)
    objects.integrate(tx, old, size)
    origin = notes.origin_of(keyring.archive_uuid)
    root = tree.root(nodes.lookup(tx), size)
    made = Checkpoint(size, root, at, notes.write(origin, size, root, keyring.log_signers, at))
    values = {"root": made.root, "at": made.at, "note": made.note}
    if last is not None and size == old:
        tx.execute(sa.update(checkpoint).where(checkpoint.c.size == size).values(**values))
    else:
        tx.execute(sa.insert(checkpoint), {"size": size, **values})
    return made


def _check_signed(tx: sa.Connection, keyring: Keyring, last: Checkpoint) -> None:
    """Never sign a log that does not continue what was signed."""
    origin = notes.origin_of(keyring.archive_uuid)
    note = notes.read(last.note, notes.verifiers(origin, keyring.public_keys()))
    if (note.origin, note.size, note.root) != (origin, last.size, last.root):
        message = "the last checkpoint is not the one that was signed"
        raise LedgerBroken(message, remedy="run 'archive ledger verify'", verdict="V13")
    if tree.root(nodes.lookup(tx), last.size) != last.root:
        message = "the ledger does not continue what was signed"
        raise LedgerBroken(message, remedy="run 'archive ledger verify'", verdict="V13")


def check_anchor(
    tx: sa.Connection, keyring: Keyring, anchors: Iterable[bytes | None], *, acknowledged: frozenset[str] = frozenset()
) -> None:
    """Refuse a log that is older than, or differs from, what a note kept elsewhere says; None is an anchor not yet written.

    Raises:
        LedgerBroken: rolled back, rewritten, or a note that is not ours (V14).
    """
    size = nodes.size(tx)
    find = nodes.lookup(tx)
    origin = notes.origin_of(keyring.archive_uuid)
    known = notes.verifiers(origin, keyring.public_keys())
    for anchor in anchors:
        if anchor is None or digest(anchor) in acknowledged:
            continue
        try:
            note = notes.read(anchor, known)
            same = note.origin == origin and note.size <= size and tree.root(find, note.size) == note.root
        except LedgerBroken as error:
            message = f"a checkpoint kept beside the ledger does not verify: {error.message}"
            raise LedgerBroken(message, remedy=_ROLLED_BACK, verdict="V14") from error
        if note.size > size:
            message = f"the ledger holds {size} events, but a checkpoint over {note.size} was signed: it was rolled back"
            raise LedgerBroken(message, remedy=_ROLLED_BACK, verdict="V14")
        if not same:
            message = f"the first {note.size} events are not the ones that were signed"
            raise LedgerBroken(message, remedy=_ROLLED_BACK, verdict="V14")


def digest(note: bytes) -> str:
    """Return how an acknowledgement names a note."""
    return hashlib.sha256(note).hexdigest()


def acknowledgement(anchors: Iterable[bytes | None], *, subject: Subject, reason: str, **more: Any) -> Event:
    """Return the event that lets the archive go on after a rollback, from exactly these notes; `more` says of what else."""
    named: list[str] = sorted({digest(anchor) for anchor in anchors if anchor is not None})
    return Event(Kind.CHECKPOINT_ACKNOWLEDGED, subject=subject, detail={"notes": named, "reason": reason, **more})
