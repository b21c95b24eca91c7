"""Share links: a random word for somebody without an account, kept as an HMAC, and the sessions in which links are opened.

A link shows within its boundary what its owner may see and share at that moment; the SQL condition asks (access/predicate.py).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa

from archive.access import grants, sessions, tokens
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.prepared import Prepared
from archive.db.tables import boundary, boundary_item, datastore, principal, share_code, share_link, share_session
from archive.errors import Unauthenticated
from archive.keys.keyring import Keyring

CodeBy = Literal["mail", "apart"]
DEFAULT_LIFE = timedelta(days=7)
IDLE, ABSOLUTE = timedelta(minutes=30), timedelta(hours=12)
_FORM = re.compile(r"[A-Za-z0-9_-]{43}")
_L, _S, _P = share_link.c, share_session.c, principal.c
_AT = sa.bindparam("at", type_=_L.not_after.type)
_LINK = (_L.id, _L.owner_id, _P.name.label("owner"), _L.boundary_id, _L.token_id, _L.permissions, _L.recipient_name, _L.recipient_email,
         _L.code_by, _L.label, _L.not_after, datastore.c.name.label("datastore"))
_COUNTS = (
    _L.revoked_at.is_(None), _L.not_after > _AT, _P.enabled == sa.true(), _P.removed_at.is_(None),
    sa.or_(_P.kind == "user", _P.kind == "service"),
)
_FROM = share_link.join(principal, _P.id == _L.owner_id).join(datastore, datastore.c.id == _L.datastore_id)
_WORDED = sa.select(*_LINK).select_from(_FROM).where(
    _L.token_hmac == sa.bindparam("hmac"), *_COUNTS, sa.or_(_L.max_views.is_(None), _L.views < _L.max_views),
)
_BY_WORD, _IS_THERE = Prepared(_WORDED.with_for_update(of=share_link)), Prepared(_WORDED)
_ALONE = Prepared(sa.select(_L.id).where(_L.id == sa.bindparam("id", type_=sa.BigInteger())).with_for_update())
_BY_ID = Prepared(sa.select(*_LINK).select_from(_FROM).where(_L.id == sa.bindparam("id", type_=sa.BigInteger()), *_COUNTS))
_BY_SESSION = Prepared(
    sa.select(*_LINK, _S.id.label("session"), _S.last_seen_at, _S.absolute_until)
    .select_from(_FROM.join(share_session, _S.share_id == _L.id))
    .where(_S.token_sha256 == sa.bindparam("digest"), _S.revoked_at.is_(None), _S.idle_until > _AT, _S.absolute_until > _AT, *_COUNTS)
)


@dataclass(frozen=True, slots=True)
class Link:
    """A link that counts, and whose it is."""

    id: int
    owner_id: int
    owner: str
    boundary_ids: tuple[int, ...]
    token_id: int | None
    token_depth: int
    permissions: Permission
    recipient_name: str
    recipient_email: str
    code_by: CodeBy
    label: str
    not_after: datetime
    datastore: str


@dataclass(frozen=True, slots=True)
class Opened:
    """A session of a link."""

    link: Link
    session_id: int
    last_seen_at: datetime
    absolute_until: datetime

    def subject(self, recipient: str, *, address: str, user_agent: str) -> Subject:
        """Return who comes in with it: somebody on behalf of the link's owner."""
        link = self.link
        return Subject(
            link.owner_id, link.owner, "user", "share", address=address, token_id=link.token_id, token_depth=link.token_depth,
            boundary_ids=link.boundary_ids, limit=link.permissions, share_id=link.id, share_session_id=self.session_id,
            recipient=recipient, user_agent=user_agent[:300],
        )


