"""`archive peer`: the systems that speak DICOM with the archive."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from archive.cli import failures
from archive.cli.main import Group
from archive.cli.session import Session
from archive.cli.when import WHEN
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
    session.changes_keys = issue is not None  # the authority's key stays with who opened the keyring
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
    session.changes_keys = issue is not None  # the authority's key stays with who opened the keyring
    made = session.node.peers.renew(
        session.subject, name, certificate=certificate.read_bytes() if certificate else None, issue=issue
    )
    session.answer(made, f"{name} has a new certificate" + (f" in {issue}" if issue is not None else ""))


@peer.command("test")
@click.argument("name")
@click.option("--wait", "wait_s", type=click.IntRange(0, 3600), default=0, metavar="SECONDS", help="For the device's own C-ECHO to arrive.")
@click.pass_obj
def test(session: Session, name: str, wait_s: int) -> int:
    """Call a peer at its address with C-ECHO, and tell how its own last call went; with --wait, how the next one does."""
    from archive.dimse import scu

    node = session.node
    known = node.peers.get(session.subject, name)
    found = scu.echo(node, known)
    listener = session.config.dimse.tls if known["tls"] else session.config.dimse.plain
    where = f"{session.config.dimse.ae_title}@{listener.host}:{listener.port}{' over TLS' if known['tls'] else ''}"
    since = datetime.now(UTC) if wait_s else None
    if wait_s and not session.as_json:
        print(f"{found['text']}\nnow start C-ECHO at {name} to {where}")
    came = _came(session, known, since)
    deadline = time.monotonic() + wait_s
    while came is None and time.monotonic() < deadline:
        time.sleep(0.5)
        came = _came(session, known, since)
    back = {"ok": came is not None and not came["failed"], "text": _told(name, came, where, waited=bool(wait_s))}
    told = _told(name, came, where, waited=bool(wait_s))
    ok = found["ok"] and (back["ok"] or not wait_s)
    session.answer({**found, "calls_us": back, "last": came}, told if wait_s else f"{found['text']}\n{told}")
    return failures.DONE if ok else failures.FAILED


def _came(session: Session, known: dict[str, Any], since: datetime | None) -> dict[str, Any] | None:
    """Return the last association under the peer's name or one of its AE titles."""
    log = session.node.association_log
    found = [row for name in (known["name"], *known["ae_titles"]) for row in log.search(session.subject, name=name, since=since, limit=1)]
    return max(found, key=lambda row: row["at"], default=None)


def _told(name: str, came: dict[str, Any] | None, where: str, *, waited: bool) -> str:
    if came is None:
        return f"{name} {'did not call' if waited else 'has not called yet'}; it calls {where}"
    at = came["at"].astimezone().strftime("%Y-%m-%d %H:%M:%S")
    if came["outcome"] == "refused":
        return f"{name} called at {at} from {came['address']} and was refused: {came['reason']}"
    done = ", ".join(f"{one['done']} {operation}" for operation, one in came["operations"].items()) or "nothing"
    return f"{name} called at {at} from {came['address']}: {done}; {came['reason']}"


@peer.command("log")
@click.argument("name", required=False, default="")
@click.option("--peer", "peer_name", metavar="NAME", default="", help="As the argument: a peer, or a calling AE title.")
@click.option("--since", type=WHEN, metavar="WHEN", help="ISO 8601, or how long ago: 2h, 7d.")
@click.option("--failed", is_flag=True, help="Only those that were refused, broke off or had a failure.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True)
@click.pass_obj
def log(session: Session, name: str, peer_name: str, since: datetime | None, failed: bool, limit: int) -> None:
    """List associations, the newest first: who, how it was agreed, what was done, how it ended."""
    now = datetime.now(UTC)
    if since is not None and since > now:
        since = now - (since - now)
    found = session.node.association_log.search(session.subject, name=name or peer_name, since=since, failed=failed, limit=limit)
    for row in found:
        row["done"] = ", ".join(
            f"{one['done']} {operation}" + (f" ({one['failed']} failed)" if one["failed"] else "")
            for operation, one in row["operations"].items()
        )
        row["contexts"] = f"{row['negotiation'].get('accepted', 0)} of {row['negotiation'].get('proposed', 0)}"
    session.rows(
        found, "at", "peer", "calling_ae_title", "called_ae_title", "address", "tls", "outcome", "reason", "contexts", "done", "repeats"
    )


@peer.command("set")
@click.argument("name")
@click.option("--character-set", metavar="TERM", help="Of what it sends or asks without one, e.g. ISO_IR 100; '' for none.")
@click.option("--called-ae", type=click.Choice(["strict", "any", "default"]), help="Whether it must call the archive by its AE title.")
@click.option("--private-sop-classes", type=click.Choice(["yes", "no", "default"]), help="Whether it may store private SOP classes.")
@click.option("--relational/--hierarchical", default=None, help="Its queries need not follow the hierarchy, negotiated or not.")
@click.option("--commitment-same-association/--commitment-new-association", default=None, help="How storage commitment is reported to it.")
@click.option("--modality-without-tls/--store-only-without-tls", default=None,
              help="Without TLS: worklist, procedure steps and commitment too, or stores alone.")
@click.option("--whole-worklist/--own-worklist", default=None, help="Whether it sees what is scheduled for other stations.")
@click.option("--transfer-syntax", "syntaxes", multiple=True, metavar="UID",
              help="Take only these from it, the first preferred; 'any' for all.")
@click.pass_obj
def set_(
    session: Session, /, name: str, called_ae: str | None, private_sop_classes: str | None, syntaxes: tuple[str, ...], **given: Any
) -> None:
    """Settle what a device cannot be told otherwise; it counts from the next association."""
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    three = {"strict": True, "yes": True, "any": False, "no": False, "default": None}
    if called_ae is not None:
        changes["called_ae_strict"] = three[called_ae]
    if private_sop_classes is not None:
        changes["private_sop_classes"] = three[private_sop_classes]
    if syntaxes:
        changes["transfer_syntaxes"] = () if syntaxes == ("any",) else syntaxes
    if not changes:
        message = "name what to set"
        raise InvalidRequest(message, remedy="'archive peer set --help' lists it")
    made = session.node.peers.set(session.subject, name, changes)
    session.answer(made, "\n".join([f"{name} is set", *(f"  {key.replace('_', ' ')}: {value}" for key, value in made["settings"].items())]))


@peer.command("remove")
@click.argument("name")
@click.pass_obj
def remove(session: Session, name: str) -> None:
    """Remove a peer; it is refused from the next association."""
    session.node.peers.remove(session.subject, name)
    session.answer({"name": name, "removed": True}, f"{name} is removed")
