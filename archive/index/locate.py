"""Locate: the instances of a study, series or one, inside the scope, with all that reading them needs.

Each statement is built once for the shape of a scope and the UIDs of an address, and run on the driver's cursor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import bindparam

from archive.access import predicate
from archive.access.permissions import Permission
from archive.access.policy import Scope, scope_of
from archive.access.shape import Shape
from archive.access.subject import Subject
from archive.db import guard
from archive.db.engine import Database
from archive.db.location import Location, RecordRef
from archive.db.prepared import Prepared
from archive.db.tables import datastore, instance, series, series_pack, study


@dataclass(frozen=True, slots=True)
class InstanceRow:
    """One instance the caller may see."""

    instance_pk: int
    series_pk: int
    study_pk: int
    datastore_id: int
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    number_of_frames: int | None
    series_generation: int
    dataset_offset: int
    sha256: bytes
    leaf: int
    ref: RecordRef


@dataclass(frozen=True, slots=True)
class SeriesRow:
    """A series the caller may see, and the pack that table `series_pack` names for it, of whatever generation."""

    series_pk: int
    series_instance_uid: str
    generation: int
    n_instances: int
    pack_generation: int | None
    pack_etag: str | None
    pack_object_id: bytes | None
    pack_key_id: bytes | None


_ST, _SE, _IM = study.alias("st"), series.alias("se"), instance.alias("im")
_FROM = _ST.join(_SE, _SE.c.study_pk == _ST.c.id).join(_IM, _IM.c.series_pk == _SE.c.id)
_SERIES_ORDER = (_SE.c.series_number.asc().nulls_last(), _SE.c.id)
_ORDER = (*_SERIES_ORDER, _IM.c.instance_number.asc().nulls_last(), _IM.c.id)
_BASE_OF_ALL = (
    sa.select(
        _IM.c.id, _IM.c.series_pk, _IM.c.study_pk, _IM.c.datastore_id,
        _ST.c.study_instance_uid, _SE.c.series_instance_uid, _IM.c.sop_instance_uid, _IM.c.sop_class_uid,
        _IM.c.transfer_syntax_uid, _IM.c.number_of_frames, _SE.c.generation.label("series_generation"),
        _IM.c.dataset_offset, _IM.c.sha256, _IM.c.leaf,
        _IM.c.segment_id, _IM.c.record_offset, _IM.c.record_bytes, _IM.c.key_id, _IM.c.object_id, _IM.c.plaintext_bytes,
        _IM.c.part10_bytes, _IM.c.record_kind, datastore.c.uid.label("datastore_uid"),
    )
    .select_from(_FROM.join(datastore, datastore.c.id == _ST.c.datastore_id))
    .where(_IM.c.rejected_at.is_(None))
    .order_by(*_ORDER)
)
_SERIES = (
    sa.select(
        _SE.c.id, _SE.c.series_instance_uid, _SE.c.generation, _SE.c.n_instances,
        series_pack.c.generation.label("pack_generation"), series_pack.c.etag, series_pack.c.object_id, series_pack.c.key_id,
    )
    .select_from(_ST.join(_SE, _SE.c.study_pk == _ST.c.id).outerjoin(series_pack, series_pack.c.series_pk == _SE.c.id))
    .order_by(*_SERIES_ORDER)
)


def _addressed(statement: sa.Select[Any], shape: Shape, *, with_series: bool, with_sop: bool) -> Prepared:
    wanted = statement.where(
        _ST.c.datastore_id == bindparam("datastore"), _ST.c.study_instance_uid == bindparam("study_uid"),
        predicate.series_condition(_SE, shape),
    )
    if with_series:
        wanted = wanted.where(_SE.c.series_instance_uid == bindparam("series_uid"))
    if with_sop:  # the datastore again, for the index of both
        wanted = wanted.where(_IM.c.datastore_id == bindparam("datastore"), _IM.c.sop_instance_uid == bindparam("sop_uid"))
    return Prepared(wanted)


@lru_cache(maxsize=256)
def _instances(shape: Shape, *, with_series: bool, with_sop: bool) -> Prepared:
    return _addressed(_BASE_OF_ALL, shape, with_series=with_series, with_sop=with_sop)


@lru_cache(maxsize=128)
def _series(shape: Shape, *, with_series: bool) -> Prepared:
    return _addressed(_SERIES, shape, with_series=with_series, with_sop=False)


@lru_cache(maxsize=64)
def _one_still(shape: Shape) -> Prepared:
    return Prepared(
        sa.select(1).select_from(_IM.join(_SE, _SE.c.id == _IM.c.series_pk)).where(
            _IM.c.id == bindparam("instance"), _IM.c.object_id == bindparam("object"), _IM.c.rejected_at.is_(None),
            predicate.series_condition(_SE, shape),
        )
    )


@lru_cache(maxsize=64)
def _some_still(shape: Shape) -> Prepared:
    return Prepared(
        sa.select(_IM.c.id, _IM.c.object_id).select_from(_IM.join(_SE, _SE.c.id == _IM.c.series_pk)).where(
            _IM.c.id.between(bindparam("first"), bindparam("last")), _IM.c.rejected_at.is_(None), predicate.series_condition(_SE, shape),
        )
    )


def usual_scopes(subject: Subject, at: datetime) -> list[Scope]:
    """Return scopes of the shapes that nearly everybody has who retrieves: by token, and by session."""
    return [scope_of(who, Permission.ORIGINAL, at) for who in (replace(subject, token_id=0), replace(subject, session_id=0))]


def build(shape: Shape) -> None:
    """Build the statements of scopes of that shape; no database is asked."""
    for with_series, with_sop in ((False, False), (True, False), (True, True)):
        _instances(shape, with_series=with_series, with_sop=with_sop)
    _series(shape, with_series=True)
    _one_still(shape)
    _some_still(shape)


def locate(  # an address reads from left to right
    tx: sa.Connection, scope: Scope, datastore_id: int, study: str, series: str | None = None, sop: str | None = None
) -> list[InstanceRow]:
    """Return live instances inside the scope, ordered by series and instance number; none when absent or out of scope alike."""
    params: dict[str, Any] = {"datastore": datastore_id, "study_uid": study}
    if series is not None:
        params["series_uid"] = series
    if sop is not None:
        params["sop_uid"] = sop
    statement = _instances(scope.shape, with_series=series is not None, with_sop=sop is not None)
    once: dict[Any, Any] = {}
    return [_instance(row, once) for row in scope.each(tx, statement, params)]


def series_of(tx: sa.Connection, scope: Scope, datastore_id: int, study: str, series: str | None = None) -> list[SeriesRow]:
    """Return the series of a study inside the scope, or one of them, ordered by series number."""
    params: dict[str, Any] = {"datastore": datastore_id, "study_uid": study}
    if series is not None:
        params["series_uid"] = series
    return [SeriesRow(*row) for row in scope.all(tx, _series(scope.shape, with_series=series is not None), params)]


def still(database: Database, scope: Scope, row: InstanceRow) -> bool:
    """Whether an instance that was located is live, kept as the same object, and inside the scope now."""
    values = {"instance": row.instance_pk, "object": row.ref.object_id, **scope.parameters}
    return database.first(_one_still(scope.shape), values, scope.token) is not None


def still_between(database: Database, scope: Scope, first: int, last: int) -> dict[int, bytes]:
    """Return the keys from `first` to `last` whose instances are live and inside the scope now, and as which objects they are kept."""
    with database.glance() as tx:
        return {row[0]: row[1] for row in scope.all(tx, _some_still(scope.shape), {"first": first, "last": last})}


@lru_cache(maxsize=64)
def _one_within(shape: Shape, also: Shape | None) -> Prepared:
    wanted = _BASE_OF_ALL.where(_IM.c.id == bindparam("instance"), predicate.series_condition(_SE, shape))
    return Prepared(wanted if also is None else wanted.where(predicate.series_condition(_SE, also)))


def within(database: Database, scope: Scope, instance_pk: int, *, also: Scope | None = None) -> InstanceRow | None:
    """Return an instance that is live and inside the scopes now, None when it is not any more."""
    values = {"instance": instance_pk, **scope.parameters, **(also.parameters if also else {})}
    row = database.first(_one_within(scope.shape, also.shape if also else None), values, scope.token)
    return None if row is None else _instance(row)


@lru_cache(maxsize=64)
def _some_within(shape: Shape, also: Shape | None) -> Prepared:
    wanted = _BASE_OF_ALL.where(_IM.c.id.between(bindparam("first"), bindparam("last")), predicate.series_condition(_SE, shape))
    return Prepared(wanted if also is None else wanted.where(predicate.series_condition(_SE, also)))


def within_between(database: Database, scope: Scope, first: int, last: int, *, also: Scope | None = None) -> dict[int, InstanceRow]:
    """Return the instances with keys from `first` to `last` that are live and inside the scopes now, by key."""
    values = {"first": first, "last": last, **(also.parameters if also else {})}
    with database.glance() as tx:
        rows = scope.all(tx, _some_within(scope.shape, also.shape if also else None), values)
    return {row[0]: _instance(row) for row in rows}


_SERIES_BY_PK = Prepared(_BASE_OF_ALL.where(_SE.c.id == bindparam("series_pk")))


def of_series(tx: sa.Connection, token: guard.Token, series_pk: int) -> list[InstanceRow]:
    """Return every live instance of a series for internal work, ordered by instance number."""
    return [_instance(row) for row in _SERIES_BY_PK.all(tx, {"series_pk": series_pk}, token)]


def _instance(row: Any, once: dict[Any, Any] | None = None) -> InstanceRow:
    """Return a row; what it says as others did, the UIDs above it say, is kept `once` for all of them."""
    same = ({} if once is None else once).setdefault
    values = list(row[:14])
    for at in _SHARED:
        values[at] = same(values[at], values[at])
    segment, offset, record_bytes, key, object_id, plaintext_bytes, part10_bytes, kind, place = row[14:]
    location = Location(same(segment, segment), offset, record_bytes)
    values.append(RecordRef(location, same(key, key), object_id, same(place, place), plaintext_bytes, part10_bytes, kind))
    return InstanceRow(*values)


_SHARED = (4, 5, 7, 8)
"""Of the columns: UIDs of study, series, class and transfer syntax."""
