"""Query: find studies, series and instances for QIDO-RS, C-FIND and the pages.

Matching and scope are one SQL statement; the search is in the ledger, durably, before its answer returns.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import sqlalchemy as sa

from archive.access.permissions import Permission
from archive.access.policy import scope_of
from archive.access.subject import Subject
from archive.db.engine import Database
from archive.dicom import clocks
from archive.dicom.attributes import BY_TAG, Attribute, Level
from archive.dicom.matching import Universal, parse, rough
from archive.dicom.row_keys import Key, certain, check, is_instant, is_list, meets, zone_of
from archive.dicom.zones import TIMEZONE_OFFSET
from archive.errors import ArchiveError, InvalidQuery, Unavailable
from archive.index import search
from archive.index.access_study import Position
from archive.index.slots import Fuzzy, Items, Term
from archive.ledger.audit import Event, Kind, ObjectRef
from archive.ledger.log import Ledger
from archive.services import datastores
from archive.services.clock import Clock


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """What is asked, as it came: keys are attributes and the text to match, the UIDs are those of the path."""

    level: Level
    datastore: str
    keys: tuple[tuple[Attribute, str], ...]
    study_instance_uid: str | None = None
    series_instance_uid: str | None = None
    include: tuple[Attribute, ...] | Literal["all"] = ()
    limit: int | None = None
    offset: int = 0
    fuzzy: bool = False
    total: bool = True
    """Whether the total is wanted: it costs the condition for every study that matches, not for those of the page alone."""
    usual: bool = True
    """Whether what answers of this level usually hold is answered besides what is asked for."""
    filters: tuple[Key, ...] = ()
    """Keys that SQL cannot match: rows that match all else are held against them here."""
    also: tuple[Key, ...] = ()
    """Keys that whoever asks holds the rows against; the event names them."""
    zone: str = ""
    """The offset from UTC of the clock whose times are asked about, where that is said."""


_RANK = {Level.PATIENT: 0, Level.STUDY: 1, Level.SERIES: 2, Level.IMAGE: 3}
HELD_ROWS = 500
"""How many rows are in memory at a time where they are held against filters."""
HELD_AT_MOST = 200 * HELD_ROWS
"""How many are held against them for one answer: of a whole archive it may be that none meets them, minutes later."""


@dataclass(frozen=True, slots=True)
class SearchAnswer:
    """DICOM JSON data sets without RetrieveURL; `total` is None when not wanted or more than are counted."""

    rows: list[dict[str, dict[str, Any]]]
    total: int | None


class Query:
    """The one way to search; safe to share between threads."""

    def __init__(self, database: Database, ledger: Ledger, clock: Clock) -> None:
        """Search `database`, record in `ledger`."""
        self._database = database
        self._ledger = ledger
        self._clock = clock
        self._ends = _Ends()

    def find(self, subject: Subject, request: SearchRequest) -> SearchAnswer:
        """Return what matches and the subject may see; nothing granted is an empty answer, never a refusal.

        Raises:
            InvalidQuery: a key that cannot be matched; names the attribute, never the value.
            NotFound: no such datastore, or none the subject has a right in.
            Unavailable: the search could not be recorded, so nothing is answered.
        """
        asked = _apart(request)
        page = self._filtered(subject, asked) if asked.filters else self._page(subject, asked)
        self._record(subject, request, page)
        return SearchAnswer(page.rows, page.total)

    def _page(self, subject: Subject, request: SearchRequest) -> search.SearchPage:
        keys: list[tuple[Attribute, Term]] = [
            (key, _term(key, text, fuzzy=request.fuzzy, zone=request.zone)) for key, text in request.keys
        ]
        # Of sequences SQL says where there are items that may meet a key: of a whole archive that may be none.
        keys += [(BY_TAG[key.tag], Items(certain(key))) for key in request.also if key.items and key.tag in BY_TAG]
        keys += _beside(request.also, request.zone)
        at = self._clock()
        # The connection that commits the audit still has the pages of the search before; any other deciphers them again.
        with self._database.glance() as tx, nullcontext() if tx.in_transaction() else tx.begin():
            place = datastores.asked_for(tx, subject, request.datastore, at).id
            query = search.SearchQuery(
                level=request.level, datastore_id=place, keys=tuple(keys), study_instance_uid=request.study_instance_uid,
                series_instance_uid=request.series_instance_uid, include=request.include, limit=request.limit, offset=request.offset,
                total=request.total, usual=request.usual, after=self._ends.of(subject, request),
            )
            page = search.find(tx, scope_of(subject, Permission.SEARCH, at), query)
        self._ends.keep(subject, request, page)
        return page

    def _filtered(self, subject: Subject, request: SearchRequest) -> search.SearchPage:
        """Hold what matches against the filters, a page at a time, until as many are met as were asked for.

        Raises:
            InvalidQuery: too much matches all else.
        """
        kept: list[dict[str, dict[str, Any]]] = []
        passed = 0
        plain = replace(request, filters=(), also=request.filters, offset=0, limit=HELD_ROWS, total=False)
        while True:
            rows = self._page(subject, plain).rows
            met = [row for row in rows if holds(row, request.filters, request.zone)]
            skipped = min(request.offset - passed, len(met))  # what comes before the page is counted, and not kept
            passed += skipped
            kept += met[skipped:]
            ended = len(rows) < HELD_ROWS
            if ended or (request.limit is not None and len(kept) >= request.limit):
                return search.SearchPage(kept[: request.limit], passed + len(kept) if ended and request.total else None)
            plain = replace(plain, offset=plain.offset + len(rows))
            if plain.offset >= HELD_AT_MOST:
                message = f"of more than {HELD_AT_MOST} answers each would have to be looked at"
                raise InvalidQuery(message, remedy="name a patient, a study or a shorter time besides, or ask for fewer at a time")

    def _record(self, subject: Subject, request: SearchRequest, page: search.SearchPage) -> None:
        """No audit, no data. Values that were searched for lie in the sealed body alone."""
        objects = [ObjectRef("study", request.study_instance_uid)] if request.study_instance_uid else []
        objects += [ObjectRef("series", request.series_instance_uid)] if request.series_instance_uid else []
        detail: dict[str, Any] = {
            "datastore": request.datastore,
            "level": request.level.value,
            "keys": {attribute.keyword: text for attribute, text in request.keys} | dict(_told(request.filters)),
            "fuzzy": request.fuzzy,
            "offset": request.offset,
            "found": len(page.rows),
        }
        if request.zone:
            detail["zone"] = request.zone
        if request.also:
            detail["also"] = [path for path, text in _told(request.also) if text.strip(" \0*")]
        event = Event(Kind.SEARCHED, subject=subject, objects=tuple(objects), detail=detail)
        try:
            self._database.group(lambda tx: self._ledger.record(tx, event, at=self._clock()), durable=True)
        except (ArchiveError, sa.exc.SQLAlchemyError) as error:
            message = "the search could not be recorded, so nothing was answered"
            raise Unavailable(message, remedy=getattr(error, "remedy", "") or "run 'archive doctor'") from error


class _Ends:
    """Where pages ended, so that the next one starts there instead of going through all before it; never what may be seen."""

    KEPT = 1024

    def __init__(self) -> None:
        """Know of none."""
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, Position] = OrderedDict()

    def of(self, subject: Subject, request: SearchRequest) -> Position | None:
        """Return where the page before this one ended, when it was asked for here."""
        if not request.offset:
            return None
        with self._lock:
            return self._known.get(self._key(subject, request, request.offset))

    def keep(self, subject: Subject, request: SearchRequest, page: search.SearchPage) -> None:
        """Remember where this page ended."""
        if page.last is None or request.limit is None or len(page.rows) < request.limit:
            return
        key = self._key(subject, request, request.offset + len(page.rows))
        with self._lock:
            self._known[key] = page.last
            self._known.move_to_end(key)
            while len(self._known) > self.KEPT:
                self._known.popitem(last=False)

    @staticmethod
    def _key(subject: Subject, request: SearchRequest, offset: int) -> bytes:
        """Of a request its digest: what is asked for may be a megabyte, and names patients."""
        asked = subject, replace(request, offset=offset, limit=None, total=False, include=())
        return hashlib.sha256(repr(asked).encode()).digest()


def _told(filters: Iterable[Key], path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the keys inside sequences by their paths, and their values."""
    for key in filters:
        if key.items:
            for item in key.items:
                yield from _told(item, f"{path}{key.tag_hex}.")
        else:
            yield f"{path}{key.tag_hex}", key.text


