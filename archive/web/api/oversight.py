"""/api/audit and /api/ledger: who did what, and the proof that nobody changed what is written about it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from msgspec import Meta, field

from archive.access.permissions import Permission
from archive.web.api.operation import Asked, Operation, Taken, Text, Told
from archive.web.context import node, subject

_P = Permission
Row = dict[str, Any]
Instant = Annotated[datetime, Meta(tz=True)]


class AuditQuery(Taken):
    """Which events, newest first; `before` is the number of the last one had, `kind` may be given several times."""

    user: str | None = None
    patient: str | None = None
    study: str | None = None
    series: str | None = None
    kinds: tuple[str, ...] = field(name="kind", default=())
    since: Instant | None = None
    until: Instant | None = None
    failed: bool = False
    before: Annotated[int, Meta(ge=0, le=10**15)] | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class AuditEvent(Told):
    """A recorded event; `body` is null when it was erased or its key destroyed."""

    id: int
    at: datetime
    kind: str
    action: str
    outcome: int
    principal_id: int | None
    peer_id: int | None
    instances: int
    body: Row | None


class AuditPage(Told):
    """Events, and what to give as `before` for those behind them; null when these are the last."""

    events: list[AuditEvent]
    before: int | None


class Keys(Told):
    """The public keys that a checker elsewhere needs, as verifier keys of signed notes."""

    keys: list[str]


def _search(asked: Asked) -> Any:
    given: AuditQuery = asked.query
    rows = node().oversight.search(
        subject(), user=given.user, patient=given.patient, study=given.study, series=given.series, kinds=given.kinds, since=given.since,
        until=given.until, failed=given.failed, before=given.before, limit=given.limit,
    )
    return {"events": rows, "before": rows[-1]["id"] if len(rows) == given.limit else None}


def _prove(_asked: Asked, what: str) -> Text:
    return Text(node().oversight.prove(subject(), what))


OPERATIONS = (
    Operation("GET", "/audit", "audit", "Search the audit log; looking is an event too", _P.AUDIT, _search, AuditPage, query=AuditQuery,
              tag="oversight", refuses=(404,)),
    Operation("GET", "/ledger/proofs/<what>", "ledger_proof", "Prove an event, a stored instance or a commitment", _P.AUDIT, _prove, Text,
              media_type="text/plain; charset=utf-8", tag="oversight", refuses=(404,)),
    Operation("GET", "/ledger/keys", "ledger_keys", "Return the keys that a proof is checked with", _P.NONE,
              lambda _asked: {"keys": node().oversight.public_keys()}, Keys, tag="oversight"),
)
