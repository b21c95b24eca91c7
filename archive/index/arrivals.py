"""Instances in the order they arrived, inside the scopes of who sends and who receives: what rules of forwarding look at."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from archive.access import predicate
from archive.access.policy import Scope
from archive.db.tables import delivery, instance, series, statement, study
from archive.index.selection import Selected

_ST, _SE, _IM = study.alias("st"), series.alias("se"), instance.alias("im")
_FROM = _IM.join(_SE, _SE.c.id == _IM.c.series_pk).join(_ST, _ST.c.id == _SE.c.study_pk)
# The condition leaves out series without live instances; here it is asked about rejected ones too, as if they were not.
_ANY = sa.select(
    series.c.id, series.c.datastore_id, series.c.patient_pk, series.c.study_pk, series.c.study_date, series.c.department_id,
    series.c.restricted, series.c.modality, series.c.attributes, sa.literal_column("1", sa.Integer).label("n_instances"),
).subquery("any_series")


@dataclass(frozen=True, slots=True)
class Arrived:
    """One instance, as far as the conditions of a rule need it."""

    instance_pk: int
    study_pk: int
    modality: str
    attributes: tuple[dict[str, Any], ...]  # of study and series, DICOM JSON Model
    envelope: bytes | None
    rejected: bool


def arrived(
    tx: sa.Connection, scope: Scope, also: Scope, datastore_id: int, *, peer_id: int, after: int, limit: int,
    upto: int | None = None, among: Collection[int] | None = None,
) -> list[Arrived]:
    """Return instances beyond an id, not queued for that peer yet, in order: inside both scopes, rejected ones as if they were not.

    With `upto` none beyond that id; with `among` those of these, queued or not.
    """
    queued = sa.select(1).where(delivery.c.peer_id == peer_id, delivery.c.instance_pk == _IM.c.id)
    query = (
        sa.select(
            _IM.c.id, _ANY.c.study_pk, _ANY.c.modality, _ST.c.attributes, _ANY.c.attributes, statement.c.envelope,
            _IM.c.rejected_at.is_not(None),
        )
        .select_from(
            _IM.join(_ANY, _ANY.c.id == _IM.c.series_pk).join(_ST, _ST.c.id == _ANY.c.study_pk)
            .outerjoin(statement, statement.c.object_id == _IM.c.object_id)
        )
        .where(
            _IM.c.id > after, _IM.c.datastore_id == datastore_id,
            predicate.series_condition(_ANY, scope.shape), predicate.series_condition(_ANY, also.shape),
            sa.not_(sa.exists(queued)) if among is None else _IM.c.id.in_(among), *([] if upto is None else [_IM.c.id <= upto]),
        )
        .order_by(_IM.c.id).limit(limit)
    )
    rows: list[Any] = list(scope.run(tx, query, also=also))
    return [
        Arrived(key, study_pk, modality, (of_study or {}, of_series or {}), None if envelope is None else bytes(envelope), bool(rejected))
        for key, study_pk, modality, of_study, of_series, envelope, rejected in rows
    ]


def rejected(tx: sa.Connection, scope: Scope, keys: Collection[int]) -> set[int]:
    """Return those of these instances that are rejected; none of them all is restored or rejected before the transaction ends."""
    query = sa.select(_IM.c.id, _IM.c.rejected_at).where(_IM.c.id.in_(keys)).order_by(_IM.c.id).with_for_update(read=True)
    rows: list[Any] = list(scope.run(tx, query))
    return {row.id for row in rows if row.rejected_at is not None}


def come_back(tx: sa.Connection, scope: Scope, peer_id: int, others: Collection[int], state: str) -> list[int]:
    """Return the deliveries to a peer in that state whose instances are not rejected any more, but those of other rules."""
    query = sa.select(delivery.c.id).join(_IM, _IM.c.id == delivery.c.instance_pk)
    return list(scope.run(tx, query.where(
        delivery.c.peer_id == peer_id, delivery.c.rule_id.not_in(others), delivery.c.state == state, _IM.c.rejected_at.is_(None)
    )).scalars())


def newest(tx: sa.Connection, scope: Scope, *, after: int = 0, upto: int | None = None, before: Any = None) -> int:
    """Return the highest id there is of those beyond one, up to one, or stored before a time, whoever may see it; `after` for none."""
    query = sa.select(sa.func.max(_IM.c.id)).where(_IM.c.id > after, *([] if upto is None else [_IM.c.id <= upto]))
    if before is not None:
        query = query.where(_IM.c.stored_at < before)
    return int(scope.run(tx, query).scalar() or after)


def reach(tx: sa.Connection, scope: Scope, *, after: int, limit: int) -> tuple[int, bool]:
    """Return the id that ends the next `limit` instances beyond an id, whoever may see them, and whether there are as many."""
    some = sa.select(_IM.c.id).where(_IM.c.id > after).order_by(_IM.c.id).limit(limit).subquery("some")
    found: Any = scope.run(tx, sa.select(sa.func.max(some.c.id), sa.func.count())).one()
    return int(found[0] or after), found[1] == limit


def among(tx: sa.Connection, scope: Scope, also: Scope, keys: Collection[int]) -> Sequence[Selected]:
    """Return those of these instances that are live and inside both scopes now."""
    query = (
        sa.select(
            _IM.c.id, _ST.c.study_instance_uid, _SE.c.series_instance_uid, _IM.c.sop_instance_uid, _IM.c.sop_class_uid,
            _IM.c.transfer_syntax_uid, _IM.c.part10_bytes,
        )
        .select_from(_FROM)
        .where(
            _IM.c.id.in_(keys), _IM.c.rejected_at.is_(None), predicate.series_condition(_SE, scope.shape),
            predicate.series_condition(_SE, also.shape),
        )
        .order_by(_ST.c.id, _SE.c.id, _IM.c.instance_number.asc().nulls_last(), _IM.c.id)
    )
    return [Selected(*tuple(row)) for row in scope.run(tx, query, also=also)]
