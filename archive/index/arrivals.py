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


@dataclass(frozen=True, slots=True)
class Arrived:
    """One instance, as far as the conditions of a rule need it."""

    instance_pk: int
    study_pk: int
    modality: str
    attributes: tuple[dict[str, Any], ...]  # of study and series, DICOM JSON Model
    envelope: bytes | None


def arrived(
    tx: sa.Connection, scope: Scope, also: Scope, datastore_id: int, *, peer_id: int, after: int, limit: int
) -> list[Arrived]:
    """Return live instances beyond an id inside both scopes that are not queued for that peer yet, in order."""
    queued = sa.select(1).where(delivery.c.peer_id == peer_id, delivery.c.instance_pk == _IM.c.id)
    query = (
        sa.select(_IM.c.id, _SE.c.study_pk, _SE.c.modality, _ST.c.attributes, _SE.c.attributes, statement.c.envelope)
        .select_from(_FROM.outerjoin(statement, statement.c.object_id == _IM.c.object_id))
        .where(
            _IM.c.id > after, _IM.c.datastore_id == datastore_id, _IM.c.rejected_at.is_(None),
            predicate.series_condition(_SE, scope.shape), predicate.series_condition(_SE, also.shape), sa.not_(sa.exists(queued)),
        )
        .order_by(_IM.c.id).limit(limit)
    )
    rows: list[Any] = list(scope.run(tx, query, also=also))
    return [
        Arrived(key, study_pk, modality, (of_study or {}, of_series or {}), None if envelope is None else bytes(envelope))
        for key, study_pk, modality, of_study, of_series, envelope in rows
    ]


def newest(tx: sa.Connection, scope: Scope, *, before: Any = None) -> int:
    """Return the highest id there is, or was before a time, whoever may see it; 0 when there is none."""
    query = sa.select(sa.func.max(_IM.c.id))
    if before is not None:
        query = query.where(_IM.c.stored_at < before)
    return int(scope.run(tx, query).scalar() or 0)


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
