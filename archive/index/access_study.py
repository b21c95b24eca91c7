"""Which studies a search looks at first: in the order of the answer, a window at a time, never what decides.

Whoever has an allow on everything is led by the studies' own index; everyone else by table access_study, which holds for each
principal and group the studies its grants speak about. What comes from here is asked again by the full condition (docs/access.md).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import ColumnElement, FromClause, bindparam

from archive.access import policy, predicate
from archive.access.policy import Scope
from archive.access.shape import Shape
from archive.db import upsert
from archive.db.prepared import Prepared
from archive.db.tables import access_study, boundary_item, grants, series, study
from archive.index.slots import at_most

FIRST, LARGEST = 64, 4096
"""Studies in the first window, and in any."""

BOUNDARIES = tuple(f"boundary {number}" for number in range(8))
"""The kinds of lead that a subject's boundaries give: those of four tokens, and of what shares further."""

_TOKEN = policy.system("rebuild")
LAST_TEXT = "\U0010ffff"
"""Comes after every date and time."""


class Position(NamedTuple):
    """Where a study stands in the order of answers, what comes first compares highest; and a series or an instance in its study."""

    study_date: str
    study_time: str
    study_pk: int
    number: int = 0
    row_pk: int = 0


def before(date: str = "") -> Position:
    """Return the position before every study, or before every study of that date and earlier ones."""
    return Position(date + LAST_TEXT, LAST_TEXT, (1 << 63) - 1)


@dataclass(frozen=True, slots=True)
class Narrow:
    """Gives conditions on the study with some key: what does not meet them is not looked at."""

    form: Hashable | None
    """What the statement depends on; None: its values stand in it, and it is built each time."""
    conditions: Callable[[ColumnElement[int]], list[ColumnElement[bool]]] = field(compare=False)
    values: Mapping[str, Any] = field(compare=False)


@dataclass(frozen=True, slots=True)
class Lead:
    """What gives the candidates: the studies by date, those that grants of some principals speak about, or those of a boundary.

    `named` are the studies by date again, where few meet what narrows them: these are put in order, and others not passed over.
    A boundary is one of BOUNDARIES, the innermost first.
    """

    kind: str
    subjects: tuple[int, ...] = ()


def lead(tx: sa.Connection, scope: Scope, datastore_id: int) -> Lead:
    """Return what leads the scope's searches of a datastore."""
    for number in range(scope.shape.boundaries):  # the innermost that names less than the whole datastore
        if not _all_within(scope.shape, number).scalar(tx, {**scope.parameters, "datastore": datastore_id}, scope.token):
            return Lead(BOUNDARIES[number])
    callers = scope.all(tx, _callers(scope.shape), {"datastore": datastore_id})
    if any(row.wide for row in callers):
        return Lead("study")
    return Lead("grants", tuple(row.id for row in callers))


def within(kind: str, shape: Shape, pk: ColumnElement[int]) -> list[ColumnElement[bool]]:
    """Return the condition that a study is a candidate, for statements that go through all of them at once.

    Its parameters are `datastore`, `low` and `high`, dates inclusive.
    """
    if kind in BOUNDARIES:
        return [pk.in_(_bounded(shape, BOUNDARIES.index(kind)))]
    if kind == "study":
        return []
    of, kind_of_date = _WITHIN, _WITHIN.c.study_date.type
    inside = sa.select(of.c.study_pk).where(
        predicate.is_caller(of.c.subject_id, shape), of.c.datastore_id == bindparam("datastore", type_=sa.BigInteger()),
        of.c.study_date >= bindparam("low", type_=kind_of_date), of.c.study_date <= bindparam("high", type_=kind_of_date),
    )  # fmt: skip
    return [pk.in_(inside)]


def windows(
    tx: sa.Connection, scope: Scope, led: Lead, datastore_id: int, *, after: Position, low: str = "", narrow: Narrow | None = None,
    first: int = FIRST,
) -> Iterator[list[Position]]:
    """Return every study of a datastore that the scope may hold, after a position down to a date, newest first.

    A window is at most four times as long as the one before it.
    """
    values: dict[str, Any] = {**(narrow.values if narrow else {}), "datastore": datastore_id, "low": low}
    arms: tuple[str, ...] = ("grants",) * len(led.subjects) if led.kind == "grants" else (led.kind,)
    values |= {f"subject_{n}": subject for n, subject in enumerate(led.subjects)}
    length = max(first, FIRST)
    while True:
        asked = {**values, "after_date": after[0], "after_time": after[1], "after_pk": after[2], "window": length}
        if narrow is None or narrow.form is not None:
            rows = scope.all(tx, _prepared(arms, scope.shape, narrow), asked)
        else:
            rows = list(scope.run(tx, _next(arms, scope.shape, narrow), asked))
        found = {Position(*row[:3]) for row in rows}
        full = _full(rows, len(arms), length)
        if not full:
            yield sorted(found, reverse=True)
            return
        # An arm that may have more says nothing of what lies behind its last row.
        after = max(full)
        yield sorted((one for one in found if one >= after), reverse=True)
        length = min(length * 4, LARGEST)


