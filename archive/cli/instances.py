"""`archive delete` and `archive reconcile`: what is taken out of sight, and what waits to be let in."""

from __future__ import annotations

from typing import Any

import click

from archive.cli.main import Command, Group
from archive.cli.session import Session
from archive.errors import InvalidRequest


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(delete)
    archive.add_command(reconcile)


@click.command("delete", cls=Command)
@click.option("--study", metavar="UID", help="Every instance of this study.")
@click.option("--series", metavar="UID", help="Every instance of this series.")
@click.option("--instance", metavar="UID", help="This instance.")
@click.option("--reason", required=True, metavar="TEXT", help="Why; it goes into the ledger.")
@click.option("--datastore", default="clinical", show_default=True)
@click.option("--undo", is_flag=True, help="Bring back what was deleted.")
@click.pass_obj
def delete(
    session: Session, study: str | None, series: str | None, instance: str | None, reason: str, datastore: str, undo: bool
) -> None:
    """Take instances out of everyone's sight; nothing is destroyed, --undo brings them back."""
    given = [(level, uid) for level, uid in (("study", study), ("series", series), ("instance", instance)) if uid]
    if len(given) != 1:
        message = "name one of --study, --series and --instance"
        raise InvalidRequest(message, remedy="archive delete --study UID --reason TEXT")
    level, uid = given[0]
    remove = session.node.remove
    count = (remove.restore if undo else remove.reject)(session.subject, datastore, level, uid, reason=reason)
    session.answer({"level": level, "restored" if undo else "deleted": count},
                   f"{count} instances {'brought back' if undo else 'deleted; --undo brings them back'}")


@click.group("reconcile", cls=Group)
def reconcile() -> None:
    """Decide about instances that were kept but not let in: held, in conflict, in quarantine."""


@reconcile.command("list")
@click.option("--all", "every", is_flag=True, help="Also what was decided.")
@click.pass_obj
def list_(session: Session, every: bool) -> None:
    """List what waits, oldest first."""
    session.rows(session.node.reconcile.list(session.subject, every=every),
                 "id", "kind", "state", "reason", "patient_id", "patient_name", "sop_instance_uid", "created_at")


@reconcile.command("show")
@click.argument("number", type=int, metavar="ID")
@click.pass_obj
def show(session: Session, number: int) -> None:
    """Show one, with how it differs from what is stored."""
    session.answer(session.node.reconcile.show(session.subject, number))


def _decide(session: Session, number: int, reason: str, decision: str) -> None:
    service: Any = session.node.reconcile
    getattr(service, decision)(session.subject, number, reason=reason)
    session.answer({"id": number, "state": f"{decision}ed"}, f"{number} {decision}ed")


@reconcile.command("accept")
@click.argument("number", type=int, metavar="ID")
@click.option("--reason", required=True, metavar="TEXT")
@click.pass_obj
def accept(session: Session, number: int, reason: str) -> None:
    """Let it in; in a conflict it takes the stored one's place, which is kept out of sight."""
    _decide(session, number, reason, "accept")


@reconcile.command("reject")
@click.argument("number", type=int, metavar="ID")
@click.option("--reason", required=True, metavar="TEXT")
@click.pass_obj
def reject(session: Session, number: int, reason: str) -> None:
    """Close the case; the instance stays sealed, out of everyone's sight."""
    _decide(session, number, reason, "reject")
