"""Search: one statement in which matching and scope stand together, so that what may not be seen never leaves the database.

Attributes of a lower level than the one asked for are matched under the scope too: a hidden series never makes its study match.
Derived attributes (counts, modalities) are computed over visible series.

Source: PS3.4 C.2.2.2 and C.6, PS3.18 10.6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement

from archive.access.policy import Scope
from archive.access.predicate import Shape
from archive.db.prepared import Prepared
from archive.db.tables import series
from archive.dicom.attributes import Attribute, Level
from archive.dicom.matching import Range, Single, Universal, Wildcard
from archive.index import access_study
from archive.index.access_study import Narrow, Position
from archive.index.answers import Answer, Computed
from archive.index.conditions import BIG, FROM, IM, MODALITY, NAME, ROWS, SE, ST, STUDY_DATE, SearchQuery, bound, conditions, led
from archive.index.locate import InstanceRow, locate
from archive.index.slots import Fuzzy, Slot, Slots, Term, form_of
from archive.index.terms import condition, names_of

__all__ = ["COUNTED", "Fuzzy", "InstanceRow", "SearchPage", "SearchQuery", "Term", "find", "locate"]

COUNTED = 10_000
"""Totals are exact up to here, beyond it unknown: an exact one costs the predicate for every match."""


@dataclass(frozen=True, slots=True)
class SearchPage:
    """DICOM JSON data sets without RetrieveURL, in stable order; `total` is None when not asked for or beyond COUNTED."""

    rows: list[dict[str, dict[str, Any]]]
    total: int | None
    last: Position | None = field(default=None, compare=False)
    """Where the page ends, for `SearchQuery.after`; at study level, where no key names few studies."""


_BY: dict[Level, tuple[ColumnElement[Any], ...]] = {
    Level.PATIENT: (ST.c.patient_name_folded, ST.c.id),
    Level.STUDY: (ST.c.study_date, ST.c.study_time, ST.c.id),
    Level.SERIES: (SE.c.series_number, SE.c.id),
    Level.IMAGE: (IM.c.instance_number, IM.c.id),
}
_ORDER: dict[Level, tuple[ColumnElement[Any], ...]] = {
    Level.PATIENT: (ST.c.patient_name_folded.asc(), ST.c.id.asc()),
    Level.STUDY: (ST.c.study_date.desc(), ST.c.study_time.desc(), ST.c.id.desc()),
    Level.SERIES: (SE.c.series_number.asc().nulls_last(), SE.c.id.asc()),
    Level.IMAGE: (IM.c.instance_number.asc().nulls_last(), IM.c.id.asc()),
}
_LED_SE = series.alias("led_by_series")
_SOME_DATES = Range("", "")
_ALL, _NOWHERE = (1 << 62), Position("", "", 0)


def find(tx: sa.Connection, scope: Scope, query: SearchQuery) -> SearchPage:
    """Return the data sets inside the scope that match, at most `query.limit` from `query.offset` on.

    Raises:
        InvalidQuery: a key that cannot be matched.
    """
    if led(query):
        return _find_led(tx, scope, query)
    asking = _Asking(tx, scope, query, by_window=False)
    rows = [row for row, _ in asking.rows()]
    return SearchPage(rows, _total(asking, query, len(rows)))


def _find_led(tx: sa.Connection, scope: Scope, query: SearchQuery) -> SearchPage:
    """Go through the studies the subject's grants speak about, newest first, until the page is full."""
    asking = _Asking(tx, scope, query, by_window=True)
    left, skip = query.limit, 0 if query.after else query.offset
    found: list[tuple[dict[str, dict[str, Any]], Position]] = []
    exhausted = True
    for window in _windows(asking, query.after, skip + (left or 0)):
        pks = [one.study_pk for one in window]
        if skip:
            visible = asking.visible(pks)
            pks, skip = visible[skip:], max(0, skip - len(visible))
        if pks:
            found += asking.rows(pks, left)
        if query.limit is not None:
            left = query.limit - len(found)
            if left <= 0:
                exhausted = False
                break
    rows, last = [row for row, _ in found], found[-1][1] if found else None
    if not query.total:
        return SearchPage(rows, None, last)
    if exhausted and (found or not query.offset):
        total = query.offset + len(found)
    else:
        total = 0
        for window in _windows(asking, None, COUNTED):
            total += len(asking.visible([one.study_pk for one in window]))
            if total > COUNTED:
                break
    return SearchPage(rows, total if total <= COUNTED else None, last)


def _windows(asking: _Asking, after: Position | None, first: int) -> Iterator[list[Position]]:
    """Return the studies to look at: those of the dates asked for, and with SQLite of the name and modality besides."""
    query = asking.query
    dates = [term for attribute, term in query.keys if attribute is STUDY_DATE and isinstance(term, Range)]
    high = min((term.high for term in dates if term.high), default="")
    return access_study.windows(
        asking.tx, asking.scope, query.datastore_id, after=after or access_study.before(high),
        low=max((term.low for term in dates), default=""), narrow=asking.narrow(), first=min(first, access_study.LARGEST),
    )  # fmt: skip


