"""Browser sessions: kept here, ended here; the browser holds a random word, the table its SHA-256."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import bindparam

from archive.db.prepared import Prepared
from archive.db.tables import principal, session
from archive.errors import Unauthenticated

IDLE = timedelta(minutes=15)
ABSOLUTE = timedelta(hours=12)
TOUCH_EVERY = timedelta(seconds=30)
"""An idle end moves at most this often: reading pages must not write at each request."""
AHEAD = timedelta(minutes=1)
"""A session seen later than this from now has ended: a clock that has been set back since noted its ends, hours or years away."""

_FIND = Prepared(
    sa.select(
        session.c.id, session.c.principal_id, principal.c.name, principal.c.kind, session.c.last_seen_at, session.c.absolute_until,
        session.c.user_agent, session.c.idle_s,
    )
    .join(principal, principal.c.id == session.c.principal_id)
    .where(
        session.c.token_sha256 == bindparam("digest"),
        session.c.revoked_at.is_(None),
        session.c.idle_until > bindparam("at", type_=session.c.idle_until.type),
        session.c.absolute_until > bindparam("at", type_=session.c.idle_until.type),
        session.c.epoch == principal.c.security_epoch,
        principal.c.enabled == sa.true(),
        principal.c.removed_at.is_(None),
    )
)


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long a session lasts without a request, and at all."""

    idle: timedelta = IDLE
    absolute: timedelta = ABSOLUTE


@dataclass(frozen=True, slots=True)
class Live:
    """A session that was found live, and whose it is."""

    id: int
    principal_id: int
    name: str
    kind: str
    last_seen_at: datetime
    absolute_until: datetime
    user_agent: str
    idle_s: int


def create(
    tx: sa.Connection, principal_id: int, *, at: datetime, lifetime: Lifetime, address: str, user_agent: str, level: int = 1
) -> tuple[int, str]:
    """Start a session and return its id and the word that is shown once; `level` 2 for a second factor or a passkey."""
    word = secrets.token_urlsafe(32)
    epoch = tx.execute(sa.select(principal.c.security_epoch).where(principal.c.id == principal_id)).scalar_one()
    absolute_until = at + lifetime.absolute
    made = tx.execute(sa.insert(session).values(
        token_sha256=digest(word), principal_id=principal_id, epoch=epoch, created_at=at, last_seen_at=at,
        idle_until=min(at + lifetime.idle, absolute_until), absolute_until=absolute_until, address=address,
        user_agent=user_agent[:300], auth_level=level, authn_at=at, idle_s=int(lifetime.idle.total_seconds()),
    ))
    assert made.inserted_primary_key is not None
    return int(made.inserted_primary_key[0]), word


def find(tx: sa.Connection, word: str, *, at: datetime) -> Live:
    """Return the live session of a word.

    Raises:
        Unauthenticated: unknown, ended, idle too long, too old, of a clock that was ahead, or its user is disabled.
    """
    row = _FIND.first(tx, {"digest": digest(word), "at": at})
    if row is None or row.last_seen_at > at + AHEAD:
        message = "the session has ended"
        raise Unauthenticated(message, remedy="sign in again")
    return Live(*row)


def touch(tx: sa.Connection, row: Live, *, at: datetime) -> None:
    """Move the idle end of a session that was found live; one that ended meanwhile stays ended."""
    tx.execute(
        sa.update(session)
        .where(session.c.id == row.id, session.c.revoked_at.is_(None), session.c.idle_until > at)
        .values(last_seen_at=at, idle_until=min(at + timedelta(seconds=row.idle_s), row.absolute_until))
    )


def end(tx: sa.Connection, session_id: int, *, at: datetime) -> None:
    """End one session."""
    tx.execute(sa.update(session).where(session.c.id == session_id, session.c.revoked_at.is_(None)).values(revoked_at=at))


def end_word(tx: sa.Connection, word: str, *, at: datetime) -> None:
    """End the session of a word, if it is one: a new sign-in in the same browser takes its place."""
    tx.execute(sa.update(session).where(session.c.token_sha256 == digest(word), session.c.revoked_at.is_(None)).values(revoked_at=at))


def end_all(tx: sa.Connection, principal_id: int, *, at: datetime, keep: int | None = None) -> None:
    """End every session of a principal by raising its security epoch; `keep` goes on."""
    tx.execute(
        sa.update(principal).where(principal.c.id == principal_id).values(security_epoch=principal.c.security_epoch + 1)
    )
    epoch = sa.select(principal.c.security_epoch).where(principal.c.id == principal_id).scalar_subquery()
    mine = sa.update(session).where(session.c.principal_id == principal_id, session.c.revoked_at.is_(None))
    if keep is not None:
        tx.execute(mine.where(session.c.id == keep).values(epoch=epoch))
        mine = mine.where(session.c.id != keep)
    tx.execute(mine.values(revoked_at=at))


def renew(tx: sa.Connection, session_id: int, *, at: datetime, level: int) -> str:
    """Note that the session's user proved again who it is, and return the session's new word; the one before opens nothing."""
    word = secrets.token_urlsafe(32)
    higher = sa.case((session.c.auth_level < level, level), else_=session.c.auth_level)
    mine = sa.and_(session.c.id == session_id, session.c.revoked_at.is_(None))
    tx.execute(sa.update(session).where(mine).values(token_sha256=digest(word), authn_at=at, auth_level=higher))
    return word


def lift(tx: sa.Connection, session_id: int, *, level: int) -> None:
    """Note that the session's user has shown a second factor; its word stays."""
    tx.execute(sa.update(session).where(session.c.id == session_id).values(auth_level=level))


def live_of(tx: sa.Connection, principal_id: int, *, at: datetime) -> list[dict[str, Any]]:
    """Return the sessions of a principal that count now, the last seen first."""
    s = session.c
    shown = (s.id, s.created_at, s.last_seen_at, s.idle_until, s.absolute_until, s.address, s.user_agent, s.auth_level, s.authn_at)
    query = (
        sa.select(*shown).join(principal, principal.c.id == s.principal_id)
        .where(s.principal_id == principal_id, s.revoked_at.is_(None), s.idle_until > at, s.absolute_until > at,
               s.last_seen_at <= at + AHEAD, s.epoch == principal.c.security_epoch)
        .order_by(s.last_seen_at.desc(), s.id.desc())
    )
    return [dict(row) for row in tx.execute(query).mappings()]


def digest(word: str) -> bytes:
    """Return what is kept of a session's word."""
    return hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()
