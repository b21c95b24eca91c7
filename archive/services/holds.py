"""Holds: studies that nobody may delete, until a date or until they are let go; each setting and release is in the ledger."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.access import policy
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.tables import hold, series, study
from archive.errors import InvalidRequest, NotFound, StateConflict
from archive.ledger.audit import Event, Kind, ObjectRef
from archive.services import datastores
from archive.services.core import Core

LISTED = 10_000


class Holds:
    """Add, remove, list; safe to share between threads."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core

    def add(self, subject: Subject, datastore: str, study_instance_uid: str, *, reason: str, until: datetime | None = None) -> int:
        """Put a study on hold and return the hold's number.

        Raises:
            NotFound: no such study that the subject may put on hold.
            InvalidRequest: no reason, or a time that has passed; ReadOnly, DatabaseUnavailable.
        """
        core = self._core
        core.require_writable()
        at = core.clock()
        _require_reason(reason)
        if until is not None and until <= at:
            message = "the hold would have ended already"
            raise InvalidRequest(message, remedy="give a time to come, or none for a hold that somebody has to let go")
        with core.database.read() as tx:
            place = datastores.asked_for(tx, subject, datastore, at)
            self._require_study(tx, subject, place.id, study_instance_uid, at)

        def work(tx: sa.Connection) -> int:
            core.ledger.alone(tx)  # before the study's row, as every other who locks it
            # A delete locks the study's row before it asks for holds, so one of the two sees the other.
            policy.run_as(tx, policy.system("remove"), sa.select(study.c.id).where(
                study.c.datastore_id == place.id, study.c.study_instance_uid == study_instance_uid
            ).with_for_update()).all()
            values = {
                "datastore_id": place.id, "study_instance_uid": study_instance_uid, "reason": reason, "hold_until": until,
                "principal_id": subject.principal_id, "created_at": at,
            }
            number = int(tx.execute(sa.insert(hold).values(values).returning(hold.c.id)).scalar_one())
            detail = {"hold": number, "reason": reason, "datastore": datastore} | ({} if until is None else {"until": until.isoformat()})
            event = Event(Kind.HOLD_ADDED, subject=subject, objects=(ObjectRef("study", study_instance_uid),), detail=detail)
            core.ledger.record(tx, event, at=at)
            return number

        return core.database.group(work, durable=True)

    def remove(self, subject: Subject, number: int, *, reason: str) -> None:
        """Let a study go.

        Raises:
            NotFound: no such hold on a study that the subject may let go.
            InvalidRequest: no reason; ReadOnly, DatabaseUnavailable.
        """
        core = self._core
        core.require_writable()
        at = core.clock()
        _require_reason(reason)
        with core.database.read() as tx:
            row = tx.execute(sa.select(hold).where(hold.c.id == number)).first()
            if row is None:
                raise _absent()
            self._require_study(tx, subject, row.datastore_id, row.study_instance_uid, at)

        def work(tx: sa.Connection) -> None:
            if tx.execute(sa.delete(hold).where(hold.c.id == number).returning(hold.c.id)).first() is None:
                raise _absent()
            event = Event(
                Kind.HOLD_REMOVED, subject=subject, objects=(ObjectRef("study", row.study_instance_uid),),
                detail={"hold": number, "reason": reason},
            )
            core.ledger.record(tx, event, at=at)

        core.database.group(work, durable=True)

    def list(self, subject: Subject, *, study_instance_uid: str = "") -> list[dict[str, Any]]:
        """Return the holds on studies that the subject may let go, oldest first."""
        core = self._core
        at = core.clock()
        with core.database.read() as tx:
            query = sa.select(hold).order_by(hold.c.id).limit(LISTED)
            if study_instance_uid:
                query = query.where(hold.c.study_instance_uid == study_instance_uid)
            rows = tx.execute(query).all()
            seen = {(row.datastore_id, row.study_instance_uid): False for row in rows}
            for place, uid in seen:
                seen[place, uid] = self._reaches(tx, subject, place, uid, at)
        return [
            {
                "id": row.id, "study_instance_uid": row.study_instance_uid, "reason": row.reason,
                "until": row.hold_until.isoformat() if row.hold_until else "", "created_at": row.created_at.isoformat(),
                "in_force": row.hold_until is None or row.hold_until > at,
            }
            for row in rows if seen[row.datastore_id, row.study_instance_uid]
        ]

    def _require_study(self, tx: sa.Connection, subject: Subject, place: int, uid: str, at: datetime) -> None:
        if not self._reaches(tx, subject, place, uid, at):
            raise _absent()

    @staticmethod
    def _reaches(tx: sa.Connection, subject: Subject, place: int, uid: str, at: datetime) -> bool:
        wanted = (
            sa.select(study.c.id).join(series, series.c.study_pk == study.c.id)
            .where(study.c.datastore_id == place, study.c.study_instance_uid == uid).limit(1)
        )
        if subject.kind == "console":
            # Whoever holds the keys may forbid deletion, and allow it; it shows nothing of the images.
            return policy.run_as(tx, policy.system("remove"), wanted).first() is not None
        scope = policy.scope_of(subject, Permission.HOLD, at)
        return scope.run(tx, wanted.where(scope.series(series))).first() is not None


def require_none(tx: sa.Connection, datastore_id: int, study_instance_uid: str, at: datetime) -> None:
    """Go on only if no hold is in force; to be asked in the transaction that removes, after the study's row is locked.

    Raises:
        StateConflict.
    """
    in_force = sa.or_(hold.c.hold_until.is_(None), hold.c.hold_until > at)
    found = sa.select(hold.c.id).where(hold.c.datastore_id == datastore_id, hold.c.study_instance_uid == study_instance_uid, in_force)
    if tx.execute(found.limit(1)).first() is not None:
        message = "the study is on hold, and nothing of it may be deleted"
        raise StateConflict(message, remedy="ask who put it on hold; 'archive hold list' shows why")


def _require_reason(reason: str) -> None:
    if not reason.strip():
        message = "a reason is needed"
        raise InvalidRequest(message, remedy="say why with --reason")


def _absent() -> NotFound:
    message = "there is no such study or hold"
    return NotFound(message, remedy="check the UID or the number; 'archive hold list' shows what there is")