_Narrowing = Callable[[ColumnElement[int]], list[ColumnElement[bool]]]


def _narrowing(query: SearchQuery, slots: Slots | None, *, sqlite: bool) -> _Narrowing | None:
    each = [(attribute, Slot(term, number, slots)) for number, (attribute, term) in enumerate(query.keys)]
    names = [slot for attribute, slot in each if attribute is NAME and not isinstance(slot.term, Universal)]
    kinds = [slot for attribute, slot in each if attribute.keyword == "ModalitiesInStudy" and isinstance(slot.term, Single | Wildcard)]

    def narrow(pk: ColumnElement[int]) -> list[ColumnElement[bool]]:
        wanted = [names_of(pk, slot.term, slot, sqlite=sqlite) for slot in names]
        for slot in kinds:
            met = condition(MODALITY, slot.term, _LED_SE, sqlite=sqlite, slot=slot)
            held = sa.select(1).select_from(_LED_SE).where(_LED_SE.c.study_pk == pk, met)
            wanted.append(sa.exists(held.correlate_except(_LED_SE)))
        return wanted

    return narrow if names or kinds else None


def _values(query: SearchQuery) -> dict[str, Any]:
    """What the parameters of a statement stand for."""
    values: dict[str, Any] = {
        "datastore": query.datastore_id, "study_uid": query.study_instance_uid, "series_uid": query.series_instance_uid,
        "left": _ALL if query.limit is None else query.limit, "skipped": query.offset,
    }  # fmt: skip
    for attribute, term in query.keys:
        if attribute is STUDY_DATE and isinstance(term, Range):
            values |= {"date_low": term.low, "date_high": term.high or access_study.LAST_TEXT}
    return values


def _form(query: SearchQuery) -> tuple[SearchQuery, list[Term]] | None:
    """Return the query without its values and the terms it has, or None when a statement has to be built for it alone."""
    kept = [(attribute, term) for attribute, term in query.keys if not isinstance(term, Universal) or not attribute.returned]
    keys: list[tuple[Attribute, Term]] = []
    for attribute, term in kept:
        shape = _SOME_DATES if attribute is STUDY_DATE and isinstance(term, Range) else form_of(term)
        if shape is None or (attribute.keyword == "InstanceAvailability" and not isinstance(term, Universal)):
            return None
        keys.append((attribute, shape))
    form = replace(
        query, keys=tuple(keys), datastore_id=0, limit=None, offset=0, total=False, after=None,
        study_instance_uid=None if query.study_instance_uid is None else "",
        series_instance_uid=None if query.series_instance_uid is None else "",
    )  # fmt: skip
    return form, [term for _, term in kept]


@dataclass(frozen=True, slots=True)
class _Statements:
    """What is asked for one form of query."""

    answer: Answer
    page: sa.Select[Any]
    visible: sa.Select[Any]
    """Which of some studies are visible; where studies do not lead, how many rows."""


def _built(query: SearchQuery, shape: Shape, slots: Slots | None, *, sqlite: bool, by_window: bool) -> _Statements:
    answer = Answer.of(
        query.level, query.keys, query.include, with_study=query.study_instance_uid is None, with_series=query.series_instance_uid is None
    )
    wanted = conditions(query, shape, slots, sqlite=sqlite)
    page = _among(query, wanted, sqlite=sqlite) if by_window else _page(query, wanted)
    if by_window:
        visible = sa.select(ST.c.id).where(_one_of(ST.c.id, sqlite), *wanted)
        visible = visible.with_hint(ST, "INDEXED BY ix_study_order", "sqlite")  # the rows are pages to decrypt
    else:
        counted = sa.select(ROWS[query.level].c.id).select_from(FROM[query.level]).where(*wanted).limit(COUNTED + 1)
        visible = sa.select(sa.func.count()).select_from(counted.subquery())
    return _Statements(answer, _answering(answer, query.level, page, shape, sqlite=sqlite), visible)


@lru_cache(maxsize=256)
def _kept(query: SearchQuery, shape: Shape, *, sqlite: bool, by_window: bool) -> tuple[Answer, Prepared, Prepared, Slots]:
    slots = Slots()
    built = _built(query, shape, slots, sqlite=sqlite, by_window=by_window)
    return built.answer, Prepared(built.page), Prepared(built.visible), slots


