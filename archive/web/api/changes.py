"""/api/changes: what came and went, in order, for those who may see it; ask again with the cursor of the last answer."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from archive.access.permissions import Permission
from archive.services.changefeed import LONGEST_WAIT_S
from archive.services.webhooks import as_dict
from archive.web.api.operation import Asked, Operation, Taken, Told
from archive.web.context import node, subject

LIMIT, MOST = 100, 1000


class ChangesQuery(Taken):
    """Behind which cursor, how many, and for how many seconds an empty answer is held back."""

    since: str = ""
    limit: Annotated[int, Meta(ge=1)] = LIMIT
    wait: Annotated[int, Meta(ge=0)] = 0
    datastore: str = "clinical"


class Change(Told):
    """What came or went, and the cursor behind it."""

    kind: str
    at: str
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    state: str
    cursor: str


class Feed(Told):
    """Changes in their order, the cursor for the next question, and whether there are more already."""

    changes: list[Change]
    next: str
    more: bool


def _read(asked: Asked) -> Any:
    given: ChangesQuery = asked.query
    feed = node().changefeed.read(
        subject(), given.datastore, given.since or None, limit=min(given.limit, MOST), wait_s=min(given.wait, LONGEST_WAIT_S)
    )
    return {
        "changes": [{**as_dict(one), "cursor": cursor} for one, cursor in feed.changes], "next": feed.next, "more": feed.more,
    }


OPERATIONS = (
    Operation("GET", "/changes", "changes", "Follow what comes and goes", Permission.SEARCH, _read, Feed, query=ChangesQuery, tag="changes",
              refuses=(404,)),
)
