"""What a search asks for, and the condition that its rows match and are inside the scope: both in one statement.

Every statement has the parameters `datastore`, and where they are asked about `study_uid`, `series_uid`, `date_low` and `date_high`.

Source: PS3.4 C.2.2.2 and C.6, PS3.18 10.6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy import ColumnElement, FromClause

from archive.access import predicate
from archive.access.predicate import Shape
from archive.db.tables import instance, series, study
from archive.dicom.attributes import BY_KEYWORD, Attribute, Level
from archive.dicom.matching import Empty, Range, UidList, Universal, matches
from archive.errors import InvalidQuery
from archive.index.access_study import Position
from archive.index.slots import Fuzzy, Slot, Slots, Term
from archive.index.terms import condition, narrows


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
    after: Position | None = None
    """Where the page before ended, at study level: `offset` rows come before, and need not be gone through again."""


# Aliases are made once: equal statements are then compiled once.
ST, SE, IM = study.alias("st"), series.alias("se"), instance.alias("im")
_BELOW_SE, _BELOW_IM = series.alias("below_se"), instance.alias("below_im")
_OTHER_ST, _OTHER_SE = study.alias("other_st"), series.alias("other_se")
ROWS: dict[Level, FromClause] = {Level.PATIENT: ST, Level.STUDY: ST, Level.SERIES: SE, Level.IMAGE: IM}
FROM: dict[Level, FromClause] = {
    Level.PATIENT: ST,
    Level.STUDY: ST,
    Level.SERIES: SE.join(ST, ST.c.id == SE.c.study_pk),
    Level.IMAGE: IM.join(SE, SE.c.id == IM.c.series_pk).join(ST, ST.c.id == SE.c.study_pk),
}
MODALITY, NAME, STUDY_DATE = BY_KEYWORD["Modality"], BY_KEYWORD["PatientName"], BY_KEYWORD["StudyDate"]
_SOP_CLASS = BY_KEYWORD["SOPClassUID"]
TEXT, BIG = sa.Text(), sa.BigInteger()


def led(query: SearchQuery) -> bool:
    """Whether studies are looked at in the order of the answer, because no key names few of them."""
    return query.level is Level.STUDY and query.study_instance_uid is None and query.series_instance_uid is None and not any(
        narrows(attribute, term) and attribute is not NAME for attribute, term in query.keys
    )


def bound(name: str, kind: sa.types.TypeEngine[Any]) -> sa.BindParameter[Any]:
    """Return a parameter."""
    return sa.bindparam(name, type_=kind)


def conditions(query: SearchQuery, shape: Shape, slots: Slots | None = None, *, sqlite: bool) -> list[ColumnElement[bool]]:
    """Return what every row answered meets; the keys' values are parameters of `slots`, when given.

    Raises:
        InvalidQuery: a key that cannot be matched.
    """
    level = query.level
    wanted: list[ColumnElement[bool]] = [_in_datastore(query, sqlite=sqlite)]
    if level in {Level.SERIES, Level.IMAGE}:
        wanted.append(predicate.series_condition(SE, shape))
    else:
        wanted.append(predicate.study_condition(ST, shape))
    if level is Level.IMAGE:
        wanted.append(IM.c.rejected_at.is_(None))
    if query.study_instance_uid is not None:
        wanted += [ST.c.study_instance_uid == bound("study_uid", TEXT), ST.c.datastore_id == bound("datastore", BIG)]
    if query.series_instance_uid is not None:
        if level not in {Level.SERIES, Level.IMAGE}:
            message = "a series is addressed only for series and instances"
            raise InvalidQuery(message)
        wanted.append(SE.c.series_instance_uid == bound("series_uid", TEXT))
    wanted += _matching(query, ST, shape, slots, sqlite=sqlite)
    if level is Level.PATIENT:
        # One row a patient: its latest study that matches and is visible speaks for it.
        later = sa.select(1).select_from(_OTHER_ST).where(
            _OTHER_ST.c.patient_pk == ST.c.patient_pk, _OTHER_ST.c.id > ST.c.id, predicate.study_condition(_OTHER_ST, shape),
            *_matching(query, _OTHER_ST, shape, slots, sqlite=sqlite),
        )  # fmt: skip
        wanted.append(sa.not_(sa.exists(later.correlate(ST))))
    return wanted


def _in_datastore(query: SearchQuery, *, sqlite: bool) -> ColumnElement[bool]:
    """Name the datastore so that SQLite, which has no statistics, starts from the right index.

    It takes any index that begins with the datastore for a good one. A sum keeps it from them where the rows are named otherwise: by the
    study they lie in, by a list of keys, by a key with an index of its own.
    """
    row = ROWS[query.level]
    by_address = query.study_instance_uid is not None or query.series_instance_uid is not None
    by_uid = query.level is Level.STUDY and any(isinstance(term, UidList) for _, term in query.keys)
    if sqlite and not by_uid and (by_address or led(query) or any(narrows(attribute, term) for attribute, term in query.keys)):
        return row.c.datastore_id + 0 == bound("datastore", BIG)
    return row.c.datastore_id == bound("datastore", BIG)


def _matching(
    query: SearchQuery, st: FromClause, shape: Shape, slots: Slots | None, *, sqlite: bool
) -> list[ColumnElement[bool]]:
    """Return the keys as conditions; those of lower levels are met together by one visible series, and one live instance of it."""
    level = query.level
    wanted: list[ColumnElement[bool]] = []
    series_keys: list[tuple[Attribute, Slot]] = []
    image_keys: list[tuple[Attribute, Slot]] = []
    for number, (attribute, term) in enumerate(query.keys):
        slot = Slot(term, number, slots)
        if isinstance(term, Universal):
            continue
        if attribute.computed:
            wanted.append(_computed(attribute, slot, st, shape, sqlite=sqlite))
        elif attribute.level in {Level.PATIENT, Level.STUDY}:
            wanted.append(_of_study(attribute, slot, st, sqlite=sqlite))
        else:
            (series_keys if attribute.level is Level.SERIES else image_keys).append((attribute, slot))

    def met(some: list[tuple[Attribute, Slot]], row: FromClause) -> list[ColumnElement[bool]]:
        return [condition(attribute, slot.term, row, sqlite=sqlite, slot=slot) for attribute, slot in some]

    if level is Level.IMAGE:
        return wanted + met(series_keys, SE) + met(image_keys, IM)
    se = SE if level is Level.SERIES else _BELOW_SE
    inside = met(series_keys, se)
    if image_keys:
        live = sa.select(1).select_from(_BELOW_IM).where(_BELOW_IM.c.series_pk == se.c.id, _BELOW_IM.c.rejected_at.is_(None))
        inside.append(sa.exists(live.where(*met(image_keys, _BELOW_IM)).correlate(se)))
    if level is Level.SERIES:
        return wanted + inside
    if inside:
        visible = sa.select(1).select_from(_BELOW_SE).where(
            _BELOW_SE.c.study_pk == st.c.id, predicate.series_condition(_BELOW_SE, shape), *inside
        )
        wanted.append(sa.exists(visible.correlate(st)))
    return wanted


def _of_study(attribute: Attribute, slot: Slot, st: FromClause, *, sqlite: bool) -> ColumnElement[bool]:
    if attribute is STUDY_DATE and isinstance(slot.term, Range):
        date = st.c.study_date
        return sa.and_(date != "", date >= bound("date_low", TEXT), date <= bound("date_high", TEXT))
    return condition(attribute, slot.term, st, sqlite=sqlite, datastore_id=bound("datastore", BIG), slot=slot)


def _computed(attribute: Attribute, slot: Slot, st: FromClause, shape: Shape, *, sqlite: bool) -> ColumnElement[bool]:
    """Match what is derived from visible series."""
    term = slot.term
    if attribute.keyword == "InstanceAvailability" and not isinstance(term, Fuzzy):
        return sa.true() if matches(term, attribute, ["ONLINE"]) else sa.false()
    if attribute.keyword == "ModalitiesInStudy":
        held = sa.select(1).select_from(_OTHER_SE).where(_OTHER_SE.c.study_pk == st.c.id, predicate.series_condition(_OTHER_SE, shape))
        if isinstance(term, Empty):
            return sa.not_(sa.exists(held.where(sa.not_(condition(MODALITY, term, _OTHER_SE, sqlite=sqlite, slot=slot))).correlate(st)))
        return sa.exists(held.where(condition(MODALITY, term, _OTHER_SE, sqlite=sqlite, slot=slot)).correlate(st))
    if attribute.keyword == "SOPClassesInStudy":
        inside = _BELOW_IM.join(_OTHER_SE, _OTHER_SE.c.id == _BELOW_IM.c.series_pk)
        held = sa.select(1).select_from(inside).where(
            _OTHER_SE.c.study_pk == st.c.id, _BELOW_IM.c.rejected_at.is_(None), predicate.series_condition(_OTHER_SE, shape),
            condition(_SOP_CLASS, term, _BELOW_IM, sqlite=sqlite, slot=slot),
        )  # fmt: skip
        return sa.exists(held.correlate(st))
    message = f"{attribute.keyword} cannot be matched"
    raise InvalidQuery(message)
