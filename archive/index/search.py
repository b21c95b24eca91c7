"""Search: one statement in which matching and scope stand together, so that what may not be seen never leaves the database.

Attributes of a lower level than the one asked for are matched under the scope too: a hidden series never makes its study match.
Derived attributes (counts, modalities) are computed over visible series.

Source: PS3.4 C.2.2.2 and C.6, PS3.18 10.6.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from archive.access.policy import Scope
from archive.index import access_study
from archive.index.access_study import Position
from archive.index.asking import Asking, Row
from archive.index.conditions import BELOW, SearchQuery, led
from archive.index.locate import InstanceRow, locate
from archive.index.slots import Fuzzy, Term

__all__ = ["COUNTED", "Fuzzy", "InstanceRow", "SearchPage", "SearchQuery", "Term", "find", "locate"]

COUNTED = 10_000
"""Totals are exact up to here, beyond it unknown: an exact one costs the predicate for every match."""


@dataclass(frozen=True, slots=True)
class SearchPage:
    """DICOM JSON data sets without RetrieveURL, in stable order; `total` is None when not asked for or beyond COUNTED."""

    rows: list[dict[str, dict[str, Any]]]
    total: int | None
    last: Position | None = field(default=None, compare=False)
    """Where the page ends, for `SearchQuery.after`."""


def find(tx: sa.Connection, scope: Scope, query: SearchQuery) -> SearchPage:
    """Return the data sets inside the scope that match, at most `query.limit` from `query.offset` on.

    Rows of one study or series come by number, all others by study, newest first, and by number in it.

    Raises:
        InvalidQuery: a key that cannot be matched.
    """
    if not led(query):
        asking = Asking(tx, scope, query, None)
        found = asking.rows()
        total = _total(asking, len(found), ended=query.limit is None or len(found) < query.limit)
        return SearchPage([row for row, _ in found], total, found[-1][1] if found else None)
    asking = Asking(tx, scope, query, access_study.lead(tx, scope, query.datastore_id))
    found, ended = _page(asking)
    return SearchPage([row for row, _ in found], _total(asking, len(found), ended=ended), found[-1][1] if found else None)


def _page(asking: Asking) -> tuple[list[tuple[Row, Position]], bool]:
    """Go through the candidates, newest first, until the page is full; tell whether nothing comes after it."""
    query = asking.query
    after = query.after
    if after is None and query.offset:
        after = asking.before(query.offset)
        if after is None:
            return [], True
    found: list[tuple[Row, Position]] = []
    for window in _windows(asking, after):
        if window:
            left = None if query.limit is None else query.limit - len(found)
            found += asking.rows([one.study_pk for one in window], left, after)
        if query.limit is not None and len(found) >= query.limit:
            return found, False
    return found, True


def _windows(asking: Asking, after: Position | None) -> Iterator[list[Position]]:
    """Return the studies to look at: those of the dates asked for, and with SQLite of the name and modality besides."""
    lead, query = asking.lead, asking.query
    if lead is None:
        return iter(())
    if after is not None and query.level in BELOW:  # the rest of that study comes first
        after = after._replace(study_pk=after.study_pk + 1)
    if lead.kind == "study" and asking.few():
        lead = access_study.Lead("named")
    # A study gives one row, or many of its series and instances.
    first = min(query.limit or 0, access_study.LARGEST) if query.level not in BELOW else 0
    return access_study.windows(
        asking.tx, asking.scope, lead, query.datastore_id, after=after or access_study.before(asking.high), low=asking.low,
        narrow=asking.narrow(), first=first,
    )  # fmt: skip


def _total(asking: Asking, found: int, *, ended: bool) -> int | None:
    query = asking.query
    if not query.total:
        return None
    total = query.offset + found if ended and (found or not query.offset) else asking.count(COUNTED)
    return total if total <= COUNTED else None
