"""/api/albums: named collections of studies and series, shared with users and groups."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from msgspec import field

from archive.access.permissions import Permission
from archive.web.api.operation import Asked, Operation, Taken, Told
from archive.web.context import node, subject

_P = Permission


class Album(Told):
    """An album, and what the caller may do with it: own, manage, add, view; nothing where an administrator looks on."""

    id: int
    name: str
    owner: str
    datastore: str
    rights: str
    until: datetime
    endless: bool
    created_at: datetime


class AlbumItem(Told):
    """A study or series in an album, of which the caller sees something."""

    level: str
    uid: str
    study: str
    patient: str
    date: str
    description: str
    added_at: datetime
    mine: bool


class AlbumMember(Told):
    """With whom an album is shared."""

    principal: str
    kind: str
    rights: str
    since: datetime = field(name="from")
    until: datetime
    permissions: list[str]


class AlbumShown(Album):
    """An album with what is in it; with whom it is shared is told to its owner and managers."""

    items: list[AlbumItem]
    shared_with: list[AlbumMember]


class AlbumShared(AlbumMember):
    """How an album is, or was, shared with somebody."""

    album: int


class NewAlbum(Taken):
    """An album to make; without `until` it has no end."""

    name: str
    until: str | None = None
    datastore: str = "clinical"


class AlbumAdditions(Taken):
    """Studies and series by UID, to be put in."""

    studies: tuple[str, ...] = ()
    series: tuple[str, ...] = ()


class NewAlbumShare(Taken):
    """With whom an album is to be shared, and how; RFC 3339 or counted from now (8h, 30d)."""

    to: str
    rights: Literal["view", "add", "manage"] = "view"
    since: str | None = field(name="from", default=None)
    until: str | None = None
    download: bool = False


class AlbumsQuery(Taken):
    """Which albums; everybody's only with user-manage or audit."""

    everybody: bool = False


class AlbumRemoved(Told):
    """What was taken out."""

    id: int
    level: str
    uid: str


class AlbumEnded(Told):
    """An album that has ended."""

    id: int
    name: str
    owner: str
    ended_at: datetime


def _share(asked: Asked, number: int) -> Any:
    given: NewAlbumShare = asked.body
    return node().albums.share(
        subject(), number, given.to, rights=given.rights, since=given.since, until=given.until, download=given.download
    )


def _add(asked: Asked, number: int) -> Any:
    return node().albums.add(subject(), number, studies=asked.body.studies, series=asked.body.series)


OPERATIONS = (
    Operation("GET", "/albums", "albums", "List albums of one's own and those shared with one", _P.NONE,
              lambda asked: node().albums.list(subject(), everybody=asked.query.everybody), list[Album], query=AlbumsQuery, tag="albums"),
    Operation("POST", "/albums", "album_add", "Make an album", _P.NONE,
              lambda asked: node().albums.create(
                  subject(), asked.body.name, until=asked.body.until, datastore=asked.body.datastore),
              AlbumShown, NewAlbum, status=201, tag="albums", refuses=(404,)),
    Operation("GET", "/albums/<number>", "album", "Show an album", _P.NONE,
              lambda _asked, number: node().albums.show(subject(), number), AlbumShown, tag="albums", refuses=(404,)),
    Operation("DELETE", "/albums/<number>", "album_end", "End an album: nobody sees anything by it any more", _P.NONE,
              lambda _asked, number: node().albums.end(subject(), number), AlbumEnded, tag="albums", refuses=(404,)),
    Operation("POST", "/albums/<number>/items", "album_put", "Put studies and series in", _P.SHARE, _add, AlbumShown, AlbumAdditions,
              tag="albums", refuses=(404,)),
    Operation("DELETE", "/albums/<number>/studies/<uid>", "album_study_remove", "Take a study out", _P.NONE,
              lambda _asked, number, uid: node().albums.remove(subject(), number, "study", uid), AlbumRemoved, tag="albums",
              refuses=(404,)),
    Operation("DELETE", "/albums/<number>/series/<uid>", "album_series_remove", "Take a series out", _P.NONE,
              lambda _asked, number, uid: node().albums.remove(subject(), number, "series", uid), AlbumRemoved, tag="albums",
              refuses=(404,)),
    Operation("POST", "/albums/<number>/shares", "album_share", "Share an album with a user or group", _P.NONE, _share, AlbumShared,
              NewAlbumShare, tag="albums", refuses=(404,)),
    Operation("DELETE", "/albums/<number>/shares/<user>", "album_unshare", "Share an album with somebody no more, or leave it", _P.NONE,
              lambda _asked, number, user: node().albums.unshare(subject(), number, user), AlbumShared, tag="albums", refuses=(404,)),
)
