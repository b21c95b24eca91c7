"""Albums as rows: named collections of studies and series, and with whom each is shared.

What somebody sees by an album stands in `grants` of kind "shared", one for each item and each with whom it is shared, given by whoever
added the item: it counts while that one may see and share the item on grants of their own (access/predicate.py).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from archive.access import grants
from archive.access.grants import Terms
from archive.access.permissions import Permission
from archive.db.tables import album, album_grant, album_item, album_share, datastore, membership, principal
from archive.db.tables import grants as grant_rows

Rights = Literal["view", "add", "manage"]
RANK: dict[str, int] = {"": 0, "view": 1, "add": 2, "manage": 3, "own": 4}
KIND = "shared"
Row = dict[str, Any]
_A, _I, _S, _G = album.c, album_item.c, album_share.c, album_grant.c


def create(tx: sa.Connection, owner_id: int, *, name: str, datastore_id: int, not_after: datetime, at: datetime) -> int:
    """Make an album and return its id."""
    return _insert(tx, sa.insert(album).values(
        owner_id=owner_id, name=name, datastore_id=datastore_id, created_at=at, not_after=not_after,
    ))


def _insert(tx: sa.Connection, statement: sa.Insert) -> int:
    key = tx.execute(statement).inserted_primary_key
    assert key is not None
    return int(key[0])


def find(tx: sa.Connection, album_id: int, *, at: datetime) -> Row | None:
    """Return an album that goes on.

    Who changes it is to be alone (Ledger.alone): what is put in and with whom it is shared change one after the other, or what was
    given for the one would miss what the other took away.
    """
    query = (
        sa.select(album, principal.c.name.label("owner"), datastore.c.name.label("datastore"))
        .join(principal, principal.c.id == _A.owner_id).join(datastore, datastore.c.id == _A.datastore_id)
        .where(_A.id == album_id, _A.ended_at.is_(None), _A.not_after > at)
    )
    row = tx.execute(query).mappings().first()
    return None if row is None else dict(row)


def ids(tx: sa.Connection, *, at: datetime, principal_id: int | None = None) -> list[int]:
    """Return the albums that go on, the newest first: all, or those of a principal or shared with it now."""
    query = sa.select(_A.id).where(_A.ended_at.is_(None), _A.not_after > at).order_by(_A.id.desc())
    if principal_id is not None:
        reached = _live(at).where(_S.principal_id.in_(_callers(principal_id, at))).with_only_columns(_S.album_id)
        query = query.where(sa.or_(_A.owner_id == principal_id, _A.id.in_(reached)))
    return list(tx.execute(query).scalars())


def rights_of(tx: sa.Connection, row: Row, principal_id: int, *, at: datetime) -> tuple[str, list[Row]]:
    """Return what a principal may do with an album, own, manage, add, view or nothing, and the shares that say so."""
    if row["owner_id"] == principal_id:
        return "own", []
    query = _live(at).where(_S.album_id == row["id"], _S.principal_id.in_(_callers(principal_id, at)))
    held = [dict(found) for found in tx.execute(query).mappings()]
    return max((one["rights"] for one in held), key=RANK.__getitem__, default=""), held


def _live(at: datetime) -> sa.Select[Any]:
    return sa.select(album_share).where(_S.revoked_at.is_(None), _S.not_before <= at, _S.not_after > at)


def _callers(principal_id: int, at: datetime) -> sa.CompoundSelect[Any]:
    m, itself = membership.c, principal.alias()
    there = (itself.c.id == principal_id, itself.c.enabled == sa.true(), itself.c.removed_at.is_(None))
    groups = (
        sa.select(m.group_id).join(principal, principal.c.id == m.group_id)
        .where(m.principal_id == principal_id, m.not_before <= at, m.not_after > at, principal.c.enabled == sa.true(),
               principal.c.removed_at.is_(None), sa.exists().where(*there))
    )
    return sa.union_all(sa.select(itself.c.id).where(*there), groups)


def orphans(tx: sa.Connection, row: Row, *, at: datetime) -> list[Row]:
    """Return the shares by those who manage the album no more."""
    return [one for one in shares(tx, row["id"], at=at) if RANK[rights_of(tx, row, one["shared_by"], at=at)[0]] < RANK["manage"]]


def orphaned(tx: sa.Connection, *, at: datetime) -> list[int]:
    """Return which albums have such shares."""
    query = (
        sa.select(_S.album_id).join(album, _A.id == _S.album_id).distinct()
        .where(_S.shared_by != _A.owner_id, _S.revoked_at.is_(None), _S.not_after > at).order_by(_S.album_id)
    )
    found = [find(tx, album_id, at=at) for album_id in tx.execute(query).scalars()]
    return [row["id"] for row in found if row is not None and orphans(tx, row, at=at)]


def items(tx: sa.Connection, album_id: int) -> list[Row]:
    """Return what is in an album, oldest first."""
    query = sa.select(album_item).where(_I.album_id == album_id, _I.removed_at.is_(None)).order_by(_I.id)
    return [dict(row) for row in tx.execute(query).mappings()]


def shares(tx: sa.Connection, album_id: int, *, at: datetime) -> list[Row]:
    """Return with whom an album is shared, now or later."""
    query = (
        sa.select(album_share, principal.c.name, principal.c.kind).join(principal, principal.c.id == _S.principal_id)
        .where(_S.album_id == album_id, _S.revoked_at.is_(None), _S.not_after > at).order_by(_S.id)
    )
    return [dict(row) for row in tx.execute(query).mappings()]


def add(tx: sa.Connection, album_id: int, scope_key: int, *, by: int, at: datetime) -> Row:
    """Put a study or series in."""
    values = {"album_id": album_id, "scope_key": scope_key, "added_by": by, "created_at": at}
    return values | {"id": _insert(tx, sa.insert(album_item).values(values))}


def remove(tx: sa.Connection, item_id: int, *, at: datetime) -> None:
    """Take an item out."""
    tx.execute(sa.update(album_item).where(_I.id == item_id, _I.removed_at.is_(None)).values(removed_at=at))


def share(
    tx: sa.Connection, album_id: int, principal_id: int, *, rights: Rights, permissions: Permission, not_before: datetime,
    not_after: datetime, by: int, at: datetime,
) -> Row:
    """Share an album with a user or group."""
    values = {
        "album_id": album_id, "principal_id": principal_id, "rights": rights, "permissions": int(permissions), "not_before": not_before,
        "not_after": not_after, "shared_by": by, "created_at": at,
    }
    return values | {"id": _insert(tx, sa.insert(album_share).values(values))}


def unshare(tx: sa.Connection, share_id: int, *, at: datetime) -> None:
    """End a share."""
    tx.execute(sa.update(album_share).where(_S.id == share_id, _S.revoked_at.is_(None)).values(revoked_at=at))


def end(tx: sa.Connection, album_id: int, *, at: datetime) -> None:
    """End an album; its shares end with it."""
    tx.execute(sa.update(album).where(_A.id == album_id, _A.ended_at.is_(None)).values(ended_at=at))
    tx.execute(sa.update(album_share).where(_S.album_id == album_id, _S.revoked_at.is_(None)).values(revoked_at=at))


def give(tx: sa.Connection, row: Row, item: Row, shared: Row, *, at: datetime) -> int | None:
    """Give whom the album is shared with the grant of an item, in the name of who added it; none to themselves, or when it is over."""
    start, until = max(at, shared["not_before"]), min(shared["not_after"], row["not_after"])
    if shared["principal_id"] == item["added_by"] or start >= until:
        return None
    key = grants.give(
        tx, to=shared["principal_id"], role_row=None, datastore_id=row["datastore_id"], scope_key=item["scope_key"],
        terms=Terms(not_before=start, not_after=until, reason=f"album {row['id']}"), by=item["added_by"], at=at, kind=KIND,
        permissions=Permission(shared["permissions"]),
    )
    tx.execute(sa.insert(album_grant).values(grant_id=key, album_share_id=shared["id"], album_item_id=item["id"]))
    return key


def given(tx: sa.Connection, *, item_id: int | None = None, share_id: int | None = None, album_id: int | None = None) -> list[int]:
    """Return the grants, not yet revoked, of an item, a share or a whole album."""
    query = sa.select(_G.grant_id).join(grant_rows, grant_rows.c.id == _G.grant_id).where(grant_rows.c.revoked_at.is_(None))
    if item_id is not None:
        query = query.where(_G.album_item_id == item_id)
    if share_id is not None:
        query = query.where(_G.album_share_id == share_id)
    if album_id is not None:
        query = query.join(album_share, _S.id == _G.album_share_id).where(_S.album_id == album_id)
    return sorted(tx.execute(query).scalars())
