"""/api/peers, /api/pending-peers, /api/associations, /api/forwarding, /api/commitments: the DIMSE peers, and what goes to and fro."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from msgspec import Meta, field

from archive.access.permissions import Permission
from archive.services.forward_rules import Conditions
from archive.web.api.operation import Asked, Operation, Taken, Told
from archive.web.context import node, subject

_P = Permission
Row = dict[str, Any]
Instant = Annotated[datetime, Meta(tz=True)]
Limit = Annotated[int, Meta(ge=1, le=1000)]


class Peer(Told):
    """A DIMSE peer; `id` is what grants and roles take."""

    id: int
    name: str
    ae_titles: list[str]
    tls: bool
    certificate_sha256: str
    certificate_not_after: datetime | None
    networks: list[str]
    host: str
    port: int | None
    roles: list[str]
    datastore: str
    issuer: str
    max_associations: int | None
    enabled: bool
    created_at: datetime
    last_seen_at: datetime | None
    settings: dict[str, Any]


class NewPeer(Taken):
    """A peer to add, known by its certificate (PEM) or, without TLS, by networks (CIDR) and AE title."""

    name: str
    ae_titles: tuple[str, ...]
    certificate: str | None = None
    networks: tuple[str, ...] = ()
    address: str | None = None
    roles: tuple[str, ...] = ()
    issuer: str = ""
    datastore: str = "clinical"
    max_associations: Annotated[int, Meta(ge=1, le=1000)] | None = None


class PeerSettingsChange(Taken):
    """Settings of a peer to change; they count from its next association."""

    character_set: str | None = None
    called_ae_strict: bool | None = None
    private_sop_classes: bool | None = None
    relational: bool | None = None
    commitment_same_association: bool | None = None
    modality_without_tls: bool | None = None
    whole_worklist: bool | None = None
    transfer_syntaxes: tuple[str, ...] | None = None


class NewCertificate(Taken):
    """A certificate (PEM) to bind in place of the present one."""

    certificate: str


class PendingPeer(Told):
    """A caller that was refused: compare the fingerprint before it is let in."""

    id: int
    calling_ae_title: str
    address: str
    certificate_sha256: str
    first_seen_at: datetime
    last_seen_at: datetime


class Enrolment(Taken):
    """The name, roles and datastore of a refused caller that is let in."""

    name: str
    roles: tuple[str, ...] = ()
    datastore: str = "clinical"


class AssociationQuery(Taken):
    """Which records: of a peer's name or calling AE title, since then, the failed ones."""

    name: str = ""
    since: Instant | None = None
    failed: bool = False
    limit: Limit = 100


class Association(Told):
    """One association that is over, or was refused."""

    id: int
    opened_at: datetime
    at: datetime
    outcome: str
    reason: str
    failed: bool
    calling_ae_title: str
    called_ae_title: str
    address: str
    tls: bool
    peer: str
    repeats: int
    negotiation: dict[str, Any]
    operations: dict[str, Any]


class ForwardRule(Told):
    """A rule: what is sent to which peer, on whose behalf, when."""

    name: str
    destination: str
    author: str
    datastore: str
    conditions: dict[str, Any]
    hours: str
    quiet_s: int
    enabled: bool
    created_at: datetime


class NewForwardRule(Taken):
    """A rule to add; conditions are patterns with * and ?, `attributes` by keyword."""

    name: str
    destination: str
    on_behalf_of: str
    modality: tuple[str, ...] = ()
    calling_ae: tuple[str, ...] = ()
    called_ae: tuple[str, ...] = ()
    station: tuple[str, ...] = ()
    attributes: dict[str, str] = field(default_factory=dict)
    hours: str = ""
    quiet_s: Annotated[int, Meta(ge=0, le=86400)] = 0
    existing: bool = False
    datastore: str = "clinical"


class Destination(Told):
    """How a destination stands."""

    destination: str
    state: str
    waiting: int
    done: int
    failed: int
    failures: int
    retry_at: datetime | None
    reached_at: datetime | None
    reason: str


class DestinationChange(Taken):
    """Let a destination wait, or go on."""

    paused: bool


class DeliveryQuery(Taken):
    """Which deliveries."""

    state: str = ""
    destination: str = ""
    limit: Limit = 100


class Delivery(Told):
    """One thing to deliver; it names no patient."""

    id: int
    kind: str
    destination: str | None
    rule: str | None
    state: str
    attempts: int
    run_at: datetime
    reason: str
    created_at: datetime
    finished_at: datetime | None


class CommitmentQuery(Taken):
    """Which storage commitment transactions."""

    peer: str = ""
    state: str = ""
    limit: Limit = 100


class Commitment(Told):
    """A storage commitment transaction."""

    id: int
    transaction_uid: str
    peer: str
    calling_ae_title: str
    state: str
    n_references: int
    n_failed: int
    created_at: datetime
    checked_at: datetime | None
    reported_at: datetime | None
    attempts: int | None
    reason: str | None


class Receipt(Told):
    """What was confirmed, the seal of each study, and the proof that the ledger holds it."""

    transaction_uid: str
    peer: str
    event: int
    checked_at: datetime | None
    results: list[Row]
    results_sha256: str
    seals: list[Row]
    body: str
    salt: str
    proof: str


def _add(asked: Asked) -> Any:
    given: NewPeer = asked.body
    return node().peers.add(
        subject(), given.name, given.ae_titles, certificate=None if given.certificate is None else given.certificate.encode(),
        networks=given.networks, address=given.address, roles=given.roles, issuer=given.issuer, datastore=given.datastore,
        max_associations=given.max_associations,
    )


