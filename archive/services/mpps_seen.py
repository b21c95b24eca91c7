"""Which performed procedure steps a subject sees: of a study, one that names series is there as far as one of those is.

A step that names none says of its study no more than the study does. One of whose series the archive holds none yet could be about any:
it is there for who sees the whole study, whatever comes. In the list of all, which whoever works with the worklist reads, is each whose
patient, studies and series no deny hides.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from archive.access import predicate
from archive.access.policy import Scope
from archive.access.shape import Shape
from archive.db.tables import mpps, mpps_step, series, study
from archive.dicom import scheduled
from archive.index import unheld

MOST = 50
SERIES, _SERIES_UID = "00400340", "0020000E"
_PATH: Any = sa.ARRAY(sa.Text())
_ST, _SE = study.alias("st"), series.alias("se")
_NAMED = unheld.Naming(mpps, mpps.c.patient_id, unheld.issuer_in(mpps.c.attributes), mpps_step, mpps_step.c.mpps_id == mpps.c.id)


def of_study(tx: sa.Connection, scope: Scope, place: int, study_instance_uid: str) -> list[tuple[sa.RowMapping, list[str]]]:
    """Return the first steps of a study that are there for the subject, each with the series it names that are."""
    sqlite = tx.dialect.name == "sqlite"
    here = (_ST.c.datastore_id == place, _ST.c.study_instance_uid == study_instance_uid)
    count, each, uid = _named(sqlite=sqlite)
    of_one = sa.exists(sa.select(1).select_from(each.join(_SE, _SE.c.series_instance_uid == uid)).where(
        _SE.c.study_pk == _ST.c.id, scope.series(_SE)
    ).correlate(mpps, _ST))
    seen = sa.select(1).where(*here, scope.study(_ST), sa.or_(count == 0, of_one, scope.entire(_ST))).correlate(mpps)
    about = sa.select(mpps_step.c.mpps_id).where(mpps_step.c.study_instance_uid == study_instance_uid)
    query = sa.select(mpps).where(mpps.c.datastore_id == place, mpps.c.id.in_(about), sa.exists(seen)).order_by(mpps.c.id).limit(MOST)
    rows = scope.run(tx, query).mappings().all()
    visible = sa.select(_SE.c.series_instance_uid).join(_ST, _ST.c.id == _SE.c.study_pk).where(*here, scope.series(_SE))
    shown = set(scope.run(tx, visible).scalars()) if rows else set()
    return [(row, [one for one in _uids(row["attributes"]) if one in shown]) for row in rows]


@lru_cache(maxsize=64)
def listed(shape: Shape, *, sqlite: bool) -> sa.ColumnElement[bool]:
    """True for the steps that a caller who may work with the worklist sees in its list."""
    each, uid = _named(sqlite=sqlite)[1:]
    asked: Shape | None = shape
    clauses = [unheld.seen(_NAMED, shape)]
    while asked is not None:
        of_denied = sa.exists(sa.select(1).select_from(each.join(_SE, _SE.c.series_instance_uid == uid)).where(
            _SE.c.datastore_id == mpps.c.datastore_id, predicate.denied(_SE, asked)
        ).correlate(mpps))
        clauses.append(sa.not_(sa.and_(predicate.any_deny(asked), of_denied)))
        asked = asked.besides
    return sa.and_(*clauses)


def _named(*, sqlite: bool) -> tuple[sa.ColumnElement[int], Any, sa.ColumnElement[str]]:
    """Return how many items PerformedSeriesSequence has, its items as rows, and the Series Instance UID of one.

    What a device sent need not be a sequence.
    """
    uid: sa.ColumnElement[Any]
    if sqlite:
        path = f'$."{SERIES}".Value'
        each = sa.func.json_each(mpps.c.attributes, path).table_valued("value", "type", name="performed")
        uid = sa.case((each.c.type == "object", sa.func.json_extract(each.c.value, f'$."{_SERIES_UID}".Value[0]')))
        return sa.func.coalesce(sa.func.json_array_length(mpps.c.attributes, path), 0), each, uid
    found = mpps.c.attributes.op("#>")(sa.cast(sa.literal(f"{{{SERIES},Value}}", sa.Text()), _PATH))
    items = sa.case((sa.func.json_typeof(found) == "array", found), else_=sa.cast(sa.literal("[]", sa.Text()), sa.JSON()))
    each = sa.func.json_array_elements(items).table_valued("value", name="performed")
    uid = each.c.value.op("#>>")(sa.cast(sa.literal(f"{{{_SERIES_UID},Value,0}}", sa.Text()), _PATH))
    return sa.func.json_array_length(items), each, uid


def _uids(attributes: dict[str, Any]) -> list[str]:
    return [scheduled.text(one, _SERIES_UID) for one in scheduled.items(attributes, SERIES)]
