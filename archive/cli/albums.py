"""`archive album`: named collections of studies and series, shared with users and groups."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import click

from archive.cli.main import Group
from archive.cli.session import Session
from archive.cli.when import WHEN
from archive.errors import InvalidRequest

_AS = click.option("--as", "owner", metavar="USER", help="In whose right: what this user may see, share and manage.")


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(album)


@click.group("album", cls=Group)
def album() -> None:
    """Albums: named collections of studies and series, shared with users and groups."""


@album.command("create")
@click.argument("name")
@_AS
@click.option("--until", type=WHEN, metavar="WHEN", help="No end unless said.")
@click.option("--datastore", default="clinical", show_default=True)
@click.pass_obj
def create(session: Session, name: str, owner: str | None, until: datetime | None, datastore: str) -> None:
    """Make album NAME."""
    made = session.node.albums.create(session.subject, name, until=until, datastore=datastore, owner=owner)
    session.answer(made, f"album {made['id']} {made['name']}")


@album.command("list")
@click.pass_obj
def list_(session: Session) -> None:
    """List everybody's albums, newest first."""
    session.rows(session.node.albums.list(session.subject), "id", "name", "owner", "datastore", "until")


@album.command("show")
@click.argument("number", type=int, metavar="ID")
@_AS
@click.pass_obj
def show(session: Session, number: int, owner: str | None) -> None:
    """Show what USER sees of an album, and with whom it is shared."""
    session.answer(session.node.albums.show(session.subject, number, owner=owner))


@album.command("add")
@click.argument("number", type=int, metavar="ID")
@_AS
@click.option("--study", "studies", multiple=True, metavar="UID", help="May be given several times.")
@click.option("--series", "series", multiple=True, metavar="UID", help="May be given several times.")
@click.pass_obj
def add(session: Session, number: int, owner: str | None, studies: tuple[str, ...], series: tuple[str, ...]) -> None:
    """Put studies and series in that USER may see and share."""
    made = session.node.albums.add(session.subject, number, studies=studies, series=series, owner=owner)
    session.answer(made, f"{len(made['items'])} in album {number}")


@album.command("remove")
@click.argument("number", type=int, metavar="ID")
@_AS
@click.option("--study", metavar="UID")
@click.option("--series", metavar="UID")
@click.pass_obj
def remove(session: Session, number: int, owner: str | None, study: str | None, series: str | None) -> None:
    """Take a study or series out."""
    if bool(study) == bool(series):
        message = "name one of --study and --series"
        raise InvalidRequest(message, remedy="archive album remove ID --study UID --as USER")
    level: Literal["study", "series"] = "study" if study else "series"
    session.answer(session.node.albums.remove(session.subject, number, level, study or series, owner=owner), f"taken out of album {number}")


@album.command("share")
@click.argument("number", type=int, metavar="ID")
@_AS
@click.option("--with", "to", required=True, metavar="SUBJECT", help="A user or group.")
@click.option("--rights", type=click.Choice(["view", "add", "manage"]), default="view", show_default=True)
@click.option("--from", "since", type=WHEN, metavar="WHEN")
@click.option("--until", type=WHEN, metavar="WHEN", help="The album's end unless said.")
@click.option("--download", is_flag=True, help="Original files may be taken too.")
@click.pass_obj
def share(
    session: Session, number: int, owner: str | None, to: str, rights: Literal["view", "add", "manage"], since: datetime | None,
    until: datetime | None, download: bool,
) -> None:
    """Share an album with a user or group, in place of how it was shared with them."""
    made = session.node.albums.share(
        session.subject, number, to, rights=rights, since=since, until=until, download=download, owner=owner
    )
    session.answer(made, f"album {number} is shared with {made['principal']}")


@album.command("unshare")
@click.argument("number", type=int, metavar="ID")
@_AS
@click.option("--with", "to", required=True, metavar="SUBJECT")
@click.pass_obj
def unshare(session: Session, number: int, owner: str | None, to: str) -> None:
    """Share an album with somebody no more, nor with whom they shared it."""
    session.answer(session.node.albums.unshare(session.subject, number, to, owner=owner), f"album {number} is shared with {to} no more")


@album.command("end")
@click.argument("number", type=int, metavar="ID")
@click.pass_obj
def end(session: Session, number: int) -> None:
    """End an album: nobody sees anything by it any more."""
    session.answer(session.node.albums.end(session.subject, number), f"album {number} is ended")
