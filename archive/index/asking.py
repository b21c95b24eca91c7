"""One query on its way: its statements, built once for each form of its keys and kept, and what they return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement

from archive.access import predicate
from archive.access.policy import Scope
from archive.access.shape import Shape
from archive.db.prepared import Prepared
from archive.db.tables import series
from archive.dicom.attributes import Attribute, Level
from archive.dicom.matching import Range, Single, Universal, Wildcard
from archive.index import access_study
from archive.index.access_study import Narrow, Position
from archive.index.answers import Answer, Computed
from archive.index.conditions import (
    BELOW,
    BIG,
    FROM,
    IM,
    MODALITY,
    NAME,
    ROWS,
    SE,
    ST,
    STUDY_DATE,
    TEXT,
    SearchQuery,
    addressed,
    bound,
    conditions,
    led,
    speaks,
)
from archive.index.slots import Slot, Slots, Term, at_most, form_of
from archive.index.terms import named, names_of, narrows, roughly

Row = dict[str, dict[str, Any]]

_LED_SE = series.alias("led_by_series")
_SOME_DATES = Range("", "")
_ALL = 1 << 62
_FEW = 300
_NOWHERE = Position("", "", 0)
_PAST = ("date", "time", "study", "number", "row")
_ONE = sa.literal_column("1", BIG)
_LAST = sa.literal_column(str((1 << 63) - 1), BIG)
"""A row without a number comes after all that have one."""

_BY_DATE, _BY_KEY = "INDEXED BY ix_study_date", "INDEXED BY ix_study_order"
"""Rows of studies are pages to decipher; these indexes hold what most questions take."""

_Ordered = tuple[ColumnElement[Any], bool]
_BY_STUDY: tuple[_Ordered, ...] = ((ST.c.study_date, True), (ST.c.study_time, True), (ST.c.id, True))
_OWN: dict[Level, tuple[_Ordered, ...]] = {
    Level.PATIENT: (),
    Level.STUDY: (),
    Level.SERIES: ((sa.func.coalesce(SE.c.series_number, _LAST), False), (SE.c.id, False)),
    Level.IMAGE: ((sa.func.coalesce(IM.c.instance_number, _LAST), False), (IM.c.id, False)),
}


def _order(query: SearchQuery) -> tuple[_Ordered, ...]:
    """Columns by which answers are ordered, and whether the highest comes first: studies, newest first, then what lies in them."""
    own = _OWN[query.level]
    return own if addressed(query) else _BY_STUDY + own


@dataclass(frozen=True, slots=True)
class _Statements:
    """What is asked for one form of query."""

    answer: Answer
    page: sa.Select[Any]
    count: sa.Select[Any]
    before: sa.Select[Any] | None
    """Where the row stands that comes just before a page; only where studies lead."""


class Asking:
    """One query on its way; `lead` is what gives its candidates, None where its keys or its address name its rows."""

    def __init__(self, tx: sa.Connection, scope: Scope, query: SearchQuery, lead: access_study.Lead | None) -> None:
        """Find or build the statements.

        Raises:
            InvalidQuery: a key that cannot be matched.
        """
        self.tx, self.scope, self.query, self.lead = tx, scope, query, lead
        self.sqlite = tx.dialect.name == "sqlite"
        dates = [term for attribute, term in query.keys if attribute is STUDY_DATE and isinstance(term, Range)]
        self.low = max((term.low for term in dates), default="")
        self.high = min((term.high for term in dates if term.high), default="")
        self._values = _values(query) | {"low": self.low, "high": self.high or access_study.LAST_TEXT}
        kind = None if lead is None else lead.kind
        found = _form(query)
        self._form = None if found is None else found[0]
        self._page: Prepared | sa.Select[Any]
        self._count: Prepared | sa.Select[Any]
        self._before: Prepared | sa.Select[Any] | None
        self._slots: Slots | None = None
        if found is not None:
            form, terms = found
            kept = _kept(form, scope.shape, sqlite=self.sqlite, kind=kind)
            self.answer, self._page, self._count, self._before, self._slots = kept
            self._values |= self._slots.values(terms)
        else:
            built = _built(query, scope.shape, None, sqlite=self.sqlite, kind=kind)
            self.answer, self._page, self._count, self._before = built.answer, built.page, built.count, built.before

    def narrow(self) -> Narrow | None:
        """Return what candidates have to meet."""
        conditions_of = _narrowing(self._form or self.query, self._slots, sqlite=self.sqlite)
        form = None if self._form is None else (self._form, self.sqlite)
        return None if conditions_of is None else Narrow(form, conditions_of, self._values)

    def few(self) -> bool:
        """Whether SQLite's indexes of names leave so few studies that they are best looked at before others are passed over."""
        if not self.sqlite or self._slots is None or self._form is None:
            return False
        rowids = _naming(self._form, self._slots)
        return rowids is not None and int(self._run(rowids, {})[0][0]) < _FEW

    def count(self, at_most: int) -> int:
        """Return how many rows match inside the scope, or a number above `at_most` when that many do not suffice."""
        return int(self._run(self._count, {"counted": at_most + 1})[0][0] or 0)

    def before(self, offset: int) -> Position | None:
        """Return where the row stands that `offset` rows end with, None when there are not that many."""
        if self._before is None:
            message = "only where studies lead"
            raise ValueError(message)
        found = self._run(self._before, {"skipped": offset - 1})
        return None if not found else self._position(found[0])

    def rows(self, among: list[int] | None = None, left: int | None = None, after: Position | None = None) -> list[tuple[Row, Position]]:
        """Return the data sets of the page, or of the first `left` among these studies after a position."""
        more: dict[str, Any] = {}
        if among is not None:
            past = after or _NOWHERE
            more = {
                "among": str(among) if self.sqlite else among, "left": _ALL if left is None else left,
                "past_study": past.study_pk, "past_number": past.number, "past_row": past.row_pk,
            }  # fmt: skip
        dataset, position = self.answer.dataset, self._position
        return [(dataset(found._asdict()), position(found)) for found in self._run(self._page, more)]

    def _position(self, found: Any) -> Position:
        order = _order(self.query)
        at = tuple(found[-len(order):]) if order else ()  # its columns come last
        return Position("", "", 0, *at) if addressed(self.query) else Position(*at)

    def _run(self, statement: Prepared | sa.Select[Any], more: dict[str, Any]) -> Sequence[Any]:
        values = {**self._values, **more}
        if isinstance(statement, Prepared):
            return self.scope.all(self.tx, statement, values)
        return self.scope.run(self.tx, statement, values).all()


