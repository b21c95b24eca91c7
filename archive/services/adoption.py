"""A sealed record gets its rows: the one transaction that store and replay share.

Decided twice: before sealing, so that a duplicate costs no writing, and again inside the transaction, where nobody can come between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import sqlalchemy as sa

from archive.access.subject import Subject
from archive.db.failures import TooLong
from archive.dicom.part10 import Finding, Scanned
from archive.errors import DatabaseUnavailable, InvalidInstance, Unavailable
from archive.index import catalog, columns, emptied, identity
from archive.ledger import statements
from archive.ledger.audit import Event, Kind, ObjectRef, StoredRef
from archive.services import arrival_rules
from archive.services.core import Core
from archive.services.datastores import Datastore
from archive.services.state_events import commit_change, keep_statement
from archive.vault.vault import Kind as RecordKind
from archive.vault.vault import RecordRef

ATTEMPTS = 4
_BUSY = "other transactions were first again and again"
Status = Literal["stored", "duplicate", "held", "conflict"]
_KINDS = {"stored": Kind.STORED, "held": Kind.HELD, "conflict": Kind.CONFLICT, "duplicate": Kind.DUPLICATE}


@dataclass(frozen=True, slots=True)
class Decision:
    """What an instance would become; `twin` is the stored instance with its SOP Instance UID."""

    status: Status
    reason: str = ""
    twin: catalog.StoredInstance | None = None
    emptied: bool = False  # its study was purged: the key that this process may have in mind is gone


@dataclass(frozen=True, slots=True)
class Arrival:
    """A sealed, synced record that no row names yet."""

    place: Datastore
    scanned: Scanned
    ref: RecordRef
    sha256: bytes
    issuer: str
    envelope: bytes
    at: datetime
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Adopted:
    """The rows are committed (or, for a duplicate, were there)."""

    status: Status
    leaf: int
    findings: tuple[Finding, ...]
    kept: bool = True  # False: what came is stored already, so the new record is not needed
    decided: bool = False  # it came before, and somebody decided against it
    other: RecordRef | None = None  # what is kept in place of the new record, where its sender is told so


def decide(tx: sa.Connection, place: Datastore, scanned: Scanned, issuer: str) -> Decision:
    """Return what the instance would become by what is stored now."""
    standing = identity.standing(tx, place.id, scanned, issuer)
    twin = catalog.find_instance(tx, place.id, scanned.sop_instance_uid) if standing.taken else None
    if twin is not None:
        return Decision("conflict", "same SOP Instance UID, other content", twin)
    return Decision("held", standing.conflict) if standing.conflict else Decision("stored", emptied=standing.key_id == emptied.NO_KEY)


def adopt(core: Core, arrival: Arrival, subject: Subject | None, *, door: str) -> Adopted:
    """Commit rows, statement and ledger leaf of a sealed record.

    Committed with synchronous=NORMAL: the record itself is synced and carries all of it, so replay makes it good after a power cut.

    Raises:
        DatabaseUnavailable, OutOfSpace: nothing of it happened. InvalidInstance: nor will it, a value is too long for the index.
        CommitUncertain: it may have happened, so the record stays.
    """
    (settled,) = adopt_all(core, [arrival], subject, door=door)
    if isinstance(settled, Exception):
        raise settled
    return settled


def adopt_all(core: Core, arrivals: Sequence[Arrival], subject: Subject | None, *, door: str) -> list[Adopted | Exception]:
    """Do for several records, in order and with one commit, what `adopt` does; one that fails stands in nobody's way."""
    works = [_work(core, arrival, subject, door) for arrival in arrivals]
    settled: list[Adopted | Exception] = [DatabaseUnavailable(_BUSY, remedy="send the instance again") for _ in works]
    left = list(range(len(works)))
    for _ in range(ATTEMPTS):
        again = []
        for number, queued in zip(left, core.database.group_all([works[number] for number in left]), strict=True):
            try:
                settled[number] = queued.get()
            except sa.exc.IntegrityError:  # a lost race: look again, the other one's rows are there now
                again.append(number)
            except TooLong as error:
                settled[number] = InvalidInstance(error.message, remedy=error.remedy)
            except Exception as error:  # noqa: BLE001 # handed to whoever waits for it
                settled[number] = error
        left = again
        if not left:
            break
    return settled


