"""API tokens: made in a session, or with another token; each carries at most what every token it stands on carries.

What a token may do is asked again at each use, of its user and of the whole chain (access/predicate.py). Source: docs/access.md.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from archive.access import token_text
from archive.access.permissions import ADMINISTRATIVE, FUNCTION, OBJECT, Permission
from archive.access.predicate import MOST_TOKENS
from archive.access.subject import Subject
from archive.db.prepared import Prepared
from archive.db.tables import api_token, boundary, boundary_item, principal
from archive.errors import Forbidden, InvalidRequest, Unauthenticated
from archive.keys.keyring import Keyring

DEFAULT_LIFE, LONGEST_LIFE = timedelta(days=30), timedelta(days=365)
TOUCH_EVERY = timedelta(minutes=1)
MOST_NETWORKS = 64
_T = api_token.c
_LIVE = (
    sa.select(
        _T.id, _T.principal_id, principal.c.name, principal.c.kind, _T.boundary_id, _T.permissions, _T.not_after, _T.last_used_at,
        _T.parent_id, _T.networks, _T.secret_hmac,
    )
    .join(principal, principal.c.id == _T.principal_id)
    .where(
        _T.revoked_at.is_(None), _T.not_after > sa.bindparam("at", type_=_T.not_after.type), principal.c.enabled == sa.true(),
        principal.c.removed_at.is_(None),
    )
)
_BY_PREFIX = Prepared(_LIVE.where(_T.prefix == sa.bindparam("prefix")))
_BY_ID = Prepared(_LIVE.where(_T.id == sa.bindparam("id", type_=sa.BigInteger())))


@dataclass(frozen=True, slots=True)
class Live:
    """A token that was found valid, whose it is, and what it carries with those it stands on, `depth` of them with itself."""

    id: int
    principal_id: int
    name: str
    kind: str
    boundary_ids: tuple[int, ...]
    permissions: Permission
    not_after: datetime
    last_used_at: datetime | None
    depth: int

    def subject(self, address: str = "") -> Subject:
        """Return who comes in with it."""
        return Subject(
            self.principal_id, self.name, "service" if self.kind == "service" else "user", "token", address=address, token_id=self.id,
            token_depth=self.depth, boundary_ids=self.boundary_ids, limit=self.permissions,
        )


def create(
    tx: sa.Connection, keyring: Keyring, principal_id: int, *, by: int, at: datetime, not_after: datetime | None = None,
    permissions: Permission = Permission.NONE, scope_keys: Sequence[int] = (), label: str = "", networks: Sequence[str] = (),
    parent: Live | None = None,
) -> tuple[int, str]:
    """Make a token and return its id and the text that is shown once.

    Without `permissions` it carries everything its user may but administration; a token bounded to `scope_keys` then carries object
    permissions only. One made with `parent` carries no administration, nothing else that its parent does not, and ends no later.
    `networks` come from `networks_of`. What it carries is asked of its user and its parents again at each use.

    Raises:
        InvalidRequest: an end in the past, more than 365 days away or after its parent's; nothing to carry.
        Forbidden: more than its parent carries, or one too many on each other.
    """
    end = _end(at, not_after, parent)
    carried = permissions or (OBJECT if scope_keys else OBJECT | (FUNCTION & ~ADMINISTRATIVE))
    if parent is not None:
        carried = _narrowed(carried, parent, named=bool(permissions))
    boundary_id = None
    if scope_keys:
        boundary_id = _insert(tx, sa.insert(boundary).values(owner_id=principal_id, label=label, not_after=end))
        tx.execute(sa.insert(boundary_item), [
            {"boundary_id": boundary_id, "permissions": int(carried & OBJECT), "scope_key": key} for key in sorted(set(scope_keys))
        ])
    prefix, secret = token_text.drawn()
    token_id = _insert(tx, sa.insert(api_token).values(
        prefix=prefix, secret_hmac=token_text.mac(keyring, prefix, secret), principal_id=principal_id, boundary_id=boundary_id,
        permissions=int(carried), created_at=at, not_after=end, created_by=by, parent_id=None if parent is None else parent.id,
        label=label, networks=" ".join(networks),
    ))
    return token_id, token_text.written(prefix, secret)


def _end(at: datetime, wanted: datetime | None, parent: Live | None) -> datetime:
    if wanted is None:
        wanted = at + DEFAULT_LIFE if parent is None else min(at + DEFAULT_LIFE, parent.not_after)
    if wanted <= at:
        message = "the token would have ended already"
        raise InvalidRequest(message, remedy="name a later --until")
    if wanted > at + LONGEST_LIFE:
        message = f"a token lasts {LONGEST_LIFE.days} days at most"
        raise InvalidRequest(message, remedy="name an earlier --until, and make the next token in time")
    if parent is not None and wanted > parent.not_after:
        message = "a token ends no later than the one it is made with"
        raise InvalidRequest(message, remedy=f"name an end until {parent.not_after.isoformat()}")
    return wanted


def _narrowed(carried: Permission, parent: Live, *, named: bool) -> Permission:
    if parent.depth >= MOST_TOKENS:
        message = f"at most {MOST_TOKENS} tokens stand on each other"
        raise Forbidden(message, remedy="make it with an earlier one")
    if named and carried & (ADMINISTRATIVE | ~parent.permissions):
        message = "a token gives no administrative permission on, and none that it does not carry"
        raise Forbidden(message, remedy="name fewer permissions, or make the token signed in with the browser")
    carried &= parent.permissions & ~ADMINISTRATIVE
    if not carried:
        message = "the token would carry no permission"
        raise InvalidRequest(message, remedy="make it with a token that carries some")
    return carried


def networks_of(given: Sequence[str]) -> list[str]:
    """Return networks and single addresses as a token keeps them.

    Raises:
        InvalidRequest: what is none.
    """
    if len(given) > MOST_NETWORKS:
        message = f"a token names {MOST_NETWORKS} networks at most"
        raise InvalidRequest(message, remedy="name larger ones")
    try:
        return sorted({str(ipaddress.ip_network(text.strip().partition("%")[0], strict=False)) for text in given})
    except ValueError as error:
        message = "that is no network"
        raise InvalidRequest(message, remedy="write it as 192.168.7.0/24, 2001:db8::/32 or a single address") from error


def _insert(tx: sa.Connection, statement: sa.Insert) -> int:
    key = tx.execute(statement).inserted_primary_key
    assert key is not None
    return int(key[0])


def find(tx: sa.Connection, keyring: Keyring, token: str, *, at: datetime, address: str = "") -> Live:
    """Return the valid token of a text that comes from an address.

    Raises:
        Unauthenticated: not a token, unknown, revoked, expired, made with one that is, from elsewhere, or its user is disabled.
    """
    parts = token_text.parts(token)
    row = None if parts is None else _BY_PREFIX.first(tx, {"prefix": parts[0], "at": at})
    if row is None or parts is None or not token_text.right(keyring, *parts, bytes(row.secret_hmac)):
        raise _invalid()
    return _standing(tx, row, at=at, address=address)


def standing(tx: sa.Connection, token_id: int, *, at: datetime) -> Live:
    """Return a valid token by its id, wherever it is used from.

    Raises:
        Unauthenticated: it counts no more.
    """
    row = _BY_ID.first(tx, {"id": token_id, "at": at})
    if row is None:
        raise _invalid()
    return _standing(tx, row, at=at, address=None)


def _standing(tx: sa.Connection, row: Any, *, at: datetime, address: str | None) -> Live:
    chain = [row]
    while chain[-1].parent_id is not None:
        above = _BY_ID.first(tx, {"id": chain[-1].parent_id, "at": at})
        if above is None or above.principal_id != row.principal_id or len(chain) == MOST_TOKENS:
            raise _invalid()
        chain.append(above)
    carried = Permission(row.permissions)
    for one in chain:
        if address is not None and not _reached_from(one.networks, address):
            raise _invalid()
        carried &= Permission(one.permissions)
    return Live(
        row.id, row.principal_id, row.name, row.kind, tuple(one.boundary_id for one in chain if one.boundary_id is not None), carried,
        min(one.not_after for one in chain), row.last_used_at, len(chain),
    )


def _reached_from(networks: str, address: str) -> bool:
    if not networks:
        return True
    try:
        found: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return any(found in ipaddress.ip_network(text) for text in networks.split())


def _invalid() -> Unauthenticated:
    return Unauthenticated("the token is not valid", remedy="make another with 'archive token create'")


def kept(keyring: Keyring, token: str) -> bytes:
    """Return what the table keeps of a token's text that `create` returned."""
    parts = token_text.parts(token)
    assert parts is not None
    return token_text.mac(keyring, *parts)


