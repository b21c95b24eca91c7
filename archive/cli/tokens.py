"""`archive token`: what programs sign in with."""

from __future__ import annotations

from datetime import datetime

import click

from archive.cli.main import Group
from archive.cli.session import Session
from archive.cli.when import WHEN


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(token)


@click.group("token", cls=Group)
def token() -> None:
    """Tokens for programs: each acts for a user, with that user's rights at the time of use."""


@token.command("create")
@click.option("--for", "user", required=True, metavar="USER")
@click.option("--until", type=WHEN, metavar="WHEN", help="Default 30 days, 365 at most.")
@click.option("--study", "studies", multiple=True, metavar="UID", help="Bound it to this study; may be given several times.")
@click.option("--series", "series", multiple=True, metavar="UID", help="Bound it to this series; may be given several times.")
@click.option("--permission", "permissions", multiple=True, metavar="P",
              help="Bound it to these; administrative permissions count only when named.")
@click.option("--datastore", default="clinical", show_default=True, help="Of the studies and series.")
@click.option("--label", default="", metavar="TEXT")
@click.pass_obj
def create(
    session: Session, user: str, until: datetime | None, studies: tuple[str, ...], series: tuple[str, ...],
    permissions: tuple[str, ...], datastore: str, label: str,
) -> None:
    """Make a token; it is shown this once."""
    made = session.node.accounts.create_token(
        session.subject, owner=user, until=until, studies=studies, series=series, permissions=permissions, datastore=datastore,
        label=label,
    )
    session.answer(made, str(made["token"]))


@token.command("list")
@click.option("--for", "user", metavar="USER", help="Only of this user.")
@click.pass_obj
def list_(session: Session, user: str | None) -> None:
    """List tokens, newest first, without their secrets."""
    session.rows(session.node.accounts.list_tokens(session.subject, owner=user),
                 "id", "prefix", "user", "bounded_to", "state", "until", "last_used_at")


@token.command("revoke")
@click.argument("token_id", metavar="ID")
@click.pass_obj
def revoke(session: Session, token_id: str) -> None:
    """End a token at once, by its id or the prefix that stands in it."""
    session.answer(session.node.accounts.revoke_token(session.subject, token_id), f"token {token_id} is revoked")