def _set(asked: Asked, peer: str) -> Any:
    given: PeerSettingsChange = asked.body
    changes = {name: value for name in given.__struct_fields__ if (value := getattr(given, name)) is not None}
    return node().peers.set(subject(), peer, changes)


def _renew(asked: Asked, peer: str) -> Any:
    return node().peers.renew(subject(), peer, certificate=asked.body.certificate.encode())


def _enrol(asked: Asked, number: int) -> Any:
    given: Enrolment = asked.body
    return node().peers.enrol(subject(), number, given.name, roles=given.roles, datastore=given.datastore)


def _associations(asked: Asked) -> Any:
    given: AssociationQuery = asked.query
    return node().association_log.search(subject(), name=given.name, since=given.since, failed=given.failed, limit=given.limit)


def _rules(_asked: Asked) -> Any:
    return [row | {"author": row["as"]} for row in node().forwarding.list(subject())]


def _add_rule(asked: Asked) -> Any:
    given: NewForwardRule = asked.body
    conditions = Conditions(given.modality, given.calling_ae, given.called_ae, given.station, given.attributes)
    made = node().forwarding.add(
        subject(), given.name, given.destination, on_behalf_of=given.on_behalf_of, conditions=conditions, hours=given.hours,
        quiet_s=given.quiet_s, existing=given.existing, datastore_name=given.datastore,
    )
    return {**made, "author": made["as"]}


def _deliveries(asked: Asked) -> Any:
    given: DeliveryQuery = asked.query
    return node().forwarding.queue(subject(), state=given.state, destination=given.destination, limit=given.limit)


def _commitments(asked: Asked) -> Any:
    given: CommitmentQuery = asked.query
    return node().commitments.list(subject(), peer_name=given.peer, state=given.state, limit=given.limit)


OPERATIONS = (
    Operation("GET", "/peers", "peers", "List peers", _P.PEER_MANAGE, lambda _asked: node().peers.list(subject()), list[Peer], tag="peers"),
    Operation("POST", "/peers", "peer_add", "Add a peer", _P.PEER_MANAGE, _add, Peer, NewPeer, status=201, tag="peers", refuses=(404,)),
    Operation("GET", "/peers/<peer>", "peer_show", "Show a peer, by name or id", _P.PEER_MANAGE,
              lambda _asked, peer: node().peers.get(subject(), peer), Peer, tag="peers", refuses=(404,)),
    Operation("PATCH", "/peers/<peer>", "peer_set", "Change settings of a peer", _P.PEER_MANAGE, _set, Peer, PeerSettingsChange,
              tag="peers", refuses=(404,)),
    Operation("POST", "/peers/<peer>/certificate", "peer_renew", "Bind a new certificate", _P.PEER_MANAGE, _renew, Peer, NewCertificate,
              tag="peers", refuses=(404,)),
    Operation("DELETE", "/peers/<peer>", "peer_remove", "Take a peer away", _P.PEER_MANAGE,
              lambda _asked, peer: node().peers.remove(subject(), peer), Peer, tag="peers", refuses=(404,)),
    Operation("GET", "/pending-peers", "pending_peers", "List callers that were refused", _P.PEER_MANAGE,
              lambda _asked: node().peers.pending(subject()), list[PendingPeer], tag="peers"),
    Operation("POST", "/pending-peers/<number>", "peer_enrol", "Make a refused caller a peer", _P.PEER_MANAGE, _enrol, Peer, Enrolment,
              status=201, tag="peers", refuses=(404,)),
    Operation("GET", "/associations", "associations", "Search what became of associations, the newest first", _P.PEER_MANAGE, _associations,
              list[Association], query=AssociationQuery, tag="peers"),
    Operation("GET", "/forwarding/rules", "forward_rules", "List forwarding rules", _P.JOB_MANAGE, _rules, list[ForwardRule],
              tag="forwarding"),
    Operation("POST", "/forwarding/rules", "forward_rule_add", "Add a forwarding rule", _P.JOB_MANAGE, _add_rule, ForwardRule,
              NewForwardRule, status=201, tag="forwarding", refuses=(404,)),
    Operation("DELETE", "/forwarding/rules/<rule>", "forward_rule_remove", "Remove a rule, and what waits by it", _P.JOB_MANAGE,
              lambda _asked, rule: node().forwarding.remove(subject(), rule), tag="forwarding", refuses=(404,)),
    Operation("GET", "/forwarding/destinations", "destinations", "Show how each destination stands", _P.JOB_MANAGE,
              lambda _asked: node().forwarding.destinations(subject()), list[Destination], tag="forwarding"),
    Operation("PATCH", "/forwarding/destinations/<peer>", "destination_change", "Let a destination wait, or go on", _P.JOB_MANAGE,
              lambda asked, peer: node().forwarding.pause(subject(), peer, paused=asked.body.paused), body=DestinationChange,
              tag="forwarding", refuses=(404,)),
    Operation("GET", "/forwarding/deliveries", "deliveries", "List deliveries, the newest first", _P.JOB_MANAGE, _deliveries,
              list[Delivery], query=DeliveryQuery, tag="forwarding", refuses=(404,)),
    Operation("GET", "/commitments", "commitments", "List storage commitment transactions", _P.AUDIT, _commitments, list[Commitment],
              query=CommitmentQuery, tag="commitments"),
    Operation("GET", "/commitments/<transaction>/receipt", "commitment_receipt", "Return a signed receipt with its proof", _P.AUDIT,
              lambda _asked, transaction: node().commitments.receipt(subject(), transaction), Receipt, tag="commitments", refuses=(404,)),
)
