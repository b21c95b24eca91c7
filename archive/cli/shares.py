"""`archive share`: links that show studies and series to somebody without an account."""

from __future__ import annotations

from datetime import datetime

import click

from archive.cli.main import Group
from archive.cli.session import Session
from archive.cli.when import WHEN
from archive.errors import InvalidRequest


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(share)


@click.group("share", cls=Group)
def share() -> None:
    """Share links: what a user may see and share, shown to somebody without an account, for a time."""


@share.command("create")
@click.option("--study", "studies", multiple=True, metavar="UID", help="May be given several times.")
@click.option("--series", "series", multiple=True, metavar="UID", help="May be given several times.")
@click.option("--as", "owner", metavar="USER", help="In whose right: the link shows what this user may see and share.")
@click.option("--until", type=WHEN, metavar="WHEN", help="7 days unless said; [policy] longest_share at most.")
@click.option("--to", "recipient", default="", metavar="NAME", help="Whom it is for.")
@click.option("--email", default="", metavar="ADDRESS", help="Where codes are mailed; without a mail server they are told apart.")
@click.option("--download", is_flag=True, help="Original files may be taken too.")
@click.option("--views", type=click.IntRange(1, 10_000), metavar="N", help="It opens so many times.")
@click.option("--datastore", default="clinical", show_default=True)
@click.option("--label", default="", metavar="TEXT", help="A line its reader sees.")
@click.option("--preview", is_flag=True, help="Only say what it would show; nothing is made.")
@click.pass_obj
def create(
    session: Session, studies: tuple[str, ...], series: tuple[str, ...], owner: str | None, until: datetime | None, recipient: str,
    email: str, download: bool, views: int | None, datastore: str, label: str, preview: bool,
) -> None:
    """Make a link; its address, and a code that is told apart, are shown this once."""
    from archive.services.shares import Wanted

    if not studies and not series:
        message = "name what to share"
        raise InvalidRequest(message, remedy="archive share create --study UID --as USER")
    wanted = Wanted(studies, series, datastore, until, recipient, email, download, views, label)
    if preview:
        session.answer(session.node.shares.preview(session.subject, wanted, owner=owner))
        return
    made = session.node.shares.create(session.subject, wanted, owner=owner)
    lines = [made["url"], f"code {made['code']}, to be told another way than the link" if made["code"] else f"codes go to {made['email']}"]
    session.answer(made, "\n".join(lines))


@share.command("list")
@click.pass_obj
def list_(session: Session) -> None:
    """List everybody's links, newest first."""
    session.rows(session.node.shares.list(session.subject),
                 "id", "owner", "recipient", "state", "until", "views", "last_opened_at")


@share.command("revoke")
@click.argument("number", type=int, metavar="ID")
@click.pass_obj
def revoke(session: Session, number: int) -> None:
    """End a link at once, and everything that was opened by it."""
    session.answer(session.node.shares.revoke(session.subject, number), f"link {number} is ended")
