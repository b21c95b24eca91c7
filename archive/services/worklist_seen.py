"""Which worklist entries a subject sees, of those who may see the worklist: none that a deny hides, and a device its own part.

A device's part is what is scheduled for one of its AE titles, or for no station in particular; all of it, where it was set to see that.
"""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from archive.access.permissions import Permission
from archive.access.policy import Scope, scope_of
from archive.access.shape import Shape
from archive.access.subject import Subject
from archive.db.tables import peer, peer_ae_title, worklist_entry, worklist_station
from archive.dicom.scheduled import DataSet
from archive.errors import StateConflict
from archive.index import unheld
from archive.services.worklist_rows import name_of

_OWN = worklist_entry.alias("of_entry")
_NAMED = unheld.Naming(
    worklist_entry, worklist_entry.c.patient_id, unheld.issuer_in(worklist_entry.c.attributes), _OWN, _OWN.c.id == worklist_entry.c.id
)


@lru_cache(maxsize=64)
def _not_hidden(shape: Shape) -> sa.ColumnElement[bool]:
    return unheld.seen(_NAMED, shape)


def visible(scope: Scope, subject: Subject, place: int) -> sa.Select[Any]:
    """The entries of a datastore that a subject who may see the worklist sees; run inside its scope."""
    query = sa.select(worklist_entry).where(worklist_entry.c.datastore_id == place, _not_hidden(scope.shape))
    if subject.kind != "device":
        return query
    station, title = worklist_station.c, peer_ae_title.c
    here = sa.select(station.id).where(station.entry_id == worklist_entry.c.id)
    own = sa.select(title.ae_title).where(title.peer_id == subject.peer_id)
    whole = sa.select(peer.c.id).where(peer.c.id == subject.peer_id, peer.c.whole_worklist)
    return query.where(sa.or_(
        sa.not_(here.correlate(worklist_entry).exists()),
        here.where(station.ae_title.in_(own)).correlate(worklist_entry).exists(),
        whole.exists(),
    ))


def require_seen(tx: sa.Connection, subject: Subject, place: int, entries: list[DataSet], at: datetime) -> None:
    """Nobody writes over what they do not see; that a step's number is taken is told as of any UID.

    Raises:
        StateConflict.
    """
    scope = scope_of(subject, Permission.SEARCH, at)
    own = visible(scope, subject, place).with_only_columns(worklist_entry.c.id)
    for entry in entries:
        there = sa.and_(worklist_entry.c.study_instance_uid == (name := name_of(entry))[0], worklist_entry.c.procedure_step_id == name[1])
        taken = sa.select(worklist_entry.c.id).where(worklist_entry.c.datastore_id == place, there)
        if tx.execute(taken).first() is not None and scope.run(tx, own.where(there)).first() is None:
            message = "there is a procedure step of that ScheduledProcedureStepID already"
            raise StateConflict(message, remedy="give the new one another ScheduledProcedureStepID")
