"""Reconcile: data managers decide about instances that are held, in conflict or in quarantine."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.access import policy
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.tables import datastore, held, statement
from archive.errors import InstanceConflict, InvalidRequest, NotFound
from archive.index import catalog
from archive.index.identity import TOKEN
from archive.ledger.audit import Event, Kind, ObjectRef, StoredRef
from archive.services import arrival_rules, denials
from archive.services.core import Core
from archive.services.datastores import Datastore
from archive.services.records import decode
from archive.services.state_events import commit_change

_REPLACED = "replaced by a data manager"


class Reconcile:
    """The queue of instances that were kept but not let in; needs the permission patient-merge, or the console."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core

    def list(self, subject: Subject, *, every: bool = False) -> list[dict[str, Any]]:
        """Return what waits, oldest first; with `every`, what was decided too.

        Raises:
            Forbidden.
        """
        core = self._core
        with denials.recorded(core, subject), core.database.read() as tx:
            policy.require(tx, subject, Permission.PATIENT_MERGE, core.clock())
            rows = [_as_dict(row) for row in catalog.list_held(tx, state=None if every else "open")]
        patients = sorted({row["patient_id"] for row in rows if row["patient_id"]})
        event = Event(Kind.READ, subject=subject, objects=tuple(ObjectRef("patient", one) for one in patients), instances=len(rows),
                      detail={"what": "reconcile-list"})
        with core.database.begin() as tx:
            core.ledger.record(tx, event, at=core.clock())
        return rows

    def show(self, subject: Subject, held_id: int) -> dict[str, Any]:
        """Return one, with the differences to what is stored under its UIDs.

        Raises:
            Forbidden, NotFound.
        """
        core = self._core
        with denials.recorded(core, subject), core.database.read() as tx:
            policy.require(tx, subject, Permission.PATIENT_MERGE, core.clock())
            row, place = self._row(tx, held_id)
            twin = catalog.find_instance(tx, place.id, row.sop_instance_uid)
        shown = _as_dict(row)
        arriving = decode(core.vault.sections(catalog.ref_of(row, place.uid)).meta).scanned
        shown["findings"] = [f"{one.tag} {one.text}" for one in arriving.findings]
        if twin is not None:
            stored = decode(core.vault.sections(twin.ref).meta).scanned
            tags = sorted(stored.attributes.keys() | arriving.attributes.keys())
            shown["differing"] = [tag for tag in tags if stored.attributes.get(tag) != arriving.attributes.get(tag)]
        with core.database.begin() as tx:
            event = Event(Kind.READ, subject=subject, objects=(ObjectRef("study", row.study_instance_uid),), instances=1,
                          detail={"what": "reconcile", "held": held_id})
            core.ledger.record(tx, event, at=core.clock())
        return shown

    def accept(self, subject: Subject, held_id: int, *, reason: str) -> None:
        """Let the instance in: held ones join the study their UIDs name; one in conflict takes the stored one's place.

        The replaced instance is kept, out of sight, as a decided row of the queue.

        Raises:
            Forbidden, NotFound, InvalidRequest.
        """
        core = self._core
        row, place = self._open(subject, held_id, reason)
        at = core.clock()
        ref = catalog.ref_of(row, place.uid)
        sections = core.vault.sections(ref)
        meta = decode(sections.meta)
        entry = catalog.Entry(
            datastore_id=place.id, scanned=meta.scanned, ref=ref, sha256=bytes(row.sha256), leaf=row.leaf, stored_at=at,
            issuer=meta.issuer,
        )

        def work(tx: sa.Connection, stored: StoredRef) -> int:
            if not catalog.decide_held(tx, held_id, "accepted", by=subject.principal_id, at=at):
                message = "that instance has been decided already"
                raise InvalidRequest(message)
            try:
                inserted = let_in(core, tx, entry, by=subject.principal_id)
            except InstanceConflict as error:
                message = "its study or series UID belongs to another study, so it cannot join as it is"
                raise InvalidRequest(message, remedy="reject it, and send it again with right UIDs") from error
            if inserted is not None:
                arrival_rules.arrived(core, tx, inserted, datastore_id=place.id, envelope=sections.statement, at=at)
            return self._record(tx, "accepted", row, subject, reason, stored)

        commit_change(
            core, "accepted", datastore=place.uid, study_instance_uid=row.study_instance_uid, objects=[ref.object_id], reason=reason,
            at=at, work=work,
        )

    def reject(self, subject: Subject, held_id: int, *, reason: str) -> None:
        """Close the case; the instance stays sealed, out of everyone's sight.

        Raises:
            Forbidden, NotFound, InvalidRequest.
        """
        core = self._core
        row, place = self._open(subject, held_id, reason)
        at = core.clock()

        def work(tx: sa.Connection, stored: StoredRef) -> int:
            if not catalog.decide_held(tx, held_id, "rejected", by=subject.principal_id, at=at):
                message = "that instance has been decided already"
                raise InvalidRequest(message)
            return self._record(tx, "rejected", row, subject, reason, stored)

        commit_change(
            core, "held-rejected", datastore=place.uid, study_instance_uid=row.study_instance_uid, objects=[bytes(row.object_id)],
            reason=reason, at=at, work=work,
        )

    def _open(self, subject: Subject, held_id: int, reason: str) -> tuple[Any, Datastore]:
        core = self._core
        core.require_writable()
        if not reason.strip():
            message = "a reason is needed"
            raise InvalidRequest(message, remedy="say why with --reason")
        with denials.recorded(core, subject), core.database.read() as tx:
            policy.require(tx, subject, Permission.PATIENT_MERGE, core.clock())
            return self._row(tx, held_id)

    @staticmethod
    def _row(tx: sa.Connection, held_id: int) -> tuple[Any, Datastore]:
        row = catalog.held_row(tx, held_id)
        if row is None:
            message = "there is nothing waiting under that id"
            raise NotFound(message, remedy="'archive reconcile list' shows what waits")
        place = tx.execute(sa.select(datastore).where(datastore.c.id == row.datastore_id)).one()
        return row, Datastore(place.id, bytes(place.uid), place.name)

    def _record(self, tx: sa.Connection, decision: str, row: Any, subject: Subject, reason: str, stored: StoredRef) -> int:
        event = Event(
            Kind.RECONCILED, subject=subject, objects=(ObjectRef("study", row.study_instance_uid),), instances=1,
            detail={"decision": decision, "held": row.id, "kind": row.kind, "reason": reason}, stored=stored,
        )
        return self._core.ledger.record(tx, event, at=self._core.clock())