def holds(row: Mapping[str, Mapping[str, Any]], keys: Sequence[Key], zone: str) -> bool:
    """Say whether a row meets keys about times of a clock with that offset."""
    there = zone_of(row)
    row = clocks.shown(row, keys, there, zone)
    return all(meets(key, row.get(key.tag_hex), there) for key in keys)


def _term(attribute: Attribute, text: str, *, fuzzy: bool, zone: str = "") -> Term:
    # Neither can be stored, and PostgreSQL does not even take the question.
    if "\0" in text.strip(" \0") or any("\ud800" <= character < "\ue000" for character in text):
        message = f"{attribute.keyword} takes text"
        raise InvalidQuery(message)
    match = rough(parse(attribute, text, zone))
    return Fuzzy.of(attribute, text, match) if fuzzy else match


def _beside(keys: Sequence[Key], zone: str) -> list[tuple[Attribute, Term]]:
    """Return what rows must hold for keys to be held against them, and of clocks what one may have shown then."""
    by_clock = clocks.moving(keys) if zone else frozenset()
    found: list[tuple[Attribute, Term]] = []
    for key in keys:
        if key.vr == "DT":
            found.append((BY_TAG[key.tag], _term(BY_TAG[key.tag], key.text, fuzzy=False, zone=zone)))
        elif key.vr == "DA" and key.tag in by_clock:
            found.append((BY_TAG[key.tag], clocks.wide(parse(BY_TAG[key.tag], key.text))))
    told = {*by_clock, TIMEZONE_OFFSET} if found or by_clock else set()
    told |= {key.tag for key in keys if is_list(key.vr, key.text)}
    return found + [(BY_TAG[tag], Universal()) for tag in sorted(told - {one.tag for one, _ in found}) if tag in BY_TAG]


def _apart(request: SearchRequest) -> SearchRequest:
    """Return the request with keys as filters that SQL cannot match: instants, what another clock showed, several values of a key.

    Raises:
        InvalidQuery.
    """
    keys = [Key(key.tag, key.vr, text, zone=request.zone) for key, text in request.keys if _RANK[key.level] <= _RANK[request.level]]
    by_clock = clocks.moving(keys) if request.zone else frozenset()
    filters = tuple(
        key for key in keys
        if key.tag in by_clock or (is_list(key.vr, key.text) and not (key.vr == "IS" and BY_TAG[key.tag].computed)) or (
            key.vr == "DT" and BY_TAG[key.tag].level is request.level and is_instant(parse(BY_TAG[key.tag], key.text, request.zone))
        )
    )
    for key in filters:
        check(key)
    apart = {key.tag for key in filters}
    kept = tuple((key, text) for key, text in request.keys if key.tag not in apart)
    return replace(request, keys=kept, filters=(*request.filters, *filters)) if apart else request
