"""Workitems as rows: written, and found inside what the caller may see.

A workitem about images belongs to whoever may see the studies it takes in (Input Information Sequence), each of them; any other, whom to
examine, is the worklist's. Whether the archive holds what the caller may not see changes nothing (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement

from archive.access import predicate
from archive.access.policy import Scope
from archive.access.shape import Shape
from archive.db.tables import grants, series, study, workitem, workitem_study
from archive.dicom.matching import Match, Single, UidList
from archive.dicom.workitem import ISSUER_OF_PATIENT_ID, PATIENT_ID, SOP_INSTANCE_UID, STATE, Dataset, inputs_of, text_of
from archive.index import unheld
from archive.index.unheld import Naming

W = workitem.alias("w")
_TAKEN_IN, _ST = workitem_study.alias("taken_in"), study.alias("named_study")
_SE, _ALLOW = series.alias("of_study"), grants.alias("allow_all")
_NAMED = Naming(W, W.c.patient_id, W.c.issuer_of_patient_id, _TAKEN_IN, _TAKEN_IN.c.workitem_pk == W.c.id)
_BATCH = 200
NEVER = datetime.min.replace(tzinfo=UTC)
"""When a workitem that is not there last changed."""


@lru_cache(maxsize=64)
def visible(shape: Shape) -> ColumnElement[bool]:
    """True for the workitems of `W` that a caller of this shape may see."""
    taken_in = sa.select(1).select_from(_TAKEN_IN).where(_TAKEN_IN.c.workitem_pk == W.c.id).correlate(W)
    held = sa.select(1).select_from(_ST).where(
        _ST.c.study_instance_uid == _TAKEN_IN.c.study_instance_uid, _ST.c.datastore_id == W.c.datastore_id
    ).correlate(W, _TAKEN_IN)
    seen = sa.exists(held.where(predicate.study_condition(_ST, shape)))
    there = sa.exists(held.where(sa.exists(
        sa.select(1).select_from(_SE).where(_SE.c.study_pk == _ST.c.id, predicate.holds_images(_SE)).correlate(_ST)
    )))
    clauses = [
        # A study that is not there is for whoever sees everything; to anybody else it is as one that is there and not theirs.
        sa.not_(sa.exists(taken_in.where(sa.not_(seen), sa.or_(there, sa.not_(_sees_everything(shape)))))),
        sa.not_(unheld.whole_denied(W, shape)),
        sa.not_(unheld.patient_denied(_NAMED, shape)),
    ]
    if shape.boundaries:
        clauses.append(sa.exists(taken_in.where(seen)))
    if shape.besides is not None:  # what is not held yet and a bound are asked of the caller alone above
        clauses.append(visible(shape.besides))
    return sa.and_(*clauses)


def _sees_everything(shape: Shape) -> ColumnElement[bool]:
    """An allow without conditions on the whole datastore shows also what the archive does not hold yet."""
    g, passed_on_from = _ALLOW, _ALLOW.c.parent_id + 0  # by whose own index SQLite would read nearly all grants there are
    return sa.and_(predicate.caller_is_live(shape), shape.within() == sa.true(), sa.exists(
        sa.select(1).select_from(g).where(
            predicate.is_caller(g.c.subject_id, shape), g.c.effect == predicate.ALLOW, g.c.datastore_id == W.c.datastore_id,
            predicate.not_revoked(g), predicate.in_window(g, shape), g.c.modality == "", g.c.department_id.is_(None),
            g.c.study_date_from == "", g.c.study_date_to == "", passed_on_from.is_(None), predicate.context_suffices(g, shape),
            g.c.permissions.bitwise_and(shape.need()) == shape.need(), g.c.scope_key == 0,
        ).correlate(W)
    ))


def find(tx: sa.Connection, scope: Scope, datastore_id: int, uid: str) -> Any | None:
    """Return the row of a workitem the caller may see, or None."""
    statement = sa.select(W).where(W.c.datastore_id == datastore_id, W.c.sop_instance_uid == uid, visible(scope.shape))
    return scope.run(tx, statement).first()


def seen(
    tx: sa.Connection, scope: Scope, datastore_id: int, *, states: Iterable[str], patient_id: str, uids: Iterable[str]
) -> Iterator[Any]:
    """Yield the rows of the workitems the caller may see, oldest first; empty conditions let all through."""
    after, states, uids = 0, list(states), list(uids)
    statement = sa.select(W).where(W.c.datastore_id == datastore_id, visible(scope.shape)).order_by(W.c.id).limit(_BATCH)
    if states:
        statement = statement.where(W.c.state.in_(states))
    if patient_id:
        statement = statement.where(W.c.patient_id == patient_id)
    if uids:
        statement = statement.where(W.c.sop_instance_uid.in_(uids))
    while True:
        rows = scope.run(tx, statement.where(W.c.id > after)).all()
        yield from rows
        if len(rows) < _BATCH:
            return
        after = rows[-1].id


def narrowed(keys: Mapping[str, Match]) -> dict[str, Any]:
    """Return the conditions of `seen` that follow from the keys of a search; they never let less through than the keys do."""
    state, patient_id, uids = keys.get(STATE), keys.get(PATIENT_ID), keys.get(SOP_INSTANCE_UID)
    return {
        "states": [state.value] if isinstance(state, Single) else [],
        "patient_id": patient_id.value if isinstance(patient_id, Single) else "",
        "uids": uids.values if isinstance(uids, UidList) else (),
    }


def insert(tx: sa.Connection, datastore_id: int, uid: str, dataset: Dataset, *, by: int, at: datetime) -> int | None:
    """Add a workitem and return its key, None when the UID is taken."""
    if taken(tx, datastore_id, uid):
        return None
    made = tx.execute(sa.insert(workitem).values(
        datastore_id=datastore_id, sop_instance_uid=uid, transaction_uid="", created_by=by, created_at=at, updated_at=at,
        **_columns(dataset),
    ))
    assert made.inserted_primary_key is not None
    pk = int(made.inserted_primary_key[0])
    _name_inputs(tx, pk, dataset)
    return pk


def taken(tx: sa.Connection, datastore_id: int, uid: str) -> bool:
    """Whether there is a workitem of that UID, whoever may see it."""
    return tx.execute(_named(workitem.c.id, datastore_id, uid)).first() is not None


def key_of(tx: sa.Connection, datastore_id: int, uid: str) -> int:
    """Return the key of a workitem that is there."""
    return int(tx.execute(_named(workitem.c.id, datastore_id, uid)).scalar_one())


def updated_at(tx: sa.Connection, datastore_id: int, uid: str) -> datetime:
    """Return when a workitem last changed; of none, the beginning of time."""
    found: datetime | None = tx.execute(_named(workitem.c.updated_at, datastore_id, uid)).scalar()
    return found or NEVER


def forget(tx: sa.Connection, datastore_id: int, uid: str, states: Iterable[str]) -> None:
    """Remove a workitem that is in one of these states."""
    named = (workitem.c.datastore_id == datastore_id, workitem.c.sop_instance_uid == uid, workitem.c.state.in_(list(states)))
    tx.execute(sa.delete(workitem).where(*named))


def _named(column: sa.Column[Any], datastore_id: int, uid: str) -> sa.Select[Any]:
    return sa.select(column).where(workitem.c.datastore_id == datastore_id, workitem.c.sop_instance_uid == uid)


def replace(
    tx: sa.Connection, pk: int, dataset: Dataset, *, at: datetime, lock: str | None = None, deletable_at: datetime | None = None
) -> None:
    """Keep a workitem's new content, and its lock when one is given."""
    values: dict[str, Any] = {**_columns(dataset), "updated_at": at}
    if lock is not None:
        values["transaction_uid"] = lock
    if deletable_at is not None:
        values["deletable_at"] = deletable_at
    tx.execute(sa.update(workitem).where(workitem.c.id == pk).values(values))
    tx.execute(sa.delete(workitem_study).where(workitem_study.c.workitem_pk == pk))
    _name_inputs(tx, pk, dataset)


def locked(tx: sa.Connection, pk: int) -> Any | None:
    """Return the row as it is now, held until the transaction ends; None when it is gone."""
    statement = sa.select(workitem).where(workitem.c.id == pk)
    return tx.execute(statement if tx.dialect.name == "sqlite" else statement.with_for_update()).first()


def _columns(dataset: Dataset) -> dict[str, Any]:
    return {
        "state": text_of(dataset, STATE), "patient_id": text_of(dataset, PATIENT_ID),
        "issuer_of_patient_id": text_of(dataset, ISSUER_OF_PATIENT_ID), "dataset": dataset,
    }


def _name_inputs(tx: sa.Connection, pk: int, dataset: Dataset) -> None:
    rows = [{"workitem_pk": pk, "study_instance_uid": uid} for uid in inputs_of(dataset)]
    if rows:
        tx.execute(sa.insert(workitem_study), rows)