def let_in(core: Core, tx: sa.Connection, entry: catalog.Entry, *, by: int | None) -> catalog.Inserted | None:
    """Put an instance that waited among the others; one that has its SOP Instance UID gives way, and is kept out of sight.

    Returns:
        What was added; nothing where it took another's place.

    Raises:
        InstanceConflict: its study or series UID belongs to another.
    """
    twin = catalog.find_instance(tx, entry.datastore_id, entry.scanned.sop_instance_uid)
    if twin is None:
        return catalog.insert(tx, entry)
    meta = decode(core.vault.sections(twin.ref).meta)
    replaced = catalog.Entry(
        datastore_id=entry.datastore_id, scanned=meta.scanned, ref=twin.ref, sha256=twin.sha256, leaf=_leaf(tx, twin.ref.object_id),
        stored_at=entry.stored_at, issuer=meta.issuer,
    )
    catalog.replace(tx, twin, entry)
    if twin.rejected:
        catalog.restore(tx, [twin.instance_pk], at=entry.stored_at)  # who accepts an instance wants it seen
    if not _put_aside(tx, twin.ref.object_id, by=by, at=entry.stored_at):
        pk = catalog.insert_held(tx, "conflict", _REPLACED, replaced)
        catalog.decide_held(tx, pk, "rejected", by=by, at=entry.stored_at)
    return None


def _put_aside(tx: sa.Connection, object_id: bytes, *, by: int | None, at: datetime) -> bool:
    """Close the row of an instance that waited itself before it was let in; False when it has none."""
    values = {"state": "rejected", "reason": _REPLACED, "decided_by": by, "decided_at": at}
    return bool(policy.run_as(tx, TOKEN, sa.update(held).where(held.c.object_id == object_id).values(values)).rowcount)


def _leaf(tx: sa.Connection, object_id: bytes) -> int:
    return int(tx.execute(sa.select(statement.c.leaf).where(statement.c.object_id == object_id)).scalar_one())


def _as_dict(row: Any) -> dict[str, Any]:
    return {
        "id": row.id, "kind": row.kind, "reason": row.reason, "state": row.state, "study_instance_uid": row.study_instance_uid,
        "series_instance_uid": row.series_instance_uid, "sop_instance_uid": row.sop_instance_uid, "patient_id": row.patient_id,
        "patient_name": row.patient_name, "sha256": bytes(row.sha256).hex(), "created_at": row.created_at.isoformat(),
    }