def create(
    tx: sa.Connection, keyring: Keyring, owner_id: int, *, datastore_id: int, scope_keys: Sequence[int], permissions: Permission,
    at: datetime, not_after: datetime, recipient_name: str, recipient_email: str, code_by: CodeBy, max_views: int | None, label: str,
    token_id: int | None,
) -> tuple[int, str]:
    """Make a link and return its id and the word that is shown once."""
    word = secrets.token_urlsafe(32)
    bits = int(permissions | Permission.SHARE)
    bound = _insert(tx, sa.insert(boundary).values(owner_id=owner_id, label=label, not_after=not_after))
    tx.execute(sa.insert(boundary_item), [
        {"boundary_id": bound, "permissions": bits, "scope_key": key} for key in sorted(set(scope_keys))
    ])
    key = _insert(tx, sa.insert(share_link).values(
        token_hmac=kept(keyring, word), owner_id=owner_id, datastore_id=datastore_id, boundary_id=bound, token_id=token_id,
        permissions=bits, recipient_name=recipient_name, recipient_email=recipient_email, code_by=code_by, max_views=max_views,
        label=label, created_at=at, not_after=not_after,
    ))
    return key, word


def _insert(tx: sa.Connection, statement: sa.Insert) -> int:
    key = tx.execute(statement).inserted_primary_key
    assert key is not None
    return int(key[0])


def kept(keyring: Keyring, word: str) -> bytes:
    """Return what the table keeps of a link's word."""
    return keyring.pseudonym("share-link", word)


def is_there(tx: sa.Connection, keyring: Keyring, word: str, *, at: datetime) -> bool:
    """Whether a word opens a link just now; nothing is held."""
    return _FORM.fullmatch(word) is not None and _IS_THERE.first(tx, {"hmac": kept(keyring, word), "at": at}) is not None


def find(tx: sa.Connection, keyring: Keyring, word: str, *, at: datetime) -> Link | None:
    """Return the link of a word, None when it opens nothing: no word of a link, revoked, at its end, opened as often as it may be.

    It is held until the transaction ends, as by `alone`.
    """
    if not _FORM.fullmatch(word):
        return None
    return _link(tx, _BY_WORD.first(tx, {"hmac": kept(keyring, word), "at": at}), at)


def alone(tx: sa.Connection, share_id: int) -> None:
    """Hold a link until the transaction ends: whoever counts its codes, and draws another, does so alone. On SQLite every writer is."""
    _ALONE.first(tx, {"id": share_id})


def by_id(tx: sa.Connection, share_id: int, *, at: datetime) -> Link | None:
    """Return a link that counts."""
    return _link(tx, _BY_ID.first(tx, {"id": share_id, "at": at}), at)


def _link(tx: sa.Connection, row: Any | None, at: datetime) -> Link | None:
    if row is None:
        return None
    boundaries, carried, depth = (row.boundary_id,), Permission(row.permissions), 1
    if row.token_id is not None:
        try:
            token = tokens.standing(tx, row.token_id, at=at)
        except Unauthenticated:
            return None
        boundaries, carried, depth = (row.boundary_id, *token.boundary_ids), carried & token.permissions, token.depth
    return Link(
        row.id, row.owner_id, row.owner, boundaries, row.token_id, depth, carried, row.recipient_name, row.recipient_email, row.code_by,
        row.label, row.not_after, row.datastore,
    )


def open_session(tx: sa.Connection, link: Link, *, at: datetime, address: str, user_agent: str) -> tuple[int, str] | None:
    """Count a view and start a session; return its id and the word for the browser, None when the link was opened too often meanwhile."""
    counted = sa.update(share_link).where(
        _L.id == link.id, _L.revoked_at.is_(None), sa.or_(_L.max_views.is_(None), _L.views < _L.max_views)
    ).values(views=_L.views + 1, last_opened_at=at)
    if not tx.execute(counted).rowcount:
        return None
    word, end = secrets.token_urlsafe(32), min(at + ABSOLUTE, link.not_after)
    key = _insert(tx, sa.insert(share_session).values(
        share_id=link.id, token_sha256=sessions.digest(word), created_at=at, last_seen_at=at, idle_until=min(at + IDLE, end),
        absolute_until=end, address=address, user_agent=user_agent[:300],
    ))
    return key, word


