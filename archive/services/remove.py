"""Remove: reject instances so that nobody sees them, and restore what was rejected. Nothing is destroyed here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from archive.access import policy
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.tables import instance, series, study
from archive.errors import InvalidRequest, NotFound
from archive.index import catalog
from archive.ledger.audit import Event, Kind, ObjectRef, StoredRef
from archive.services import datastores
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
            NotFound: nothing live there that the subject may delete.
            InvalidRequest: no reason.
            ReadOnly, Unavailable.
        """
        return self._change(subject, datastore, level, uid, reason, "rejected")

    def restore(self, subject: Subject, datastore: str, level: Level, uid: str, *, reason: str) -> int:
        """Bring rejected instances back and return how many.

        Raises:
            NotFound, InvalidRequest, ReadOnly, Unavailable.
        """
        return self._change(subject, datastore, level, uid, reason, "restored")

    def _change(
        self, subject: Subject, datastore: str, level: Level, uid: str, reason: str, change: Literal["rejected", "restored"]
    ) -> int:
        core = self._core
        core.require_writable()
        if not reason.strip():
            message = "a reason is needed"
            raise InvalidRequest(message, remedy="say why with --reason")
        at = core.clock()
        with core.database.read() as tx:
            place = datastores.find(tx, datastore)
            target = self._find(tx, subject, place.id, level, uid, live=change == "rejected")

        def work(tx: sa.Connection, stored: StoredRef) -> int:
            if change == "rejected":
                catalog.reject(tx, target.pks, by=subject.principal_id, reason=reason, at=at)
            else:
                catalog.restore(tx, target.pks, at=at)
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

    def _find(self, tx: sa.Connection, subject: Subject, datastore_id: int, level: Level, uid: str, *, live: bool) -> _Target:
        statement = (
            sa.select(instance.c.id, instance.c.object_id, study.c.study_instance_uid)
            .select_from(instance.join(series, series.c.id == instance.c.series_pk).join(study, study.c.id == series.c.study_pk))
            .where(study.c.datastore_id == datastore_id, _UID[level] == uid)
            .where(instance.c.rejected_at.is_(None) if live else instance.c.rejected_at.is_not(None))
            .order_by(instance.c.id)
        )
        if subject.kind == "console":
            # Whoever holds the keys may take images out of sight, and back; it shows nothing of them.
            rows = policy.run_as(tx, policy.system("remove"), statement).all()
        else:
            scope = policy.scope_of(subject, Permission.DELETE, self._core.clock())
            rows = scope.run(tx, statement.where(scope.series(series))).all()
        if not rows:
            message = "there is nothing to change under that UID"
            raise NotFound(message, remedy="check the UID and the level (--study, --series or --instance)")
        return _Target(tuple(row.id for row in rows), tuple(row.object_id for row in rows), rows[0].study_instance_uid)
