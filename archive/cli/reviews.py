"""`archive review`: who still needs what they have?"""

from __future__ import annotations

from datetime import datetime

import click

from archive.cli.main import Group
from archive.cli.session import Session
from archive.cli.when import WHEN


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(review)


@click.group("review", cls=Group)
def review() -> None:
    """Access reviews: what stands is gone through row by row, and closing signs the record and ends what is not needed."""


@review.command("start")
@click.argument("title", metavar="TITLE")
@click.option("--due", type=WHEN, required=True, metavar="WHEN", help="Until when it is to be closed.")
@click.option("--endless", is_flag=True, help="Only what has no end.")
@click.option("--group", default="", metavar="GROUP", help="Only what this group and its members have.")
@click.option("--role", default="", metavar="ROLE", help="Only of this role.")
@click.option("--older-than", "days", type=click.IntRange(1, 36500), metavar="DAYS", help="Only what was given so many days ago.")
@click.option("--grants-only", is_flag=True, help="No role assignments.")
@click.option("--roles-only", is_flag=True, help="No grants.")
@click.pass_obj
def start(
    session: Session, title: str, due: datetime, endless: bool, group: str, role: str, days: int | None, grants_only: bool,
    roles_only: bool,
) -> None:
    """Take down the grants and role assignments that count now, to be decided."""
    from archive.services.review_rows import Chosen

    chosen = Chosen(endless, group, role, days or 0, grants=not roles_only, roles=not grants_only)
    made = session.node.reviews.start(session.subject, title, due=due, chosen=chosen)
    session.answer(made, f"review {made['id']}: {made['undecided']} rows to decide; archive review show {made['id']}")


@review.command("list")
@click.pass_obj
def list_(session: Session) -> None:
    """List reviews, newest first."""
    found = session.node.reviews.list(session.subject)
    session.rows(found, "id", "title", "state", "due_at", "undecided", "to_keep", "to_revoke", "closed_at", "closed_by", "leaf")


@review.command("show")
@click.argument("number", type=int, metavar="ID")
@click.pass_obj
def show(session: Session, number: int) -> None:
    """Show a review's rows; of a closed one its signed record."""
    found = session.node.reviews.show(session.subject, number)
    if session.as_json:
        session.answer(found, "")
        return
    names = ["id"] if found["state"] != "closed" else []
    session.rows(found["items"], *names, "kind", "subject", "role", "level", "object", "until", "last_used_at", "decision", "by", "note")


@review.command("decide")
@click.argument("number", type=int, metavar="ID")
@click.argument("rows", type=int, nargs=-1, required=True, metavar="ROW…")
@click.option("--keep", "decision", flag_value="keep", help="Still needed.")
@click.option("--revoke", "decision", flag_value="revoke", help="To be ended when the review is closed.")
@click.option("--note", default="", metavar="TEXT", help="Why.")
@click.pass_obj
def decide(session: Session, number: int, rows: tuple[int, ...], decision: str | None, note: str) -> None:
    """Keep or revoke rows of a review."""
    if decision is None:
        message = "say --keep or --revoke"
        raise click.UsageError(message)
    found = session.node.reviews.decide(session.subject, number, rows, decision, note=note)
    session.answer(found, f"{len(rows)} rows to {decision}; {found['undecided']} are undecided")


@review.command("close")
@click.argument("number", type=int, metavar="ID")
@click.option("--undecided", type=click.Choice(["keep", "revoke"]),
              help="What becomes of rows nobody decided; else closing waits for them.")
@click.pass_obj
def close(session: Session, number: int, undecided: str | None) -> None:
    """End what is to be revoked, and sign the record."""
    done = session.node.reviews.close(session.subject, number, undecided=undecided)
    session.answer(done, f"review {number} is closed: {done['revoked']} ended, {done['kept']} kept; archive ledger prove {done['leaf']}")
