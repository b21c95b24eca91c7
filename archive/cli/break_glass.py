"""`archive break-glass`: the review of what was opened in an emergency."""

from __future__ import annotations

import click

from archive.cli.main import Group
from archive.cli.session import Session


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(break_glass)


@click.group("break-glass", cls=Group)
def break_glass() -> None:
    """In an emergency users open a patient they may not see; each time is reviewed by somebody else."""


@break_glass.command("list")
@click.option("--all", "every", is_flag=True, help="Also what was reviewed.")
@click.pass_obj
def list_(session: Session, every: bool) -> None:
    """List what waits for its review, oldest first."""
    found = session.node.break_glass.to_review(session.subject, every=every, limit=1000)
    session.rows(found, "id", "state", "who", "level", "object", "reason_code", "reason", "started_at", "until", "grants", "verdict")


@break_glass.command("review")
@click.argument("number", type=int, metavar="ID")
@click.option("--verdict", required=True, type=click.Choice(["justified", "unjustified"]))
@click.option("--note", required=True, metavar="TEXT", help="What was found; it goes into the ledger.")
@click.pass_obj
def review(session: Session, number: int, verdict: str, note: str) -> None:
    """Say whether it was justified."""
    session.answer(session.node.break_glass.review(session.subject, number, verdict=verdict, note=note), f"break-glass {number}: {verdict}")
