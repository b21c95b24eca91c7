"""`archive ledger` and `archive audit`: what happened, and that nobody changed what is written about it."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from archive.cli import failures, output
from archive.cli.main import Group
from archive.cli.session import WITH_KIT, Session
from archive.cli.when import WHEN
from archive.errors import InvalidRequest

OUTCOMES = {"success": 0, "minor": 4, "serious": 8, "major": 12}


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(ledger)
    archive.add_command(audit)


def _brief(detail: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return an event's detail for a table: a signed document is for `archive ledger prove`, what a keyring holds for a comparison."""
    if detail is None:
        return None
    return {name: "signed" if name == "document" else value for name, value in detail.items() if name != "holds"}


FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.group("ledger", cls=Group)
def ledger() -> None:
    """The log of everything that happened: a Merkle tree with signed checkpoints."""


@ledger.command("verify")
@click.option("--witness", "witnesses", multiple=True, metavar="VKEY",
              help="A witness that must have signed, as the cosignatures kept here show.")
@click.option("--url", metavar="URL", help="Another archive's log instead, https://…/api/ledger, with its keys alone.")
@click.option("--keys", "keys_file", type=FILE, metavar="FILE", help="With --url: what 'archive ledger keys' printed there.")
@click.option("--token-file", type=FILE, metavar="FILE", help="With --url: a file with a token that has the permission audit.")
@click.option("--ca", "ca_file", type=FILE, metavar="FILE", help="With --url: the authority of its certificate; else the system's.")
@click.option("--since", type=FILE, metavar="FILE", help="With --url: an earlier checkpoint that it must contain.")
@click.pass_obj
def verify(
    session: Session, witnesses: tuple[str, ...], url: str | None, keys_file: Path | None, token_file: Path | None, ca_file: Path | None,
    since: Path | None,
) -> int:
    """Check every leaf, checkpoint and body, and that nothing was rolled back."""
    if url is not None:
        from archive.cli import ledger_remote

        if keys_file is None:
            message = "the archive's public keys are needed"
            raise InvalidRequest(message, remedy="give --keys with what 'archive ledger keys' prints there")
        seen = ledger_remote.verify(url, keys_file, token_file=token_file, ca_file=ca_file, witnesses=witnesses, since=since)
        session.answer(seen, f"{seen['origin']}: {seen['size']} events, signed {output.text(seen['signed_at'])}: everything holds")
        return failures.DONE
    report = session.node.oversight.verify_ledger(session.subject, witnesses=witnesses)
    agreed = [one for one in report["witnesses"] if one["size"]]
    lines = [f"witness {one['name']} signed for {one['size']} events at {output.text(one['at'])}" for one in agreed]
    lines += [f"{one['code']}  {one['detail']}" for one in report["findings"]]
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
@click.option("--witness", "witnesses", multiple=True, metavar="VKEY", help="One of these witnesses must have cosigned the checkpoint.")
@click.pass_obj
def check_proof(session: Session, file: Path, keys_file: Path | None, witnesses: tuple[str, ...]) -> None:
    """Check a proof with public keys alone; works on any machine, without the archive."""
    from archive.ledger import cosignatures, proofs
    from archive.ledger.notes import Verifier

    trusted = None
    if keys_file is not None:
        lines = (line.strip() for line in keys_file.read_text(encoding="utf-8").splitlines())
        trusted = [Verifier.parse(line) for line in lines if line and not line.startswith("#")]
    outside = [cosignatures.parse_key(one) for one in witnesses]
    found = proofs.check(file.read_text(encoding="utf-8", errors="replace"), trusted=trusted, witnesses=outside)
    answer = {"ok": True, **asdict(found)}
    shown = [
        f"leaf {found.index} is in the log {found.origin}, of size {found.size}, signed {output.text(found.signed_at)}",
        f"event     {output.text(found.leaf)}",
        *([f"statement {output.text(found.statement)}"] if found.statement is not None else []),
        *(f"witnessed {name} cosigned the checkpoint at {output.text(at)}" for name, at in found.witnesses),
    ]
    if found.document is not None:
        shown.append(f"document  {output.text(found.document)}")
    if found.announced:
        shown.append(f"{len(found.announced)} of its keys count because earlier ones announced them")
    if not found.trusted:
        shown.append("checked with the keys inside the proof; compare them with the archive's before you rely on it:")
        shown += [f"  {one}" for one in found.fingerprints]
    session.answer(answer, "\n".join(shown))