# --- values, and what they are left out of ---


def _values(query: SearchQuery) -> dict[str, Any]:
    """What the parameters of a statement stand for."""
    values: dict[str, Any] = {
        "datastore": query.datastore_id, "study_uid": query.study_instance_uid, "series_uid": query.series_instance_uid,
        "left": _ALL if query.limit is None else query.limit, "skipped": query.offset,
    }  # fmt: skip
    if query.after is not None and not led(query):
        values |= {f"past_{name}": value for name, value in zip(_PAST, query.after, strict=True)}
    for attribute, term in query.keys:
        if attribute is STUDY_DATE and isinstance(term, Range):
            values |= {"date_low": term.low, "date_high": term.high or access_study.LAST_TEXT}
    return values


def _form(query: SearchQuery) -> tuple[SearchQuery, list[Term]] | None:
    """Return the query without its values and the terms it has, or None when a statement has to be built for it alone."""
    above = query.level is Level.STUDY or not addressed(query)  # whether what levels above have is told too
    told = {one for one, _ in query.keys if query.usual and one.returned and (above or one.level is query.level)}
    kept = [(attribute, term) for attribute, term in query.keys if not isinstance(term, Universal) or attribute not in told]
    keys: list[tuple[Attribute, Term]] = []
    for attribute, term in kept:
        shape = _SOME_DATES if attribute is STUDY_DATE and isinstance(term, Range) else form_of(term)
        if shape is None or (attribute.keyword == "InstanceAvailability" and not isinstance(term, Universal)):
            return None
        keys.append((attribute, shape))
    form = replace(
        query, keys=tuple(keys), datastore_id=0, limit=None, offset=0, total=False,
        after=None if query.after is None or led(query) else _NOWHERE,
        study_instance_uid=None if query.study_instance_uid is None else "",
        series_instance_uid=None if query.series_instance_uid is None else "",
    )  # fmt: skip
    return form, [term for _, term in kept]


