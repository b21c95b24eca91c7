"""Identities in other systems as rows: bound to a user that is there, found at a sign-in, taken away. None makes a user."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from archive.access import naming
from archive.db.tables import external_identity, external_state, principal
from archive.errors import InvalidRequest, NotFound

MOST_CHARACTERS = 1000


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody as another system knows them, and the user they are here."""

    id: int
    principal_id: int
    name: str
    issuer: str
    subject: str
    bound_at: datetime
    last_used_at: datetime | None

    @property
    def shown(self) -> str:
        """What stands for it where something must not change between two steps."""
        return f"{self.issuer}\0{self.subject}"


_E, _P = external_identity.c, principal.c
_LIVE = (
    sa.select(_E.id, _E.principal_id, _P.name, _E.issuer, _E.subject, _E.bound_at, _E.last_used_at)
    .join(principal, _P.id == _E.principal_id)
    .where(_P.kind == "user", _P.enabled == sa.true(), _P.removed_at.is_(None))
)


def find(tx: sa.Connection, issuer: str, subject: str) -> Identity | None:
    """Return who an enabled user is elsewhere."""
    row = tx.execute(_LIVE.where(_E.issuer == issuer, _E.subject == subject)).first()
    return None if row is None else Identity(*row)


def of(tx: sa.Connection, principal_id: int, issuer: str | None = None) -> list[Identity]:
    """Return the identities of an enabled user, all or those of one issuer."""
    wanted = _LIVE.where(_E.principal_id == principal_id).order_by(_E.id)
    return [Identity(*row) for row in tx.execute(wanted if issuer is None else wanted.where(_E.issuer == issuer))]


def listed(tx: sa.Connection) -> list[dict[str, Any]]:
    """Return every identity that is bound, whether its user is enabled or not."""
    query = sa.select(_E.id, _P.name.label("user"), _E.issuer, _E.subject, _E.bound_at, _E.last_used_at).join(
        principal, _P.id == _E.principal_id
    )
    # "user" is a word of SQL: its name comes as SQLAlchemy's kind of string
    return [{str(name): value for name, value in row.items()} for row in tx.execute(query.order_by(_P.name, _E.id)).mappings()]


def bind(tx: sa.Connection, principal_id: int, issuer: str, subject: str, *, at: datetime) -> int:
    """Say that a user is somebody elsewhere, and return the row's id.

    Raises:
        InvalidRequest: that identity is another's already, or cannot be one.
    """
    for value in (issuer, subject):
        if not 0 < len(value) <= MOST_CHARACTERS or not value.isprintable() or value != value.strip():
            message = "that cannot be an identity"
            raise InvalidRequest(message, remedy="write issuer and subject as the other system does")
    if tx.execute(sa.select(_E.id).where(_E.issuer == issuer, _E.subject == subject)).first() is not None:
        message = "that identity is bound already"
        raise InvalidRequest(message, remedy="'archive user identities' shows to whom; 'archive user unbind' takes it away")
    made = tx.execute(sa.insert(external_identity).values(principal_id=principal_id, issuer=issuer, subject=subject, bound_at=at))
    assert made.inserted_primary_key is not None
    return int(made.inserted_primary_key[0])


def unbind(tx: sa.Connection, identity_id: int) -> dict[str, Any]:
    """Take an identity away and return what it was.

    Raises:
        NotFound.
    """
    row = tx.execute(sa.select(external_identity).where(_E.id == identity_id)).mappings().first()
    if row is None:
        message = "there is no such identity"
        raise NotFound(message, remedy="'archive user identities' lists those there are")
    tx.execute(sa.delete(external_identity).where(_E.id == identity_id))
    return dict(row)


def used(tx: sa.Connection, identity_id: int, *, at: datetime) -> None:
    """Note the use of an identity."""
    tx.execute(sa.update(external_identity).where(_E.id == identity_id).values(last_used_at=at))


def unbound_user(tx: sa.Connection, issuer: str, *, name: str = "", email: str = "") -> tuple[int, str] | None:
    """Return id and name of the one enabled user of a name or address who is nobody at that issuer yet.

    Who comes for the same user meanwhile waits until the transaction ends: one of them is that user.

    Of users whose names differ in case alone, which older versions let be added, none: a directory takes a name in any case, so that
    whoever signs in there would choose between them. One that is switched off is such a user too.
    """
    if not (name or email):
        return None
    users = (_P.kind == "user", _P.removed_at.is_(None))
    found = naming.alike(tx, _P.name, name, *users) if name else naming.alike(tx, _P.email, email, *users, _P.enabled == sa.true())
    if len(found) != 1:
        return None
    mine = sa.select(_P.id, _P.name, _P.enabled).where(_P.id == found[0], _P.removed_at.is_(None)).with_for_update(key_share=True)
    row = tx.execute(mine).first()
    if row is None or not row.enabled:
        return None
    taken = sa.select(_E.id).where(_E.principal_id == row.id, _E.issuer == issuer)
    return None if tx.execute(taken).first() is not None else (int(row.id), str(row.name))


def spend(tx: sa.Connection, state: str, *, at: datetime, lasts: timedelta) -> bool:
    """Note that the return with this state came; False when it came before."""
    s, digest = external_state.c, hashlib.sha256(state.encode()).digest()
    tx.execute(sa.delete(external_state).where(s.not_after <= at))
    if tx.execute(sa.select(s.id).where(s.state_sha256 == digest)).first() is not None:
        return False
    tx.execute(sa.insert(external_state).values(state_sha256=digest, not_after=at + lasts))
    return True