@ledger.command("page")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, metavar="FILE", help="Where to write it, as HTML.")
@click.pass_obj
def page(session: Session, out: Path) -> None:
    """Write a page to print and file: the newest checkpoint with its QR code."""
    from archive.cli import ledger_page

    found = session.node.printed.page(session.subject)
    out.write_text(ledger_page.html(found), encoding="utf-8")
    told = f"{out} holds the checkpoint over {found['size']} events: print it, sign it, file it"
    session.answer({"file": str(out), "size": found["size"]}, told)


@ledger.command("compare")
@click.argument("given", metavar="NOTE|FILE")
@click.pass_obj
def compare(session: Session, given: str) -> int:
    """Tell whether the ledger still contains a checkpoint that was printed or mailed; '-' reads it from the input."""
    text = sys.stdin.read() if given == "-" else given if "\n" in given or " " in given else _text_of(Path(given))
    found = session.node.printed.compare(session.subject, text)
    signed = "signed by this archive's key" if found["signed"] else "not signed: it counts as much as the paper it is on"
    held = f"the ledger still contains those {found['size']} events, now {found['now']}"
    session.answer(found, f"{held if found['consistent'] else found['why']}; the checkpoint is {signed}")
    return failures.DONE if found["consistent"] else failures.FAILED


def _text_of(path: Path) -> str:
    with path.open("rb") as file:
        return file.read((1 << 20) + 1).decode(errors="replace")


@ledger.command("replay")
@click.option("--at", "moment", required=True, metavar="WHEN|SIZE", help="An instant, or a number of events the log had.")
@click.option("--subject", "who", metavar="NAME", help="What this user, service or peer could see, by the name it had then.")
@click.option("--study", metavar="UID", help="Who could see this study, and by which grants.")
@click.pass_obj
def replay(session: Session, moment: str, who: str | None, study: str | None) -> None:
    """Tell who could see what, then; without --subject or --study, how much everybody could."""
    from archive.access import when

    by_size = moment.isascii() and moment.isdigit()
    at = None if by_size else when.parse(moment, session.node.core.clock())
    found = session.node.ledger_replay.at(
        session.subject, when=at, size=int(moment) if by_size else None, who=who, study_instance_uid=study
    )
    session.answer(found, "\n".join(_replayed(found)))


def _replayed(found: dict[str, Any]) -> list[str]:
    """Return the answer in words."""
    lines = [f"as of {found['at']}, up to {found['size']} events"]
    if "subject" in found:
        one = found["subject"]
        state = "" if one["enabled"] else ", disabled"
        lines.append(f"{one['kind']} {one['name']}{state} could see {found['count']} studies; groups: {output.text(one['groups'])}")
        lines += [
            f"  {row['study_instance_uid']}  {output.text(row['permissions'])}{'  (only in a context)' if row['only_in_context'] else ''}"
            for row in found["studies"]
        ]
    elif "existed" in found:
        there = "was there" if found["existed"] else "was not there"
        lines.append(f"study {found['study_instance_uid']} {there}: {found['instances']} instances")
        for row in found["people"]:
            why = "; ".join(f"grant {one['grant']}: {one['role'] or 'as given'} on {one['level']}" for one in row["because"])
            context = "  (only in a context)" if row["only_in_context"] else ""
            lines.append(f"  {row['kind']} {row['name']}  {output.text(row['permissions'])}  because of {why}{context}")
    else:
        lines.append(f"{found['studies_there']} studies, {found['instances']} instances, {found['grants']} grants that counted")
        lines += [
            f"  {row['kind']} {row['name']}{'' if row['enabled'] else ', disabled'}: {row['studies']} studies" for row in found["people"]
        ]
    return [*lines, *(f"note: {note}" for note in found["notes"])]


@ledger.command("acknowledge")
@click.option("--reason", required=True, metavar="TEXT", help="What happened; it goes into the ledger.")
@WITH_KIT
@click.pass_obj
def acknowledge(session: Session, reason: str, with_kit: Path | None) -> None:
    """Go on after a rollback that cannot be undone; then restart the archive."""
    session.recovery_kit = with_kit
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
@click.option("--action", "actions", multiple=True, type=click.Choice(["C", "R", "U", "D", "E"]),
              help="Created, read, updated, deleted, executed.")
