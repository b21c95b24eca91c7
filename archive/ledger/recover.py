"""The log brought back from the files beside it, when its tables are lost.

Source: docs/format.md 6, 7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from archive.db.tables import audit_event, checkpoint, ledger_leaf
from archive.errors import LedgerBroken
from archive.keys.keyring import Keyring
from archive.keys.sealing import parse_instant
from archive.ledger import files, nodes, notes, objects, tree
from archive.ledger.audit import ObjectRef, principal_pseudonym
from archive.ledger.bodies import Bodies, commitment, parse
from archive.ledger.files import WIDTH, tile_path

REMEDY = "bring storage/ledger back from a backup; without that folder the log begins anew, and says so"
_PRINCIPALS = 10_000


@dataclass(frozen=True, slots=True)
class Recovered:
    """The log as it was when its last checkpoint was signed; `erased` counts bodies that are not there."""

    size: int
    at: datetime | None
    erased: int = 0


def paths(size: int) -> Iterator[str]:
    """Yield the path of every file of a log of that many leaves, those that are not full first."""
    found: list[tuple[str, int]] = []
    level = 0
    while level == 0 or size >> (8 * level):
        count = size >> (8 * level)
        kinds = ("tile/0", "tile/entries", "bodies") if level == 0 else (f"tile/{level}",)
        for index in range(-(-count // WIDTH)):
            width = min(WIDTH, count - index * WIDTH)
            found += [(tile_path(kind, index, width), width) for kind in kinds]
        level += 1
    yield from (path for path, _ in sorted(found, key=lambda one: one[1] == WIDTH))


def recover(
    tx: sa.Connection, keyring: Keyring, directory: Path, *, progress: Callable[[int, int], None] = lambda _done, _total: None
) -> Recovered:
    """Fill the empty tables of the log, but for statements, from its files, and prove them against their checkpoint.

    Raises:
        LedgerBroken: a file is missing or changed (V11, V13). VaultUnavailable.
    """
    signed = files.read_checkpoint(directory)
    if signed is None:
        return Recovered(0, None)
    origin = notes.origin_of(keyring.archive_uuid)
    note = notes.read(signed, notes.verifiers(origin, keyring.public_keys()))
    if note.origin != origin:
        message = "the checkpoint beside the ledger is another archive's"
        raise LedgerBroken(message, remedy=REMEDY, verdict="V13")
    reader = _Reader(keyring, directory)
    for start in range(0, note.size, WIDTH):
        end = min(start + WIDTH, note.size)
        leaves, events = reader.tile(start, end)
        tx.execute(sa.insert(ledger_leaf), leaves)
        tx.execute(sa.insert(audit_event), [event for event, _ in events])
        for event, refs in events:
            objects.record(tx, event["n"], refs)
        nodes.integrate(tx, start, end)
        objects.integrate(tx, start, end)
        progress(end, note.size)
    if tree.root(nodes.lookup(tx), note.size) != note.root:
        message = "the ledger's files are not the ones that were signed"
        raise LedgerBroken(message, remedy=REMEDY, verdict="V13")
    tx.execute(sa.insert(checkpoint), {"size": note.size, "root": note.root, "at": note.signed_at, "note": signed})
    return Recovered(note.size, note.signed_at, reader.erased)


class _Reader:
    def __init__(self, keyring: Keyring, directory: Path) -> None:
        self._keyring, self._directory = keyring, directory
        self._bodies = Bodies(keyring)
        self._principals: dict[str, int] = {}
        self.erased = 0

    def tile(self, start: int, end: int) -> tuple[list[dict[str, Any]], list[tuple[dict[str, Any], list[bytes]]]]:
        """Return the rows of leaves and of audit events, each of these with the objects it is about."""
        entries = self._entries("tile/entries", start, end, 2)
        bodies = self._entries("bodies", start, end, 4)
        leaves = [{"n": start + i, "data": data, "hash": tree.leaf_hash(data)} for i, data in enumerate(entries)]
        return leaves, [self._event(start + i, data, body) for i, (data, body) in enumerate(zip(entries, bodies, strict=True))]

    def _entries(self, kind: str, start: int, end: int, prefix: int) -> list[bytes]:
        path = self._directory / tile_path(kind, start // WIDTH, end - start)
        try:
            data = path.read_bytes()
        except OSError:
            message = f"the ledger's file {path.relative_to(self._directory)} is missing"
            raise LedgerBroken(message, remedy=REMEDY, verdict="V11") from None
        found: list[bytes] = []
        at = 0
        while at < len(data):
            length = int.from_bytes(data[at : at + prefix], "big")
            at += prefix + length
            found.append(data[at - length : at])
        if at != len(data) or len(found) != end - start:
            message = f"the ledger's file {path.relative_to(self._directory)} is damaged"
            raise LedgerBroken(message, remedy=REMEDY, verdict="V11")
        return found

    def _event(self, n: int, data: bytes, sealed: bytes) -> tuple[dict[str, Any], list[bytes]]:
        try:
            leaf = msgspec.json.decode(data, type=dict[str, Any])
            row = {
                "n": n, "at": parse_instant(leaf["t"]), "kind": leaf["k"], "action": leaf["a"], "outcome": leaf["o"],
                "principal_id": None, "peer_id": None, "instances": leaf.get("i", 0), "body": sealed or None,
            }
        except (msgspec.DecodeError, KeyError, ValueError, TypeError):
            message = f"event {n} is not what a leaf is"
            raise LedgerBroken(message, remedy=REMEDY, verdict="V11") from None
        opened = self._bodies.open(n, sealed) if sealed else None
        if opened is None:
            self.erased += 1
            row["principal_id"] = self._principal(leaf.get("p"))
            return row, []
        if commitment(*opened).hex() != leaf.get("c"):
            message = f"the body of event {n} is not the one its leaf commits to"
            raise LedgerBroken(message, remedy=REMEDY, verdict="V12")
        body = parse(opened[1])
        subject = body.get("subject", {})
        row["principal_id"], row["peer_id"] = subject.get("principal"), subject.get("peer")
        return row, [ObjectRef(kind, value).pseudonym(self._keyring) for kind, value in body["objects"]]

    def _principal(self, pseudonym: str | None) -> int | None:
        """Return whom a leaf without its body names; ids are small and given out in order."""
        if pseudonym is None:
            return None
        if not self._principals:
            self._principals = {principal_pseudonym(self._keyring, one): one for one in range(1, _PRINCIPALS)}
        return self._principals.get(pseudonym)
