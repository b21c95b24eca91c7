"""/api/audit and /api/ledger: who did what, and the proof that nobody changed what is written about it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from flask import Response, request
from msgspec import Meta, field

from archive.access.permissions import Permission
from archive.services import disclosure_pdf
from archive.services.audit_export import Span
from archive.services.disclosure import as_csv
from archive.web.api.operation import Asked, Operation, Taken, Text, Told
from archive.web.context import node, subject
from archive.web.streaming import stream

_P = Permission
Row = dict[str, Any]
Instant = Annotated[datetime, Meta(tz=True)]


class AuditQuery(Taken):
    """Which events, newest first; `before` is what the last page gave, `kind` and `action` may be given several times.

    `outcome` is 0 for success, 4, 8 or 12 for a minor, serious or major failure; `network` an address or CIDR.
    """

    user: str | None = None
    patient: str | None = None
    study: str | None = None
    series: str | None = None
    kinds: tuple[str, ...] = field(name="kind", default=())
    since: Instant | None = None
    until: Instant | None = None
    failed: bool = False
    actions: tuple[Literal["C", "R", "U", "D", "E"], ...] = field(name="action", default=())
    outcome: Annotated[int, Meta(ge=0, le=12, multiple_of=4)] | None = None
    network: str | None = None
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
    """Events, and what to give as `before` for those behind them; null when these are the last. With a network there may be few."""

    events: list[AuditEvent]
    before: int | None


class DisclosureQuery(Taken):
    """Of which patient, from when until when."""

    patient: str
    issuer: str | None = None
    datastore: str = "clinical"
    since: Instant | None = None
    until: Instant | None = None


class LinesQuery(Taken):
    """Events after a number (the end line of an earlier answer says it), of a time, at most so many."""

    after: Annotated[int, Meta(ge=-1, le=10**15)] = -1
    since: Instant | None = None
    until: Instant | None = None
    limit: Annotated[int, Meta(ge=1, le=10**9)] | None = None


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


class ReplayQuery(Taken):
    """An instant or a number of events the log had; of whom, or of which study, and without either of everybody how much."""

    at: Instant | None = None
    size: Annotated[int, Meta(ge=1, le=10**15)] | None = None
    subject: str | None = None
    study: str | None = None


class Replayed(Told):
    """How it stood then; `notes` says what the events do not carry. What was not asked for is null."""

    at: datetime
    size: int
    notes: list[str]
    subject: Row | None = None
    count: int | None = None
    studies: list[Row] | None = None
    tokens: list[Row] | None = None
    study_instance_uid: str | None = None
    existed: bool | None = None
    instances: int | None = None
    people: list[Row] | None = None
    grants: int | None = None
    studies_there: int | None = None


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
    rows, before = node().oversight.page(
        subject(), user=given.user, patient=given.patient, study=given.study, series=given.series, kinds=given.kinds, since=given.since,
        until=given.until, failed=given.failed, before=given.before, limit=given.limit, actions=given.actions, outcome=given.outcome,
        network=given.network,
    )
    return {"events": rows, "before": before}


def _disclosures_as_asked(asked: Asked) -> Any:
    wanted = request.accept_mimetypes.best_match(["application/json", disclosure_pdf.MEDIA_TYPE, "text/csv"], "application/json")
    others = {disclosure_pdf.MEDIA_TYPE: _disclosures_pdf, "text/csv": _disclosures_csv}
    return others[wanted](asked) if wanted in others else _disclosures(asked)


def _disclosures(asked: Asked) -> Any:
    given: DisclosureQuery = asked.query
    return node().disclosure.of_patient(
        subject(), given.patient, issuer=given.issuer, datastore=given.datastore, since=given.since, until=given.until
    )


def _disclosures_pdf(asked: Asked) -> Response:
    given: DisclosureQuery = asked.query
    about = disclosure_pdf.About(
        given.patient, given.datastore, node().config.archive.name, node().core.clock(), given.since, given.until, subject().name
    )
    return _file(disclosure_pdf.as_pdf(_disclosures(asked), about), disclosure_pdf.MEDIA_TYPE, "disclosures.pdf")


def _disclosures_csv(asked: Asked) -> Response:
    return _file(as_csv(_disclosures(asked)).encode(), "text/csv; charset=utf-8", "disclosures.csv")


def _lines(asked: Asked) -> Response:
    given: LinesQuery = asked.query
    span = Span(given.after, given.since, given.until, given.limit)
    lines = node().audit_export.lines(subject(), span)
    return stream(lambda: lines, content_type="application/jsonl", length=None)


def _file(data: bytes, content_type: str, name: str) -> Response:
    return Response(data, content_type=content_type, headers={"Content-Disposition": f'attachment; filename="{name}"'})


def _replay(asked: Asked) -> Any:
    given: ReplayQuery = asked.query
    return node().ledger_replay.at(subject(), when=given.at, size=given.size, who=given.subject, study_instance_uid=given.study)


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
              _disclosures_as_asked, list[Disclosed], query=DisclosureQuery, tag="oversight", refuses=(404,)),
    Operation("GET", "/audit/disclosures.pdf", "disclosures_pdf", "The same as PDF", _P.AUDIT, _disclosures_pdf, Text,
              query=DisclosureQuery, media_type=disclosure_pdf.MEDIA_TYPE, tag="oversight", refuses=(404,)),
    Operation("GET", "/audit/disclosures.csv", "disclosures_csv", "The same as CSV", _P.AUDIT, _disclosures_csv, Text,
              query=DisclosureQuery, media_type="text/csv; charset=utf-8", tag="oversight", refuses=(404,)),
    Operation("GET", "/audit.jsonl", "audit_lines", "Every event, one JSON object a line, with what checks it against the ledger", _P.AUDIT,
              _lines, Text, query=LinesQuery, media_type="application/jsonl", tag="oversight"),
    Operation("GET", "/ledger/proofs/<what>", "ledger_proof", "Prove an event, a stored instance or a commitment", _P.AUDIT, _prove, Text,
              media_type="text/plain; charset=utf-8", tag="oversight", refuses=(404,)),
    Operation("GET", "/ledger/replay", "ledger_replay", "Tell who could see what at a moment of the past", _P.AUDIT, _replay, Replayed,
              query=ReplayQuery, tag="oversight", refuses=(404,)),
    Operation("GET", "/ledger/keys", "ledger_keys", "Return the keys that a proof is checked with", _P.NONE,
              lambda _asked: {"keys": node().oversight.public_keys()}, Keys, tag="oversight"),
)
