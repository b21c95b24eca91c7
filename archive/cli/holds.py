"""`archive hold`: studies that nobody may delete."""

from __future__ import annotations

from datetime import datetime

import click

from archive.cli.main import Group
from archive.cli.session import Session
from archive.cli.when import WHEN


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(hold)


@click.group("hold", cls=Group)
def hold() -> None:
    """Keep studies from being deleted."""


@hold.command("add")
@click.option("--study", required=True, metavar="UID", help="The study.")
@click.option("--reason", required=True, metavar="TEXT", help="Why; it goes into the ledger.")
@click.option("--until", type=WHEN, help="When it ends by itself; without it somebody has to let go.")
@click.option("--datastore", default="clinical", show_default=True)
@click.pass_obj
def add(session: Session, study: str, reason: str, until: datetime | None, datastore: str) -> None:
    """Put a study on hold."""
    number = session.node.holds.add(session.subject, datastore, study, reason=reason, until=until)
    session.answer({"id": number}, f"hold {number}: nothing of the study can be deleted")


@hold.command("remove")
@click.argument("number", type=int, metavar="ID")
@click.option("--reason", required=True, metavar="TEXT", help="Why; it goes into the ledger.")
@click.pass_obj
def remove(session: Session, number: int, reason: str) -> None:
    """Let a study go."""
    session.node.holds.remove(session.subject, number, reason=reason)
    session.answer({"id": number, "removed": True}, f"hold {number} removed")


@hold.command("list")
@click.option("--study", default="", metavar="UID", help="Of this study only.")
@click.pass_obj
def list_(session: Session, study: str) -> None:
    """List holds, oldest first."""
    rows = session.node.holds.list(session.subject, study_instance_uid=study)
    session.rows(rows, "id", "in_force", "until", "reason", "study_instance_uid", "created_at")
