"""`archive audit syslog`: the audit log told to a collector outside."""

from __future__ import annotations

import click

from archive.cli.main import Group
from archive.cli.session import Session


def attach(archive: click.Group) -> None:
    """Add the commands of this file to `archive audit`."""
    audit = archive.commands["audit"]
    assert isinstance(audit, click.Group)
    audit.add_command(syslog)


@click.group("syslog", cls=Group)
def syslog() -> None:
    """Audit messages to a collector over TLS, as [syslog] says (PS3.15 A.5 and A.6)."""


@syslog.command("status")
@click.pass_obj
def status(session: Session) -> None:
    """Say how far the collector is, and what went wrong last."""
    found = session.node.audit_feed.status(session.subject)
    if not found["collector"]:
        text = "the audit log is told to nobody; [syslog] host in the configuration names a collector"
    elif found["problem"]:
        text = f"{found['collector']} lacks {found['behind']} events since {found['failing_since']}: {found['problem']}"
    else:
        text = f"{found['collector']} has every event below {found['told']}, {found['behind']} wait"
    session.answer(found, text)


@syslog.command("test")
@click.pass_obj
def test(session: Session) -> None:
    """Send the collector one message now."""
    session.node.audit_feed.test(session.subject)
    session.answer({"sent": True}, "the collector took it")


@syslog.command("again")
@click.option("--from", "first", type=click.IntRange(0), required=True, metavar="EVENT", help="The number of the first event to tell.")
@click.pass_obj
def again(session: Session, first: int) -> None:
    """Tell everything from an event on once more, such as to a new collector."""
    told = session.node.audit_feed.again(session.subject, first)
    session.answer(told, f"{told['events']} events will be told")
