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
from archive.access.shape import Shape
from archive.db.tables import instance, series, study
from archive.dicom.attributes import BY_KEYWORD, Attribute, Level
from archive.dicom.matching import Empty, Range, UidList, Universal, matches
from archive.errors import InvalidQuery
from archive.index.access_study import Position
from archive.index.slots import Fuzzy, Items, Slot, Slots, Term
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
    usual: bool = True
    """Whether what answers of this level usually hold is answered besides what is asked for."""
    after: Position | None = None
    """Where the page before ended: `offset` rows come before, and whatever comes or goes among them moves none of the next."""


# Aliases are made once: equal statements are then compiled once.
ST, SE, IM = study.alias("st"), series.alias("se"), instance.alias("im")
_BELOW_SE, _BELOW_IM = series.alias("below_se"), instance.alias("below_im")
_OTHER_ST, _OTHER_SE = study.alias("other_st"), series.alias("other_se")
_UNIQUE: dict[Level, FromClause] = {Level.SERIES: series.alias("unique_se"), Level.IMAGE: instance.alias("unique_im")}
ROWS: dict[Level, FromClause] = {Level.PATIENT: ST, Level.STUDY: ST, Level.SERIES: SE, Level.IMAGE: IM}
FROM: dict[Level, FromClause] = {
    Level.PATIENT: ST,
    Level.STUDY: ST,
    Level.SERIES: SE.join(ST, ST.c.id == SE.c.study_pk),
    Level.IMAGE: IM.join(SE, SE.c.id == IM.c.series_pk).join(ST, ST.c.id == SE.c.study_pk),
}
BELOW = frozenset({Level.SERIES, Level.IMAGE})
MODALITY, NAME, STUDY_DATE = BY_KEYWORD["Modality"], BY_KEYWORD["PatientName"], BY_KEYWORD["StudyDate"]
_SOP_CLASS = BY_KEYWORD["SOPClassUID"]
TEXT, BIG = sa.Text(), sa.BigInteger()


def addressed(query: SearchQuery) -> bool:
    """Whether the rows of one study or series are asked for."""
    return query.study_instance_uid is not None or query.series_instance_uid is not None


def led(query: SearchQuery) -> bool:
    """Whether studies are looked at in the order of the answer, because no key names few of them."""
    return not addressed(query) and not any(narrows(attribute, term) and attribute is not NAME for attribute, term in query.keys)


def bound(name: str, kind: sa.types.TypeEngine[Any]) -> sa.BindParameter[Any]:
    """Return a parameter."""
    return sa.bindparam(name, type_=kind)


def conditions(
    query: SearchQuery, shape: Shape, slots: Slots | None = None, *, sqlite: bool, by_date: bool = False
) -> list[ColumnElement[bool]]:
    """Return what every row answered meets; the keys' values are parameters of `slots`, when given.

    Of a patient these are all studies that match: `speaks` chooses one. `by_date` leaves SQLite the index of studies by date.

    Raises:
        InvalidQuery: a key that cannot be matched.
    """
    level = query.level
    wanted = _in_datastore(query, slots, sqlite=sqlite, by_date=by_date)
    if level in BELOW:
        wanted.append(predicate.series_condition(SE, shape))
    else:
        wanted.append(predicate.study_condition(ST, shape))
    if level is Level.IMAGE:
        wanted.append(IM.c.rejected_at.is_(None))
    if query.study_instance_uid is not None:
        wanted += [ST.c.study_instance_uid == bound("study_uid", TEXT), ST.c.datastore_id == bound("datastore", BIG)]
    if query.series_instance_uid is not None:
        if level not in BELOW:
            message = "a series is addressed only for series and instances"
            raise InvalidQuery(message)
        wanted.append(SE.c.series_instance_uid == bound("series_uid", TEXT))
    return wanted + _matching(query, ST, shape, slots, sqlite=sqlite)


def speaks(query: SearchQuery, shape: Shape, slots: Slots | None, *, sqlite: bool) -> ColumnElement[bool]:
    """One row a patient: of its studies that match and are visible the one that comes first in the answer speaks for it."""
    # PostgreSQL, to ask the rule of fewer rows, reads for each patient half of the index of all studies by date: not of an expression.
    dates = {of: of.c.study_date if sqlite else sa.func.coalesce(of.c.study_date, "") for of in (_OTHER_ST, ST)}
    place, mine = ((date, of.c.study_time, of.c.id) for of, date in dates.items())
    earlier = sa.select(1).select_from(_OTHER_ST).where(
        _OTHER_ST.c.patient_pk == ST.c.patient_pk, sa.tuple_(*place) > sa.tuple_(*mine), predicate.study_condition(_OTHER_ST, shape),
        *_matching(query, _OTHER_ST, shape, slots, sqlite=sqlite),
    )  # fmt: skip
    return sa.not_(sa.exists(earlier.correlate(ST)))


def _in_datastore(query: SearchQuery, slots: Slots | None, *, sqlite: bool, by_date: bool) -> list[ColumnElement[bool]]:
    """Name the datastore so that the right index is begun with.

    SQLite, which has no statistics, takes any index that begins with the datastore for a good one; PostgreSQL, to ask the rule of fewer
    rows, reads all of a modality beside the few series of a study. A sum keeps both from them where the rows are named otherwise: by the
    study they lie in, by a list of keys, by a key with an index of its own. A UID of another level than the rows' names studies.
    """
    row, datastore = ROWS[query.level], bound("datastore", BIG)
    apart = row.c.datastore_id + 0 == datastore
    if addressed(query):
        return [apart]
    wanted = [apart]
    by_own_uid = False
    for number, (attribute, term) in enumerate(query.keys):
        if not isinstance(term, UidList) or not narrows(attribute, term):
            continue
        if attribute.level is query.level:
            by_own_uid = True
        elif attribute.level is Level.STUDY:
            wanted.append(ST.c.datastore_id == datastore)
        else:
            of = _UNIQUE[attribute.level]
            met = condition(attribute, term, of, sqlite=sqlite, slot=Slot(term, number, slots))
            wanted.append(ST.c.id.in_(sa.select(of.c.study_pk).where(of.c.datastore_id == datastore, met)))
    if by_own_uid:
        return [row.c.datastore_id == datastore, *wanted[1:]]
    if by_date:
        return [ST.c.datastore_id == datastore, *(wanted if query.level in BELOW else ())]
    return wanted


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
    if attribute.keyword == "InstanceAvailability" and not isinstance(term, Fuzzy | Items):
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
