"""Search: one statement in which matching and scope stand together, so that what may not be seen never leaves the database.

Attributes of a lower level than the one asked for are matched under the scope too: a hidden series never makes its study match.
Derived attributes (counts, modalities) are computed over visible series.

Source: PS3.4 C.2.2.2 and C.6, PS3.18 10.6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy import ColumnElement, FromClause

from archive.access.policy import Scope
from archive.db.tables import instance, series, study
from archive.dicom.attributes import BY_KEYWORD, Attribute, Level
from archive.dicom.matching import Empty, Universal, matches
from archive.errors import InvalidQuery
from archive.index.answers import Answer, Computed
from archive.index.locate import InstanceRow, locate
from archive.index.terms import Fuzzy, Term, condition, narrows

__all__ = ["COUNTED", "Fuzzy", "InstanceRow", "SearchPage", "SearchQuery", "Term", "find", "locate"]

COUNTED = 10_000
"""Totals are exact up to here, beyond it unknown: an exact one costs the predicate for every match."""


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """What to find. UIDs of the path address; `keys` match; `include` names attributes to answer besides the usual ones."""

    level: Level
    datastore_id: int
    keys: tuple[tuple[Attribute, Term], ...] = ()
    study_instance_uid: str | None = None
    series_instance_uid: str | None = None
    include: tuple[Attribute, ...] | Literal["all"] = ()
    limit: int | None = None
    offset: int = 0
    total: bool = True


@dataclass(frozen=True, slots=True)
class SearchPage:
    """DICOM JSON data sets without RetrieveURL, in stable order; `total` is None when not asked for or beyond COUNTED."""

    rows: list[dict[str, dict[str, Any]]]
    total: int | None


# Aliases are made once: equal statements are then compiled once.
_ST, _SE, _IM = study.alias("st"), series.alias("se"), instance.alias("im")
_BELOW_SE, _BELOW_IM = series.alias("below_se"), instance.alias("below_im")
_OTHER_ST, _OTHER_SE = study.alias("other_st"), series.alias("other_se")
_ORDER: dict[Level, tuple[ColumnElement[Any], ...]] = {
    Level.PATIENT: (_ST.c.patient_name_folded.asc(), _ST.c.id.asc()),
    Level.STUDY: (_ST.c.study_date.desc(), _ST.c.study_time.desc(), _ST.c.id.desc()),
    Level.SERIES: (_SE.c.series_number.asc().nulls_last(), _SE.c.id.asc()),
    Level.IMAGE: (_IM.c.instance_number.asc().nulls_last(), _IM.c.id.asc()),
}
_MODALITY, _SOP_CLASS = BY_KEYWORD["Modality"], BY_KEYWORD["SOPClassUID"]
_ROWS: dict[Level, FromClause] = {Level.PATIENT: _ST, Level.STUDY: _ST, Level.SERIES: _SE, Level.IMAGE: _IM}
_FROM: dict[Level, FromClause] = {
    Level.PATIENT: _ST,
    Level.STUDY: _ST,
    Level.SERIES: _SE.join(_ST, _ST.c.id == _SE.c.study_pk),
    Level.IMAGE: _IM.join(_SE, _SE.c.id == _IM.c.series_pk).join(_ST, _ST.c.id == _SE.c.study_pk),
}


def find(tx: sa.Connection, scope: Scope, query: SearchQuery) -> SearchPage:
    """Return the data sets inside the scope that match, at most `query.limit` from `query.offset` on.

    Raises:
        InvalidQuery: a key that cannot be matched.
    """
    sqlite = tx.dialect.name == "sqlite"
    level = query.level
    wanted = _conditions(query, scope, sqlite=sqlite)
    row = _ROWS[level]
    page = sa.select(row.c.id).select_from(_FROM[level]).where(*wanted).order_by(*_ORDER[level])
    if query.limit is not None:
        page = page.limit(query.limit)
    if query.offset:
        page = page.offset(query.offset)
    chosen = page.subquery("page")
    answer = Answer.of(
        level, query.keys, query.include, with_study=not query.study_instance_uid, with_series=not query.series_instance_uid
    )
    computed = Computed(scope, _ST, _SE, _IM, sqlite=sqlite)
    statement = (
        sa.select(*answer.columns(computed))
        .select_from(_FROM[level].join(chosen, chosen.c.id == row.c.id))
        .order_by(*_ORDER[level])
    )
    rows = [answer.dataset(found._mapping) for found in scope.run(tx, statement)]  # noqa: SLF001 # SQLAlchemy's public name
    return SearchPage(rows, _total(tx, scope, query, wanted, len(rows)))


def _total(tx: sa.Connection, scope: Scope, query: SearchQuery, wanted: Sequence[ColumnElement[bool]], found: int) -> int | None:
    if not query.total:
        return None
    if (query.limit is None or found < query.limit) and (found or not query.offset):
        total = query.offset + found
    else:
        counted = sa.select(_ROWS[query.level].c.id).select_from(_FROM[query.level]).where(*wanted).limit(COUNTED + 1)
        total = int(scope.run(tx, sa.select(sa.func.count()).select_from(counted.subquery())).scalar_one())
    return total if total <= COUNTED else None


def _conditions(query: SearchQuery, scope: Scope, *, sqlite: bool) -> list[ColumnElement[bool]]:
    level = query.level
    wanted: list[ColumnElement[bool]] = [_in_datastore(query, sqlite=sqlite)]
    if level in {Level.SERIES, Level.IMAGE}:
        wanted.append(scope.series(_SE))
    else:
        wanted.append(scope.study(_ST))
    if level is Level.IMAGE:
        wanted.append(_IM.c.rejected_at.is_(None))
    if query.study_instance_uid is not None:
        wanted.append(_ST.c.study_instance_uid == query.study_instance_uid)
    if query.series_instance_uid is not None:
        if level not in {Level.SERIES, Level.IMAGE}:
            message = "a series is addressed only for series and instances"
            raise InvalidQuery(message)
        wanted.append(_SE.c.series_instance_uid == query.series_instance_uid)
    wanted += _matching(query, _ST, scope, sqlite=sqlite)
    if level is Level.PATIENT:
        # One row a patient: its latest study that matches and is visible speaks for it.
        later = sa.select(1).select_from(_OTHER_ST).where(
            _OTHER_ST.c.patient_pk == _ST.c.patient_pk, _OTHER_ST.c.id > _ST.c.id, scope.study(_OTHER_ST),
            *_matching(query, _OTHER_ST, scope, sqlite=sqlite),
        )  # fmt: skip
        wanted.append(sa.not_(sa.exists(later.correlate(_ST))))
    return wanted


def _in_datastore(query: SearchQuery, *, sqlite: bool) -> ColumnElement[bool]:
    """Name the datastore so that SQLite, which has no statistics, starts from the right index.

    It takes any index that begins with the datastore for a good one. A sum keeps it from them when a key names few studies; else the
    index of study dates gives the order, and the page is soon full.
    """
    row = _ROWS[query.level]
    by_address = query.study_instance_uid is not None or query.series_instance_uid is not None
    if sqlite and not by_address and any(narrows(attribute, term) for attribute, term in query.keys):
        return row.c.datastore_id + 0 == query.datastore_id
    if sqlite and not by_address and query.level is Level.STUDY:
        return sa.and_(row.c.datastore_id == query.datastore_id, _ST.c.study_date >= "")
    return row.c.datastore_id == query.datastore_id


def _matching(query: SearchQuery, st: FromClause, scope: Scope, *, sqlite: bool) -> list[ColumnElement[bool]]:
    """Return the keys as conditions; those of lower levels are met together by one visible series, and one live instance of it."""
    level = query.level
    wanted: list[ColumnElement[bool]] = []
    series_keys: list[tuple[Attribute, Term]] = []
    image_keys: list[tuple[Attribute, Term]] = []
    for attribute, term in query.keys:
        if isinstance(term, Universal):
            continue
        if attribute.computed:
            wanted.append(_computed(attribute, term, st, scope, sqlite=sqlite))
        elif attribute.level in {Level.PATIENT, Level.STUDY}:
            wanted.append(condition(attribute, term, st, sqlite=sqlite, datastore_id=query.datastore_id))
        else:
            (series_keys if attribute.level is Level.SERIES else image_keys).append((attribute, term))

    def met(some: list[tuple[Attribute, Term]], row: FromClause) -> list[ColumnElement[bool]]:
        return [condition(attribute, term, row, sqlite=sqlite) for attribute, term in some]

    if level is Level.IMAGE:
        return wanted + met(series_keys, _SE) + met(image_keys, _IM)
    se = _SE if level is Level.SERIES else _BELOW_SE
    inside = met(series_keys, se)
    if image_keys:
        live = sa.select(1).select_from(_BELOW_IM).where(_BELOW_IM.c.series_pk == se.c.id, _BELOW_IM.c.rejected_at.is_(None))
        inside.append(sa.exists(live.where(*met(image_keys, _BELOW_IM)).correlate(se)))
    if level is Level.SERIES:
        return wanted + inside
    if inside:
        visible = sa.select(1).select_from(_BELOW_SE).where(_BELOW_SE.c.study_pk == st.c.id, scope.series(_BELOW_SE), *inside)
        wanted.append(sa.exists(visible.correlate(st)))
    return wanted


def _computed(attribute: Attribute, term: Term, st: FromClause, scope: Scope, *, sqlite: bool) -> ColumnElement[bool]:
    """Match what is derived from visible series."""
    if attribute.keyword == "InstanceAvailability" and not isinstance(term, Fuzzy):
        return sa.true() if matches(term, attribute, ["ONLINE"]) else sa.false()
    if attribute.keyword == "ModalitiesInStudy":
        held = sa.select(1).select_from(_OTHER_SE).where(_OTHER_SE.c.study_pk == st.c.id, scope.series(_OTHER_SE))
        if isinstance(term, Empty):
            return sa.not_(sa.exists(held.where(sa.not_(condition(_MODALITY, term, _OTHER_SE, sqlite=sqlite))).correlate(st)))
        return sa.exists(held.where(condition(_MODALITY, term, _OTHER_SE, sqlite=sqlite)).correlate(st))
    if attribute.keyword == "SOPClassesInStudy":
        inside = _BELOW_IM.join(_OTHER_SE, _OTHER_SE.c.id == _BELOW_IM.c.series_pk)
        held = sa.select(1).select_from(inside).where(
            _OTHER_SE.c.study_pk == st.c.id, _BELOW_IM.c.rejected_at.is_(None), scope.series(_OTHER_SE),
            condition(_SOP_CLASS, term, _BELOW_IM, sqlite=sqlite),
        )  # fmt: skip
        return sa.exists(held.correlate(st))
    message = f"{attribute.keyword} cannot be matched"
    raise InvalidQuery(message)
