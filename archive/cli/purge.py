"""`archive purge`: what was deleted is destroyed for good."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import timedelta

import click

from archive.cli import failures, output
from archive.cli.main import Command
from archive.cli.session import Session
from archive.errors import InvalidRequest

LONGEST = timedelta(days=36500)


def attach(archive: click.Group) -> None:
    """Add the command of this file."""
    archive.add_command(purge)


@click.command("purge", cls=Command)
@click.option("--study", metavar="UID", help="What was deleted of this study.")
@click.option("--older-than", metavar="TIME", help="What was deleted so long ago: 90d, 12h.")
@click.option("--reason", required=True, metavar="TEXT", help="Why; it goes into the ledger.")
@click.option("--datastore", metavar="NAME", help="Only of this datastore; default all.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and do nothing.")
@click.pass_obj
def purge(session: Session, study: str | None, older_than: str | None, reason: str, datastore: str | None, dry_run: bool) -> int:
    """Destroy what was deleted: keys, then bytes; nobody can bring it back. Studies on hold stay."""
    node = session.node
    before = None if older_than is None else node.core.clock() - duration_of(older_than)
    with output.progress(quiet=session.as_json) as track:
        report = node.purge.run(
            session.subject, datastore, study=study, before=before, reason=reason, dry_run=dry_run, progress=track,
        )
    what = f"{report.instances} instances of {report.studies} studies ({report.bytes} bytes)"
    lines = [f"{what} would be destroyed" if dry_run else f"{what} destroyed for good, {report.keys} keys of studies with them"]
    if report.held:
        lines.append(f"{report.held} studies are on hold and stay; 'archive hold list' shows why")
    if report.doubted:
        lines.append(f"PROBLEM: {report.doubted} instances are out of sight without an event that says so, and stay: run 'archive verify'")
    if report.changed:
        lines.append(f"PROBLEM: {report.changed} times the study changed meanwhile; give the command again")
    session.answer({"ok": report.ok, **asdict(report)}, "\n".join(lines))
    return failures.FAILED if report.doubted or report.changed else failures.DONE


def duration_of(text: str) -> timedelta:
    """Return the time that 90d, 12h or 30m means.

    Raises:
        InvalidRequest.
    """
    found = re.fullmatch(r"(\d{1,6})([dhm])", text)
    time = None if found is None else timedelta(**{{"d": "days", "h": "hours", "m": "minutes"}[found[2]]: int(found[1])})
    if time is None or time > LONGEST:
        message = "--older-than takes a time of a hundred years at most"
        raise InvalidRequest(message, remedy="write it as 90d, 12h or 30m")
    return time