def _work(core: Core, arrival: Arrival, subject: Subject | None, door: str) -> Callable[[sa.Connection], Adopted]:
    # A replayed record keeps when it was received; its leaf is dated now, or the log's time would run backwards.
    at = core.clock() if arrival.replayed else arrival.at
    # Made before the turn to write, in which all others wait.
    rows = columns.Rows(arrival.scanned)
    rows.prepare()
    usual = core.ledger.draft(_event(Kind.STORED, arrival, subject, door), at=at)

    def work(tx: sa.Connection) -> Adopted:
        decision = _decided(tx, arrival)
        status: Status = decision.status
        findings = arrival.scanned.findings
        if (twin := decision.twin) is not None and twin.sha256 == arrival.sha256:
            if twin.ref.object_id == arrival.ref.object_id:
                return Adopted("stored", twin.leaf, findings)  # a start beside us was first
            if arrival.replayed and twin.rejected:
                return Adopted("duplicate", twin.leaf, findings, kept=False)
            return _duplicate(core, tx, subject, arrival.scanned, twin, door=door, at=at)
        again = catalog.find_held(tx, arrival.place.id, arrival.scanned.sop_instance_uid, arrival.sha256) if status != "stored" else None
        if again is not None:
            if again.object_id == arrival.ref.object_id:
                return Adopted(status, again.leaf, findings)
            leaf = core.ledger.record(tx, _event(_KINDS[status], arrival, subject, door, again=True), at=at)
            waits = status == "held" and again.state != "rejected"
            other = catalog.ref_of(again, arrival.place.uid) if waits else None
            return Adopted(status, leaf, findings, kept=False, decided=again.state == "rejected", other=other)
        leaf = core.ledger.record(tx, usual if status == "stored" else _event(_KINDS[status], arrival, subject, door), at=at)
        entry = catalog.Entry(
            datastore_id=arrival.place.id, scanned=arrival.scanned, ref=arrival.ref, sha256=arrival.sha256, leaf=leaf,
            stored_at=arrival.at, issuer=arrival.issuer, made=rows,
        )
        if status == "stored":
            inserted = catalog.insert(tx, entry)
            if inserted.key_id != arrival.ref.key_id:
                raise _key_changed(core, arrival.ref)
            arrival_rules.arrived(core, tx, inserted, datastore_id=arrival.place.id, envelope=arrival.envelope, at=at)
            findings += tuple(Finding(tag, "differs from what the study or series already says") for tag in inserted.differing)
        else:
            if emptied.key_is_gone(tx, arrival.place.id, arrival.scanned.study_instance_uid, arrival.ref.key_id):
                raise _key_changed(core, arrival.ref)
            catalog.insert_held(tx, "held" if status == "held" else "conflict", decision.reason, entry)
        keep_statement(core, tx, arrival.ref, leaf, arrival.envelope)
        return Adopted(status, leaf, findings)

    return work


def _decided(tx: sa.Connection, arrival: Arrival) -> Decision:
    """Decide about a sealed record; one that was sealed to wait does so though an index that is late knows no reason for it any more."""
    decision = decide(tx, arrival.place, arrival.scanned, arrival.issuer)
    if arrival.replayed and decision.status == "stored" and arrival.ref.kind == RecordKind.HELD:
        return Decision("held", "what it contradicted is not there any more")
    return decision


def _key_changed(core: Core, ref: RecordRef) -> Unavailable:
    core.keystore.forget(ref.key_id)  # the next one asks the keystore
    message = "the study's key changed while the instance arrived"
    return Unavailable(message, remedy="send the instance again")


