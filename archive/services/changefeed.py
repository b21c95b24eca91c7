"""The change feed: what came, was rejected, restored or accepted, in order, resumable, for what the reader may see now.

A cursor is sealed: it says nothing of how much happens that its holder does not see, and no other reader can use it.
"""

from __future__ import annotations

import base64
import binascii
import time
from dataclasses import dataclass
from threading import BoundedSemaphore

import msgspec
import sqlalchemy as sa

from archive.access.permissions import Permission
from archive.access.policy import scope_of
from archive.access.subject import Subject
from archive.errors import ArchiveError, InvalidQuery, Unavailable
from archive.index import changes
from archive.index.changes import Change, Place
from archive.keys import sealing
from archive.ledger import nodes
from archive.ledger.audit import Event, Kind, ObjectRef
from archive.services import datastores
from archive.services.core import Core

LOOK_S = 0.5
LONGEST_WAIT_S = 30.0
LATEST = "latest"
_MOST_STUDIES = 1000
_WAITING = 2


@dataclass(frozen=True, slots=True)
class Feed:
    """Changes with the cursor behind each, the cursor to go on from, and whether to do so at once."""

    changes: list[tuple[Change, str]]
    next: str
    more: bool


class ChangeFeed:
    """Reads the feed; safe to share between threads."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core
        self._waiting = BoundedSemaphore(_WAITING)  # requests that only wait; more are answered at once

    def read(self, subject: Subject, datastore: str, since: str | None, *, limit: int, wait_s: float = 0.0) -> Feed:
        """Return the changes behind a cursor (None: from the beginning; `LATEST`: none, and the cursor of now), in order.

        With `wait_s` an empty answer comes only after that long.

        Raises:
            InvalidQuery: the cursor is none of this reader's.
            NotFound: no such datastore, or none the reader has a right in.
            Unavailable.
        """
        after = changes.BEGINNING if since in (None, "", LATEST) else self._opened(subject, datastore, str(since))
        found = self._page(subject, datastore, after, limit=limit, latest=since == LATEST)
        if wait_s > 0 and not found.changes and not found.more and since != LATEST and self._waiting.acquire(blocking=False):
            try:
                found = self._wait(subject, datastore, found, limit, min(wait_s, LONGEST_WAIT_S))
            finally:
                self._waiting.release()
        self._record(subject, datastore, found.changes)
        return Feed(
            [(one, self._sealed(subject, datastore, one.place)) for one in found.changes], self._sealed(subject, datastore, found.end),
            found.more,
        )

    def _wait(self, subject: Subject, datastore: str, found: changes.Page, limit: int, wait_s: float) -> changes.Page:
        end = time.monotonic() + wait_s
        while not found.changes and not found.more and time.monotonic() < end:
            time.sleep(LOOK_S)
            with self._core.database.read() as tx:
                grown = nodes.size(tx) > found.end.leaf + 1
            if grown:
                found = self._page(subject, datastore, found.end, limit=limit)
        return found

    def _page(self, subject: Subject, datastore: str, after: Place, *, limit: int, latest: bool = False) -> changes.Page:
        core = self._core
        at = core.clock()
        with core.database.read() as tx:
            place = datastores.asked_for(tx, subject, datastore, at).id
            size = nodes.size(tx)
            if latest:
                return changes.Page([], changes.behind(size), False)
            return changes.page(tx, scope_of(subject, Permission.SEARCH, at), place, after, size=size, limit=limit)

    def _record(self, subject: Subject, datastore: str, found: list[Change]) -> None:
        """No audit, no data."""
        studies = list(dict.fromkeys(one.study_instance_uid for one in found))[:_MOST_STUDIES]
        event = Event(
            Kind.SEARCHED, subject=subject, objects=tuple(ObjectRef("study", uid) for uid in studies), instances=len(found),
            detail={"what": "changes", "datastore": datastore, "found": len(found)},
        )
        core = self._core
        try:
            core.database.group(lambda tx: core.ledger.record(tx, event, at=core.clock()), durable=True)
        except (ArchiveError, sa.exc.SQLAlchemyError) as error:
            message = "the request could not be recorded, so nothing was answered"
            raise Unavailable(message, remedy=getattr(error, "remedy", "") or "run 'archive doctor'") from error

    def _sealed(self, subject: Subject, datastore: str, place: Place) -> str:
        packed = place.leaf.to_bytes(8, "big", signed=True) + place.position.to_bytes(8, "big")
        sealed = self._core.keyring.seal("change-cursor", packed, _whose(subject, datastore))
        return base64.urlsafe_b64encode(sealed).decode().rstrip("=")

    def _opened(self, subject: Subject, datastore: str, cursor: str) -> Place:
        try:
            sealed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
            packed = self._core.keyring.unseal("change-cursor", sealed, _whose(subject, datastore))
        except (sealing.WrongKey, binascii.Error, ValueError) as error:
            message = "since is no cursor of this feed"
            raise InvalidQuery(message, remedy="give the 'next' of an earlier answer, or leave it out to begin at the beginning") from error
        return Place(int.from_bytes(packed[:8], "big", signed=True), int.from_bytes(packed[8:], "big"))


def _whose(subject: Subject, datastore: str) -> bytes:
    return b"strongroom/v1/changes\0" + msgspec.json.encode([subject.principal_id, datastore])