@lru_cache(maxsize=64)
def _naming(query: SearchQuery, slots: Slots) -> Prepared | None:
    """How many studies the indexes of names leave, `_FEW` at most."""
    for number, (attribute, term) in enumerate(query.keys):
        rowids = named(attribute, term, Slot(term, number, slots), bound("datastore", BIG)) if attribute is NAME else None
        if rowids is not None:
            some = sa.select(rowids.subquery("rowids")).limit(sa.literal_column(str(_FEW), BIG)).subquery("some")
            return Prepared(sa.select(sa.func.count()).select_from(some))
    return None


_Narrowing = Callable[[ColumnElement[int]], list[ColumnElement[bool]]]


def _narrowing(query: SearchQuery, slots: Slots | None, *, sqlite: bool) -> _Narrowing | None:
    each = [(attribute, Slot(term, number, slots)) for number, (attribute, term) in enumerate(query.keys)]
    names = [slot for attribute, slot in each if attribute is NAME and not isinstance(slot.term, Universal)]
    kinds = [
        (slot, slot.term) for attribute, slot in each
        if (attribute is MODALITY or attribute.keyword == "ModalitiesInStudy") and isinstance(slot.term, Single | Wildcard)
    ]  # fmt: skip

    def narrow(pk: ColumnElement[int]) -> list[ColumnElement[bool]]:
        wanted = [names_of(pk, slot.term, slot, bound("datastore", BIG), sqlite=sqlite) for slot in names]
        for slot, term in kinds:
            met = roughly(MODALITY, term, _LED_SE, slot, sqlite=sqlite)
            held = sa.select(1).select_from(_LED_SE).where(_LED_SE.c.study_pk == pk, met)
            wanted.append(sa.exists(held.correlate_except(_LED_SE)))
        return wanted

    return narrow if names or kinds else None


# --- the statements ---


@lru_cache(maxsize=128)  # some 150 KB each
def _kept(
    query: SearchQuery, shape: Shape, *, sqlite: bool, kind: str | None
) -> tuple[Answer, Prepared, Prepared, Prepared | None, Slots]:
    slots = Slots()
    built = _built(query, shape, slots, sqlite=sqlite, kind=kind)
    return built.answer, Prepared(built.page), Prepared(built.count), None if built.before is None else Prepared(built.before), slots


def _built(query: SearchQuery, shape: Shape, slots: Slots | None, *, sqlite: bool, kind: str | None) -> _Statements:
    level = query.level
    answer = Answer.of(
        level, query.keys, query.include, with_study=query.study_instance_uid is None, with_series=query.series_instance_uid is None,
        usual=query.usual,
    )
    wanted = conditions(query, shape, slots, sqlite=sqlite)
    one = [speaks(query, shape, slots, sqlite=sqlite)] if level is Level.PATIENT else []
    if kind is None:
        page = _ordered(query, [*wanted, *one, *_beyond(query)]).limit(at_most("left"))
        page = page.offset(bound("skipped", BIG)) if query.after is None else page
        count = _counting(query, lambda asked: conditions(asked, shape, slots, sqlite=sqlite))
        return _Statements(answer, _answering(answer, query, page, shape, sqlite=sqlite), count, None)
    page = _ordered(query, [_one_of(ST.c.id, sqlite), *wanted, *one, *_past(level)]).limit(at_most("left"))
    # The studies in their order, unless a name in the trigram index says which.
    by_date = kind == "study" and not any(narrows(attribute, term) for attribute, term in query.keys)

    def through(asked: SearchQuery) -> list[ColumnElement[bool]]:
        among = access_study.within(kind, shape, ST.c.id)
        return [*conditions(asked, shape, slots, sqlite=sqlite, by_date=by_date), *among]

    hint = _BY_DATE if by_date else _BY_KEY
    before = _ordered(query, [*through(query), *one]).limit(_ONE).offset(bound("skipped", BIG)).with_hint(ST, hint, "sqlite")
    plain = kind != "study" and level is Level.STUDY and all(isinstance(term, Universal) for _, term in query.keys)
    count = _of_candidates(kind, shape, sqlite=sqlite) if plain else _counting(query, through, hint)
    return _Statements(answer, _answering(answer, query, page, shape, sqlite=sqlite), count, before)


def _one_of(column: ColumnElement[int], sqlite: bool) -> ColumnElement[bool]:
    """The column is in the list `among`, given as one value whatever its length."""
    if sqlite:
        each = sa.func.json_each(sa.bindparam("among", type_=sa.Text())).table_valued("value", name="among_each")
        return column.in_(sa.select(each.c.value))
    return column == sa.func.any(sa.bindparam("among", type_=sa.ARRAY(sa.BigInteger())))


