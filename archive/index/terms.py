"""A Match as a SQL condition that means what dicom.matching.matches says, on SQLite and PostgreSQL.

A key compares the normal form: of one value in its column, of several values or of an attribute without a column in JSON. For
patient names a trigram index narrows first and never decides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement, FromClause

from archive.db.batches import AT_ONCE
from archive.db.tables import study, study_name_fts
from archive.dicom.attributes import BY_KEYWORD, Attribute
from archive.dicom.matching import Empty, Range, Single, UidList, Universal, Wildcard
from archive.errors import InvalidQuery
from archive.index.columns import ONE_VALUE, SEVERAL, UID_COLUMNS
from archive.index.slots import Fuzzy, Items, Slot, Term, unplanned

_AFTER_SEVERAL = chr(ord(SEVERAL) + 1)
_WILD = re.compile(r"[*?]")
_INSIGNIFICANT = " ^="
_TRIGRAM = 3


def condition(
    attribute: Attribute,
    term: Term,
    row: FromClause,
    *,
    sqlite: bool,
    datastore_id: int | ColumnElement[int] | None = None,
    slot: Slot | None = None,
) -> ColumnElement[bool]:
    """Return the condition that a row of the attribute's level meets the term; rows of `datastore_id` alone, when it is given.

    Values are parameters of `slot`, when there is one.

    Raises:
        InvalidQuery: computed attributes and sequences are matched by search.py or not at all.
    """
    if isinstance(term, Universal):
        return sa.true()
    if isinstance(term, Items):
        return _with_items(attribute, term, row, slot or Slot(term), sqlite=sqlite)
    if attribute.computed or (attribute.vr == "SQ" and not isinstance(term, Empty)):
        message = f"{attribute.keyword} cannot be matched"
        raise InvalidQuery(message)
    name, slot = attribute.column, slot or Slot(term)
    if name in UID_COLUMNS:
        return _listed(row.c[name], term, slot, sqlite=sqlite) if isinstance(term, UidList) else sa.false()
    if isinstance(term, Empty):
        return _empty(attribute, row, sqlite=sqlite)
    met = _present(attribute, term, row, slot, sqlite=sqlite, datastore_id=datastore_id)
    if sqlite and datastore_id is not None and name in _INDEXED and narrows(attribute, term):
        inner = _CANDIDATE
        column = inner.c[name]
        same = column == slot("same", _text) if isinstance(term, Single) else _single(term, column, slot)
        equal = sa.select(inner.c.id).where(inner.c.datastore_id == datastore_id, same)
        several = sa.select(inner.c.id).where(
            inner.c.datastore_id == datastore_id, inner.c[name] >= SEVERAL, inner.c[name] < _AFTER_SEVERAL
        )
        return sa.and_(row.c.id.in_(sa.union_all(equal, several)), met)
    return met


_INDEXED = frozenset({"patient_id", "accession_number"})
_UNIQUE = frozenset({"study_instance_uid", "series_instance_uid", "sop_instance_uid"})
_CANDIDATE = study.alias("candidate")


def narrows(attribute: Attribute, term: Term) -> bool:
    """Whether the condition leaves so few studies that they are looked up one by one, whatever SQLite thinks of its other indexes."""
    if attribute.column in _INDEXED and isinstance(term, Single | Wildcard):
        start = term.value if isinstance(term, Single) else _WILD.split(term.pattern, maxsplit=1)[0]
        return not start.startswith(SEVERAL) and (isinstance(term, Single) or len(start) >= _TRIGRAM)
    return bool(_certain(attribute, term)) or (attribute.column in _UNIQUE and isinstance(term, UidList))


def names_of(pk: ColumnElement[int], term: Term, slot: Slot, datastore_id: ColumnElement[int], *, sqlite: bool) -> ColumnElement[bool]:
    """Return a condition that the study with that key meets when its patient's name meets the term, read from indexes alone.

    With SQLite by the trigram index where that can say something, and then more may meet it than the term does.
    """
    if sqlite:
        rowids = named(NAME, term, slot, datastore_id)
        if rowids is not None:
            return pk.in_(rowids)
    found = sa.select(1).select_from(_NAMED).where(_NAMED.c.id == pk, condition(NAME, term, _NAMED, sqlite=sqlite, slot=slot))
    return sa.exists(found.with_hint(_NAMED, "INDEXED BY ix_study_order", "sqlite").correlate_except(_NAMED))


def roughly(attribute: Attribute, term: Single | Wildcard, row: FromClause, slot: Slot, *, sqlite: bool) -> ColumnElement[bool]:
    """Return a condition on the attribute's column alone, which every row meets that meets the term, and rows of several values besides."""
    column = row.c[str(attribute.column)]
    several = sa.and_(column >= SEVERAL, column < _AFTER_SEVERAL)
    return sa.or_(sa.and_(_single(term, column, slot), _meets(attribute, term, column, slot, sqlite=sqlite)), several)


