"""Albums: named collections of studies and series, shared with users and groups for a time.

Whoever adds an item lets the album's owner and managers decide who sees it, for as long as they may see and share it themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from archive.access import albums, grants, policy, principals, when
from archive.access.albums import RANK, Rights
from archive.access.permissions import Permission
from archive.access.policy import scope_of
from archive.access.roles import names
from archive.access.subject import Subject
from archive.db.tables import series, study
from archive.db.types import FOREVER
from archive.errors import Forbidden, InvalidRequest, NotFound
from archive.ledger.audit import Event, Kind, ObjectRef
from archive.services import datastores, grant_events
from archive.services.changes import Changes
from archive.services.core import Core
from archive.services.shares import READ, plain

Row = dict[str, Any]
Rows = list[Row]
When = datetime | str | None
P = Permission
MOST_ITEMS, MOST_SHARES = 500, 50
_EVERYBODYS = P.USER_MANAGE | P.AUDIT
_ENDS = P.USER_MANAGE | P.ROLE_MANAGE


class Albums(Changes):
    """What albums are made, filled, shared and ended with; `owner` names in whose right the console does it."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        super().__init__(core.database, core.ledger, core.clock, read_only=core.read_only)

    def create(
        self, subject: Subject, name: str, *, until: When = None, datastore: str = datastores.DEFAULT, owner: str | int | None = None
    ) -> Row:
        """Make an album; without `until` it has no end.

        Raises:
            InvalidRequest, NotFound, Forbidden.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            me = self._me(tx, subject, owner, at)
            called, end = plain(name), _instant(until, at) or FOREVER
            if not called or end <= at:
                message = "an album has a name, and an end that lies ahead"
                raise InvalidRequest(message, remedy="name it, and a later end or none")
            store = datastores.asked_for(tx, me, datastore, at).id
            key = albums.create(tx, me.principal_id, name=called, datastore_id=store, not_after=end, at=at)
            self._told(tx, subject, at, key, "made", name=called, owner=me.principal_id, until=end.isoformat(), datastore=datastore)
            return self._shown(tx, me, key, at)

        return self._change(subject, None, work)

    def list(self, subject: Subject, *, everybody: bool = False) -> Rows:
        """Return the albums that are one's own or shared with one; everybody's with user-manage or audit, and at the console.

        Raises:
            Forbidden.
        """
        everybody = everybody or subject.kind == "console"

        def work(tx: sa.Connection, at: datetime) -> Rows:
            if everybody:
                policy.require_any(tx, subject, _EVERYBODYS, at)
            else:
                self._me(tx, subject, None, at)
            keys = albums.ids(tx, at=at, principal_id=None if everybody else subject.principal_id)
            return [_summary(tx, subject, _there(tx, key, at), at) for key in keys]

        return self._read(subject, None, work)

    def show(self, subject: Subject, album_id: int, *, owner: str | int | None = None) -> Row:
        """Return an album: what of it the subject sees, and for its owner and managers with whom it is shared.

        Raises:
            NotFound: no such album, or none that is shared with the subject.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            return self._shown(tx, self._me(tx, subject, owner, at), album_id, at)

        found = self._read(subject, None, work)
        objects = tuple(ObjectRef(one["level"], one["uid"]) for one in found["items"])
        event = Event(Kind.READ, subject=subject, objects=objects, detail={"what": "album", "album": album_id})
        with self._database.begin() as tx:
            self._ledger.record(tx, event, at=self._clock())
        return found

    def add(
        self, subject: Subject, album_id: int, *, studies: Sequence[str] = (), series: Sequence[str] = (), owner: str | int | None = None
    ) -> Row:
        """Put studies and series in that the subject may see and share; everybody the album is shared with sees them then.

        Raises:
            NotFound: no such album, or a study or series the subject does not see or may not share.
            InvalidRequest, Forbidden.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            me = self._me(tx, subject, owner, at)
            row, rights, _held = self._mine(tx, me, album_id, at, "add")
            scope = scope_of(me, READ | P.SHARE, at)
            store = row["datastore_id"]
            keys = [grants.visible_key(tx, scope, store, "study", uid) for uid in studies]
            keys += [grants.visible_key(tx, scope, store, "series", uid) for uid in series]
            there = {one["scope_key"] for one in albums.items(tx, album_id)}
            fresh = [key for key in dict.fromkeys(keys) if key not in there]
            if not keys or len(there) + len(fresh) > MOST_ITEMS:
                message = f"an album holds up to {MOST_ITEMS} studies and series"
                raise InvalidRequest(message, remedy="name some, or make another album")
            shared = albums.shares(tx, album_id, at=at)
            named, put = grants.named(tx, set(fresh)), []
            for key in fresh:
                item = albums.add(tx, album_id, key, by=me.principal_id, at=at)
                put.append([item["id"], *named[key], me.principal_id])
                self._given(tx, subject, at, [albums.give(tx, row, item, one, at=at) for one in shared])
            objects = (*(ObjectRef("study", uid.strip()) for uid in studies), *(ObjectRef("series", uid.strip()) for uid in series))
            self._told(tx, subject, at, album_id, "added", *objects, items=put, rights=rights)
            return self._shown(tx, me, album_id, at)

        return self._change(subject, None, work, alone=True)

    def remove(
        self, subject: Subject, album_id: int, level: Literal["study", "series"], uid: str, *, owner: str | int | None = None
    ) -> Row:
        """Take an item out: one's own, or as owner or manager any; nobody sees it by this album any more.

        Raises:
            NotFound: no such album or item.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            me = self._me(tx, subject, owner, at)
            row = _there(tx, album_id, at)
            rights, _ = albums.rights_of(tx, row, me.principal_id, at=at)
            table, column, tail = (study, study.c.study_instance_uid, 2) if level == "study" else (series, series.c.series_instance_uid, 3)
            named = sa.select(table.c.id).where(table.c.datastore_id == row["datastore_id"], column == uid.strip())
            key = policy.run_as(tx, policy.system("access"), named).scalar()
            found = [one for one in albums.items(tx, album_id) if key is not None and one["scope_key"] == int(key) * 4 + tail]
            mine = [one for one in found if one["added_by"] == me.principal_id or RANK[rights] >= RANK["manage"]]
            if not mine:
                raise _absent()
            for one in mine:
                self._revoked(tx, subject, at, albums.given(tx, item_id=one["id"]), f"removed from album {album_id}")
                albums.remove(tx, one["id"], at=at)
            self._told(tx, subject, at, album_id, "taken out", ObjectRef(level, uid.strip()), items=[[one["id"]] for one in mine])
            return {"id": album_id, "level": level, "uid": uid.strip()}

        return self._change(subject, None, work, alone=True)

    def share(
        self, subject: Subject, album_id: int, to: str | int, *, rights: Rights = "view", until: When = None, since: When = None,
        download: bool = False, owner: str | int | None = None,
    ) -> Row:
        """Share an album with a user or group, in place of how it was shared with them; a manager gives no more than was given them.

        Raises:
            NotFound: no such album or user. InvalidRequest. Forbidden: to oneself, or more than one has.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            me = self._me(tx, subject, owner, at)
            row, mine, held = self._mine(tx, me, album_id, at, "manage")
            who = principals.find(tx, to, ("user", "service", "group"))
            bits = READ | P.ORIGINAL if download else READ
            start, end = _instant(since, at) or at, min(_instant(until, at) or row["not_after"], row["not_after"])
            if end <= max(start, at):
                message = "it would end before it begins"
                raise InvalidRequest(message, remedy="name an end that lies ahead")
            if who["id"] == me.principal_id or who["id"] == row["owner_id"]:
                message = "an album is not shared with its owner, nor by anybody with themselves"
                raise Forbidden(message, remedy="name somebody else")
            if mine != "own":
                end = _no_more(tx, me, who["id"], held, bits, rights, end)
            others = [one for one in albums.shares(tx, album_id, at=at) if one["principal_id"] != who["id"]]
            if len(others) >= MOST_SHARES:
                message = f"an album is shared with up to {MOST_SHARES} users and groups"
                raise InvalidRequest(message, remedy="share it with a group")
            for one in albums.shares(tx, album_id, at=at):
                if one["principal_id"] == who["id"]:
                    self._unshare(tx, subject, album_id, one, at)
                    self.end_orphans(tx, subject, row, at)
            shared = albums.share(
                tx, album_id, who["id"], rights=rights, permissions=bits, not_before=max(start, at), not_after=end, by=me.principal_id,
                at=at,
            )
            given = [albums.give(tx, row, item, shared, at=at) for item in albums.items(tx, album_id)]
            self._given(tx, subject, at, given)
            self._told(
                tx, subject, at, album_id, "shared", share=shared["id"], to=who["id"], rights=rights, by=me.principal_id,
                permissions=names(bits), until=end.isoformat(), **{"from": shared["not_before"].isoformat()},
            )
            return self._member({**shared, "name": who["name"], "kind": who["kind"]}) | {"album": album_id}

        return self._change(subject, None, work, alone=True)

    def unshare(self, subject: Subject, album_id: int, to: str | int, *, owner: str | int | None = None) -> Row:
        """Share an album no more with a user or group, nor with whom they shared it; anybody leaves an album by themselves.

        Raises:
            NotFound: no such album, or it is not shared with them.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            me = self._me(tx, subject, owner, at)
            row = _there(tx, album_id, at)
            rights, held = albums.rights_of(tx, row, me.principal_id, at=at)
            there = albums.shares(tx, album_id, at=at)
            wanted = [one for one in there if str(to) in (str(one["principal_id"]), one["name"])]
            if rights not in ("own", "manage"):
                wanted = [one for one in wanted if one["principal_id"] == me.principal_id and held]
            if not wanted:
                raise _absent()
            for one in wanted:
                self._unshare(tx, subject, album_id, one, at)
            self.end_orphans(tx, subject, row, at)
            return self._member(wanted[0]) | {"album": album_id}

        return self._change(subject, None, work, alone=True)

    def end(self, subject: Subject, album_id: int, *, owner: str | int | None = None) -> Row:
        """End an album: nobody sees anything by it any more; its owner's, or with user-manage or role-manage anyone's.

        Raises:
            NotFound.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            row = albums.find(tx, album_id, at=at)
            anybodys = bool(policy.functions_of(tx, subject, at) & _ENDS)
            me = subject if owner is None and anybodys else self._me(tx, subject, owner, at)
            if row is None or (row["owner_id"] != me.principal_id and not anybodys):
                raise _absent()
            self._revoked(tx, subject, at, albums.given(tx, album_id=album_id), f"album {album_id} ended")
            albums.end(tx, album_id, at=at)
            self._told(tx, subject, at, album_id, "ended", owner=row["owner_id"])
            return {"id": album_id, "name": row["name"], "owner": row["owner"], "ended_at": at}

        return self._change(subject, None, work, alone=True)

    # -------------------------------------------------------------------------------------------------------------------------------

    def _me(self, tx: sa.Connection, subject: Subject, owner: str | int | None, at: datetime) -> Subject:
        if subject.kind == "console":
            if owner is None:
                message = "the command line sees no image, so an album is somebody's"
                raise InvalidRequest(message, remedy="name the user with --as USER")
            row = principals.find(tx, owner, ("user", "service"))
            return Subject(row["id"], row["name"], "user", "internal")
        if subject.kind not in ("user", "service") or subject.share_id is not None or subject.boundary_ids:
            message = "albums are for users, and a bounded token reaches none"
            raise Forbidden(message, remedy="sign in as one, or use a token without bounds")
        if subject.limit is not None and not subject.limit & P.SHARE:
            message = "the token does not carry the permission share"
            raise Forbidden(message, remedy="make one that does")
        policy.require_live(tx, subject, at)
        return subject

    def _mine(self, tx: sa.Connection, me: Subject, album_id: int, at: datetime, need: str) -> tuple[Row, str, Rows]:
        row = _there(tx, album_id, at)
        rights, held = albums.rights_of(tx, row, me.principal_id, at=at)
        if not rights:
            raise _absent()
        if RANK[rights] < RANK[need]:
            message = f"that needs the right to {need} in this album"
            raise Forbidden(message, remedy=f"ask {row['owner']}, whose album it is")
        return row, rights, held

    def _unshare(self, tx: sa.Connection, subject: Subject, album_id: int, share: Row, at: datetime) -> None:
        self._revoked(tx, subject, at, albums.given(tx, share_id=share["id"]), f"album {album_id} is shared no more")
        albums.unshare(tx, share["id"], at=at)
        self._told(tx, subject, at, album_id, "unshared", share=share["id"], to=share["principal_id"])

    def end_orphans(self, tx: sa.Connection, subject: Subject, row: Row, at: datetime) -> None:
        """End what was shared by those who manage the album no more."""
        while left := albums.orphans(tx, row, at=at):
            for one in left:
                self._unshare(tx, subject, row["id"], one, at)

    def _given(self, tx: sa.Connection, subject: Subject, at: datetime, made: Sequence[int | None]) -> None:
        for shown in grants.some(tx, [key for key in made if key is not None], at=at):
            grant_events.record(self._ledger, tx, Kind.GRANTED, subject, at, shown)

    def _revoked(self, tx: sa.Connection, subject: Subject, at: datetime, ended: Sequence[int], because: str) -> None:
        for key in ended:
            grant_events.end(self._ledger, tx, subject, at, key, because=because)

    def _told(
        self, tx: sa.Connection, subject: Subject, at: datetime, album_id: int, what: str, *objects: ObjectRef, **detail: Any
    ) -> None:
        detail = {"what": what, "id": album_id, **detail}
        self._ledger.record(tx, Event(Kind.ALBUM_CHANGED, subject=subject, objects=objects, detail=detail), at=at)

    def _shown(self, tx: sa.Connection, me: Subject, album_id: int, at: datetime) -> Row:
        row = _there(tx, album_id, at)
        shown = _summary(tx, me, row, at)
        if not shown["rights"]:
            raise _absent()
        members = albums.shares(tx, album_id, at=at) if RANK[shown["rights"]] >= RANK["manage"] else []
        return shown | {"items": _seen(tx, me, row, at), "shared_with": [self._member(one) for one in members]}

    @staticmethod
    def _member(share: Row) -> Row:
        return {
            "principal": share["name"], "kind": share["kind"], "rights": share["rights"], "from": share["not_before"],
            "until": share["not_after"], "permissions": names(P(share["permissions"])),
        }


def _summary(tx: sa.Connection, subject: Subject, row: Row, at: datetime) -> Row:
    rights, _ = albums.rights_of(tx, row, subject.principal_id, at=at)
    return {
        "id": row["id"], "name": row["name"], "owner": row["owner"], "datastore": row["datastore"], "rights": rights,
        "until": row["not_after"], "endless": row["not_after"] >= FOREVER, "created_at": row["created_at"],
    }


def _seen(tx: sa.Connection, me: Subject, row: Row, at: datetime) -> Rows:
    """Return the items of which the subject sees something; of the others nobody is told that they are there."""
    scope = scope_of(me, P.SEARCH, at)
    found = []
    for item in albums.items(tx, row["id"]):
        number, one = item["scope_key"] // 4, item["scope_key"] % 4 == 3
        if one:
            query = sa.select(
                series.c.series_instance_uid.label("uid"), study.c.study_instance_uid, series.c.series_description.label("description"),
                study.c.patient_name, study.c.study_date,
            ).join(study, study.c.id == series.c.study_pk).where(series.c.id == number, scope.series(series))
        else:
            query = sa.select(
                study.c.study_instance_uid.label("uid"), study.c.study_instance_uid, study.c.study_description.label("description"),
                study.c.patient_name, study.c.study_date,
            ).where(study.c.id == number, scope.study(study))
        seen = scope.run(tx, query).first()
        if seen is not None:
            found.append({
                "level": "series" if one else "study", "uid": seen.uid, "study": seen.study_instance_uid, "patient": seen.patient_name,
                "date": seen.study_date, "description": seen.description, "added_at": item["created_at"],
                "mine": item["added_by"] == me.principal_id,
            })
    return found


def _no_more(
    tx: sa.Connection, me: Subject, to: int, held: Rows, bits: Permission, rights: Rights, end: datetime
) -> datetime:
    """Bound what a manager gives by what was given them.

    Raises:
        Forbidden.
    """
    if principals.is_or_contains(tx, to, me.principal_id):
        message = "nobody shares with a group they are in but the album's owner"
        raise Forbidden(message, remedy="ask the album's owner")
    mine = [one for one in held if one["rights"] == "manage" and not int(bits) & ~one["permissions"]]
    if not mine or RANK[rights] > RANK["manage"]:
        message = "a manager gives no more than was given to them"
        raise Forbidden(message, remedy="ask the album's owner")
    longest: datetime = max(one["not_after"] for one in mine)
    return min(end, longest)


def _there(tx: sa.Connection, album_id: int, at: datetime) -> Row:
    row = albums.find(tx, album_id, at=at)
    if row is None:
        raise _absent()
    return row


def _instant(text: When, at: datetime) -> datetime | None:
    return when.parse(text, at) if isinstance(text, str) else text


def _absent() -> NotFound:
    message = "there is no such album"
    return NotFound(message, remedy="'archive album list' names them")
