"""`archive import`: folders, files, media and zip files into the archive, as a job that can be taken up again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from archive.cli import failures, output
from archive.cli.main import Group
from archive.cli.session import Session


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(import_)


@click.group("import", cls=Group, default="run", subcommand_metavar="PATH… | list | show ID")
def import_() -> None:
    """Import files, folders, DICOMDIR media, zip files or an Orthanc storage folder.

    `archive import PATH…` imports; the same call after an interruption goes on where it stopped. A path called list or show is
    written ./list.
    """


@import_.command("run", hidden=True)
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path), metavar="PATH…")
@click.option("--datastore", default="clinical", show_default=True, help="Where the instances go.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write one JSON line a file here.")
@click.option("--wrap", is_flag=True, help="Also store files that are bare data sets without file meta information.")
@click.pass_obj
def run(session: Session, paths: tuple[Path, ...], datastore: str, report: Path | None, wrap: bool) -> int:
    """Import PATHs."""
    stream = report.open("a", encoding="utf-8", errors="backslashreplace") if report is not None else None
    try:
        with output.progress(quiet=session.as_json) as track:
            summary = session.node.imports.run(
                session.subject, paths, datastore, report=stream, wrap=wrap,
                progress=lambda so_far, done, _total: track(f"{so_far.stored} stored, {so_far.rejected} rejected; files", done),
            )
    finally:
        if stream is not None:
            stream.close()
    counts = asdict(summary)
    words = [f"{count} {name}" for name, count in counts.items() if name != "job" and count]
    lines = [f"import {summary.job}: {', '.join(words) or 'no files found'}"]
    if summary.rejected:
        lines.append(f"why files were rejected: archive import show {summary.job}")
    if summary.held or summary.conflict:
        lines.append("what waits for a decision: archive reconcile list")
    session.answer(counts, "\n".join(lines))
    return failures.FAILED if summary.rejected or summary.conflict else failures.DONE


@import_.command("list")
@click.pass_obj
def list_(session: Session) -> None:
    """List imports, newest first."""
    found = session.node.imports.list(session.subject)
    session.rows(found, "id", "state", "created_at", "stored", "duplicate", "conflict", "held", "rejected", "paths")


@import_.command("show")
@click.argument("number", type=int, metavar="ID")
@click.pass_obj
def show(session: Session, number: int) -> None:
    """Show one import with what became of each file."""
    session.answer(session.node.imports.show(session.subject, number))
