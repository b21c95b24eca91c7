"""`archive approval`: what takes two people, and waits for the second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from archive.cli import failures
from archive.cli.main import Group
from archive.cli.session import Session, password_from
from archive.errors import InvalidRequest


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(approval)


@click.group("approval", cls=Group)
def approval() -> None:
    """Where [policy] two_person is on: one asks, another approves, and it is done once."""


@approval.command("list")
@click.option("--all", "every", is_flag=True, help="Also those that were decided, done, or came too late.")
@click.pass_obj
def list_(session: Session, every: bool) -> None:
    """List requests, newest first."""
    found = session.node.approvals.listed(session.subject, every=every)
    session.rows(found, "id", "state", "said", "asked_by", "operator", "asked_at", "expires_at", "decided_by", "reason")


@approval.command("show")
@click.argument("number", type=int, metavar="ID")
@click.pass_obj
def show(session: Session, number: int) -> None:
    """Show a request."""
    session.answer(session.node.approvals.show(session.subject, number))


@approval.command("approve")
@click.argument("number", type=int, metavar="ID")
@click.option("--as", "name", required=True, metavar="USER", help="Who approves: the command line by itself approves nothing.")
@click.option("--password-file", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
              help="The user's password is its first line; else it is asked for.")
@click.option("--code", metavar="CODE", help="The code of the user's second factor; else it is asked for.")
@click.pass_obj
def approve(session: Session, number: int, name: str, password_file: Path | None, code: str | None) -> int:
    """Agree to request ID as USER, who signs in for it; it is carried out at once, what changes keys by giving the command again."""
    node = session.node
    begun = node.signin.password(
        name, password_from(password_file, f"Password of {name}", confirm=False), address="", user_agent="command line",
    )
    half = getattr(begun, "half", None)
    if half is not None:
        begun = node.signin.second(half, code or _code(), address="", user_agent="command line")
    try:
        standing = node.signin.standing(begun.subject)
        if standing is None or standing.must_change or standing.must_enrol:
            message = "this user must change the password or set up a second factor first"
            raise InvalidRequest(message, remedy="sign in with the browser, which asks for it")
        made = node.approvals.approve(begun.subject, number)
    finally:
        node.signin.sign_out(begun.subject)
    session.answer(made, told(made))
    return failures.FAILED if made["state"] == "failed" else failures.DONE


def _code() -> str:
    return str(click.prompt("Code", hide_input=True))


@approval.command("refuse")
@click.argument("number", type=int, metavar="ID")
@click.option("--note", default="", metavar="TEXT", help="Why; it goes into the ledger.")
@click.pass_obj
def refuse(session: Session, number: int, note: str) -> None:
    """Refuse request ID."""
    session.answer(session.node.approvals.refuse(session.subject, number, note=note), f"request {number} is refused")


def told(made: dict[str, Any]) -> str:
    """Return for people what became of a request that was approved."""
    return {
        "done": f"request {made['id']} is approved and done: {made['said']}",
        "approved": f"request {made['id']} is approved: {made['asked_by']} gives the same command again, within the day",
    }.get(made["state"], f"request {made['id']} is approved, and {made['state']}: 'archive audit search --kind approval' says why")