def _full(rows: Sequence[Any], arms: int, length: int) -> list[Position]:
    """Return the last position of each arm that gave as many rows as it was asked for."""
    if len(rows) < length:
        return []
    each = [[Position(*row[:3]) for row in rows if row[3] == arm] for arm in range(arms)]
    return [min(own) for own in each if len(own) == length]


# --- the statements ---

_CALLERS_GRANT = grants.alias("wide_grant")
_WITHIN = access_study.alias("within")
_LED, _LED_STUDY = access_study.alias("led"), study.alias("led_study")
_ITEM, _SE = boundary_item.alias("led_item"), series.alias("led_series")


@lru_cache(maxsize=64)
def _callers(shape: Shape) -> Prepared:
    """The principal and its groups, each with whether it has an allow on everything."""
    caller = predicate.callers(shape).subquery("caller")
    g = _CALLERS_GRANT
    wide = sa.exists(
        sa.select(1).select_from(g).where(
            g.c.subject_id == caller.c.id, g.c.effect == predicate.ALLOW, g.c.scope_key == 0,
            g.c.datastore_id == bindparam("datastore"), predicate.not_revoked(g), predicate.in_window(g, shape),
        )
    )
    return Prepared(sa.select(caller.c.id, wide.label("wide")))


@lru_cache(maxsize=256)
def _all_within(shape: Shape, number: int) -> Prepared:
    """Whether a boundary names everything, or the datastore."""
    i = _ITEM
    whole = i.c.scope_key.in_([sa.literal_column("0", sa.BigInteger()), bindparam("datastore", type_=sa.BigInteger()) * 4])
    return Prepared(sa.select(sa.exists(sa.select(1).select_from(i).where(i.c.boundary_id == shape.boundary_id(number), whole))))


@lru_cache(maxsize=256)
def _prepared(arms: tuple[str, ...], shape: Shape, narrow: Narrow | None) -> Prepared:
    return Prepared(_next(arms, shape, narrow))


def _next(arms: tuple[str, ...], shape: Shape, narrow: Narrow | None) -> sa.Executable:
    """The next studies after a position, of each arm as many as the window is long."""
    each = [_arm(number, kind, shape, narrow) for number, kind in enumerate(arms)]
    if len(each) == 1:
        return each[0]
    return sa.union_all(*(sa.select(one.subquery(f"arm_{number}")) for number, one in enumerate(each)))


def _arm(number: int, kind: str, shape: Shape, narrow: Narrow | None) -> sa.Select[Any]:
    of: FromClause = _LED if kind == "grants" else _LED_STUDY
    pk = of.c.study_pk if kind == "grants" else of.c.id
    date, time = of.c.study_date, of.c.study_time
    position = sa.tuple_(
        bindparam("after_date", type_=date.type), bindparam("after_time", type_=time.type), bindparam("after_pk", type_=sa.BigInteger())
    )
    datastore = of.c.datastore_id + 0 if kind == "named" else of.c.datastore_id  # a sum is no reason for SQLite to begin there
    wanted = [
        datastore == bindparam("datastore", type_=sa.BigInteger()), date >= bindparam("low", type_=date.type),
        sa.tuple_(date, time, pk) < position,
    ]  # fmt: skip
    if kind == "grants":
        wanted.append(of.c.subject_id == bindparam(f"subject_{number}", type_=sa.BigInteger()))
    if kind in BOUNDARIES:
        wanted.append(pk.in_(_bounded(shape, BOUNDARIES.index(kind))))
    if narrow is not None:
        wanted += narrow.conditions(pk)
    chosen = (
        sa.select(date.label("study_date"), time.label("study_time"), pk.label("study_pk"), sa.literal_column(str(number)).label("arm"))
        .where(*wanted).order_by(date.desc(), time.desc(), pk.desc()).limit(at_most("window"))
    )  # fmt: skip
    return chosen.with_hint(of, "INDEXED BY ix_study_order", "sqlite") if kind == "named" else chosen


