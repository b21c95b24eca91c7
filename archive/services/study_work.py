"""What becomes of a study besides being kept: what was committed of it, where it was and is to be forwarded, and who may take it away.

Counts are of instances the asker sees; which devices and destinations there are is told to those who look after them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.access import policy
from archive.access.permissions import Permission
from archive.access.policy import Scope, scope_of
from archive.access.subject import Subject
from archive.db.tables import commitment, commitment_item, delivery, instance, peer, series, study
from archive.errors import ArchiveError, Forbidden, Unavailable
from archive.ledger.audit import Event, Kind, ObjectRef
from archive.services import datastores, deliveries
from archive.services.core import Core
from archive.services.download import NEEDS

_C, _I, _D = commitment.c, commitment_item.c, delivery.c
_LOOKING_AFTER = Permission.PEER_MANAGE | Permission.AUDIT | Permission.JOB_MANAGE


@dataclass(frozen=True, slots=True)
class Work:
    """Rows for the page of a study; lists are empty where there is nothing, or nothing to be told."""

    downloadable: bool = False
    commitments: tuple[dict[str, Any], ...] = ()
    deliveries: tuple[dict[str, Any], ...] = ()


class StudyWork:
    """Safe to share between threads."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core

    def of(self, subject: Subject, datastore: str, study_instance_uid: str) -> Work:
        """Return what there is to tell of a study; of one the subject does not see, nothing.

        Raises:
            NotFound: no such datastore. Unavailable: the read could not be recorded.
        """
        core = self._core
        at = core.clock()
        with core.database.read() as tx:
            place = datastores.asked_for(tx, subject, datastore, at).id
            scopes = [scope_of(subject, need, at) for need in NEEDS]
            downloadable = any(scope.run(tx, _seen(scope, place, study_instance_uid).limit(1)).first() is not None for scope in scopes)
            try:
                policy.require_any(tx, subject, _LOOKING_AFTER, at)
            except Forbidden:
                return Work(downloadable)
            scope = scope_of(subject, Permission.SEARCH, at)
            about = (tx, scope, place, study_instance_uid)
            made = Work(downloadable, tuple(_committed(*about)), tuple(_delivered(*about)))
        if made.commitments or made.deliveries:
            self._record(subject, study_instance_uid, at)
        return made

    def _record(self, subject: Subject, study_instance_uid: str, at: datetime) -> None:
        """No audit, no data."""
        core = self._core
        event = Event(Kind.READ, subject=subject, objects=(ObjectRef("study", study_instance_uid),), detail={"what": "study-work"})
        try:
            core.database.group(lambda tx: core.ledger.record(tx, event, at=at), durable=True)
        except (ArchiveError, sa.exc.SQLAlchemyError) as error:
            message = "the read could not be recorded, so nothing was answered"
            raise Unavailable(message, remedy=getattr(error, "remedy", "") or "run 'archive doctor'") from error


def _seen(scope: Scope, place: int, uid: str) -> sa.Select[Any]:
    """The instances of a study that a scope lets through, out of sight or not."""
    se = series.alias("se")
    return (
        sa.select(instance.c.id, instance.c.sop_instance_uid)
        .join(se, se.c.id == instance.c.series_pk).join(study, study.c.id == se.c.study_pk)
        .where(study.c.datastore_id == place, study.c.study_instance_uid == uid, instance.c.rejected_at.is_(None), scope.series(se))
    )


def _committed(tx: sa.Connection, scope: Scope, place: int, uid: str) -> list[dict[str, Any]]:
    seen = _seen(scope, place, uid).subquery()
    query = (
        sa.select(_C.peer, sa.func.count(_I.sop_instance_uid.distinct()).label("n"), sa.func.max(_C.checked_at).label("at"),
                  sa.func.count(_C.reported_at).label("reported"), sa.func.count().label("every"))
        .join(commitment_item, _I.commitment_id == _C.id).join(seen, seen.c.sop_instance_uid == _I.sop_instance_uid)
        .where(_C.datastore_id == place, _I.study_instance_uid == uid, _I.reason == 0).group_by(_C.peer).order_by(_C.peer)
    )
    return [
        {"peer": row["peer"], "instances": row["n"], "at": row["at"], "reported": row["reported"] == row["every"]}
        for row in scope.run(tx, query).mappings()
    ]


def _delivered(tx: sa.Connection, scope: Scope, place: int, uid: str) -> list[dict[str, Any]]:
    seen = _seen(scope, place, uid).subquery()
    query = (
        sa.select(peer.c.name, _D.state, sa.func.count().label("n")).join(peer, peer.c.id == _D.peer_id)
        .join(seen, seen.c.id == _D.instance_pk).where(_D.kind == deliveries.FORWARD).group_by(peer.c.name, _D.state)
    )
    found: dict[str, dict[str, Any]] = {}
    for row in scope.run(tx, query.order_by(peer.c.name)).mappings():
        one = found.setdefault(row["name"], {"destination": row["name"], "done": 0, "waiting": 0, "failed": 0})
        one["waiting" if row["state"] == deliveries.REJECTED else row["state"]] += row["n"]  # restored a moment ago
    return list(found.values())