class _Asking:
    """One query on its way: its statements, kept from earlier ones of its form or built for it."""

    def __init__(self, tx: sa.Connection, scope: Scope, query: SearchQuery, *, by_window: bool) -> None:
        """Find or build the statements."""
        self.tx, self.scope, self.query = tx, scope, query
        self.sqlite = tx.dialect.name == "sqlite"
        self._values = _values(query)
        found = _form(query)
        self._form = None if found is None else found[0]
        self._page: Prepared | sa.Select[Any]
        self._visible: Prepared | sa.Select[Any]
        self._slots: Slots | None = None
        if found is not None:
            form, terms = found
            self.answer, self._page, self._visible, self._slots = _kept(form, scope.shape, sqlite=self.sqlite, by_window=by_window)
            self._values |= self._slots.values(terms)
        else:
            built = _built(query, scope.shape, None, sqlite=self.sqlite, by_window=by_window)
            self.answer, self._page, self._visible = built.answer, built.page, built.visible

    def narrow(self) -> Narrow | None:
        """Return what candidates have to meet."""
        conditions_of = _narrowing(self._form or self.query, self._slots, sqlite=self.sqlite)
        form = None if self._form is None else (self._form, self.sqlite)
        return None if conditions_of is None else Narrow(form, conditions_of, self._values)

    def count(self) -> int:
        """Return how many rows match inside the scope, where studies do not lead."""
        return int(self._run(self._visible, {})[0][0])

    def _run(self, statement: Prepared | sa.Select[Any], more: dict[str, Any]) -> Sequence[Any]:
        values = {**self._values, **more}
        if isinstance(statement, Prepared):
            return self.scope.all(self.tx, statement, values)
        return self.scope.run(self.tx, statement, values).all()

    def rows(self, pks: list[int] | None = None, left: int | None = None) -> list[tuple[dict[str, dict[str, Any]], Position]]:
        """Return the data sets of the page, or of the first `left` of these studies; with their positions at study level."""
        more = {} if pks is None else {"among": _list(pks, self.sqlite), "left": _ALL if left is None else left}
        made = []
        for found in self._run(self._page, more):
            row = found._asdict()
            position = Position(row["at_0"], row["at_1"], row["at_2"]) if self.query.level is Level.STUDY else _NOWHERE
            made.append((self.answer.dataset(row), position))
        return made

    def visible(self, pks: list[int]) -> list[int]:
        """Return those of the studies that match and are inside the scope, in the order given."""
        inside = {row[0] for row in self._run(self._visible, {"among": _list(pks, self.sqlite)})}
        return [pk for pk in pks if pk in inside]


def _list(pks: list[int], sqlite: bool) -> Any:
    return str(pks) if sqlite else pks


def _one_of(column: ColumnElement[int], sqlite: bool) -> ColumnElement[bool]:
    """The column is in the list `among`, given as one value whatever its length."""
    if sqlite:
        each = sa.func.json_each(sa.bindparam("among", type_=sa.Text())).table_valued("value", name="among_each")
        return column.in_(sa.select(each.c.value))
    return column == sa.func.any(sa.bindparam("among", type_=sa.ARRAY(sa.BigInteger())))


def _among(query: SearchQuery, wanted: list[ColumnElement[bool]], *, sqlite: bool) -> sa.Select[Any]:
    """The first `left` studies of the list `among` that match and are inside the scope."""
    return _ordered(query.level, [_one_of(ST.c.id, sqlite), *wanted]).limit(bound("left", BIG))


def _page(query: SearchQuery, wanted: list[ColumnElement[bool]]) -> sa.Select[Any]:
    """The rows of the page, in order, by their keys."""
    return _ordered(query.level, wanted).limit(bound("left", BIG)).offset(bound("skipped", BIG))


def _ordered(level: Level, wanted: Sequence[ColumnElement[bool]]) -> sa.Select[Any]:
    order = [column.label(f"at_{n}") for n, column in enumerate(_BY[level])]
    return sa.select(ROWS[level].c.id, *order).select_from(FROM[level]).where(*wanted).order_by(*_ORDER[level])


def _answering(answer: Answer, level: Level, page: sa.Select[Any], shape: Shape, *, sqlite: bool) -> sa.Select[Any]:
    """What is answered of a page.

    The order is the page's own: by the rows', SQLite would go through all studies to find the few of the page.
    """
    chosen = page.subquery("page")
    computed = Computed(shape, ST, SE, IM, sqlite=sqlite)
    order = [chosen.c[f"at_{n}"] for n in range(len(_BY[level]))]
    return (
        sa.select(*answer.columns(computed), *order)
        .select_from(FROM[level].join(chosen, chosen.c.id == ROWS[level].c.id))
        .order_by(*(_directed(column, n, level) for n, column in enumerate(order)))
    )


def _directed(column: ColumnElement[Any], n: int, level: Level) -> ColumnElement[Any]:
    if level is Level.STUDY:
        return column.desc()
    return column.asc().nulls_last() if n == 0 and level is not Level.PATIENT else column.asc()


def _total(asking: _Asking, query: SearchQuery, found: int) -> int | None:
    if not query.total:
        return None
    within = (query.limit is None or found < query.limit) and (found or not query.offset)
    total = query.offset + found if within else asking.count()
    return total if total <= COUNTED else None
