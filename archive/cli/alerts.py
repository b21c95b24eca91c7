"""`archive alert`: what the rules found in the audit log."""

from __future__ import annotations

import click

from archive.cli.main import Group
from archive.cli.session import Session


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(alert)


@click.group("alert", cls=Group)
def alert() -> None:
    """What somebody should look at, found in the audit log."""


@alert.command("list")
@click.option("--all", "every", is_flag=True, help="The acknowledged ones too.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@click.pass_obj
def list_(session: Session, every: bool, limit: int) -> None:
    """List alerts, newest first."""
    found = session.node.alerts.list(session.subject, every=every, limit=limit)
    session.rows(found, "id", "severity", "rule", "who", "detail", "times", "raised_at", "last_event", "acknowledged_at")


@alert.command("acknowledge")
@click.argument("number", type=int, metavar="ID")
@click.option("--note", required=True, metavar="TEXT", help="What it was; it goes into the ledger.")
@click.pass_obj
def acknowledge(session: Session, number: int, note: str) -> None:
    """Close an alert."""
    session.answer(session.node.alerts.acknowledge(session.subject, number, note=note), f"alert {number} is closed")


@alert.command("rules")
@click.pass_obj
def rules(session: Session) -> None:
    """List what is looked for."""
    from archive.services.alert_rules import RULES

    off = set(session.node.config.alerts.without)
    session.rows([
        {"rule": name, "severity": severity, "text": text, "on": name not in off} for name, (severity, text, _rule) in RULES.items()
    ], "rule", "severity", "on", "text")


@alert.command("test-mail")
@click.pass_obj
def test_mail(session: Session) -> None:
    """Send a mail that says it is a test."""
    session.node.alerts.test_mail(session.subject)
    session.answer({"sent": True}, "sent; look into the mailbox")
