"""`archive user bind`, `unbind`, `identities`: who users are in the systems they sign in with."""

from __future__ import annotations

import click

from archive.cli.session import Session
from archive.cli.users import user


def attach(_archive: click.Group) -> None:
    """Add nothing: the commands of this file belong to `archive user`, and are there once it is imported."""


@user.command("bind")
@click.argument("name")
@click.option("--issuer", default="", metavar="URL", help="Of the other system; the one that is configured where there is one alone.")
@click.option("--subject", "external_subject", required=True, metavar="ID",
              help="Whom NAME is there, by what never changes: `sub` of an OpenID provider, the distinguished name in a directory.")
@click.pass_obj
def bind(session: Session, name: str, issuer: str, external_subject: str) -> None:
    """Let user NAME sign in with another system."""
    made = session.node.identities.bind(session.subject, name, issuer=issuer, external_subject=external_subject)
    session.answer(made, f"{name} signs in as {external_subject} of {made['issuer']}")


@user.command("unbind")
@click.argument("identity", type=int, metavar="ID")
@click.pass_obj
def unbind(session: Session, identity: int) -> None:
    """Take identity ID away; its user's sessions end."""
    made = session.node.identities.unbind(session.subject, identity)
    session.answer(made, f"{made['user']} signs in with {made['issuer']} no more")


@user.command("identities")
@click.pass_obj
def identities(session: Session) -> None:
    """List who users are in other systems."""
    session.rows(session.node.identities.listed(session.subject), "id", "user", "issuer", "subject", "bound_at", "last_used_at")
