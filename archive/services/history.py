"""The catalog made again: what the ledger says happened, in its order, done with what the sealed records hold."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from archive.access import policy
from archive.db.batches import batches
from archive.db.failures import TooLong, translated
from archive.db.tables import audit_event, datastore, held, instance, ledger_leaf, statement
from archive.errors import ArchiveError, DigestMismatch, InstanceConflict
from archive.index import catalog
from archive.ledger import statements
from archive.services import adoption, working
from archive.services.core import Core
from archive.services.datastores import Datastore
from archive.services.purged import carry_out, keys_of
from archive.services.reconcile import let_in
from archive.services.records import decode
from archive.services.state_events import decode_change, keep_statement
from archive.services.survey import Progress, Survey, first_sound
from archive.services.untaken import NOWHERE
from archive.vault.vault import Damage, FoundRecord, Kind

ARRIVALS = frozenset({"stored", "held", "conflict"})
CHANGES = frozenset({"rejected", "restored", "reconciled", "purged"}) | working.LABELS
_PAGE = 1000
_USUAL = 64
"""Characters that the standard allows a value that is searched by."""
_INDEXED = ("PatientID", "IssuerOfPatientID", "PatientName", "AccessionNumber", "Modality")
_TOKEN = policy.system("rebuild")
_LEAVES = (
    sa.select(ledger_leaf.c.n, ledger_leaf.c.data, audit_event.c.principal_id)
    .outerjoin(audit_event, audit_event.c.n == ledger_leaf.c.n)
    .where(ledger_leaf.c.n > sa.bindparam("last")).order_by(ledger_leaf.c.n).limit(_PAGE)
)


@dataclass(slots=True)
class Done:
    """What was made; `missing` are events whose record is not there or not sound, by number and verdict."""

    instances: int = 0
    held: int = 0
    changes: int = 0
    missing: list[tuple[int, str]] = field(default_factory=list)
    too_long: list[int] = field(default_factory=list)  # events of what this database's index does not take


class History:
    """Runs in one transaction, on an empty catalog."""

    def __init__(self, core: Core, tx: sa.Connection, found: Survey) -> None:
        """Take records from where the survey found them."""
        self._core, self._tx, self._found = core, tx, found
        self._places = {bytes(row.uid): Datastore(row.id, bytes(row.uid), row.name) for row in tx.execute(sa.select(datastore))}
        self._purged: set[bytes] = set()
        self._lost: dict[bytes, list[int]] = {}  # objects whose record is not there, by the events that name them
        self._refused: dict[bytes, str] = {}  # objects with a value that this database's index does not take: another may
        self._unsound: dict[bytes, str] = {}  # objects of which something is there that does not verify
        self.working = False  # whether worklist, steps, workitems and commitments are to be made again too
        self._keyless: dict[str, int] = {}  # studies whose key was destroyed, by which event
        self.done = Done()

    def run(self, progress: Progress) -> None:
        """Do everything the ledger says of instances, oldest first."""
        self._foresee()
        last, todo = -1, self._found.objects
        while rows := self._tx.execute(_LEAVES, {"last": last}).all():
            last = rows[-1].n
            for row in rows:
                leaf = _parsed(row.data)
                if "obj" not in leaf or leaf.get("k") not in ARRIVALS | CHANGES:
                    continue
                try:
                    (self._arrival if leaf["k"] in ARRIVALS else self._change)(row.n, leaf, row.principal_id)
                except TooLong:
                    self.done.too_long.append(row.n)
                    self._refused[bytes.fromhex(leaf["obj"])] = ""
                except ArchiveError as error:
                    if not error.verdict:
                        raise
                    self._miss(row.n, leaf, error.verdict)
            progress("records taken in", todo - self._found.objects, todo)
        if self._lost:
            self._purged_since()

    def _miss(self, n: int, leaf: dict[str, Any], verdict: str) -> None:
        self._lost.setdefault(bytes.fromhex(leaf["obj"]), []).append(n)
        self.done.missing.append((n, verdict))

    def _purged_since(self) -> None:
        """Miss nothing that was purged later than the ledger knows: of that the event record is left, and a catch-up does it again."""
        gone: set[int] = set()
        for segment_id, offset in self._found.left():
            record = self._core.vault.find(segment_id, offset)
            if not isinstance(record, FoundRecord) or record.ref.kind != Kind.EVENT:
                continue
            with suppress(ArchiveError):  # told when its turn comes
                change = decode_change(self._core.vault.read_range(record.ref, 0, record.ref.part10_bytes))
                if change["change"] == "purged":
                    gone.update(n for one in change["objects"] for n in self._lost.get(bytes.fromhex(one), ()))
        self.done.missing = [(n, verdict) for n, verdict in self.done.missing if n not in gone]

    def untaken(self) -> dict[bytes, str]:
        """Return the objects that are missed, with what was wrong; of those of which nothing was found one stands for all."""
        missing = dict(self.done.missing)
        found = dict(self._refused)
        for one, numbers in self._lost.items():
            verdict = next((missing[n] for n in numbers if n in missing), None)
            if verdict is not None and (verdict != NOWHERE or NOWHERE not in found.values()):
                found[one] = verdict
        return found

    def _foresee(self) -> None:
        """Learn what was purged later: its arrival is passed over, for nothing of it may come back, and its record may be gone."""
        events = (
            sa.select(ledger_leaf.c.n, ledger_leaf.c.data).join(audit_event, audit_event.c.n == ledger_leaf.c.n)
            .where(audit_event.c.kind == "purged").order_by(ledger_leaf.c.n)
        )
        for row in self._tx.execute(events).all():
            leaf = _parsed(row.data)
            payload = self._said(row.n, leaf) if "obj" in leaf else None
            if payload is None or not hmac.compare_digest(statements.digest(payload).hex(), str(leaf.get("stmt"))):
                continue  # told when its turn comes
            change = decode_change(payload)
            self._purged.update(bytes.fromhex(one) for one in change["objects"])
            if keys_of(change):
                name = self._core.keyring.pseudonym("ledger/study", change["study"]).hex()
                self._keyless[name] = row.n

    def _record(self, leaf: dict[str, Any]) -> FoundRecord | None:
        object_id = bytes.fromhex(leaf["obj"])
        found = first_sound(self._core, self._found.take(object_id))
        if isinstance(found, Damage):
            self._unsound[object_id] = found.verdict
            return None
        return found

    def _arrival(self, n: int, leaf: dict[str, Any], _by: int | None) -> None:
        record = self._record(leaf)
        if bytes.fromhex(leaf["obj"]) in self._purged:
            return
        if record is None:
            self._miss(n, leaf, self._unsound.get(bytes.fromhex(leaf["obj"]), NOWHERE))
            return
        core, tx, ref = self._core, self._tx, record.ref
        sections = core.vault.sections(ref)
        if statements.digest(sections.statement).hex() != leaf.get("stmt"):
            message = "a record's statement is not the one the ledger commits to"
            raise DigestMismatch(message, verdict="V11")
        signed = statements.verify(sections.statement, core.keyring.public_keys())
        if signed["sha256"] != record.sha256.hex():
            message = "a record's bytes are not the ones its statement signs"
            raise DigestMismatch(message, verdict="V08")
        meta = decode(sections.meta)
        place = self._places[ref.datastore]
        entry = catalog.Entry(
            datastore_id=place.id, scanned=meta.scanned, ref=ref, sha256=record.sha256, leaf=n,
            stored_at=datetime.fromisoformat(meta.received["at"]), issuer=meta.issuer,
        )
        searched = (meta.issuer, *("\\".join(meta.scanned.values(one)) for one in _INDEXED))  # many short values are long too
        with self._apart(any(len(text) > _USUAL for text in searched)):
            decided = adoption.decide(tx, place, meta.scanned, meta.issuer)
            kind: str = leaf["k"]
            stored = kind == "stored" and decided.twin is None and self._insert(entry)
            if not stored:
                waits: Literal["held", "conflict"] = "held" if "held" in (kind, decided.status) and kind != "conflict" else "conflict"
                reason = decided.reason if decided.status == waits else "what it contradicted is not there any more"
                catalog.insert_held(tx, waits, reason, entry)
            keep_statement(core, tx, ref, n, sections.statement)
        self.done.instances += stored
        self.done.held += not stored

    @contextmanager
    def _apart(self, apart: bool = True) -> Iterator[None]:
        """Undo what fails in this alone: of a value that is too long a server's transaction is not to be gone on with else."""
        with translated(), self._tx.begin_nested() if apart and self._tx.dialect.name == "postgresql" else nullcontext():
            yield

    def _insert(self, entry: catalog.Entry) -> bool:
        try:
            catalog.insert(self._tx, entry)
        except InstanceConflict:
            return False  # what let it in then is missing now
        return True

    def _said(self, n: int, leaf: dict[str, Any]) -> bytes | None:
        """Return what a change said, by its record, which is kept beside its leaf then, or by what was kept before; None of neither."""
        tx, record = self._tx, self._record(leaf)
        if record is not None and record.ref.kind == Kind.EVENT:
            payload = self._core.vault.read_range(record.ref, 0, record.ref.part10_bytes)
            tx.execute(sa.delete(statement).where((statement.c.leaf == n) | (statement.c.object_id == record.ref.object_id)))
            keep_statement(self._core, tx, record.ref, n, payload)
            return payload
        kept = tx.execute(sa.select(statement.c.envelope).where(statement.c.leaf == n)).scalar()
        return None if kept is None else bytes(kept)

    def _change(self, n: int, leaf: dict[str, Any], by: int | None) -> None:
        payload = self._said(n, leaf)
        if payload is None:
            if not any(n < self._keyless.get(one, 0) for one in leaf.get("ob", ())):
                self._miss(n, leaf, self._unsound.get(bytes.fromhex(leaf["obj"]), NOWHERE))
            return  # else sealed under the study's key, as earlier releases did, and gone with all it was about
        if not hmac.compare_digest(statements.digest(payload).hex(), str(leaf.get("stmt"))):
            message = "a change of state is not the one the ledger commits to"
            raise DigestMismatch(message, verdict="V11")
        change = decode_change(payload)
        if change["change"] in working.KINDS and not self.working:
            return  # its rows stand
        try:
            with self._apart():
                apply_change(self._core, self._tx, change, by=by, leaf=n)
        except InstanceConflict:
            self.done.missing.append((n, "V10"))  # what it was let in to is missing now
        else:
            self.done.changes += 1


