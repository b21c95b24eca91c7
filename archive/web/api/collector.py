"""The audit log's way to a collector outside."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from msgspec import Meta

from archive.access.permissions import Permission
from archive.web.api.operation import Asked, Operation, Taken, Told
from archive.web.context import node, subject

_P = Permission


class Collector(Told):
    """How far the collector is: `collector` empty where there is none, `behind` the events that wait."""

    collector: str
    told: int
    behind: int
    problem: str
    failing_since: datetime | None
    told_at: datetime | None


class Sent(Told):
    """That the collector took it."""

    sent: bool


class Again(Taken):
    """The number of the first event to tell once more."""

    first: Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]


class Waiting(Told):
    """What will be told: how many events, from which on."""

    first: int
    events: int


def _test(_asked: Asked) -> Any:
    node().audit_feed.test(subject())
    return {"sent": True}


OPERATIONS = (
    Operation("GET", "/audit/syslog", "syslog", "Say how far the collector of audit messages is", _P.AUDIT,
              lambda _asked: node().audit_feed.status(subject()), Collector, tag="oversight"),
    Operation("POST", "/audit/syslog/test", "syslog_test", "Send the collector one message now", _P.CONFIGURE, _test, Sent,
              tag="oversight"),
    Operation("POST", "/audit/syslog/again", "syslog_again", "Tell the collector everything from an event on once more", _P.CONFIGURE,
              lambda asked: node().audit_feed.again(subject(), asked.body.first), Waiting, Again, tag="oversight"),
)