def touch(tx: sa.Connection, token_id: int, *, at: datetime, address: str = "") -> None:
    """Note that a token was used, and from where."""
    tx.execute(sa.update(api_token).where(_T.id == token_id).values(last_used_at=at, last_address=address[:64]))


def family(token_id: int) -> sa.Select[tuple[int]]:
    """Select a token and every one that was made with it, or with one of those."""
    tree = sa.select(_T.id).where(_T.id == token_id).cte("made_with", recursive=True)
    made = api_token.alias("made")
    tree = tree.union(sa.select(made.c.id).join(tree, made.c.parent_id == tree.c.id))
    return sa.select(tree.c.id)


def revoke(tx: sa.Connection, token_id: int, *, at: datetime) -> list[int]:
    """End a token and every one made with it; return those that were not revoked until now."""
    ended = sa.update(api_token).where(_T.id.in_(family(token_id)), _T.revoked_at.is_(None)).values(revoked_at=at).returning(_T.id)
    return sorted(tx.execute(ended).scalars())


def listed(tx: sa.Connection, *, principal_id: int | None = None, of: int | None = None) -> list[dict[str, Any]]:
    """Return the tokens of one principal or of all, newest first, without their secrets; `of`: one and those made with it."""
    p, maker = principal.c, principal.alias("maker")
    bounds = sa.select(sa.func.count()).where(boundary_item.c.boundary_id == _T.boundary_id).scalar_subquery()
    query = sa.select(
        _T.id, _T.prefix, _T.principal_id, p.name.label("user"), _T.permissions, _T.created_at, _T.not_after, _T.last_used_at,
        _T.revoked_at, _T.parent_id, _T.label, _T.networks, _T.last_address, maker.c.name.label("made_by"),
        bounds.label("bounded_to"),
    ).join(principal, p.id == _T.principal_id).outerjoin(maker, maker.c.id == _T.created_by).order_by(_T.id.desc())
    if principal_id is not None:
        query = query.where(_T.principal_id == principal_id)
    if of is not None:
        query = query.where(_T.id.in_(family(of)))
    return [dict(row) for row in tx.execute(query).mappings()]