NAME = BY_KEYWORD["PatientName"]
_NAMED, _BEGINS = study.alias("named"), study.alias("begins")


def _text(term: Single | Wildcard) -> str:
    return term.value if isinstance(term, Single) else term.pattern


def _start(term: Wildcard) -> str:
    return _WILD.split(term.pattern, maxsplit=1)[0]


def _listed(column: ColumnElement[str], term: UidList, slot: Slot, *, sqlite: bool) -> ColumnElement[bool]:
    if len(term.values) > AT_ONCE:  # more than may be parameters of a statement
        if sqlite:
            each = sa.func.json_each(sa.literal(json.dumps(term.values), sa.Text())).table_valued("value", name=f"listed_{slot.number}")
            return column.in_(sa.select(each.c.value))
        return column == sa.func.any(sa.literal(list(term.values), sa.ARRAY(sa.Text())))
    if slot.slots is None:
        return column.in_(term.values)
    return column.in_([slot(f"uid_{n}", _nth(n)) for n in range(len(term.values))])


def _nth(n: int) -> Callable[[UidList], str]:
    return lambda term: term.values[n]


def _present(
    attribute: Attribute, term: Term, row: FromClause, slot: Slot, *, sqlite: bool, datastore_id: int | ColumnElement[int] | None
) -> ColumnElement[bool]:
    name = attribute.column
    in_json = _any_value(attribute, row, lambda value: _meets(attribute, term, value, slot, sqlite=sqlite), sqlite=sqlite)
    if name is None:
        return in_json
    column = row.c[f"{name}_folded" if attribute.folded else name]
    if not isinstance(column.type, sa.Text):
        return sa.or_(_equals(column, term, slot), sa.and_(column.is_(None), in_json))
    alone = _meets(attribute, term, column, slot, sqlite=sqlite)
    if attribute.vr in ONE_VALUE:
        return sa.and_(column != "", alone)
    several = sa.and_(column >= SEVERAL, column < _AFTER_SEVERAL)
    either = sa.or_(sa.and_(_single(term, column, slot), alone), sa.and_(several, in_json))
    narrower = _narrower(attribute, term, row, slot, sqlite=sqlite, datastore_id=datastore_id)
    return either if narrower is None else sa.and_(narrower, either)


def _single(term: Term, column: ColumnElement[str], slot: Slot) -> ColumnElement[bool]:
    """The column holds one value; for a wildcard with a beginning, as a range that an index serves."""
    if isinstance(term, Single):
        return sa.true() if not term.value.startswith(SEVERAL) else sa.false()
    if isinstance(term, Wildcard) and (start := _start(term)) and not column.name.endswith("_folded"):
        found = column >= slot("start", _start)
        if _after(start) is not None:
            found = sa.and_(found, column < slot("end", lambda one: _after(_start(one))))
        return found if not start.startswith(SEVERAL) else sa.false()
    return sa.or_(column < SEVERAL, column >= _AFTER_SEVERAL)


def _after(text: str) -> str | None:
    """Return the first text after everything that begins with `text`, None when there is none."""
    while text:
        code = ord(text[-1]) + 1
        if code <= 0x10FFFF:
            return text[:-1] + chr(0xE000 if 0xD800 <= code < 0xE000 else code)
        text = text[:-1]
    return None


def _equals(column: ColumnElement[int], term: Term, slot: Slot) -> ColumnElement[bool]:
    if isinstance(term, Single):
        return column == slot("number", lambda one: int(one.value), sa.BigInteger())
    return sa.false()


def _meets(attribute: Attribute, term: Term, value: ColumnElement[str], slot: Slot, *, sqlite: bool) -> ColumnElement[bool]:
    """One normal, non-empty value meets the term."""
    if isinstance(term, Fuzzy):

        def begins(n: int, before: str, role: str) -> ColumnElement[bool]:
            return _holds(value, slot(f"{role}_{n}", lambda one: f"{before}{one.words[n]}"), sqlite)

        return sa.and_(*(sa.or_(begins(n, " ", "word"), begins(n, "=", "first")) for n in range(len(term.words))))
    if isinstance(term, Single | Wildcard):
        if attribute.vr == "PN":
            return _name(value, term, slot, sqlite)
        return _same(value, term, slot("same", lambda one: _pattern(one, _text(one), sqlite)), sqlite)
    if isinstance(term, Range):
        ends = [value >= slot("low", lambda one: one.low)] if term.low else []
        return sa.and_(*ends, *([value <= slot("high", lambda one: one.high)] if term.high else []))
    return _listed(value, term, slot, sqlite=sqlite) if isinstance(term, UidList) else sa.false()