def session(tx: sa.Connection, word: str, *, at: datetime) -> Opened | None:
    """Return the session of a browser's word, None when it or its link counts no more, or it was seen by a clock that was ahead."""
    row = _BY_SESSION.first(tx, {"digest": sessions.digest(word), "at": at})
    if row is not None and row.last_seen_at > at + sessions.AHEAD:
        return None
    link = _link(tx, row, at)
    return None if row is None or link is None else Opened(link, row.session, row.last_seen_at, row.absolute_until)


def touch(tx: sa.Connection, opened: Opened, *, at: datetime) -> None:
    """Move the idle end of a session; one that ended meanwhile stays ended."""
    tx.execute(
        sa.update(share_session).where(_S.id == opened.session_id, _S.revoked_at.is_(None), _S.idle_until > at)
        .values(last_seen_at=at, idle_until=min(at + IDLE, opened.absolute_until))
    )


def end_session(tx: sa.Connection, session_id: int, *, at: datetime) -> None:
    """End a session."""
    tx.execute(sa.update(share_session).where(_S.id == session_id, _S.revoked_at.is_(None)).values(revoked_at=at))


def sweep(tx: sa.Connection, at: datetime) -> None:
    """Forget sessions and codes that ended a month ago."""
    before = at - timedelta(days=30)
    tx.execute(sa.delete(share_session).where(_S.absolute_until < before))
    tx.execute(sa.delete(share_code).where(share_code.c.created_at < before, share_code.c.ended_at.is_not(None)))


def revoke(tx: sa.Connection, share_id: int, *, by: int, at: datetime) -> bool:
    """End a link, its sessions and its codes; return whether it was not ended before."""
    live = sa.and_(_L.id == share_id, _L.revoked_at.is_(None))
    ended = bool(tx.execute(sa.update(share_link).where(live).values(revoked_at=at, revoked_by=by)).rowcount)
    tx.execute(sa.update(share_session).where(_S.share_id == share_id, _S.revoked_at.is_(None)).values(revoked_at=at))
    tx.execute(sa.update(share_code).where(share_code.c.share_id == share_id, share_code.c.ended_at.is_(None)).values(ended_at=at))
    return ended


def listed(tx: sa.Connection, *, at: datetime, owner_id: int | None = None, share_id: int | None = None) -> list[dict[str, Any]]:
    """Return links, newest first, without their words: of one owner or of all, and what each is about."""
    query = sa.select(share_link, _P.name.label("owner"), datastore.c.name.label("datastore")).select_from(_FROM).order_by(_L.id.desc())
    if owner_id is not None:
        query = query.where(_L.owner_id == owner_id)
    if share_id is not None:
        query = query.where(_L.id == share_id)
    rows = [dict(row) for row in tx.execute(query).mappings()]
    items: dict[int, list[int]] = {}
    i = boundary_item.c
    for start in range(0, len(rows), 500):
        bounds = [row["boundary_id"] for row in rows[start:start + 500]]
        for found in tx.execute(sa.select(i.boundary_id, i.scope_key).where(i.boundary_id.in_(bounds)).order_by(i.id)):
            items.setdefault(found.boundary_id, []).append(found.scope_key)
    named = grants.named(tx, {key for keys in items.values() for key in keys})
    for row in rows:
        row["items"] = [
            {"level": named[key][0], "uid": named[key][1]} for key in items.get(row["boundary_id"], ()) if key in named
        ]
        row["state"] = state(row, at)
    return rows


def state(row: dict[str, Any], at: datetime) -> str:
    """Return revoked, expired, used up or active."""
    if row["revoked_at"] is not None:
        return "revoked"
    if at >= row["not_after"]:
        return "expired"
    return "used up" if row["max_views"] is not None and row["views"] >= row["max_views"] else "active"