@click.option("--outcome", type=click.Choice(list(OUTCOMES)), help="Of that outcome.")
@click.option("--network", metavar="CIDR", help="Done from this network or address.")
@click.option("--before", type=int, metavar="NUMBER", help="Only events before this number: the next page.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@click.pass_obj
def search(
    session: Session, user: str | None, patient: str | None, study: str | None, series: str | None, kinds: tuple[str, ...],
    since: datetime | None, until: datetime | None, failed: bool, actions: tuple[str, ...], outcome: str | None, network: str | None,
    before: int | None, limit: int,
) -> None:
    """Search events, newest first; looking is an event too."""
    found, more = session.node.oversight.page(
        session.subject, user=user, patient=patient, study=study, series=series, kinds=kinds, since=since, until=until, failed=failed,
        before=before, limit=limit, actions=actions, outcome=None if outcome is None else OUTCOMES[outcome], network=network,
    )
    if session.as_json:
        print(output.to_json(found))
        return
    shown = []
    for row in found:
        body = row.get("body") or {}
        who = (body.get("subject") or {}).get("name", "the archive")
        about = [value for _kind, value in body.get("objects", [])]
        shown.append({**row, "who": who, "objects": about, "detail": _brief(body.get("detail"))})
    session.rows(shown, "id", "at", "kind", "who", "outcome", "instances", "objects", "detail")
    if more is not None:
        print(f"more: --before {more}", file=sys.stderr)


@audit.command("export")
@click.option("--json-lines", "file", type=click.Path(dir_okay=False, path_type=Path, allow_dash=True), default="-", metavar="FILE",
              help="Write it there, a new file; default, and -, is standard output.")
@click.option("--after", type=click.IntRange(-1), default=-1, metavar="SEQ",
              help="Only events after this number: where the last line ended.")
@click.option("--from", "since", type=WHEN, metavar="WHEN")
@click.option("--until", type=WHEN, metavar="WHEN")
@click.option("--limit", type=click.IntRange(1), metavar="N")
@click.pass_obj
def export(session: Session, file: Path, after: int, since: datetime | None, until: datetime | None, limit: int | None) -> None:
    """Write events, oldest first, one JSON object a line, each with what it takes to check it against the ledger."""
    from archive.services.audit_export import Span

    lines = session.node.audit_export.lines(session.subject, Span(after, since, until, limit))
    if str(file) == "-":
        for line in lines:
            sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
        return
    last = b"{}"
    with os.fdopen(_new_file(file), "wb") as handle:
        for line in lines:
            handle.write(line)
            last = line
    session.answer({"file": str(file), **json.loads(last)}, f"written to {file}; it ends with {last.decode().strip()}")


@audit.command("disclosures")
@click.option("--patient", required=True, metavar="ID")
@click.option("--issuer", metavar="TEXT", help="Who issued the ID, when several patients have it; default all of them.")
@click.option("--datastore", default="clinical", show_default=True)
@click.option("--from", "since", type=WHEN, metavar="WHEN")
@click.option("--until", type=WHEN, metavar="WHEN")
@click.option("--csv", "csv_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write it there, as CSV.")
@click.option("--pdf", "pdf_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write it there, as PDF.")
@click.pass_obj
def disclosures(
    session: Session, patient: str, issuer: str | None, datastore: str, since: datetime | None, until: datetime | None,
    csv_file: Path | None, pdf_file: Path | None,
) -> None:
    """Tell who saw a patient's images, when, and by which grants they could."""
    from archive.services.disclosure import as_csv
    from archive.services.disclosure_pdf import About, as_pdf

    found = session.node.disclosure.of_patient(
        session.subject, patient, issuer=issuer, datastore=datastore, since=since, until=until,
    )
    if csv_file is not None:
        with os.fdopen(_new_file(csv_file), "w", encoding="utf-8", newline="") as file:
            file.write(as_csv(found))
    if pdf_file is not None:
        name, at = session.node.config.archive.name, session.node.core.clock()
        about = About(patient, datastore, name, at, since, until, session.subject.operator)
        with os.fdopen(_new_file(pdf_file), "wb") as page:
            page.write(as_pdf(found, about))
    if csv_file is not None or pdf_file is not None:
        files = [str(one) for one in (csv_file, pdf_file) if one is not None]
        session.answer({"rows": len(found), "file": files[0], "files": files}, f"{len(found)} accesses written to {' and '.join(files)}")
        return
    session.rows(found, "at", "who", "action", "what", "studies", "instances", "network", "because")


def _new_file(path: Path) -> int:
    """Open a file that is not there yet, for its owner alone."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror}"
        raise InvalidRequest(message, remedy="name a file that is not there yet") from error
