"""What happened to instances, in the order of the ledger, for those who may see them.

Nothing is written for it: each arrival has its signed statement under its leaf, each rejection, restoration and acceptance its event
record, and leaves are numbered in the order of commits without a gap, so a reader who goes by them passes over nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from archive.access import predicate
from archive.access.policy import Scope
from archive.db.tables import audit_event, instance, series, statement, study

ARRIVAL = "stored"
KINDS = {"rejected": "rejected", "restored": "restored", "accepted": "reconciled"}
"""Words of event records, and what the feed calls them."""

_LEAVES, _ROUNDS, _BATCH = 400, 25, 500
_LAST = 1 << 40


class Place(NamedTuple):
    """How far somebody has read: up to and with this object of this leaf."""

    leaf: int
    position: int


BEGINNING = Place(-1, _LAST)


@dataclass(frozen=True, slots=True)
class Change:
    """One instance that came, went or came back; `state` is what it is in now."""

    place: Place
    kind: str
    at: datetime
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    state: str


@dataclass(frozen=True, slots=True)
class Page:
    """Changes in order, where they end, and whether the ledger goes on behind."""

    changes: list[Change]
    end: Place
    more: bool


class _Seen(NamedTuple):
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    rejected: bool


# The condition leaves out series without live instances; that one was rejected is told to whoever saw it before.
_SE = sa.select(
    series.c.id, series.c.datastore_id, series.c.patient_pk, series.c.study_pk, series.c.study_date, series.c.department_id,
    series.c.restricted, series.c.modality, series.c.series_instance_uid, sa.literal_column("1", sa.Integer).label("n_instances"),
).subquery("any_series")
_OF = (
    sa.select(
        statement.c.leaf, statement.c.object_id, audit_event.c.kind, audit_event.c.at,
        sa.case((audit_event.c.kind == ARRIVAL, None), else_=statement.c.envelope).label("envelope"),
    )
    .join(audit_event, audit_event.c.n == statement.c.leaf)
    .where(statement.c.leaf >= sa.bindparam("since"), audit_event.c.kind.in_([ARRIVAL, "rejected", "restored", "reconciled"]))
    .order_by(statement.c.leaf).limit(_LEAVES)
)


def behind(size: int) -> Place:
    """Return the place behind everything in a ledger of that size."""
    return Place(size - 1, _LAST)


def page(tx: sa.Connection, scope: Scope, datastore_id: int, after: Place, *, size: int, limit: int) -> Page:
    """Return at most `limit` changes behind a place, and no more than a bounded look into the ledger, now of `size`, finds."""
    found: list[Change] = []
    end = behind(size)
    for _ in range(_ROUNDS):
        events = tx.execute(_OF, {"since": after.leaf}).all()
        objects = [one for row in events for one in _objects(row, after)]
        seen = _visible(tx, scope, datastore_id, [object_id for _, _, object_id in objects])
        kinds = {row.leaf: row for row in events}
        for place, kind, object_id in objects:
            one = seen.get(object_id)
            if one is None:
                continue
            if len(found) == limit:
                return Page(found, found[-1].place, True)
            found.append(Change(place, kind, kinds[place.leaf].at, *one[:4], "rejected" if one.rejected else "current"))
        if len(events) < _LEAVES:
            return Page(found, max(end, after), False)
        after = Place(events[-1].leaf, _LAST)
    return Page(found, after, True)


def _objects(row: Any, after: Place) -> Iterator[tuple[Place, str, bytes]]:
    """Yield what an event is about, as far as it lies behind a place."""
    if row.kind == ARRIVAL:
        about = [(ARRIVAL, bytes(row.object_id))]
    else:
        said = msgspec.json.decode(bytes(row.envelope))
        kind = KINDS.get(said.get("change", ""))
        about = [(kind, bytes.fromhex(one)) for one in said.get("objects", ())] if kind is not None else []
    for position, (kind, object_id) in enumerate(about):
        place = Place(row.leaf, position)
        if place > after:
            yield place, kind, object_id


def _visible(tx: sa.Connection, scope: Scope, datastore_id: int, objects: Sequence[bytes]) -> dict[bytes, _Seen]:
    statement_of = (
        sa.select(
            instance.c.object_id, study.c.study_instance_uid, _SE.c.series_instance_uid, instance.c.sop_instance_uid,
            instance.c.sop_class_uid, instance.c.rejected_at.is_not(None).label("rejected"),
        )
        .select_from(instance.join(_SE, _SE.c.id == instance.c.series_pk).join(study, study.c.id == _SE.c.study_pk))
        .where(
            instance.c.object_id.in_(sa.bindparam("objects", expanding=True)), study.c.datastore_id == datastore_id,
            predicate.series_condition(_SE, scope.shape),
        )
    )
    seen: dict[bytes, _Seen] = {}
    wanted = list(dict.fromkeys(objects))
    for start in range(0, len(wanted), _BATCH):
        for row in scope.run(tx, statement_of, {"objects": wanted[start : start + _BATCH]}):
            seen[bytes(row.object_id)] = _Seen(*tuple(row)[1:])
    return seen
