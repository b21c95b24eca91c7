"""Which instance a picture is made of, inside the scope: the one asked for, each of a series or study, or one that stands for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import bindparam

from archive.access import policy, predicate
from archive.access.policy import Scope
from archive.access.shape import Shape
from archive.db import guard
from archive.db.location import RecordRef
from archive.db.prepared import Prepared
from archive.db.tables import datastore, instance, series, study
from archive.dicom.decode import DECODABLE
from archive.index.catalog import ref_of


@dataclass(frozen=True, slots=True)
class PictureRow:
    """An instance the caller may see; `image` says whether it has rows and columns."""

    instance_pk: int
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    image: bool
    ref: RecordRef


_ST, _SE, _IM = study.alias("st"), series.alias("se"), instance.alias("im")
_ZERO, _ONE, _TWO = (sa.literal_column(str(n), sa.BigInteger()) for n in range(3))
_IMAGE = sa.case((sa.and_(_IM.c.rows > _ZERO, _IM.c.columns > _ZERO), _ONE), else_=_ZERO).label("image")
_COLUMNS = (
    _IM.c.id, _ST.c.study_instance_uid, _SE.c.series_instance_uid, _IM.c.sop_instance_uid, _IM.c.transfer_syntax_uid, _IMAGE,
    _IM.c.segment_id, _IM.c.record_offset, _IM.c.record_bytes, _IM.c.key_id, _IM.c.object_id, _IM.c.plaintext_bytes, _IM.c.part10_bytes,
    _IM.c.record_kind, datastore.c.uid.label("datastore_uid"),
)
_JOINED = (
    _ST.join(_SE, _SE.c.study_pk == _ST.c.id)
    .join(_IM, _IM.c.series_pk == _SE.c.id)
    .join(datastore, datastore.c.id == _ST.c.datastore_id)
)
_NUMBER = (_IM.c.instance_number.asc().nulls_last(), _IM.c.id)
_SERIES_NUMBER = (_SE.c.series_number.asc().nulls_last(), _SE.c.id)
_ASKED = (_ST.c.datastore_id == bindparam("datastore"), _ST.c.study_instance_uid == bindparam("study_uid"), _IM.c.rejected_at.is_(None))
_OF_SERIES = _SE.c.series_instance_uid == bindparam("series_uid")
# The datastore again, for the index of both: without it every instance of the series is read.
_OF_INSTANCE = (_IM.c.datastore_id == bindparam("datastore"), _IM.c.sop_instance_uid == bindparam("sop_uid"))


def every(
    tx: sa.Connection, scope: Scope, datastore_id: int, study: str, series: str | None = None, sop: str | None = None
) -> list[PictureRow]:
    """Return live instances inside the scope, ordered by series and instance number; none when absent or out of scope alike."""
    params = _params(datastore_id, study, series, sop)
    return [_row(row) for row in scope.all(tx, _every(scope.shape, series is not None, sop is not None), params)]


def representative(tx: sa.Connection, scope: Scope, datastore_id: int, study: str, series: str | None = None) -> PictureRow | None:
    """Return the instance inside the scope that stands for a series or study: the middle of its images.

    Of a study's series the one with the most images stands for it; images that can be decoded go before others, segmentations behind
    what they were drawn on. An instance that is no image is returned only where there is nothing else.
    """
    row = scope.first(tx, _representative(scope.shape, series is not None), _params(datastore_id, study, series, None))
    return None if row is None else _row(row)


def representative_of(tx: sa.Connection, token: guard.Token, series_pk: int) -> PictureRow | None:
    """Return what stands for a whole series, for internal work."""
    row = policy.run_as(tx, token, _REPRESENTATIVE_OF, {"series_pk": series_pk}).first()
    return None if row is None else _row(row)


def _params(datastore_id: int, study: str, series: str | None, sop: str | None) -> Mapping[str, Any]:
    params: dict[str, Any] = {"datastore": datastore_id, "study_uid": study}
    if series is not None:
        params["series_uid"] = series
    if sop is not None:
        params["sop_uid"] = sop
    return params


@lru_cache(maxsize=64)
def _every(shape: Shape, of_series: bool, one: bool) -> Prepared:
    asked = (*_ASKED, *((_OF_SERIES,) if of_series else ()), *(_OF_INSTANCE if one else ()))
    statement = sa.select(*_COLUMNS).select_from(_JOINED).where(*asked, predicate.series_condition(_SE, shape))
    return Prepared(statement.order_by(*_SERIES_NUMBER, *_NUMBER))


@lru_cache(maxsize=32)
def _representative(shape: Shape, of_series: bool) -> Prepared:
    asked = (*_ASKED, *((_OF_SERIES,) if of_series else ()), predicate.series_condition(_SE, shape))
    return Prepared(_middle(*asked))


def _middle(*asked: sa.ColumnElement[bool]) -> sa.Select[Any]:
    group = (_IM.c.series_pk, _IMAGE.element)
    counted = (
        sa.select(
            _IM.c.id,
            _IMAGE,
            sa.func.row_number().over(partition_by=group, order_by=_NUMBER).label("place"),
            sa.func.count().over(partition_by=group).label("n"),
        )
        .select_from(_JOINED)
        .where(*asked)
        .subquery("counted")
    )
    decodable = sa.case((_IM.c.transfer_syntax_uid.in_([sa.literal_column(f"'{uid}'") for uid in sorted(DECODABLE)]), _ONE), else_=_ZERO)
    drawn = sa.case((_SE.c.modality == sa.literal_column("'SEG'"), _ONE), else_=_ZERO)
    return (
        sa.select(*_COLUMNS)
        .select_from(_JOINED.join(counted, counted.c.id == _IM.c.id))
        .where(counted.c.place == (counted.c.n + _ONE) // _TWO)
        .order_by(counted.c.image.desc(), decodable.desc(), drawn, counted.c.n.desc(), *_SERIES_NUMBER)
        .limit(_ONE)
    )


_REPRESENTATIVE_OF = _middle(_SE.c.id == bindparam("series_pk"), _IM.c.rejected_at.is_(None))


def _row(row: Any) -> PictureRow:
    return PictureRow(
        row.id, row.study_instance_uid, row.series_instance_uid, row.sop_instance_uid, row.transfer_syntax_uid, bool(row.image),
        ref_of(row),
    )