def _name(name: ColumnElement[str], term: Single | Wildcard, slot: Slot, sqlite: bool) -> ColumnElement[bool]:
    groups = _groups_sqlite(name) if sqlite else [sa.func.btrim(sa.func.split_part(name, "=", n)) for n in (1, 2, 3)]
    wanted = _text(term)
    if "=" not in wanted:
        whole = slot("same", lambda one: _pattern(one, _text(one), sqlite))
        return sa.or_(*(_same(group, term, whole, sqlite) for group in groups))

    def part(n: int) -> ColumnElement[str]:
        return slot(f"group_{n}", lambda one: _pattern(one, _text(one).split("=")[n], sqlite))

    parts = zip(wanted.split("="), groups, strict=True)
    return sa.and_(name != "", *(_same(group, term, part(n), sqlite) for n, (text, group) in enumerate(parts) if text))


def _groups_sqlite(name: ColumnElement[str]) -> list[ColumnElement[str]]:
    first = sa.func.instr(name, "=")
    rest = sa.func.substr(name, first + 1)
    second = sa.func.instr(rest, "=")
    pieces = [sa.func.substr(name, 1, first - 1), sa.func.substr(rest, 1, second - 1), sa.func.substr(rest, second + 1)]
    return [sa.func.trim(piece) for piece in pieces]


def _holds(text: ColumnElement[str], part: ColumnElement[str], sqlite: bool) -> ColumnElement[bool]:
    return (sa.func.instr(text, part) if sqlite else sa.func.strpos(text, part)) > 0


def _same(text: ColumnElement[str], term: Single | Wildcard, wanted: ColumnElement[str], sqlite: bool) -> ColumnElement[bool]:
    if isinstance(term, Single):
        return text == wanted
    if sqlite:  # its LIKE ignores the case of ASCII letters
        return text.op("GLOB", is_comparison=True)(unplanned(wanted))
    return text.like(wanted, escape="!")


def _pattern(term: Single | Wildcard, text: str, sqlite: bool) -> str:
    if isinstance(term, Single):
        return text
    return text.replace("[", "[[]") if sqlite else _like(text)


def _like(pattern: str) -> str:
    return re.sub(r"[!%_]", r"!\g<0>", pattern).replace("*", "%").replace("?", "_")


def _any_value(
    attribute: Attribute,
    row: FromClause,
    meets: Callable[[ColumnElement[str]], ColumnElement[bool]],
    *,
    sqlite: bool,
    raw: bool = False,
) -> ColumnElement[bool]:
    """A value in JSON meets a condition: among the normalised ones where there are such, else among the element's own."""
    tag = attribute.tag_hex
    own: ColumnElement[Any]
    kept: ColumnElement[Any]
    if sqlite:
        own = sa.func.json_extract(row.c.attributes, f'$."{tag}".Value')
        kept = sa.func.json_extract(row.c.normalised, f'$."{tag}"')
        each = sa.func.json_each(own if raw else sa.func.coalesce(kept, own)).table_valued("value")
    else:
        own = row.c.attributes.op("->")(sa.literal(tag, sa.Text())).op("->")(sa.literal("Value", sa.Text()))
        kept = row.c.normalised.op("->")(sa.literal(tag, sa.Text()))
        each = sa.func.json_array_elements_text(own if raw else sa.func.coalesce(kept, own)).table_valued("value")
    value = sa.cast(each.c.value, sa.Text())
    return sa.exists(sa.select(1).select_from(each).where(value != "", meets(value)).correlate(row))


def _with_items(attribute: Attribute, term: Items, row: FromClause, slot: Slot, *, sqlite: bool) -> ColumnElement[bool]:
    tag = attribute.tag_hex
    if sqlite:
        items: ColumnElement[Any] = sa.func.json_extract(row.c.attributes, f'$."{tag}".Value')
    else:
        found = row.c.attributes.op("->")(sa.literal(tag, sa.Text())).op("->")(sa.literal("Value", sa.Text()))
        items = sa.cast(found, sa.Text())
    return sa.and_(items.is_not(None), *(_holds(items, slot(f"item_{n}", _held(n)), sqlite) for n in range(len(term.texts))))


def _held(n: int) -> Callable[[Items], str]:
    return lambda term: term.texts[n]


