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


class DisclosureQuery(Taken):
    """Of which patient, from when until when."""

    patient: str
    issuer: str | None = None
    datastore: str = "clinical"
    since: Instant | None = None
    until: Instant | None = None


class Disclosed(Told):
    """One access to a patient's images, and the grants in force by which it could be."""

    event: int
    at: datetime
    who: str
    kind: str
    action: str
    what: str
    studies: list[str]
    series_instance_uid: str
    instances: int
    network: str
    erased: bool
    because: list[Row]


class AlertQuery(Taken):
    """With `every`, the acknowledged ones too."""

    every: bool = False
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class Alert(Told):
    """What a rule found in the audit log; the numbers are of events."""

    id: int
    rule: str
    text: str
    severity: str
    who: str
    detail: Row
    first_event: int
    last_event: int
    times: int
    raised_at: datetime
    updated_at: datetime
    told_at: datetime | None
    acknowledged_at: datetime | None
    note: str


class Acknowledgement(Taken):
    """What it was."""

    note: str


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


def _disclosures(asked: Asked) -> Any:
    given: DisclosureQuery = asked.query
    return node().disclosure.of_patient(
        subject(), given.patient, issuer=given.issuer, datastore=given.datastore, since=given.since, until=given.until
    )


def _prove(_asked: Asked, what: str) -> Text:
    return Text(node().oversight.prove(subject(), what))


OPERATIONS = (
    Operation("GET", "/audit", "audit", "Search the audit log; looking is an event too", _P.AUDIT, _search, AuditPage, query=AuditQuery,
              tag="oversight", refuses=(404,)),
    Operation("GET", "/alerts", "alerts", "List what the rules found and nobody has acknowledged", _P.AUDIT,
              lambda asked: node().alerts.list(subject(), every=asked.query.every, limit=asked.query.limit), list[Alert], query=AlertQuery,
              tag="oversight"),
    Operation("POST", "/alerts/<number>/acknowledge", "alert_acknowledge", "Close an alert, and say what it was", _P.AUDIT,
              lambda asked, number: node().alerts.acknowledge(subject(), number, note=asked.body.note), Alert, Acknowledgement,
              tag="oversight", refuses=(404,)),
    Operation("GET", "/audit/disclosures", "disclosures", "Tell who saw a patient's images, when, and why they could", _P.AUDIT,
              _disclosures, list[Disclosed], query=DisclosureQuery, tag="oversight", refuses=(404,)),
    Operation("GET", "/ledger/proofs/<what>", "ledger_proof", "Prove an event, a stored instance or a commitment", _P.AUDIT, _prove, Text,
              media_type="text/plain; charset=utf-8", tag="oversight", refuses=(404,)),
    Operation("GET", "/ledger/keys", "ledger_keys", "Return the keys that a proof is checked with", _P.NONE,
              lambda _asked: {"keys": node().oversight.public_keys()}, Keys, tag="oversight"),
)
