"""`archive token`: what programs sign in with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import click

from archive.cli.main import Group
from archive.cli.session import Session
from archive.cli.when import WHEN

_INDENT = "  "


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
@click.option("--patient", "patients", multiple=True, metavar="ID", help="Bound it to this patient; may be given several times.")
@click.option("--issuer", metavar="ISSUER", help="Of the patients, where several have the same ID.")
@click.option("--permission", "permissions", multiple=True, metavar="P",
              help="Bound it to these; administrative permissions count only when named.")
@click.option("--datastore", default="clinical", show_default=True, help="Of the studies, series and patients.")
@click.option("--whole-datastore", "datastores", multiple=True, metavar="D", help="Bound it to this datastore; may be given several times.")
@click.option("--network", "networks", multiple=True, metavar="CIDR", help="Take it from this network only; may be given several times.")
@click.option("--under", "parent", metavar="ID", help="Stand on this token of the same user: carry no more, and end with it.")
@click.option("--label", default="", metavar="TEXT")
@click.pass_obj
def create(session: Session, /, user: str, until: datetime | None, **named: Any) -> None:
    """Make a token; it is shown this once."""
    made = session.node.accounts.create_token(session.subject, owner=user, until=until, **named)
    session.answer(made, str(made["token"]))


@token.command("list")
@click.option("--for", "user", metavar="USER", help="Only of this user.")
@click.option("--tree", is_flag=True, help="Each below the one it was made with.")
@click.pass_obj
def list_(session: Session, user: str | None, *, tree: bool) -> None:
    """List tokens, newest first, without their secrets."""
    found = session.node.accounts.list_tokens(session.subject, owner=user)
    if tree:
        found = list(_below(found))
    session.rows(found, "id", "tree" if tree else "prefix", "user", "label", "made_by", "parent", "bounded_to", "state", "until",
                 "last_used_at", "last_address")


def _below(found: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Return tokens each followed by those made with it; `tree` is the prefix, set in by how many it stands on."""
    there = {row["id"] for row in found}
    waiting = [(0, row) for row in reversed(found) if row["parent"] not in there]
    while waiting:
        depth, row = waiting.pop()
        yield {**row, "tree": _INDENT * depth + row["prefix"], "depth": depth}
        waiting += [(depth + 1, below) for below in reversed(found) if below["parent"] == row["id"]]


@token.command("revoke")
@click.argument("token_id", metavar="ID")
@click.pass_obj
def revoke(session: Session, token_id: str) -> None:
    """End a token at once, and every one made with it, by its id or the prefix that stands in it."""
    ended = session.node.accounts.revoke_token(session.subject, token_id)
    others = ended["ended"] - 1
    more = f", with {others} made with it" if others > 0 else ""
    session.answer(ended, f"token {token_id} is revoked{more}")
