"""Locate: the instances of a study, series or one, inside the scope, with all that reading them needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import bindparam

from archive.access import policy
from archive.access.policy import Scope
from archive.db import guard
from archive.db.location import RecordRef
from archive.db.tables import datastore, instance, series, study
from archive.index.catalog import ref_of


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
    attributes: dict[str, dict[str, Any]]
    series_generation: int
    dataset_offset: int
    sha256: bytes
    leaf: int
    ref: RecordRef


_ST, _SE, _IM = study.alias("st"), series.alias("se"), instance.alias("im")
_BASE_OF_ALL = (
    sa.select(
        _IM,
        _ST.c.study_instance_uid,
        _SE.c.series_instance_uid,
        _SE.c.generation.label("series_generation"),
        datastore.c.uid.label("datastore_uid"),
    )
    .select_from(
        _ST.join(_SE, _SE.c.study_pk == _ST.c.id)
        .join(_IM, _IM.c.series_pk == _SE.c.id)
        .join(datastore, datastore.c.id == _ST.c.datastore_id)
    )
    .where(_IM.c.rejected_at.is_(None))
    .order_by(_SE.c.series_number.asc().nulls_last(), _SE.c.id, _IM.c.instance_number.asc().nulls_last(), _IM.c.id)
)
_BASE = _BASE_OF_ALL.where(
    _ST.c.datastore_id == bindparam("datastore"), _ST.c.study_instance_uid == bindparam("study_uid")
)
_OF_SERIES = _BASE.where(_SE.c.series_instance_uid == bindparam("series_uid"))
_OF_STUDY_ONE = _BASE.where(_IM.c.sop_instance_uid == bindparam("sop_uid"))
_OF_SERIES_ONE = _OF_SERIES.where(_IM.c.sop_instance_uid == bindparam("sop_uid"))


def locate(  # an address reads from left to right
    tx: sa.Connection, scope: Scope, datastore_id: int, study: str, series: str | None = None, sop: str | None = None
) -> list[InstanceRow]:
    """Return live instances inside the scope, ordered by series and instance number; none when absent or out of scope alike."""
    params: dict[str, Any] = {"datastore": datastore_id, "study_uid": study}
    if series is not None:
        params["series_uid"] = series
    if sop is not None:
        params["sop_uid"] = sop
    one, all_of = (_OF_STUDY_ONE, _BASE) if series is None else (_OF_SERIES_ONE, _OF_SERIES)
    statement = (all_of if sop is None else one).where(scope.series(_SE))
    return [_instance(row) for row in scope.run(tx, statement, params)]


_SERIES_BY_PK = _BASE_OF_ALL.where(_SE.c.id == bindparam("series_pk"))


def of_series(tx: sa.Connection, token: guard.Token, series_pk: int) -> list[InstanceRow]:
    """Return every live instance of a series for internal work, ordered by instance number."""
    return [_instance(row) for row in policy.run_as(tx, token, _SERIES_BY_PK, {"series_pk": series_pk})]


def _instance(row: sa.Row[Any]) -> InstanceRow:
    return InstanceRow(
        instance_pk=row.id, series_pk=row.series_pk, study_pk=row.study_pk, datastore_id=row.datastore_id,
        study_instance_uid=row.study_instance_uid, series_instance_uid=row.series_instance_uid,
        sop_instance_uid=row.sop_instance_uid, sop_class_uid=row.sop_class_uid, transfer_syntax_uid=row.transfer_syntax_uid,
        number_of_frames=row.number_of_frames, attributes=row.attributes, series_generation=row.series_generation,
        dataset_offset=row.dataset_offset, sha256=row.sha256, leaf=row.leaf, ref=ref_of(row),
    )
