"""`archive ledger` and `archive audit`: what happened, and that nobody changed what is written about it."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import click

from archive.cli import failures, output
from archive.cli.main import Group
from archive.cli.session import Session
from archive.cli.when import WHEN
from archive.errors import InvalidRequest


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(ledger)
    archive.add_command(audit)


@click.group("ledger", cls=Group)
def ledger() -> None:
    """The log of everything that happened: a Merkle tree with signed checkpoints."""


@ledger.command("verify")
@click.pass_obj
def verify(session: Session) -> int:
    """Check every leaf, checkpoint and body, and that nothing was rolled back."""
    report = session.node.oversight.verify_ledger(session.subject)
    lines = [f"{one['code']}  {one['detail']}" for one in report["findings"]]
    lines.append(f"{report['size']} leaves, root {report['root']}: {'everything holds' if report['ok'] else 'it does not hold'}")
    session.answer(report, "\n".join(lines))
    return failures.DONE if report["ok"] else failures.FAILED


@ledger.command("keys")
@click.pass_obj
def keys(session: Session) -> None:
    """Print the public keys with which anyone checks a proof; keep a copy elsewhere."""
    found = session.node.oversight.public_keys()
    session.answer({"keys": found}, "\n".join(found))


@ledger.command("prove")
@click.argument("what", metavar="NUMBER|SOP_INSTANCE_UID|TRANSACTION_UID")
@click.option("--to", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write it here instead of printing it.")
@click.pass_obj
def prove(session: Session, what: str, to: Path | None) -> None:
    """Prove that an event, the storing of an instance, or the receipt of a storage commitment is in the ledger."""
    proof = session.node.oversight.prove(session.subject, what)
    if to is not None:
        to.write_text(proof, encoding="utf-8")
        session.answer({"file": str(to)}, f"proof written to {to}; check it anywhere: archive ledger check-proof {to} --keys FILE")
    else:
        session.answer({"proof": proof}, proof.rstrip("\n"))


@ledger.command("check-proof")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--keys", "keys_file", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
              help="What `archive ledger keys` printed on the archive's machine; without it compare the fingerprints shown.")
@click.pass_obj
def check_proof(session: Session, file: Path, keys_file: Path | None) -> None:
    """Check a proof with public keys alone; works on any machine, without the archive."""
    from archive.ledger import proofs
    from archive.ledger.notes import Verifier

    trusted = None
    if keys_file is not None:
        lines = (line.strip() for line in keys_file.read_text(encoding="utf-8").splitlines())
        trusted = [Verifier.parse(line) for line in lines if line and not line.startswith("#")]
    found = proofs.check(file.read_text(encoding="utf-8", errors="replace"), trusted=trusted)
    answer = {"ok": True, **asdict(found)}
    shown = [
        f"leaf {found.index} is in the log {found.origin}, of size {found.size}, signed {output.text(found.signed_at)}",
        f"event     {output.text(found.leaf)}",
        *([f"statement {output.text(found.statement)}"] if found.statement is not None else []),
    ]
    if not found.trusted:
        shown.append("checked with the keys inside the proof; compare them with the archive's before you rely on it:")
        shown += [f"  {one}" for one in found.fingerprints]
    session.answer(answer, "\n".join(shown))


@ledger.command("acknowledge")
@click.option("--reason", required=True, metavar="TEXT", help="What happened; it goes into the ledger.")
@click.pass_obj
def acknowledge(session: Session, reason: str) -> None:
    """Go on after a rollback that cannot be undone; then restart the archive."""
    session.node.oversight.acknowledge(session.subject, reason=reason)
    session.answer({"acknowledged": True}, "acknowledged; restart the archive to leave read-only")


@click.group("audit", cls=Group)
def audit() -> None:
    """Who did what."""


@audit.command("search")
@click.option("--user", metavar="NAME", help="By this user, peer or the console.")
@click.option("--patient", metavar="ID", help="About this patient.")
@click.option("--study", metavar="UID", help="About this study.")
@click.option("--series", metavar="UID", help="About this series.")
@click.option("--kind", "kinds", multiple=True, metavar="KIND", help="For example stored, read, searched, denied, granted, signed-in.")
@click.option("--from", "since", type=WHEN, metavar="WHEN")
@click.option("--until", type=WHEN, metavar="WHEN")
@click.option("--failed", is_flag=True, help="Only what was refused or failed.")
@click.option("--before", type=int, metavar="NUMBER", help="Only events before this number: the next page.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@click.pass_obj
def search(
    session: Session, user: str | None, patient: str | None, study: str | None, series: str | None, kinds: tuple[str, ...],
    since: datetime | None, until: datetime | None, failed: bool, before: int | None, limit: int,
) -> None:
    """Search events, newest first; looking is an event too."""
    found = session.node.oversight.search(
        session.subject, user=user, patient=patient, study=study, series=series, kinds=kinds, since=since, until=until, failed=failed,
        before=before, limit=limit,
    )
    if session.as_json:
        print(output.to_json(found))
        return
    shown = []
    for row in found:
        body = row.get("body") or {}
        who = (body.get("subject") or {}).get("name", "the archive")
        shown.append({**row, "who": who, "objects": [value for _kind, value in body.get("objects", [])], "detail": body.get("detail")})
    session.rows(shown, "id", "at", "kind", "who", "outcome", "instances", "objects", "detail")
    if len(found) == limit:
        print(f"more: --before {found[-1]['id']}", file=sys.stderr)


@audit.command("disclosures")
@click.option("--patient", required=True, metavar="ID")
@click.option("--issuer", metavar="TEXT", help="Who issued the ID, when several patients have it; default all of them.")
@click.option("--datastore", default="clinical", show_default=True)
@click.option("--from", "since", type=WHEN, metavar="WHEN")
@click.option("--until", type=WHEN, metavar="WHEN")
@click.option("--csv", "csv_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write it there, as CSV.")
@click.pass_obj
def disclosures(
    session: Session, patient: str, issuer: str | None, datastore: str, since: datetime | None, until: datetime | None,
    csv_file: Path | None,
) -> None:
    """Tell who saw a patient's images, when, and by which grants they could."""
    from archive.services.disclosure import as_csv

    found = session.node.disclosure.of_patient(
        session.subject, patient, issuer=issuer, datastore=datastore, since=since, until=until,
    )
    if csv_file is not None:
        try:
            handle = os.open(csv_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            message = f"{csv_file} cannot be written: {error.strerror}"
            raise InvalidRequest(message, remedy="name a file that is not there yet") from error
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(as_csv(found))
        session.answer({"rows": len(found), "file": str(csv_file)}, f"{len(found)} accesses written to {csv_file}")
        return
    session.rows(found, "at", "who", "action", "what", "studies", "instances", "network", "because")
