"""Share links and albums as the ledger's events say (V12, docs/format.md 6.4), and what events since a snapshot of access do to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.access import albums, grants
from archive.access.permissions import Permission
from archive.access.roles import names
from archive.db.tables import album, album_item, album_share, boundary, boundary_item, datastore, share_link, share_session
from archive.db.tables import grants as grant_rows
from archive.keys.keyring import Keyring
from archive.ledger.audit import Kind, secret_digest
from archive.ledger.log import AuditFilter
from archive.services.core import Core
from archive.services.retrace import Found, bodies, details
from archive.services.share_code_check import coded
from archive.services.shares import recipient

Row = dict[str, Any]
KINDS = (Kind.SHARED, Kind.SHARE_CHANGED, Kind.ALBUM_CHANGED)


def later(tx: sa.Connection, said: Row, at: datetime) -> None:
    """Take in an event that came after a snapshot: what ended since ends, what was made since is lost and is made anew by its owner."""
    what, number = said.get("what"), said.get("id")
    if what == "revoked":
        tx.execute(sa.update(share_link).where(share_link.c.id == number, share_link.c.revoked_at.is_(None)).values(revoked_at=at))
    elif what == "ended":
        albums.end(tx, int(said["id"]), at=at)
    elif what == "unshared":
        albums.unshare(tx, int(said["share"]), at=at)
    elif what == "taken out":
        for item in said["items"]:
            albums.remove(tx, int(item[0]), at=at)


def opened(tx: sa.Connection, said: Row, at: datetime) -> None:
    """Count a view since the snapshot: a link that was opened as often as it may be opens nothing more."""
    if "session" in said:
        values = {"views": share_link.c.views + 1, "last_opened_at": at}
        tx.execute(sa.update(share_link).where(share_link.c.id == said["id"]).values(values))


def sharing(core: Core, tx: sa.Connection) -> Iterator[Found]:
    """Yield links, their codes and sessions, and albums that no event made, that say otherwise than theirs, or that came back."""
    yield from _links(core, tx)
    yield from coded(core, tx)
    yield from _sessions(core, tx)
    yield from _givers(core, tx)
    yield from _albums(core, tx)


@dataclass(slots=True)
class _Said:
    """What events say was made, and what ended since, by kind of row and id; the newest event of an id counts, which comes first."""

    made: dict[tuple[str, int], Row] = field(default_factory=dict)
    ended: set[tuple[str, int]] = field(default_factory=set)

    def take(self, said: Row) -> None:
        """Take in the next event."""
        what = said.get("what")
        if what == "taken out":
            self._end("item", *(one[0] for one in said["items"]))
        elif what == "added":
            for key, level, uid, by in said.get("items", ()):
                self.made.setdefault(("item", key), {"album": said["id"], "level": level, "uid": uid, "by": by})
        elif what in ("unshared", "shared"):
            self._end("share", said["share"]) if what == "unshared" else self.made.setdefault(("share", said["share"]), said)
        elif what in ("made", "ended", "revoked"):
            self.made.setdefault(("row", said["id"]), said) if what == "made" else self._end("row", said["id"])

    def _end(self, sort: str, *ids: int) -> None:
        self.ended.update((sort, one) for one in ids if (sort, one) not in self.made)


def _said(core: Core, tx: sa.Connection, *kinds: Kind) -> _Said:
    found = _Said()
    for event in bodies(core, tx, AuditFilter(kinds=kinds)):
        if event.body is not None:
            found.take({**event.body["detail"], "objects": event.body["objects"]})
    return found


def _links(core: Core, tx: sa.Connection) -> Iterator[Found]:
    rows = tx.execute(
        sa.select(share_link, boundary.c.owner_id.label("bound_owner"), boundary.c.not_after.label("bound_until"),
                  datastore.c.name.label("datastore"))
        .outerjoin(boundary, boundary.c.id == share_link.c.boundary_id).outerjoin(datastore, datastore.c.id == share_link.c.datastore_id)
    ).all()
    if not rows:
        return
    said = _said(core, tx, Kind.SHARED, Kind.SHARE_CHANGED)
    for row in rows:
        event = said.made.get(("row", row.id))
        if event is None:
            yield "V12", f"link {row.id} was made by no event", ""
            continue
        if (("row", row.id) in said.ended) != (row.revoked_at is not None):
            yield "V12", f"link {row.id} counts, or ended, and no event says so", ""
        if _link(core.keyring, row) != {name: event.get(name) for name in _link(core.keyring, row)} or (
            (row.bound_owner, row.bound_until) != (row.owner_id, row.not_after)
            or sorted(_bounds(tx, row)) != sorted(tuple(one) for one in {tuple(one) for one in event["objects"]})
        ):
            yield "V12", f"link {row.id} is not the one that was made", ""


def _link(keyring: Keyring, row: Any) -> Row:
    return {
        "owner": row.owner_id, "datastore": row.datastore, "permissions": names(Permission(row.permissions)),
        "until": row.not_after.isoformat(), "code_by": row.code_by, "max_views": row.max_views or 0, "token": row.token_id or 0,
        "recipient": recipient(keyring, row.recipient_email or row.recipient_name), "secret": secret_digest(bytes(row.token_hmac)),
    }


def _bounds(tx: sa.Connection, row: Any) -> list[tuple[str, str]]:
    i = boundary_item.c
    items = tx.execute(sa.select(i.scope_key, i.permissions).where(i.boundary_id == row.boundary_id)).all()
    if any(item.permissions != row.permissions for item in items):
        return [("", "")]
    named = grants.named(tx, {item.scope_key for item in items})
    return [(str(level), uid) for level, uid in (named.get(item.scope_key, ("", "")) for item in items)]


def _sessions(core: Core, tx: sa.Connection) -> Iterator[Found]:
    s = share_session.c
    rows = tx.execute(sa.select(share_session).where(s.revoked_at.is_(None), s.absolute_until > core.clock())).all()
    if not rows:
        return
    begun = {event["session"]["id"]: event for event in reversed(list(details(core, tx, Kind.SHARE_OPENED))) if "session" in event}
    over = {
        event.body["subject"].get("share_session") for event in bodies(core, tx, AuditFilter(kinds=(Kind.SHARE_CLOSED,)))
        if event.body is not None
    }
    for row in rows:
        event = begun.get(row.id)
        now = {"id": row.id, "of": secret_digest(bytes(row.token_sha256)), "until": row.absolute_until.isoformat()}
        if event is None or event["id"] != row.share_id or event["session"] != now or row.idle_until > row.absolute_until:
            yield "V12", f"session {row.id} of a link is not one that was begun", ""
        if row.id in over:
            yield "V12", f"session {row.id} of a link counts again, although it was closed", ""


def _givers(core: Core, tx: sa.Connection) -> Iterator[Found]:
    g = grant_rows.c
    by_album = tx.execute(sa.select(g.id, g.granted_by).where(g.kind == albums.KIND, g.revoked_at.is_(None))).all()
    if not by_album:
        return
    given = {event["id"]: event.get("giver") for event in reversed(list(details(core, tx, Kind.GRANTED))) if "id" in event}
    for grant in by_album:
        if grant.granted_by != given.get(grant.id):
            yield "V12", f"grant {grant.id} stands on another's right than it was given in", ""


def _albums(core: Core, tx: sa.Connection) -> Iterator[Found]:
    query = sa.select(album, datastore.c.name.label("datastore")).outerjoin(datastore, datastore.c.id == album.c.datastore_id)
    rows = tx.execute(query).all()
    if not rows:
        return
    said = _said(core, tx, Kind.ALBUM_CHANGED)
    for row in rows:
        event = said.made.get(("row", row.id))
        now = {"owner": row.owner_id, "name": row.name, "until": row.not_after.isoformat(), "datastore": row.datastore}
        if event is None or any(event.get(name) != value for name, value in now.items()):
            yield "V12", f"album {row.id} is not one that was made", ""
        if (("row", row.id) in said.ended) != (row.ended_at is not None):
            yield "V12", f"album {row.id} goes on, or ended, and no event says so", ""
    yield from _shares(tx, said, {row.id for row in rows if row.ended_at is not None})
    yield from _items(tx, said)


def _shares(tx: sa.Connection, said: _Said, gone: set[int]) -> Iterator[Found]:
    for one in tx.execute(sa.select(album_share)):
        event = said.made.get(("share", one.id))
        now = {
            "id": one.album_id, "to": one.principal_id, "rights": one.rights, "by": one.shared_by, "from": one.not_before.isoformat(),
            "permissions": names(Permission(one.permissions)), "until": one.not_after.isoformat(),
        }
        if event is None or any(event.get(name) != value for name, value in now.items()):
            yield "V12", f"album {one.album_id} is shared otherwise than events say", ""
        if (("share", one.id) in said.ended or one.album_id in gone) != (one.revoked_at is not None):
            yield "V12", f"album {one.album_id} is shared, or no more, and no event says so", ""


def _items(tx: sa.Connection, said: _Said) -> Iterator[Found]:
    items = tx.execute(sa.select(album_item).where(album_item.c.removed_at.is_(None))).all()
    named = grants.named(tx, {one.scope_key for one in items})
    for one in items:
        level, uid = named[one.scope_key]
        now = {"album": one.album_id, "level": str(level), "uid": uid, "by": one.added_by}
        if said.made.get(("item", one.id)) != now or ("item", one.id) in said.ended:
            yield "V12", f"album {one.album_id} holds what was not put in", ""
