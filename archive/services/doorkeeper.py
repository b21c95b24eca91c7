"""Who may open an association: peers by certificate and AE title, or on the plain listener by network and AE title.

AE titles are no secret and certificates are no names: neither alone admits anyone. Whoever is refused is remembered, a bounded number
of them, so that a person can enrol the device that was just plugged in after comparing its fingerprint.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import logging
import ssl
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import sqlalchemy as sa

from archive.access import policy, roles
from archive.access.permissions import OBJECT, Permission
from archive.access.subject import Subject
from archive.config import Config
from archive.db.engine import Database
from archive.db.tables import datastore, peer, peer_ae_title, peer_network, pending_peer, principal
from archive.errors import Forbidden
from archive.keys.keyring import Keyring
from archive.ledger.audit import Event, Kind
from archive.ledger.log import Ledger
from archive.services.changes import Changes
from archive.services.clock import Clock
from archive.services.peer_settings import DEFAULTS, PeerSettings
from archive.services.peer_users import PeerUsers, no_tls
from archive.services.processes import this_worker
from archive.services.slots import Slots

LOG = logging.getLogger("archive.services")

PENDING_ROWS = 500
PENDING_WITHOUT_NAME = 100  # handshakes that failed: many of them are port scanners
PENDING_PER_ADDRESS = 20
QUIET = timedelta(minutes=1)
"""The same refusal again within this time is counted but is no event of its own: the ledger is not for strangers to fill."""

PLAIN_LIMIT = OBJECT | Permission.STORE | Permission.STORE_DERIVED
"""Without TLS a peer only stores, whatever its role says, unless it was given another role or grants."""

PLAIN_MODALITY = PLAIN_LIMIT | Permission.WORKLIST | Permission.MPPS | Permission.COMMIT
"""Where it is set so, it does all that a modality does."""

STORING = Permission.STORE | Permission.STORE_DERIVED


@dataclass(frozen=True, slots=True)
class Admission:
    """A peer that may associate; `issuer` is that of the patient IDs it sends when its data sets name none."""

    subject: Subject
    datastore: str
    issuer: str
    peer_name: str
    may_store: bool
    may_query: bool
    functions: Permission = Permission.NONE
    """The function permissions it held when it came; what it does is asked again."""
    settings: PeerSettings = field(default_factory=PeerSettings)


@dataclass(frozen=True, slots=True)
class _Caller:
    calling_ae_title: str
    called_ae_title: str
    address: str
    certificate: bytes | None

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.certificate).hexdigest() if self.certificate else ""


class Doorkeeper(Changes):
    """Admits peers and counts their associations; safe to share between threads and processes."""

    def __init__(
        self, database: Database, ledger: Ledger, keyring: Keyring, clock: Clock, config: Config, *, read_only: str = ""
    ) -> None:
        """Work on an opened archive."""
        super().__init__(database, ledger, clock, read_only=read_only)
        self._keyring = keyring
        self._config = config
        self._users = PeerUsers(database, ledger, keyring, config, clock)
        self._slots = Slots(
            database, clock, most=config.dimse.max_associations, most_of_a_peer=config.dimse.max_associations_per_peer
        )
        self._plain_networks = tuple(ipaddress.ip_network(text, strict=False) for text in config.dimse.plain.networks)

    def admit(
        self, *, calling_ae_title: str, called_ae_title: str, address: str, certificate: bytes | None, tls: bool
    ) -> Admission:
        """Return who calls; `certificate` is DER, proven by the handshake.

        Raises:
            Forbidden: unknown, or certificate and AE title do not belong together; it is pending now and in the ledger.
            DatabaseUnavailable.
        """
        at = self._clock()
        caller = _Caller(calling_ae_title.strip(" "), called_ae_title.strip(" "), address, certificate)
        with self._database.read() as tx:
            found = self._by_certificate(tx, caller, at) if tls else self._by_network(tx, caller)
            if not isinstance(found, str):
                return self._admission(tx, found, caller, at, tls=tls)
        self._refused(caller, found, at)
        message = "the peer is not recognised"
        raise Forbidden(message, remedy="'archive peer pending' lists who was refused, 'archive peer enrol' lets one in")

    def on_behalf(
        self, admission: Admission, *, name: str = "", password: str = "", token: str = "", tls: bool
    ) -> Admission:
        """Return what a peer may do for a user it proves by name and password, or by a token: what both may.

        Raises:
            Denied: not proven, or not over TLS. DatabaseUnavailable, Unavailable.
        """
        if not tls:
            raise no_tls()
        device = admission.subject
        user = self._users.by_token(device, token) if token else self._users.by_password(device, name, password)
        subject = replace(device, narrowed_by=user)
        with self._database.read() as tx:
            functions = policy.functions_of(tx, subject, self._clock())
        return replace(admission, subject=subject, functions=functions, may_store=bool(functions & STORING))

    def note_claim(self, admission: Admission, name: str) -> None:
        """Note that a peer names a user without a proof; nothing changes by it.

        Raises:
            Unavailable.
        """
        self._users.claimed(admission.subject, name)

    def turned_away(self, *, address: str, reason: str, certificate: bytes | None) -> None:
        """Record a TLS handshake that failed; what the peer is called never came.

        Raises:
            DatabaseUnavailable.
        """
        self._refused(_Caller("", "", address, certificate), reason, self._clock())

    def slot(self, peer_id: int, worker: str) -> AbstractContextManager[None]:
        """Return what holds one of the peer's association slots.

        Raises:
            Unavailable: when it is entered: the peer, or the archive, has as many associations as it may. DatabaseUnavailable.
        """
        return self._slots.hold(peer_id, worker)

    @property
    def worker(self) -> str:
        """The name this process holds slots under."""
        return this_worker()

    def sweep(self, worker: str) -> None:
        """Give back every slot of a worker that ends.

        Raises:
            DatabaseUnavailable.
        """
        self._slots.sweep(worker)

    def _by_certificate(self, tx: sa.Connection, caller: _Caller, at: datetime) -> sa.Row | str:  # type: ignore[type-arg] # of peer
        row = tx.execute(_LIVE.where(peer.c.certificate_sha256 == bytes.fromhex(caller.sha256), peer.c.tls)).first()
        if row is None:
            return "its certificate is bound to no peer"
        if row.certificate_not_after is not None and row.certificate_not_after <= at:
            return "its certificate has expired"
        if caller.calling_ae_title not in _titles(tx, row.id):
            return f"its certificate belongs to {row.name}, which has no such AE title"
        return row

    def _by_network(self, tx: sa.Connection, caller: _Caller) -> sa.Row | str:  # type: ignore[type-arg] # of peer
        address = ipaddress.ip_address(caller.address.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if not any(address in network for network in self._plain_networks):
            return "its address is outside dimse.plain.networks"
        titled = tx.execute(
            _LIVE.join(peer_ae_title, peer_ae_title.c.peer_id == peer.c.id)
            .where(sa.not_(peer.c.tls), peer_ae_title.c.ae_title == caller.calling_ae_title)
        ).all()
        for row in titled:
            networks = tx.execute(sa.select(peer_network.c.network).where(peer_network.c.peer_id == row.id)).scalars()
            if any(address in ipaddress.ip_network(network) for network in networks):
                return row
        return "its address is not in that AE title's network" if titled else "its AE title is unknown here"

    def _admission(self, tx: sa.Connection, row: sa.Row, caller: _Caller, at: datetime, *, tls: bool) -> Admission:  # type: ignore[type-arg]
        limit = None
        if not tls and set(roles.of(tx, row.principal_id, at=at)) <= {"modality"}:
            limit = PLAIN_MODALITY if row.modality_without_tls else PLAIN_LIMIT
        subject = Subject(
            principal_id=row.principal_id, name=row.name, kind="device", via="dimse", address=caller.address, peer_id=row.id, limit=limit
        )
        functions = policy.functions_of(tx, subject, at)
        return Admission(
            subject, row.datastore, row.issuer_of_patient_id, row.name,
            may_store=bool(functions & STORING),
            may_query=tls or policy.reaches(tx, subject, None, at),
            functions=functions, settings=PeerSettings.of(row),
        )

    def _refused(self, caller: _Caller, reason: str, at: datetime) -> None:
        p = pending_peer.c
        same = sa.and_(p.calling_ae_title == caller.calling_ae_title, p.address == caller.address, p.certificate_sha256 == caller.sha256)
        with self._database.read() as tx:
            known = tx.execute(sa.select(p.id, p.attempts, p.last_seen_at).where(same)).first()
            lately = p.last_seen_at.between(at - QUIET, at + QUIET)
            recent = tx.execute(
                sa.select(sa.func.count()).select_from(pending_peer).where(p.address == caller.address, lately)
            ).scalar_one()
        quiet = known is not None and abs(at - known.last_seen_at) < QUIET  # the clock may have been set back
        if known is None and recent >= PENDING_PER_ADDRESS:
            LOG.warning("an address is refused under many names", extra={"address": caller.address})
            return
        # Two workers may see the same stranger at once: the second insert fails, and the first has said it all.
        with contextlib.suppress(sa.exc.IntegrityError), self._database.begin(durable=not quiet) as tx:
            values = {"reason": reason, "called_ae_title": caller.called_ae_title}
            attempts = 1 if known is None else known.attempts + 1
            if known is None:
                pem = ssl.DER_cert_to_PEM_cert(caller.certificate) if caller.certificate else ""
                tx.execute(sa.insert(pending_peer).values(
                    calling_ae_title=caller.calling_ae_title, address=caller.address, certificate_sha256=caller.sha256,
                    certificate_pem=pem, first_seen_at=at, last_seen_at=at, attempts=1, **values,
                ))
                _prune(tx)
            elif quiet:  # last_seen_at stays, so that the next event comes after QUIET however often it tries
                tx.execute(sa.update(pending_peer).where(p.id == known.id).values(attempts=p.attempts + 1, **values))
            else:
                tx.execute(sa.update(pending_peer).where(p.id == known.id).values(attempts=attempts, last_seen_at=at, **values))
            if not quiet:
                self._ledger.record(tx, Event(Kind.ASSOCIATION_REJECTED, outcome=8, detail={
                    "calling_ae_title": caller.calling_ae_title, "called_ae_title": caller.called_ae_title,
                    "address": caller.address, "certificate": caller.sha256, "reason": reason, "attempts": attempts,
                }), at=at)


_LIVE = (
    sa.select(
        peer.c.id, peer.c.principal_id, peer.c.name, peer.c.issuer_of_patient_id, peer.c.certificate_not_after,
        datastore.c.name.label("datastore"), *(peer.c[name] for name in DEFAULTS),
    )
    .join(datastore, datastore.c.id == peer.c.datastore_id)
    .join(principal, principal.c.id == peer.c.principal_id)
    .where(peer.c.enabled, principal.c.enabled, principal.c.removed_at.is_(None))
)


def _titles(tx: sa.Connection, peer_id: int) -> set[str]:
    return set(tx.execute(sa.select(peer_ae_title.c.ae_title).where(peer_ae_title.c.peer_id == peer_id)).scalars())


def _prune(tx: sa.Connection) -> None:
    """Keep the newest rows; those without a name have a smaller share, so that a scanner cannot push a device out."""
    p = pending_peer.c
    for condition, rows in ((p.calling_ae_title == "", PENDING_WITHOUT_NAME), (sa.true(), PENDING_ROWS)):
        newest = sa.select(p.id).where(condition).order_by(p.last_seen_at.desc(), p.id.desc()).limit(rows)
        tx.execute(sa.delete(pending_peer).where(condition, p.id.not_in(newest.scalar_subquery())))
