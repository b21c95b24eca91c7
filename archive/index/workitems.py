"""Workitems as rows: written, and found inside what the caller may see.

A workitem belongs to whoever may see the patient and the studies it names, as far as the archive holds them: one that names a study
or patient with something the caller may not see is not there, and one about nobody the archive knows is the worklist's alone.
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
from archive.db.tables import grants, patient, series, study, workitem, workitem_study
from archive.dicom.matching import Match, Single, UidList
from archive.dicom.workitem import ISSUER_OF_PATIENT_ID, PATIENT_ID, SOP_INSTANCE_UID, STATE, Dataset, studies_of, text_of

W = workitem.alias("w")
_NAMED, _ST, _PT = workitem_study.alias("named"), study.alias("named_study"), patient.alias("named_patient")
_SE, _DENY = series.alias("of_patient"), grants.alias("deny_unseen")
_BATCH = 200


@lru_cache(maxsize=64)
def visible(shape: Shape) -> ColumnElement[bool]:
    """True for the workitems of `W` that a caller of this shape may see."""
    of_study = sa.select(1).select_from(_NAMED.join(_ST, _ST.c.study_instance_uid == _NAMED.c.study_instance_uid)).where(
        _NAMED.c.workitem_pk == W.c.id, _ST.c.datastore_id == W.c.datastore_id
    ).correlate(W)
    of_patient = sa.select(1).select_from(_PT).where(
        _PT.c.datastore_id == W.c.datastore_id, _PT.c.patient_id == W.c.patient_id, W.c.patient_id != "", _PT.c.synthetic == sa.false(),
        sa.or_(W.c.issuer_of_patient_id == "", _PT.c.issuer == W.c.issuer_of_patient_id),
    ).correlate(W)
    known = sa.exists(sa.select(1).select_from(_SE).where(_SE.c.patient_pk == _PT.c.id).correlate(_PT))
    seen = predicate.study_condition(_ST, shape)
    clauses = [
        sa.not_(sa.exists(of_study.where(sa.not_(seen)))),
        sa.not_(sa.exists(of_patient.where(known, sa.not_(predicate.patient_condition(_PT, shape))))),
        sa.not_(_denied(shape, _DENY.c.scope_key == 0)),
        sa.not_(sa.exists(of_patient.where(_denied(shape, _DENY.c.scope_key == _PT.c.id * 4 + 1)))),
    ]
    if shape.boundaries:
        clauses.append(sa.exists(of_study.where(seen)))
    if shape.besides is not None:  # a deny of what is not held yet, and a bound, are asked of the caller alone above
        clauses.append(visible(shape.besides))
    return sa.and_(*clauses)


def _denied(shape: Shape, reach: ColumnElement[bool]) -> ColumnElement[bool]:
    """A deny without conditions hides also what the archive does not hold yet."""
    d = _DENY
    return sa.exists(
        sa.select(1).select_from(d).where(
            predicate.is_caller(d.c.subject_id, shape), d.c.effect == predicate.DENY, d.c.datastore_id == W.c.datastore_id,
            predicate.not_revoked(d), predicate.in_window(d, shape), d.c.modality == "", d.c.department_id.is_(None),
            d.c.study_date_from == "", d.c.study_date_to == "", d.c.permissions.bitwise_and(shape.need()) != 0, reach,
        ).correlate(W, _PT)
    )


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
    _name_studies(tx, pk, dataset)
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
    return found or datetime.min.replace(tzinfo=UTC)


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
    _name_studies(tx, pk, dataset)


def locked(tx: sa.Connection, pk: int) -> Any | None:
    """Return the row as it is now, held until the transaction ends; None when it is gone."""
    statement = sa.select(workitem).where(workitem.c.id == pk)
    return tx.execute(statement if tx.dialect.name == "sqlite" else statement.with_for_update()).first()


def _columns(dataset: Dataset) -> dict[str, Any]:
    return {
        "state": text_of(dataset, STATE), "patient_id": text_of(dataset, PATIENT_ID),
        "issuer_of_patient_id": text_of(dataset, ISSUER_OF_PATIENT_ID), "dataset": dataset,
    }


def _name_studies(tx: sa.Connection, pk: int, dataset: Dataset) -> None:
    rows = [{"workitem_pk": pk, "study_instance_uid": uid} for uid in studies_of(dataset)]
    if rows:
        tx.execute(sa.insert(workitem_study), rows)