def _bounded(shape: Shape, number: int) -> sa.CompoundSelect[Any]:
    """The studies a boundary names, by themselves, their patient or a series."""
    i, st, se = _ITEM, study.alias("bounded_study"), _SE
    inside = i.c.boundary_id == shape.boundary_id(number)
    return sa.union_all(
        sa.select(i.c.scope_key // 4).where(inside, i.c.scope_key % 4 == 2),
        sa.select(st.c.id).join(i, st.c.patient_pk == i.c.scope_key // 4).where(inside, i.c.scope_key % 4 == 1),
        sa.select(se.c.study_pk).join(i, se.c.id == i.c.scope_key // 4).where(inside, i.c.scope_key % 4 == 3),
    )


# --- the table itself ---


def refill(tx: sa.Connection, at: datetime) -> int:
    """Derive access_study anew from the grants that are neither revoked nor over at `at`; return how many rows it has.

    Changes nothing that anyone sees: it takes away what no longer counts, and adds what a row by row repair of grants or studies left out.
    """
    policy.run_as(tx, _TOKEN, sa.delete(access_study))
    columns = [column.name for column in access_study.columns]
    policy.run_as(tx, _TOKEN, sa.insert(access_study).from_select(columns, _derived(at)))
    return int(policy.run_as(tx, _TOKEN, sa.select(sa.func.count()).select_from(access_study)).scalar_one())


def missing(tx: sa.Connection, at: datetime) -> int:
    """Return how many rows the grants that count at `at` call for and the table lacks: 0, or studies are hidden from searches."""
    return int(policy.run_as(tx, _TOKEN, sa.select(sa.func.count()).select_from(_lacking(at).subquery("lacking"))).scalar_one())


def superfluous(tx: sa.Connection) -> int:
    """Return how many rows nothing explains: of another datastore or date than their study, or of nobody who ever had such a grant.

    A row that outlived its grant, or its study's move to another patient, is none of them: nobody takes it away but `refill`.
    """
    a, g, st = access_study, grants.alias("explaining_grant"), study.alias("explaining_study")
    granted = sa.exists(sa.select(1).select_from(g).where(g.c.subject_id == a.c.subject_id, g.c.scope_key != 0))
    agrees = sa.exists(
        sa.select(1).select_from(st).where(
            st.c.id == a.c.study_pk, st.c.datastore_id == a.c.datastore_id, st.c.study_date == a.c.study_date,
            st.c.study_time == a.c.study_time,
        )
    )
    query = sa.select(sa.func.count()).select_from(a).where(sa.or_(sa.not_(granted), sa.not_(agrees)))
    return int(policy.run_as(tx, _TOKEN, query).scalar_one())


def lacking(tx: sa.Connection, at: datetime, limit: int) -> list[int]:
    """Return some studies that lack a row; nothing waits for this look."""
    found = _lacking(at).subquery("lacking")
    return list(policy.run_as(tx, _TOKEN, sa.select(found.c.study_pk).distinct().limit(limit)).scalars())


def complete(tx: sa.Connection, at: datetime, studies: Sequence[int]) -> int:
    """Add the rows that these studies lack, and return how many there were."""
    st = study.alias("held_still")
    # A date put right meanwhile would not find the row that is about to be there.
    policy.run_as(tx, _TOKEN, sa.select(st.c.id).where(st.c.id.in_(studies)).order_by(st.c.id).with_for_update(read=True)).all()
    rows = _lacking(at, studies).subquery("lacking")
    columns = [column.name for column in access_study.columns]
    # Without a WHERE of its own, SQLite takes ON CONFLICT for a part of the join.
    source = sa.select(*(rows.c[name] for name in columns)).where(rows.c.study_pk.is_not(None))
    insert = upsert.insert(access_study, sqlite=tx.dialect.name == "sqlite")
    count = int(policy.run_as(tx, _TOKEN, sa.select(sa.func.count()).select_from(source.subquery("added"))).scalar_one())
    policy.run_as(tx, _TOKEN, insert.from_select(columns, source).on_conflict_do_nothing())
    return count


def _lacking(at: datetime, studies: Sequence[int] = ()) -> sa.Select[Any]:
    """The rows the grants call for and the table has not; of some studies, or of all."""
    derived, there = _derived(at, studies).subquery("derived"), access_study.alias("there")
    same = [there.c[column.name] == derived.c[column.name] for column in access_study.columns]
    return sa.select(derived).where(sa.not_(sa.exists(sa.select(1).select_from(there).where(*same))))


def _derived(at: datetime, studies: Sequence[int] = ()) -> sa.CompoundSelect[Any]:
    g, st, se = grants.alias("deriving_grant"), study.alias("deriving_study"), series.alias("deriving_series")
    row = (g.c.subject_id, st.c.datastore_id, st.c.study_date, st.c.study_time, st.c.id.label("study_pk"))
    counts = (
        g.c.effect == predicate.ALLOW, predicate.not_revoked(g), g.c.not_after > at, g.c.datastore_id == st.c.datastore_id,
        *([st.c.id.in_(studies)] if studies else []),
    )
    return sa.union(
        sa.select(*row).join_from(g, st, st.c.patient_pk == g.c.scope_key // 4).where(g.c.scope_key % 4 == 1, *counts),
        sa.select(*row).join_from(g, st, st.c.id == g.c.scope_key // 4).where(g.c.scope_key % 4 == 2, *counts),
        sa.select(*row).join_from(g, se, se.c.id == g.c.scope_key // 4).join(st, st.c.id == se.c.study_pk)
        .where(g.c.scope_key % 4 == 3, *counts),
    )
