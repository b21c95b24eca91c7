"""`archive peer`: the systems that speak DICOM with the archive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from archive.cli import failures
from archive.cli.main import Group
from archive.cli.session import Session
from archive.errors import InvalidRequest

ISSUE = click.option("--issue", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                     help="Make a key and certificate for it, as DIR/key.pem, cert.pem and ca.pem.")
CERTIFICATE = click.option("--certificate", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
                           help="The certificate it has already (PEM).")


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(peer)


@click.group("peer", cls=Group)
def peer() -> None:
    """DICOM peers: modalities, workstations, other archives."""


@peer.command("add")
@click.argument("name")
@click.option("--aet", "ae_titles", required=True, multiple=True, metavar="AET", help="Its AE title; may be given several times.")
@CERTIFICATE
@ISSUE
@click.option("--address", metavar="HOST:PORT", help="Where it listens.")
@click.option("--role", "roles", multiple=True, metavar="ROLE", help="Default modality.")
@click.option("--network", "networks", multiple=True, metavar="CIDR", help="Where it comes from, without TLS.")
@click.option("--plain", is_flag=True, help="Without TLS, from the host of --address alone.")
@click.option("--issuer", default="", metavar="TEXT", help="Issuer of the patient IDs it sends, when its data sets name none.")
@click.option("--datastore", default="clinical", show_default=True)
@click.pass_obj
def add(
    session: Session, name: str, ae_titles: tuple[str, ...], certificate: Path | None, issue: Path | None, address: str | None,
    roles: tuple[str, ...], networks: tuple[str, ...], plain: bool, issuer: str, datastore: str,
) -> None:
    """Add peer NAME, known by a certificate, or by network and AE title."""
    if (certificate is not None) + (issue is not None) + bool(networks or plain) != 1:
        message = "say how the peer is known: --certificate FILE, --issue DIR, or without TLS --network CIDR or --plain"
        raise InvalidRequest(message, remedy=f"archive peer add {name} --aet {ae_titles[0]} --issue {name}-certificate")
    made = session.node.peers.add(
        session.subject, name, ae_titles, certificate=certificate.read_bytes() if certificate else None, issue=issue,
        address=address, roles=roles, networks=networks, plain=plain, issuer=issuer, datastore=datastore,
    )
    session.answer(made, _added(session, name, made, issue, plain=bool(networks or plain)))


def _added(session: Session, name: str, made: dict[str, Any], issue: Path | None, *, plain: bool) -> str:
    lines = [f"peer {name} added (id {made['id']})"]
    if issue is not None:
        lines.append(f"its key, its certificate and the CA to trust: {issue}/key.pem, cert.pem, ca.pem")
    listener = session.config.dimse.plain if plain else session.config.dimse.tls
    where = f"{session.config.dimse.ae_title}@{listener.host}:{listener.port}"
    if listener.enabled:
        lines.append(f"it calls {where}{'' if plain else ' over TLS'}")
    else:
        kind = "plain" if plain else "tls"
        lines.append(f"the {kind} listener is off: set dimse.{kind}.enabled = true and restart before it can call")
    return "\n".join(lines)


@peer.command("list")
@click.pass_obj
def list_(session: Session) -> None:
    """List peers."""
    session.rows(session.node.peers.list(session.subject),
                 "id", "name", "ae_titles", "tls", "networks", "host", "port", "roles", "certificate_not_after", "last_seen_at", "enabled")


@peer.command("pending")
@click.pass_obj
def pending(session: Session) -> None:
    """List who was refused because nothing here knows them."""
    session.rows(session.node.peers.pending(session.subject),
                 "id", "calling_ae_title", "called_ae_title", "address", "certificate_sha256", "reason", "attempts", "last_seen_at")


@peer.command("enrol")
@click.argument("number", type=int, metavar="ID")
@click.argument("name")
@click.option("--role", "roles", multiple=True, metavar="ROLE", help="Default modality.")
@click.option("--datastore", default="clinical", show_default=True)
@click.pass_obj
def enrol(session: Session, number: int, name: str, roles: tuple[str, ...], datastore: str) -> None:
    """Make the pending caller ID the peer NAME, with the certificate or address it came with. Compare the fingerprint first."""
    made = session.node.peers.enrol(session.subject, number, name, roles=roles, datastore=datastore)
    session.answer(made, f"peer {name} added (id {made['id']})")


@peer.command("renew")
@click.argument("name")
@CERTIFICATE
@ISSUE
@click.pass_obj
def renew(session: Session, name: str, certificate: Path | None, issue: Path | None) -> None:
    """Give a peer a new certificate; the old one counts no more from the next association."""
    if (certificate is None) == (issue is None):
        message = "name either --issue DIR or --certificate FILE"
        raise InvalidRequest(message, remedy=f"archive peer renew {name} --issue DIR")
    made = session.node.peers.renew(
        session.subject, name, certificate=certificate.read_bytes() if certificate else None, issue=issue
    )
    session.answer(made, f"{name} has a new certificate" + (f" in {issue}" if issue is not None else ""))


@peer.command("test")
@click.argument("name")
@click.pass_obj
def test(session: Session, name: str) -> int:
    """Call a peer at its address with C-ECHO."""
    from archive.dimse import scu

    node = session.node
    found = scu.echo(node, node.peers.get(session.subject, name))
    session.answer(found, found["text"])
    return failures.DONE if found["ok"] else failures.FAILED


@peer.command("remove")
@click.argument("name")
@click.pass_obj
def remove(session: Session, name: str) -> None:
    """Remove a peer; it is refused from the next association."""
    session.node.peers.remove(session.subject, name)
    session.answer({"name": name, "removed": True}, f"{name} is removed")