def _beyond(query: SearchQuery) -> list[ColumnElement[bool]]:
    """Where keys or the address name the rows, only what comes after the page before."""
    if query.after is None:
        return []
    own = _OWN[query.level]
    later = sa.tuple_(*(column for column, _ in own)) > sa.tuple_(bound("past_number", BIG), bound("past_row", BIG)) if own else sa.false()
    if addressed(query):
        return [later]
    # Of an expression: the index of studies by date is no place to begin.
    place = sa.tuple_(sa.func.coalesce(ST.c.study_date, ""), ST.c.study_time, ST.c.id)
    earlier = place < sa.tuple_(bound("past_date", TEXT), bound("past_time", TEXT), bound("past_study", BIG))
    return [sa.or_(earlier, sa.and_(ST.c.id == bound("past_study", BIG), later))]


def _past(level: Level) -> list[ColumnElement[bool]]:
    """Of the study where the page before ended, only what comes after that."""
    if level not in BELOW:
        return []
    (number, _), (pk, _) = _OWN[level]
    later = sa.tuple_(number, pk) > sa.tuple_(bound("past_number", BIG), bound("past_row", BIG))
    return [sa.or_(ST.c.id != bound("past_study", BIG), later)]


def _counting(
    query: SearchQuery, wanted: Callable[[SearchQuery], list[ColumnElement[bool]]], hint: str = ""
) -> sa.Select[Any]:
    """How many rows there are, at least `counted` when there are more."""
    level = query.level
    if level is Level.PATIENT:
        each = sa.select(ST.c.patient_pk).distinct().select_from(ST).where(*wanted(query))
    elif level is Level.IMAGE and all(key.level is not Level.IMAGE for key, _ in query.keys):
        # All live instances of a series match when it does: their number stands there.
        query = replace(query, level=Level.SERIES)
        each = sa.select(SE.c.n_instances).select_from(FROM[query.level]).where(*wanted(query))
        each = each.limit(at_most("counted")).with_hint(ST, hint, "sqlite")
        return sa.select(sa.func.sum(each.subquery().c.n_instances))
    else:
        each = sa.select(ROWS[level].c.id).select_from(FROM[level]).where(*wanted(query))
    each = each.limit(at_most("counted")).with_hint(ST, hint, "sqlite")
    return sa.select(sa.func.count()).select_from(each.subquery())


def _of_candidates(kind: str, shape: Shape, *, sqlite: bool) -> sa.Select[Any]:
    """How many studies there are, told by their visible series alone, of which an index holds all that it takes."""
    datastore = SE.c.datastore_id + 0 if sqlite else SE.c.datastore_id
    each = sa.select(SE.c.study_pk).distinct().where(
        datastore == bound("datastore", BIG), predicate.series_condition(SE, shape), *access_study.within(kind, shape, SE.c.study_pk)
    )
    return sa.select(sa.func.count()).select_from(each.limit(at_most("counted")).subquery())


def _ordered(query: SearchQuery, wanted: Sequence[ColumnElement[bool]]) -> sa.Select[Any]:
    order = _order(query)
    named = [column.label(f"at_{n}") for n, (column, _) in enumerate(order)]
    return (
        sa.select(ROWS[query.level].c.id.label("id"), *named).select_from(FROM[query.level]).where(*wanted)
        .order_by(*(column.desc() if down else column.asc() for column, down in order))
    )  # fmt: skip


def _answering(answer: Answer, query: SearchQuery, page: sa.Select[Any], shape: Shape, *, sqlite: bool) -> sa.Select[Any]:
    """What is answered of a page.

    The order is the page's own: by the rows', SQLite would go through all studies to find the few of the page.
    """
    chosen = page.subquery("page")
    computed = Computed(shape, ST, SE, IM, sqlite=sqlite)
    order = [(chosen.c[f"at_{n}"], down) for n, (_, down) in enumerate(_order(query))]
    return (
        sa.select(*answer.columns(computed), *(column for column, _ in order))
        .select_from(FROM[query.level].join(chosen, chosen.c.id == ROWS[query.level].c.id))
        .order_by(*(column.desc() if down else column.asc() for column, down in order))
    )
