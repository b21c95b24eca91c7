"""The table of DICOM peers: add, list, enrol, renew, remove; each change one durable transaction with its event."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from archive.access import policy, principals, roles
from archive.access.permissions import ADMINISTRATIVE, Permission
from archive.access.subject import Subject
from archive.db.tables import datastore, peer, peer_ae_title, peer_network, pending_peer, principal
from archive.errors import InvalidRequest, NotFound, StateConflict
from archive.keys import ca
from archive.ledger.audit import Kind
from archive.services.becoming import refuse_into
from archive.services.clock import machine_now
from archive.services.doorkeeper import Admission, Doorkeeper
from archive.services.peer_settings import PeerSettings

__all__ = ["Admission", "Peers"]

Row = dict[str, Any]
Rows = list[Row]
P = Permission
DEFAULT_ROLES = ("modality",)
ORDINARY_ROLES = {"modality", "workstation"}
"""What whoever manages peers may give them; any other role needs role-manage besides."""
_PORT = re.compile(r"[0-9]{1,5}")
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_LONGEST_NAME = 253


class Peers(Doorkeeper):
    """What `archive peer` does, and who may associate."""

    def add(
        self, subject: Subject, name: str, ae_titles: Sequence[str], *, certificate: bytes | None = None, issue: Path | None = None,
        address: str | None = None, roles: Sequence[str] = (), networks: Sequence[str] = (), plain: bool = False, issuer: str = "",
        datastore: str = "clinical", max_associations: int | None = None,
    ) -> Row:
        """Add a peer known by a certificate (PEM, or made into the folder `issue`), or by network and AE title (`plain`: its address).

        Raises:
            Forbidden, InvalidRequest, NotFound, KeysUnavailable.
        """
        titles = _ae_titles(ae_titles)
        host, port = _address(address) if address else ("", None)
        if plain and not networks:
            networks = [_host_network(host)]
        if (certificate is not None) + (issue is not None) + bool(networks) != 1:
            message = "a peer is known by one of: a certificate, a certificate issued to it, or a network without TLS"
            raise InvalidRequest(message, remedy="name one of --certificate, --issue, --network or --plain")
        cidrs = [_network(text) for text in networks]

        def work(tx: sa.Connection, at: datetime) -> Row:
            principal_id = principals.add(tx, "device", name, at=at)
            shown = self._certificate(tx, certificate, issue, name, at) if not cidrs else None
            if cidrs:
                _refuse_overlap(tx, titles, cidrs)
            made = tx.execute(sa.insert(peer).values(
                principal_id=principal_id, datastore_id=policy.datastore_id(tx, datastore), name=principals.check_name(name),
                certificate_sha256=shown.fingerprint if shown else None, certificate_not_after=shown.not_after if shown else None,
                issuer_of_patient_id=issuer.strip(), host=host, port=port, tls=shown is not None, max_associations=max_associations,
                enabled=True, created_at=at,
            ))
            assert made.inserted_primary_key is not None
            peer_id = int(made.inserted_primary_key[0])
            tx.execute(sa.insert(peer_ae_title), [{"peer_id": peer_id, "ae_title": title} for title in titles])
            if cidrs:
                _forget_plain(tx, titles, cidrs)
                tx.execute(sa.insert(peer_network), [{"peer_id": peer_id, "network": str(cidr)} for cidr in cidrs])
            self._give_roles(tx, subject, principal_id, roles or DEFAULT_ROLES, at)
            row = _shown(tx, _find(tx, principal_id), at)
            self._record_change(tx, subject, at, "peer added", row)
            return row

        return self._change(subject, P.PEER_MANAGE, work)

    def list(self, subject: Subject) -> Rows:
        """Return every peer by name."""
        return self._read(subject, P.PEER_MANAGE, lambda tx, at: [
            _shown(tx, row, at) for row in tx.execute(_PEERS.order_by(peer.c.name)).mappings().all()
        ])

    def get(self, subject: Subject, ref: str | int) -> Row:
        """Return one peer by name or id.

        Raises:
            NotFound.
        """
        return self._read(subject, P.PEER_MANAGE, lambda tx, at: _shown(tx, _find(tx, ref), at))

    def pending(self, subject: Subject) -> Rows:
        """Return who was refused, newest first, with the fingerprint to compare."""
        query = sa.select(pending_peer).order_by(pending_peer.c.last_seen_at.desc(), pending_peer.c.id.desc())
        return self._read(subject, P.PEER_MANAGE, lambda tx, _at: [dict(row) for row in tx.execute(query).mappings()])

    def enrol(
        self, subject: Subject, number: int, name: str, *, roles: Sequence[str] = (), datastore: str = "clinical"
    ) -> Row:
        """Make a refused caller a peer, with the AE title and the certificate, or without one the address, it came with.

        Raises:
            Forbidden; NotFound: no such pending caller.
            InvalidRequest: it never said its AE title.
        """
        query = sa.select(pending_peer).where(pending_peer.c.id == number)
        row = self._read(subject, P.PEER_MANAGE, lambda tx, _at: tx.execute(query).first())
        if row is None:
            message = "there is no such pending peer"
            raise NotFound(message, remedy="'archive peer pending' lists them")
        if not row.calling_ae_title:
            message = "that caller never said its AE title"
            raise InvalidRequest(message, remedy=f"archive peer add {name} --aet AET --issue DIR")
        certificate = row.certificate_pem.encode() or None
        networks = [] if certificate else [row.address]
        return self.add(
            subject, name, [row.calling_ae_title], certificate=certificate, networks=networks, roles=roles, datastore=datastore
        )

    def renew(self, subject: Subject, ref: str | int, *, certificate: bytes | None = None, issue: Path | None = None) -> Row:
        """Bind a new certificate; the old one counts no more from the next association.

        Raises:
            Forbidden: also for a peer with grants without role-manage.
            NotFound, InvalidRequest, KeysUnavailable.
        """
        if (certificate is None) == (issue is None):
            message = "name either a certificate or a folder to issue one into"
            raise InvalidRequest(message, remedy="archive peer renew NAME --issue DIR")

        def work(tx: sa.Connection, at: datetime) -> Row:
            found = _find(tx, ref)
            if not found["tls"]:
                message = "that peer comes without TLS and has no certificate"
                raise InvalidRequest(message, remedy="remove it and add it with --issue DIR")
            refuse_into(tx, subject, found["principal_id"], at)  # who holds its certificate sees what it sees
            shown = self._certificate(tx, certificate, issue, found["name"], at, renewing=True)
            tx.execute(sa.update(peer).where(peer.c.id == found["id"]).values(
                certificate_sha256=shown.fingerprint, certificate_not_after=shown.not_after
            ))
            row = _shown(tx, _find(tx, found["principal_id"]), at)
            self._record_change(tx, subject, at, "peer renewed", row)
            return row

        return self._change(subject, P.PEER_MANAGE, work)

    def set(self, subject: Subject, ref: str | int, changes: Mapping[str, Any]) -> Row:
        """Change settings of a peer, by name as `PeerSettings` has them; they count from its next association.

        Raises:
            NotFound, InvalidRequest, Forbidden.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            found = _find(tx, ref)
            settings = PeerSettings.of(found).changed(changes)
            tx.execute(sa.update(peer).where(peer.c.id == found["id"]).values(settings.values()))
            row = _shown(tx, _find(tx, found["principal_id"]), at)
            self._record_change(tx, subject, at, "peer set", row)
            return row

        return self._change(subject, P.PEER_MANAGE, work)

    def remove(self, subject: Subject, ref: str | int) -> Row:
        """Take a peer away; it is refused from the next association. Its id stays for the ledger, its name is free again.

        Raises:
            NotFound.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            found = _find(tx, ref)
            row = _shown(tx, found, at)
            for table in (peer_ae_title, peer_network):
                tx.execute(sa.delete(table).where(table.c.peer_id == found["id"]))
            tx.execute(sa.update(peer).where(peer.c.id == found["id"]).values(
                enabled=False, certificate_sha256=None, name=f"{found['name']}/{found['id']}"
            ))
            principals.remove(tx, found["principal_id"], found["name"], by=subject.principal_id, at=at)
            self._record_change(tx, subject, at, "peer removed", row)
            return row

        return self._change(subject, P.PEER_MANAGE, work, alone=True)

    def _certificate(
        self, tx: sa.Connection, pem: bytes | None, issue: Path | None, name: str, at: datetime, *, renewing: bool = False
    ) -> ca.Issued:
        """Return the certificate to bind, made now when a folder is given, and forget that it was ever pending."""
        if issue is not None:
            now = machine_now(self._clock)  # whoever looks at it goes by a clock that is right
            return ca.issue_peer(self._config, self._keyring, name, issue, at=now, replace=renewing)
        found = ca.read(pem or b"")
        if found.not_after <= at:
            message = "that certificate has expired"
            raise InvalidRequest(message, remedy="take one that is valid, or let the archive make one with --issue DIR")
        if tx.execute(sa.select(peer.c.id).where(peer.c.certificate_sha256 == found.fingerprint)).first() is not None:
            message = "that certificate is bound to a peer already"
            raise InvalidRequest(message, remedy="each peer has a certificate of its own; 'archive peer list' shows whose it is")
        tx.execute(sa.delete(pending_peer).where(pending_peer.c.certificate_sha256 == found.fingerprint.hex()))
        return found

    def _give_roles(self, tx: sa.Connection, subject: Subject, principal_id: int, names: Sequence[str], at: datetime) -> None:
        if not set(names) <= ORDINARY_ROLES:
            policy.require(tx, subject, P.ROLE_MANAGE, at)
        for name in names:
            row = roles.find(tx, name)
            if self._config.policy.two_person and row["permissions"] & ADMINISTRATIVE:
                message = "it takes two people to give a role that administers"
                raise StateConflict(message, remedy=f"add the peer without it, then 'archive role assign {name}'")
            roles.assign(tx, principal_id, row["id"], by=subject.principal_id, at=at)

    def _record_change(self, tx: sa.Connection, subject: Subject, at: datetime, what: str, row: Row) -> None:
        self._record(
            tx, Kind.PEER_CHANGED, subject, at, what=what, name=row["name"], id=row["id"], ae_titles=row["ae_titles"],
            certificate=row["certificate_sha256"], networks=row["networks"], roles=row["roles"], datastore=row["datastore"],
            tls=row["tls"], host=row["host"], port=row["port"] or 0, issuer=row["issuer"], max_associations=row["max_associations"] or 0,
            settings=row["settings"],
        )


_PEERS = (
    sa.select(peer, datastore.c.name.label("datastore"))
    .join(datastore, datastore.c.id == peer.c.datastore_id)
    .join(principal, principal.c.id == peer.c.principal_id)
    .where(principal.c.removed_at.is_(None))
)


def _find(tx: sa.Connection, ref: str | int) -> sa.RowMapping:
    """Return a peer by the name or id of its principal."""
    try:
        known = principals.find(tx, ref, ("device",))
    except NotFound as error:
        message = "there is no such peer"
        raise NotFound(message, remedy="'archive peer list' names them") from error
    return tx.execute(_PEERS.where(peer.c.principal_id == known["id"])).mappings().one()


def _shown(tx: sa.Connection, row: sa.RowMapping, at: datetime) -> Row:
    """Return a peer as lists show it; `id` is that of its principal, which grants take too."""
    digest = row["certificate_sha256"]
    titles = sa.select(peer_ae_title.c.ae_title).where(peer_ae_title.c.peer_id == row["id"]).order_by(peer_ae_title.c.id)
    networks = sa.select(peer_network.c.network).where(peer_network.c.peer_id == row["id"]).order_by(peer_network.c.id)
    return {
        "id": row["principal_id"], "name": row["name"], "peer_id": row["id"], "ae_titles": [*tx.execute(titles).scalars()],
        "tls": bool(row["tls"]), "certificate_sha256": bytes(digest).hex() if digest else "",
        "certificate_not_after": row["certificate_not_after"], "networks": [*tx.execute(networks).scalars()],
        "host": row["host"], "port": row["port"], "roles": roles.of(tx, row["principal_id"], at=at), "datastore": row["datastore"],
        "issuer": row["issuer_of_patient_id"], "max_associations": row["max_associations"], "enabled": bool(row["enabled"]),
        "created_at": row["created_at"], "last_seen_at": row["last_seen_at"], "settings": PeerSettings.of(row).shown(),
    }


def _ae_titles(titles: Sequence[str]) -> Sequence[str]:
    found = tuple(dict.fromkeys(title.strip(" ") for title in titles))
    if not found or not all(re.fullmatch(r"[ -\[\]-~]{1,16}", title) for title in found):
        message = "an AE title has 1 to 16 printable ASCII characters, no backslash"
        raise InvalidRequest(message, remedy="enter it exactly as the device shows it; upper and lower case differ")
    return found


def _address(text: str) -> tuple[str, int]:
    """Read HOST:PORT, [IPv6]:PORT."""
    host, _, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not _PORT.fullmatch(port) or not 0 < int(port) < 65536:
        message = "an address is HOST:PORT"
        raise InvalidRequest(message, remedy="for example 192.0.2.7:104")
    if not _is_host(host):
        message = "that can be neither an IP address nor the name of a host"
        raise InvalidRequest(message, remedy="for example 192.0.2.7:104 or pacs.example.org:104")
    return host, int(port)


def _is_host(text: str) -> bool:
    """Whether it is an IP address, or can be a name: one that ends in a number would be read as an address, and is none."""
    with suppress(ValueError):
        ipaddress.ip_address(text)
        return True
    if not 0 < len(text) <= _LONGEST_NAME:
        return False
    try:
        labels = text.encode("idna").decode("ascii").removesuffix(".").split(".")
    except UnicodeError:
        return False
    return sum(len(one) + 1 for one in labels) <= _LONGEST_NAME + 1 and all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdecimal()


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text.strip(), strict=False)
    except ValueError as error:
        message = "a network is an address with its prefix length"
        raise InvalidRequest(message, remedy="for example 192.0.2.0/24, or one host: 192.0.2.7/32") from error


def _host_network(host: str) -> str:
    """Return the network of one host; a name is looked up now, once."""
    if not host:
        message = "a plain peer is known by its address"
        raise InvalidRequest(message, remedy="give --address HOST:PORT, or --network CIDR")
    try:
        return str(ipaddress.ip_network(host))
    except ValueError:
        pass
    try:
        return str(ipaddress.ip_network(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]))
    except OSError as error:
        message = "that host name cannot be resolved"
        raise InvalidRequest(message, remedy="give its IP address") from error


def _forget_plain(
    tx: sa.Connection, titles: Sequence[str], cidrs: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]
) -> None:
    """Who is a peer now is pending no more."""
    p = pending_peer.c
    waiting = tx.execute(sa.select(p.id, p.address).where(p.certificate_sha256 == "", p.calling_ae_title.in_(titles))).all()
    gone = [row.id for row in waiting if any(ipaddress.ip_address(row.address.partition("%")[0]) in cidr for cidr in cidrs)]
    tx.execute(sa.delete(pending_peer).where(p.id.in_(gone)))


def _refuse_overlap(
    tx: sa.Connection, titles: Sequence[str], cidrs: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]
) -> None:
    """One address under one AE title is one peer."""
    query = (
        sa.select(peer_network.c.network).join(peer_ae_title, peer_ae_title.c.peer_id == peer_network.c.peer_id)
        .where(peer_ae_title.c.ae_title.in_(titles))
    )
    for text in tx.execute(query).scalars():
        other = ipaddress.ip_network(text)
        if any(other.version == cidr.version and other.overlaps(cidr) for cidr in cidrs):
            message = "another peer has that AE title in that network"
            raise InvalidRequest(message, remedy="'archive peer list' shows it; take a narrower network")
