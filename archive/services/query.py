"""Query: find studies, series and instances for QIDO-RS, C-FIND and the pages.

Matching and scope are one SQL statement; the search is in the ledger, durably, before its answer returns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from archive.access.permissions import Permission
from archive.access.policy import scope_of
from archive.access.subject import Subject
from archive.db.engine import Database
from archive.dicom.attributes import Attribute, Level
from archive.dicom.matching import parse
from archive.errors import ArchiveError, InvalidQuery, Unavailable
from archive.index import search
from archive.index.terms import Fuzzy, Term
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


@dataclass(frozen=True, slots=True)
class SearchAnswer:
    """DICOM JSON data sets without RetrieveURL; `total` is None when there are more than are counted."""

    rows: list[dict[str, dict[str, Any]]]
    total: int | None


class Query:
    """The one way to search; safe to share between threads."""

    def __init__(self, database: Database, ledger: Ledger, clock: Clock) -> None:
        """Search `database`, record in `ledger`."""
        self._database = database
        self._ledger = ledger
        self._clock = clock

    def find(self, subject: Subject, request: SearchRequest) -> SearchAnswer:
        """Return what matches and the subject may see; nothing granted is an empty answer, never a refusal.

        Raises:
            InvalidQuery: a key that cannot be matched; names the attribute, never the value.
            NotFound: no such datastore, or none the subject has a right in.
            Unavailable: the search could not be recorded, so nothing is answered.
        """
        keys = tuple((attribute, _term(attribute, text, fuzzy=request.fuzzy)) for attribute, text in request.keys)
        at = self._clock()
        with self._database.read() as tx:
            place = datastores.asked_for(tx, subject, request.datastore, at).id
            query = search.SearchQuery(
                level=request.level, datastore_id=place, keys=keys, study_instance_uid=request.study_instance_uid,
                series_instance_uid=request.series_instance_uid, include=request.include, limit=request.limit, offset=request.offset,
            )
            page = search.find(tx, scope_of(subject, Permission.SEARCH, at), query)
        self._record(subject, request, page)
        return SearchAnswer(page.rows, page.total)

    def _record(self, subject: Subject, request: SearchRequest, page: search.SearchPage) -> None:
        """No audit, no data. Values that were searched for lie in the sealed body alone."""
        objects = [ObjectRef("study", request.study_instance_uid)] if request.study_instance_uid else []
        objects += [ObjectRef("series", request.series_instance_uid)] if request.series_instance_uid else []
        detail = {
            "datastore": request.datastore,
            "level": request.level.value,
            "keys": {attribute.keyword: text for attribute, text in request.keys},
            "fuzzy": request.fuzzy,
            "offset": request.offset,
            "found": len(page.rows),
        }
        event = Event(Kind.SEARCHED, subject=subject, objects=tuple(objects), detail=detail)
        try:
            self._database.group(lambda tx: self._ledger.record(tx, event, at=self._clock()), durable=True)
        except (ArchiveError, sa.exc.SQLAlchemyError) as error:
            message = "the search could not be recorded, so nothing was answered"
            raise Unavailable(message, remedy=getattr(error, "remedy", "") or "run 'archive doctor'") from error


def _term(attribute: Attribute, text: str, *, fuzzy: bool) -> Term:
    # Neither can be stored, and PostgreSQL does not even take the question.
    if "\0" in text.strip(" \0") or any("\ud800" <= character < "\ue000" for character in text):
        message = f"{attribute.keyword} takes text"
        raise InvalidQuery(message)
    match = parse(attribute, text)
    return Fuzzy.of(attribute, text, match) if fuzzy else match