def record_duplicate(
    core: Core, subject: Subject | None, scanned: Scanned, twin: catalog.StoredInstance, *, datastore_id: int, door: str
) -> int:
    """Record that stored bytes came again and return the leaf; a rejected instance comes back to life by it. Durable.

    Raises:
        Unavailable: what was found when its head arrived has been rejected, restored, replaced or destroyed since.
    """
    at = core.clock()

    def require(tx: sa.Connection) -> None:
        now = catalog.find_instance(tx, datastore_id, scanned.sop_instance_uid)
        if now is None or (now.instance_pk, now.sha256, now.rejected) != (twin.instance_pk, twin.sha256, twin.rejected):
            message = "the instance was rejected, restored or purged while it arrived"
            raise Unavailable(message, remedy="send it again")

    def again(tx: sa.Connection) -> Adopted:
        require(tx)
        return _duplicate(core, tx, subject, scanned, twin, door=door, at=at)

    if not twin.rejected:
        return core.database.group(again, durable=True).leaf
    leaves: list[int] = []

    def work(tx: sa.Connection, stored: StoredRef) -> int:
        require(tx)
        if not catalog.restore(tx, [twin.instance_pk], at=at):
            message = "the instance was restored or purged while it arrived"
            raise Unavailable(message, remedy="send it again")
        detail = {"via": door, "reason": "sent again"}
        event = Event(Kind.RESTORED, subject=subject, objects=_objects(scanned), instances=1, detail=detail, stored=stored)
        leaves.append(core.ledger.record(tx, event, at=at))
        return leaves[-1]

    commit_change(
        core, "restored", datastore=twin.ref.datastore, study_instance_uid=scanned.study_instance_uid, objects=[twin.ref.object_id],
        reason="sent again", at=at, work=work,
    )
    return leaves[-1]


def _duplicate(
    core: Core, tx: sa.Connection, subject: Subject | None, scanned: Scanned, twin: catalog.StoredInstance, *, door: str, at: datetime
) -> Adopted:
    if twin.rejected:
        message = "the instance was rejected while it arrived"
        raise Unavailable(message, remedy="send it again")
    event = Event(
        Kind.DUPLICATE, subject=subject, objects=_objects(scanned), instances=1, bytes=twin.ref.part10_bytes,
        # Who sent it may ask for commitment, of these bytes alone.
        detail={
            "via": door, "sop_instance_uid": scanned.sop_instance_uid, "sha256": twin.sha256.hex(),
            "datastore": twin.ref.datastore.hex(),
        },
    )
    return Adopted("duplicate", core.ledger.record(tx, event, at=at), scanned.findings, kept=False, other=twin.ref)


def _event(kind: Kind, arrival: Arrival, subject: Subject | None, door: str, *, again: bool = False) -> Event:
    # Who sent what was not let in is not told that other bytes under its UID are theirs.
    which = {} if kind is Kind.STORED else {
        "sop_instance_uid": arrival.scanned.sop_instance_uid, "sha256": arrival.sha256.hex(), "datastore": arrival.place.uid.hex(),
    }
    return Event(
        kind, subject=subject, objects=_objects(arrival.scanned), instances=1, bytes=arrival.ref.part10_bytes,
        detail={"via": door, **({"replayed": 1} if arrival.replayed else {}), **({"again": 1} if again else {}), **which},
        stored=None if again else StoredRef(statements.digest(arrival.envelope), arrival.ref.object_id, arrival.ref.location.record_bytes),
    )


def _objects(scanned: Scanned) -> tuple[ObjectRef, ...]:
    patient_id = scanned.text("PatientID")
    study = (ObjectRef("study", scanned.study_instance_uid), ObjectRef("series", scanned.series_instance_uid))
    return (ObjectRef("patient", patient_id), *study) if patient_id else study
