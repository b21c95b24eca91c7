"""API tokens: `sr_<prefix8>_<secret43>_<crc6>`, shown once, kept as an HMAC under the pepper.

Every part is letters and digits, so that secret scanners and a double click find the whole; the last part is a CRC-32 of what
stands before it, so that a mistyped token is told from a wrong one without a look into the tables.
"""

from __future__ import annotations

import hmac
import re
import secrets
import string
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from archive.access.permissions import ADMINISTRATIVE, FUNCTION, OBJECT, Permission
from archive.db.prepared import Prepared
from archive.db.tables import api_token, boundary, boundary_item, principal
from archive.errors import InvalidRequest, Unauthenticated
from archive.keys.keyring import Keyring

DEFAULT_LIFE, LONGEST_LIFE = timedelta(days=30), timedelta(days=365)
TOUCH_EVERY = timedelta(minutes=1)
_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_FIND = Prepared(
    sa.select(
        api_token.c.id, api_token.c.principal_id, principal.c.name, principal.c.kind, api_token.c.boundary_id, api_token.c.permissions,
        api_token.c.last_used_at, api_token.c.secret_hmac,
    )
    .join(principal, principal.c.id == api_token.c.principal_id)
    .where(
        api_token.c.prefix == sa.bindparam("prefix"), api_token.c.revoked_at.is_(None),
        api_token.c.not_after > sa.bindparam("at", type_=api_token.c.not_after.type),
        principal.c.enabled == sa.true(), principal.c.removed_at.is_(None),
    )
)
_FORM = re.compile(r"sr_([0-9A-Za-z]{8})_([0-9A-Za-z]{43})_([0-9A-Za-z]{6})")


@dataclass(frozen=True, slots=True)
class Live:
    """A token that was found valid, and whose it is."""

    id: int
    principal_id: int
    name: str
    kind: str
    boundary_id: int | None
    permissions: Permission
    last_used_at: datetime | None


def create(
    tx: sa.Connection, keyring: Keyring, principal_id: int, *, by: int, at: datetime, not_after: datetime | None = None,
    permissions: Permission = Permission.NONE, scope_keys: Sequence[int] = (), label: str = "",
) -> tuple[int, str]:
    """Make a token and return its id and the text that is shown once.

    Without `permissions` it carries everything its user may but administration; a token bounded to `scope_keys` then carries object
    permissions only. What it carries is asked of its user again at each use.

    Raises:
        InvalidRequest: an end in the past or more than 365 days away.
    """
    end = not_after if not_after is not None else at + DEFAULT_LIFE
    if end <= at:
        message = "the token would have ended already"
        raise InvalidRequest(message, remedy="name a later --until")
    if end > at + LONGEST_LIFE:
        message = f"a token lasts {LONGEST_LIFE.days} days at most"
        raise InvalidRequest(message, remedy="name an earlier --until, and make the next token in time")
    carried = permissions or (OBJECT if scope_keys else OBJECT | (FUNCTION & ~ADMINISTRATIVE))
    boundary_id = None
    if scope_keys:
        boundary_id = _insert(tx, sa.insert(boundary).values(owner_id=principal_id, label=label, not_after=end))
        tx.execute(sa.insert(boundary_item), [
            {"boundary_id": boundary_id, "permissions": int(carried & OBJECT), "scope_key": key} for key in sorted(set(scope_keys))
        ])
    prefix, secret = _word(8), _word(43)
    token_id = _insert(tx, sa.insert(api_token).values(
        prefix=prefix, secret_hmac=_mac(keyring, prefix, secret), principal_id=principal_id, boundary_id=boundary_id,
        permissions=int(carried), created_at=at, not_after=end, created_by=by,
    ))
    return token_id, f"sr_{prefix}_{secret}_{_check(prefix, secret)}"


def _insert(tx: sa.Connection, statement: sa.Insert) -> int:
    key = tx.execute(statement).inserted_primary_key
    assert key is not None
    return int(key[0])


def find(tx: sa.Connection, keyring: Keyring, token: str, *, at: datetime) -> Live:
    """Return the valid token of a text.

    Raises:
        Unauthenticated: not a token, unknown, revoked, expired, or its user is disabled.
    """
    parts = _FORM.fullmatch(token)
    row = None
    if parts is not None and hmac.compare_digest(_check(parts[1], parts[2]), parts[3]):
        row = _FIND.first(tx, {"prefix": parts[1], "at": at})
    if row is None or parts is None or not hmac.compare_digest(_mac(keyring, parts[1], parts[2]), bytes(row.secret_hmac)):
        message = "the token is not valid"
        raise Unauthenticated(message, remedy="make another with 'archive token create'")
    return Live(row.id, row.principal_id, row.name, row.kind, row.boundary_id, Permission(row.permissions), row.last_used_at)


def kept(keyring: Keyring, token: str) -> bytes:
    """Return what the table keeps of a token's text that `create` returned."""
    parts = _FORM.fullmatch(token)
    assert parts is not None
    return _mac(keyring, parts[1], parts[2])


def touch(tx: sa.Connection, token_id: int, *, at: datetime) -> None:
    """Note that a token was used."""
    tx.execute(sa.update(api_token).where(api_token.c.id == token_id).values(last_used_at=at))


def revoke(tx: sa.Connection, token_id: int, *, at: datetime) -> bool:
    """End a token; return whether it was valid until now."""
    t = api_token.c
    return bool(tx.execute(sa.update(api_token).where(t.id == token_id, t.revoked_at.is_(None)).values(revoked_at=at)).rowcount)


def listed(tx: sa.Connection, *, principal_id: int | None = None) -> list[dict[str, Any]]:
    """Return the tokens of one principal or of all, newest first, without their secrets."""
    t, p = api_token.c, principal.c
    bounds = sa.select(sa.func.count()).where(boundary_item.c.boundary_id == t.boundary_id).scalar_subquery()
    query = sa.select(
        t.id, t.prefix, t.principal_id, p.name.label("user"), t.permissions, t.created_at, t.not_after, t.last_used_at,
        t.revoked_at, bounds.label("bounded_to"),
    ).join(principal, p.id == t.principal_id).order_by(t.id.desc())
    if principal_id is not None:
        query = query.where(t.principal_id == principal_id)
    return [dict(row) for row in tx.execute(query).mappings()]


def _word(characters: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(characters))


def _check(prefix: str, secret: str) -> str:
    number = zlib.crc32(f"sr_{prefix}_{secret}".encode())
    text = ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        text = _ALPHABET[digit] + text
    return text


def _mac(keyring: Keyring, prefix: str, secret: str) -> bytes:
    return keyring.pseudonym("api-token", f"{prefix}_{secret}")
