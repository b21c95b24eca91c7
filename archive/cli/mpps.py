"""`archive mpps`: what the modalities say they do."""

from __future__ import annotations

import click

from archive.cli.main import Group
from archive.cli.session import Session

COLUMNS = ("id", "state", "started", "ended", "station", "modality", "patient_id", "patient_name", "description", "instances", "reason")


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(mpps)


@click.group("mpps", cls=Group)
def mpps() -> None:
    """Modality performed procedure steps."""


@mpps.command("list")
@click.option("--state", type=click.Choice(["in-progress", "completed", "discontinued"]), default=None)
@click.option("--study", metavar="UID", default="", help="Those of one study.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True)
@click.option("--datastore", default="clinical", show_default=True)
@click.pass_obj
def list_(session: Session, state: str | None, study: str, limit: int, datastore: str) -> None:
    """List procedure steps, the newest first."""
    found = session.node.steps.list(
        session.subject, datastore=datastore, state=state or "", study_instance_uid=study, limit=limit
    )
    session.rows(found, *COLUMNS)
