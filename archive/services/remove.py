"""Remove: reject instances so that nobody sees them, and restore what was rejected. Nothing is destroyed here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from archive.access import policy
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.tables import instance, series, study
from archive.errors import ArchiveError, InvalidRequest, NotFound, StateConflict, Unavailable
from archive.index import catalog
from archive.ledger.audit import Event, Kind, ObjectRef, StoredRef
from archive.services import datastores, holds
from archive.services.core import Core
from archive.services.state_events import commit_change

Level = Literal["study", "series", "instance"]
_UID = {"study": study.c.study_instance_uid, "series": series.c.series_instance_uid, "instance": instance.c.sop_instance_uid}


@dataclass(frozen=True, slots=True)
class _Target:
    pks: tuple[int, ...]
    objects: tuple[bytes, ...]
    study_instance_uid: str


class Remove:
    """Reject and restore; safe to share between threads."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core

    def reject(self, subject: Subject, datastore: str, level: Level, uid: str, *, reason: str) -> int:
        """Make the instances invisible and return how many; restorable until purged.

        Raises:
            NotFound: nothing live there that the subject may see, or not the right to delete all of that.
            StateConflict: the study is on hold, or changed meanwhile.
            InvalidRequest: no reason.
            ReadOnly, Unavailable.
        """
        return self._change(subject, datastore, level, uid, reason, "rejected")

    def reject_at(
        self, subject: Subject, datastore: str, study: str, series: str | None, sop: str | None, *, reason: str
    ) -> int:
        """Make what lies at that place invisible and return how many instances: each UID has to be under the one before.

        A refusal is recorded too. What may not be seen is refused like what is not there.

        Raises:
            NotFound: nothing live there that the subject may see, or not the right to delete all of that.
            StateConflict: the study is on hold, or changed meanwhile.
            InvalidRequest, ReadOnly, Unavailable.
        """
        level: Level = "instance" if sop is not None else "series" if series is not None else "study"
        uid = sop or series or study
        try:
            return self._change(subject, datastore, level, uid, reason, "rejected", under=(study, series))
        except (NotFound, StateConflict):
            self._refused(subject, datastore, study, level)
            raise

    def restore(self, subject: Subject, datastore: str, level: Level, uid: str, *, reason: str) -> int:
        """Bring rejected instances back and return how many.

        Raises:
            NotFound, InvalidRequest, ReadOnly, Unavailable.
            StateConflict: the study changed meanwhile.
        """
        return self._change(subject, datastore, level, uid, reason, "restored")

    def _change(
        self, subject: Subject, datastore: str, level: Level, uid: str, reason: str, change: Literal["rejected", "restored"],
        under: tuple[str | None, str | None] = (None, None),
    ) -> int:
        core = self._core
        core.require_writable()
        if not reason.strip():
            message = "a reason is needed"
            raise InvalidRequest(message, remedy="say why with --reason")
        at = core.clock()
        with core.database.read() as tx:
            place = datastores.asked_for(tx, subject, datastore, at)
            target = self._find(tx, subject, place.id, level, uid, under, live=change == "rejected")
            if change == "rejected":
                holds.require_none(tx, place.id, target.study_instance_uid, at)

        def work(tx: sa.Connection, stored: StoredRef) -> int:
            # Asked again: a right may have ended, and instances come, while the record was sealed.
            if self._find(tx, subject, place.id, level, uid, under, live=change == "rejected") != target:
                message = "the study changed meanwhile"
                raise StateConflict(message, remedy="look at what is there, and try again")
            if change == "rejected":
                catalog.reject(tx, target.pks, by=subject.principal_id, reason=reason, at=at)
                holds.require_none(tx, place.id, target.study_instance_uid, at)
            elif catalog.restore(tx, target.pks, at=at) < len(target.pks):
                message = "some of it was restored or purged meanwhile"
                raise StateConflict(message, remedy="look at what is there, and try again")
            event = Event(
                Kind.REJECTED if change == "rejected" else Kind.RESTORED, subject=subject,
                objects=(ObjectRef("study", target.study_instance_uid),), instances=len(target.pks),
                detail={"reason": reason, "level": level}, stored=stored,
            )
            return core.ledger.record(tx, event, at=at)

        commit_change(
            core, change, datastore=place.uid, study_instance_uid=target.study_instance_uid, objects=target.objects, reason=reason,
            at=at, work=work,
        )
        return len(target.pks)

    def _refused(self, subject: Subject, datastore: str, study: str, level: Level) -> None:
        """No audit, no answer."""
        core = self._core
        event = Event(
            Kind.DENIED, outcome=4, subject=subject, objects=(ObjectRef("study", study),),
            detail={"what": "delete", "level": level, "datastore": datastore},
        )
        try:
            core.database.group(lambda tx: core.ledger.record(tx, event, at=core.clock()), durable=True)
        except (ArchiveError, sa.exc.SQLAlchemyError) as error:
            message = "the attempt could not be recorded, so nothing was answered"
            raise Unavailable(message, remedy=getattr(error, "remedy", "") or "run 'archive doctor'") from error

    def _find(
        self, tx: sa.Connection, subject: Subject, datastore_id: int, level: Level, uid: str, under: tuple[str | None, str | None], *,
        live: bool,
    ) -> _Target:
        above = [column == told for column, told in zip((_UID["study"], _UID["series"]), under, strict=True) if told is not None]
        statement = (
            sa.select(instance.c.id, instance.c.object_id, study.c.study_instance_uid)
            .select_from(instance.join(series, series.c.id == instance.c.series_pk).join(study, study.c.id == series.c.study_pk))
            .where(study.c.datastore_id == datastore_id, _UID[level] == uid, *above)
            .where(instance.c.rejected_at.is_(None) if live else instance.c.rejected_at.is_not(None))
            .order_by(instance.c.id)
        )
        if subject.kind == "console":
            # Whoever holds the keys may take images out of sight, and back; it shows nothing of them.
            rows = policy.run_as(tx, policy.system("remove"), statement).all()
        else:
            # Both are asked always, so that what is hidden takes as long as what is not there.
            at = self._core.clock()
            scope, seen = (policy.scope_of(subject, need, at) for need in (Permission.DELETE, Permission.SEARCH))
            rows = scope.run(tx, statement.where(scope.series(series))).all()
            if {row.id for row in seen.run(tx, statement.where(seen.series(series)))} - {row.id for row in rows}:
                rows = []  # all of what the subject sees, or nothing
        if not rows:
            message = "there is nothing to change under that UID"
            raise NotFound(message, remedy="check the UID and the level (--study, --series or --instance)")
        return _Target(tuple(row.id for row in rows), tuple(row.object_id for row in rows), rows[0].study_instance_uid)
