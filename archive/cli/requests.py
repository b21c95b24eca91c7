"""`archive request`: deciding on what users ask for."""

from __future__ import annotations

from datetime import datetime

import click

from archive.cli.main import Group
from archive.cli.session import Session
from archive.cli.when import WHEN


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(request)


@click.group("request", cls=Group)
def request() -> None:
    """Users ask for what they may not see; whoever may give it decides."""


@request.command("list")
@click.option("--all", "every", is_flag=True, help="Also those that were decided, withdrawn or have expired.")
@click.pass_obj
def list_(session: Session, every: bool) -> None:
    """List requests that wait, oldest first."""
    found = session.node.access_requests.waiting(session.subject, every=every)
    session.rows(found, "id", "state", "requester", "level", "object", "permissions", "until", "reason", "expires_at", "decided_by")


@request.command("approve")
@click.argument("number", type=int, metavar="ID")
@click.option("--until", type=WHEN, metavar="WHEN", help="Default as it was asked.")
@click.option("--permission", "permissions", multiple=True, metavar="P", help="Only these of what was asked for.")
@click.option("--note", default="", metavar="TEXT", help="A word to who asked.")
@click.pass_obj
def approve(session: Session, number: int, until: datetime | None, permissions: tuple[str, ...], note: str) -> None:
    """Give what was asked for, as a grant that ends."""
    done = session.node.access_requests.decide(session.subject, number, approve=True, until=until, permissions=permissions, note=note)
    session.answer(done, f"request {number} is granted: grant {done['grant']}")


@request.command("refuse")
@click.argument("number", type=int, metavar="ID")
@click.option("--note", default="", metavar="TEXT", help="A word to who asked.")
@click.pass_obj
def refuse(session: Session, number: int, note: str) -> None:
    """Refuse what was asked for."""
    session.answer(session.node.access_requests.decide(session.subject, number, approve=False, note=note), f"request {number} is refused")
