"""Shred: a whole study taken away for good, its key destroyed, with a receipt that anyone can check.

Everything of it is rejected, then purged in one event that destroys its keys (docs/format.md 2.5); the receipt is given when they are
gone (8.1). What was begun is finished by the next start.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.access import policy, predicate
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.tables import held, instance, series, study
from archive.errors import ArchiveError, InvalidRequest, NotFound, StateConflict, Unavailable
from archive.index import catalog
from archive.ledger.audit import Event, Kind, ObjectRef, StoredRef
from archive.services import datastores, denials, hold_rows, holds, receipts
from archive.services.core import Core
from archive.services.datastores import Datastore
from archive.services.purge import ANY_SE, Purge
from archive.services.rekey import rekeying
from archive.services.state_events import commit_change
from archive.services.two_person import Wish, demand

_TOKEN = policy.system("shred")
ATTEMPTS = 5
"""How often a study that grows meanwhile is begun with again."""


@dataclass(frozen=True, slots=True)
class Shredded:
    """What is gone: instances, their bytes, keys; and the receipt, by the number of its event and as it was signed."""

    study: str
    at: datetime
    instances: int
    bytes: int
    keys: int
    event: int
    receipt: str


class Shred:
    """Needs the permission purge on the whole study, or the console; safe to share between threads."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core
        self._purge = Purge(core)

    def run(self, subject: Subject, study_instance_uid: str, *, reason: str, datastore: str = datastores.DEFAULT) -> Shredded:
        """Destroy a study with its key, whatever of it was rejected or waits; nobody can bring it back.

        Raises:
            NotFound: there is none, or not all of it is the subject's to purge; both look the same.
            StateConflict: it is on hold, or something of it is out of sight that no event explains.
            InvalidRequest: no reason. AwaitsApproval, ReadOnly, OutOfSpace, VaultUnavailable, DatabaseUnavailable.
        """
        core = self._core
        core.require_writable()
        if not reason.strip():
            message = "a reason is needed"
            raise InvalidRequest(message, remedy="say why with --reason")
        try:
            place = self._entitled(subject, study_instance_uid, datastore)
        except (NotFound, StateConflict):
            self._refused(subject, study_instance_uid, datastore)
            raise
        asked = {"study": study_instance_uid, "datastore": place.name, "reason": reason}
        said = f"shred study {study_instance_uid}: every image of it and its key, for good"
        subject = demand(core, subject, Wish("shred", said, Permission.NONE, asked, reason))
        with rekeying(core):
            return self._destroy(subject, place, study_instance_uid, reason)

    def _destroy(self, subject: Subject, place: Datastore, uid: str, reason: str) -> Shredded:
        core = self._core
        instances = gone = keys = 0
        for _ in range(ATTEMPTS):
            self._reject(subject, place, uid, reason)
            done = self._purge.run(subject, place.name, study=uid, reason=reason, whole=True)
            instances, gone, keys = instances + done.instances, gone + done.bytes, keys + done.keys
            if done.doubted:
                message = "something of the study is out of sight, and no event says why"
                raise StateConflict(message, remedy="run 'archive verify'")
            if not done.changed:
                break
        with core.database.read() as tx:
            made = receipts.found(core, tx, uid)
        if not made or keys == 0:
            message = "the study changed meanwhile, and is not all gone"
            raise StateConflict(message, remedy="give the command again")
        core.keystore.drop_coming(place.uid, uid, at=core.clock())  # of a re-keying that was cut short
        return Shredded(uid, made[0].at, instances, gone, keys, made[0].event, made[0].document)

    def receipts(self, subject: Subject, study_instance_uid: str) -> list[receipts.Receipt]:
        """Return the receipts of a study that was shredded.

        Raises:
            Forbidden: without the permission audit. NotFound: none.
        """
        core = self._core
        with denials.recorded(core, subject), core.database.read() as tx:
            policy.require(tx, subject, Permission.AUDIT, core.clock())
            made = receipts.found(core, tx, study_instance_uid)
        event = Event(Kind.AUDIT_READ, subject=subject, objects=(ObjectRef("study", study_instance_uid),), detail={"what": "receipt"})
        with core.database.begin() as tx:
            core.ledger.record(tx, event, at=core.clock())
        if not made:
            message = "no such study was shredded here"
            raise NotFound(message)
        return made

    def require(self, subject: Subject, study_instance_uid: str, datastore: str) -> None:
        """Check that the subject could shred a study.

        Raises:
            NotFound, StateConflict.
        """
        self._entitled(subject, study_instance_uid, datastore)

    # --- who may -------------------------------------------------------------------------------------------------------------------

    def _entitled(self, subject: Subject, uid: str, datastore: str) -> Datastore:
        core = self._core
        at = core.clock()
        hold_rows.mend(core, at)
        with core.database.read() as tx:
            place = datastores.asked_for(tx, subject, datastore, at)
            every = _series(place, uid)
            there = set(policy.run_as(tx, _TOKEN, every).scalars())
            waits = policy.run_as(tx, _TOKEN, sa.select(held.c.id).where(*_held(place, uid)).limit(1)).first() is not None
            if subject.kind != "console":
                scope = policy.scope_of(subject, Permission.PURGE, at)
                mine = set(scope.run(tx, every.where(predicate.series_condition(ANY_SE, scope.shape))).scalars())
                if mine != there:
                    there = set()
                waits = waits and bool(there)
            if not there and not waits:
                message = "there is nothing under that UID that could be shredded as a whole"
                raise NotFound(message, remedy="check the UID; the permission purge is needed on all of the study")
            holds.require_none(tx, place.id, uid, at)
            hold_rows.require_none(core, tx, place.name, uid, at)
        return place

    def _refused(self, subject: Subject, uid: str, datastore: str) -> None:
        """No audit, no answer."""
        core = self._core
        event = Event(
            Kind.DENIED, outcome=4, subject=subject, objects=(ObjectRef("study", uid),), detail={"what": "shred", "datastore": datastore},
        )
        try:
            core.database.group(lambda tx: core.ledger.record(tx, event, at=core.clock()), durable=True)
        except (ArchiveError, sa.exc.SQLAlchemyError) as error:
            message = "the attempt could not be recorded, so nothing was answered"
            raise Unavailable(message, remedy=getattr(error, "remedy", "") or "run 'archive doctor'") from error

    # --- out of sight first --------------------------------------------------------------------------------------------------------

    def _reject(self, subject: Subject, place: Datastore, uid: str, reason: str) -> None:
        core = self._core
        with core.database.read() as tx:
            live = policy.run_as(tx, _TOKEN, _live(place, uid)).all()
            waiting = policy.run_as(tx, _TOKEN, sa.select(held).where(*_held(place, uid), held.c.state == "open")).all()
        at = core.clock()

        def work(tx: sa.Connection, stored: StoredRef) -> int:
            catalog.reject(tx, [row.id for row in live], by=subject.principal_id, reason=reason, at=at)
            holds.require_none(tx, place.id, uid, at)
            event = Event(
                Kind.REJECTED, subject=subject, objects=(ObjectRef("study", uid),), instances=len(live),
                detail={"reason": reason, "level": "study"}, stored=stored,
            )
            return core.ledger.record(tx, event, at=at)

        if live:
            commit_change(
                core, "rejected", datastore=place.uid, study_instance_uid=uid, objects=[bytes(row.object_id) for row in live],
                reason=reason, at=at, work=work,
            )
        for row in waiting:
            self._close(subject, place, row, reason)

    def _close(self, subject: Subject, place: Datastore, row: Any, reason: str) -> None:
        """Decide against what waits, as a data manager would."""
        core = self._core
        at = core.clock()

        def work(tx: sa.Connection, stored: StoredRef) -> int:
            if not catalog.decide_held(tx, row.id, "rejected", by=subject.principal_id, at=at):
                message = "somebody decided about something of the study meanwhile"
                raise StateConflict(message, remedy="give the command again")
            event = Event(
                Kind.RECONCILED, subject=subject, objects=(ObjectRef("study", row.study_instance_uid),), instances=1,
                detail={"decision": "rejected", "held": row.id, "kind": row.kind, "reason": reason}, stored=stored,
            )
            return core.ledger.record(tx, event, at=at)

        commit_change(
            core, "held-rejected", datastore=place.uid, study_instance_uid=row.study_instance_uid, objects=[bytes(row.object_id)],
            reason=reason, at=at, work=work,
        )


def _series(place: Datastore, uid: str) -> sa.Select[Any]:
    """The series of a study that hold anything, out of sight or not."""
    filled = sa.exists(sa.select(1).where(instance.c.series_pk == ANY_SE.c.id))
    return (
        sa.select(ANY_SE.c.id).join(study, study.c.id == ANY_SE.c.study_pk)
        .where(study.c.datastore_id == place.id, study.c.study_instance_uid == uid, filled)
    )


def _live(place: Datastore, uid: str) -> sa.Select[Any]:
    return (
        sa.select(instance.c.id, instance.c.object_id).join(series, series.c.id == instance.c.series_pk)
        .join(study, study.c.id == series.c.study_pk)
        .where(study.c.datastore_id == place.id, study.c.study_instance_uid == uid, instance.c.rejected_at.is_(None))
        .order_by(instance.c.id)
    )


def _held(place: Datastore, uid: str) -> tuple[sa.ColumnElement[bool], ...]:
    return held.c.datastore_id == place.id, held.c.study_instance_uid == uid