def forget_arrivals(tx: sa.Connection) -> None:
    """Forget what was kept beside leaves, but for what changes said that their leaves name."""
    changes = sa.select(audit_event.c.n).where(audit_event.c.kind.in_(CHANGES))
    tx.execute(sa.delete(statement).where(statement.c.leaf.not_in(changes)))
    kept = (
        sa.select(statement.c.leaf, statement.c.object_id, ledger_leaf.c.data).outerjoin(ledger_leaf, ledger_leaf.c.n == statement.c.leaf)
        .where(statement.c.leaf > sa.bindparam("last")).order_by(statement.c.leaf).limit(_PAGE)
    )
    last = -1
    while rows := tx.execute(kept, {"last": last}).all():
        last = rows[-1].leaf
        for some in batches([row.leaf for row in rows if not _names(_parsed(row.data or b"{}"), bytes(row.object_id))]):
            tx.execute(sa.delete(statement).where(statement.c.leaf.in_(some)))


def _names(leaf: dict[str, Any], object_id: bytes) -> bool:
    return leaf.get("k") in CHANGES and leaf.get("obj") == object_id.hex()


def apply_change(
    core: Core, tx: sa.Connection, change: dict[str, Any], *, by: int | None, leaf: int, late: datetime | None = None
) -> None:
    """Do again what an event record says was done, to what there is of its objects; `late`: sealed then, and the ledger did not know of it.

    Raises:
        DigestMismatch: a change this release does not know.
    """
    at, what = datetime.fromisoformat(change["at"]), change["change"]
    objects = [bytes.fromhex(one) for one in change["objects"]]
    if what in working.KINDS:
        working.redo(tx, change, leaf, late=late)
        return
    if what in ("rejected", "restored"):
        pks = [
            pk for start in range(0, len(objects), _PAGE) for pk in policy.run_as(
                tx, _TOKEN, sa.select(instance.c.id).where(instance.c.object_id.in_(objects[start : start + _PAGE]))
            ).scalars()
        ]
        if what == "rejected":
            catalog.reject(tx, pks, by=by, reason=change["reason"], at=at)
        else:
            catalog.restore(tx, pks, at=at)
        return
    if what == "purged":
        carry_out(core, tx, change, leaf=leaf, at=at, anew=late is not None)
        return
    if what not in ("accepted", "held-rejected"):
        message = "a change of state of a kind this release does not know"
        raise DigestMismatch(message, verdict="V11", remedy="install the release that wrote it")
    for row in policy.run_as(tx, _TOKEN, sa.select(held).where(held.c.object_id.in_(objects))).all():
        if not catalog.decide_held(tx, row.id, "accepted" if what == "accepted" else "rejected", by=by, at=at) or what != "accepted":
            continue
        place = tx.execute(sa.select(datastore.c.uid).where(datastore.c.id == row.datastore_id)).scalar_one()
        ref = catalog.ref_of(row, bytes(place))
        meta = decode(core.vault.sections(ref).meta)
        let_in(core, tx, catalog.Entry(
            datastore_id=row.datastore_id, scanned=meta.scanned, ref=ref, sha256=bytes(row.sha256), leaf=row.leaf, stored_at=at,
            issuer=meta.issuer,
        ), by=by)


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        return dict(msgspec.json.decode(bytes(data)))
    except msgspec.DecodeError:
        return {}  # the ledger's own check tells
