"""`archive webhook`: where the change feed is sent."""

from __future__ import annotations

import click

from archive.cli.main import Group
from archive.cli.session import Session


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(webhook)


@click.group("webhook", cls=Group)
def webhook() -> None:
    """Tell other systems what comes and goes: UIDs alone, of what a user may see, signed."""


@webhook.command("add")
@click.argument("url")
@click.option("--as", "owner", required=True, metavar="USER", help="Whose grants decide what is told.")
@click.option("--datastore", default="clinical", show_default=True)
@click.option("--everything", is_flag=True, help="Begin with what is stored already; else with what comes from now on.")
@click.pass_obj
def add(session: Session, url: str, owner: str, datastore: str, everything: bool) -> None:
    """Send changes to URL; the secret its signatures are checked by is shown this once."""
    made = session.node.webhooks.add(session.subject, url=url, owner=owner, datastore=datastore, everything=everything)
    session.answer(made, f"webhook {made['id']} is added; its secret, shown this once:\n{made['secret']}")


@webhook.command("list")
@click.pass_obj
def list_(session: Session) -> None:
    """List webhooks, how they are doing and what went wrong last."""
    session.rows(session.node.webhooks.list(session.subject),
                 "id", "url", "owner", "datastore", "state", "attempts", "problem", "due_at", "delivered_at")


@webhook.command("remove")
@click.argument("webhook_id", metavar="ID", type=int)
@click.pass_obj
def remove(session: Session, webhook_id: int) -> None:
    """End a webhook."""
    session.node.webhooks.remove(session.subject, webhook_id)
    session.answer({"id": webhook_id}, f"webhook {webhook_id} is removed")


@webhook.command("test")
@click.argument("webhook_id", metavar="ID", type=int)
@click.pass_obj
def test(session: Session, webhook_id: int) -> None:
    """Send a signed body without any change in it."""
    told = session.node.webhooks.test(session.subject, webhook_id)
    session.answer(told, f"it answered {told['status']}")