def _empty(attribute: Attribute, row: FromClause, *, sqlite: bool) -> ColumnElement[bool]:
    """Absent or without a value; a person name of separators alone is none."""
    if attribute.vr == "PN" and attribute.column is not None:
        return row.c[f"{attribute.column}_folded"] == ""
    if attribute.vr in {"PN", "SQ"}:
        return sa.not_(_any_value(attribute, row, lambda value: value != "", sqlite=sqlite))
    return sa.not_(_any_value(attribute, row, lambda value: sa.func.trim(value, _INSIGNIFICANT) != "", sqlite=sqlite, raw=True))


def _narrower(
    attribute: Attribute, term: Term, row: FromClause, slot: Slot, *, sqlite: bool, datastore_id: int | ColumnElement[int] | None
) -> ColumnElement[bool] | None:
    """Return what the trigram index of patient names can say, None when it cannot: short fragments are scanned."""
    together = _certain(attribute, term)
    if not together:
        return None
    if sqlite:
        rowids = named(attribute, term, slot, datastore_id)
        return None if rowids is None else row.c.id.in_(rowids)
    column = row.c.patient_name_folded

    def held(i: int, n: int) -> ColumnElement[bool]:
        return column.like(slot(f"holds_{i}_{n}", lambda one: f"%{_like(_certain(attribute, one)[i][n])}%"), escape="!")

    return sa.and_(*(sa.or_(*(held(i, n) for n in range(len(parts)))) for i, parts in enumerate(together)))


def named(
    attribute: Attribute, term: Term, slot: Slot, datastore_id: int | ColumnElement[int] | None = None
) -> sa.Select[Any] | sa.CompoundSelect[Any] | None:
    """Return the keys of the studies whose names may meet the term, from SQLite's indexes of names; None when they cannot say.

    The beginning of a first group is a range of the names in order; trigrams alone would go through many to find few.
    """
    if not _certain(attribute, term):
        return None
    of = study_name_fts.c
    if datastore_id is None or not isinstance(term, Wildcard) or "=" in term.pattern or _WILD.search(term.pattern) is None or (
        _start(term) + "*" != term.pattern
    ):
        match = slot("match", lambda one: _match(_certain(attribute, one)))
        return sa.select(of.rowid).where(of.folded.op("MATCH", is_comparison=True)(match))
    name = _BEGINS.c.patient_name_folded
    first = sa.select(_BEGINS.c.id).where(
        _BEGINS.c.datastore_id == datastore_id, name >= slot("begins", lambda one: f" {_start(one)}"),
        name < slot("begins_before", lambda one: _after(f" {_start(one)}")),
    )  # fmt: skip
    # The other groups, and the first of each where there are several names.
    others = slot("match_others", lambda one: _match([[f"={_start(one)}", f"{SEVERAL} {_start(one)}"]]))
    return sa.union_all(first, sa.select(of.rowid).where(of.folded.op("MATCH", is_comparison=True)(others)))


def _match(together: list[list[str]]) -> str:
    quoted = (" OR ".join('"' + text.replace('"', '""') + '"' for text in parts) for parts in together)
    return " AND ".join(f"({parts})" for parts in quoted)


def _certain(attribute: Attribute, term: Term) -> list[list[str]]:
    if attribute.keyword != "PatientName":
        return []
    return [parts for parts in _fragments(term) if all(len(text) >= _TRIGRAM for text in parts)]


def _fragments(term: Term) -> list[list[str]]:
    """Return pieces of text a matching name holds: of each list at least one.

    A group stands between " " or "=" before and "=" or " " after, so that a short piece at its edge still makes a trigram.
    """
    if isinstance(term, Fuzzy):
        return [[f" {word}", f"={word}"] for word in term.words]
    if not isinstance(term, Single | Wildcard):
        return []
    wanted = term.value if isinstance(term, Single) else term.pattern
    if "=" in wanted:
        edges = [(" ", "="), ("=", "="), ("=", " ")]
        groups = [f"{before}{part}{after}" for part, (before, after) in zip(wanted.split("="), edges, strict=True) if part]
        return [[piece] for group in groups for piece in _WILD.split(group) if piece]
    if isinstance(term, Single):
        return [[f" {wanted}=", f"={wanted}=", f"={wanted} "]]
    first, *rest = _WILD.split(wanted)
    if not rest:
        return [[f" {first}=", f"={first}=", f"={first} "]]
    found = [[piece] for piece in rest[:-1] if piece]
    found += [[f" {first}", f"={first}"]] if first else []
    return found + ([[f"{rest[-1]}=", f"{rest[-1]} "]] if rest[-1] else [])
