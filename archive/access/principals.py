"""Principals: users, services, devices and groups, and who is in which group."""

from __future__ import annotations

import unicodedata
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from archive.access import naming, sessions
from archive.db import tables
from archive.db.tables import membership, principal
from archive.db.types import FOREVER
from archive.errors import InvalidRequest, NotFound

Kind = Literal["user", "service", "device", "group", "console"]
CONSOLE = "console"
NAME_CHARACTERS = 64
LONGEST_TYPED = 16 * NAME_CHARACTERS
"""So much of a name as typed is looked at: composed it is longer than any. What is nothing but accents takes the square of its length."""


def add(tx: sa.Connection, kind: Kind, name: str, *, at: datetime, full_name: str = "", email: str = "") -> int:
    """Add a principal and return its id.

    Raises:
        InvalidRequest: a name that is taken or cannot be one.
    """
    name = check_name(name)
    if naming.alike(tx, principal.c.name, name):
        message = "that name is taken"
        raise InvalidRequest(message, remedy="choose another; users, groups and peers share their names")
    made = tx.execute(sa.insert(principal).values(
        kind=kind, name=name, full_name=full_name, email=email, enabled=True, created_at=at, security_epoch=0
    ))
    assert made.inserted_primary_key is not None
    return int(made.inserted_primary_key[0])


def check_name(name: str) -> str:
    """Return a name as it is kept: NFC, no spaces around, no colon (Basic), no control characters.

    Raises:
        InvalidRequest.
    """
    name = unicodedata.normalize("NFC", name.strip()[:LONGEST_TYPED])
    odd = any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") or character in ":/\\" for character in name)
    if not 1 <= len(name) <= NAME_CHARACTERS or odd or name.isdecimal():
        message = "that cannot be a name"
        remedy = f"take 1 to {NAME_CHARACTERS} letters, digits or signs, no colon or slash, not digits alone"
        raise InvalidRequest(message, remedy=remedy)
    return name


def find(tx: sa.Connection, ref: str | int, kinds: tuple[Kind, ...] = ("user", "service", "device", "group")) -> dict[str, Any]:
    """Return a principal by id or name.

    Raises:
        NotFound.
    """
    wanted = principal.c.name == unicodedata.normalize("NFC", str(ref).replace("\0", "").strip()[:LONGEST_TYPED])
    if str(ref).isdecimal() and len(str(ref)) < 19:
        wanted = principal.c.id == int(ref)
    query = sa.select(principal).where(wanted, principal.c.kind.in_(kinds), principal.c.removed_at.is_(None))
    row = tx.execute(query).mappings().first()
    if row is None:
        message = "there is no such " + (kinds[0] if len(kinds) == 1 else "user or group")
        raise NotFound(message, remedy="'archive user list' and 'archive group list' name them")
    return dict(row)


def enabled_name(tx: sa.Connection, principal_id: int) -> str | None:
    """Return the name of a user who may sign in, None when there is none of that id."""
    p = principal.c
    query = sa.select(p.name).where(p.id == principal_id, p.kind == "user", p.enabled == sa.true(), p.removed_at.is_(None))
    name: str | None = tx.execute(query).scalar()
    return name


def listed(tx: sa.Connection, kinds: tuple[Kind, ...]) -> list[dict[str, Any]]:
    """Return the principals of some kinds by name, removed ones left out."""
    query = sa.select(principal).where(principal.c.kind.in_(kinds), principal.c.removed_at.is_(None)).order_by(principal.c.name)
    return [dict(row) for row in tx.execute(query).mappings()]


def set_enabled(tx: sa.Connection, principal_id: int, *, enabled: bool, at: datetime) -> None:
    """Switch a principal on or off; off ends its sessions for good."""
    tx.execute(
        sa.update(principal).where(principal.c.id == principal_id).values(enabled=enabled, disabled_at=None if enabled else at)
    )
    if not enabled:
        sessions.end_all(tx, principal_id, at=at)


def remove(tx: sa.Connection, principal_id: int, name: str, *, by: int, at: datetime) -> None:
    """Take a principal away: its name is free again, all it held is revoked, its id stays for the ledger."""
    set_enabled(tx, principal_id, enabled=False, at=at)
    tx.execute(sa.update(principal).where(principal.c.id == principal_id).values(removed_at=at, name=f"{name}/{principal_id}"))
    tx.execute(
        sa.update(tables.grants)
        .where(tables.grants.c.subject_id == principal_id, tables.grants.c.revoked_at.is_(None))
        .values(revoked_at=at, revoked_by=by)
    )
    for table in (tables.role_assignment, tables.api_token):
        tx.execute(sa.update(table).where(table.c.principal_id == principal_id, table.c.revoked_at.is_(None)).values(revoked_at=at))
    for table in (tables.credential, tables.factor, tables.recovery_code, tables.external_identity):
        tx.execute(sa.delete(table).where(table.c.principal_id == principal_id))
    for column in (membership.c.principal_id, membership.c.group_id):
        tx.execute(sa.delete(membership).where(column == principal_id))


def join(
    tx: sa.Connection, principal_id: int, group_id: int, *, by: int | None, not_before: datetime, not_after: datetime = FOREVER
) -> int:
    """Put a principal into a group for a time and return the membership's id; an earlier membership is replaced."""
    leave(tx, principal_id, group_id)
    made = tx.execute(sa.insert(membership).values(
        principal_id=principal_id, group_id=group_id, not_before=not_before, not_after=not_after, granted_by=by
    ))
    assert made.inserted_primary_key is not None
    return int(made.inserted_primary_key[0])


def leave(tx: sa.Connection, principal_id: int, group_id: int) -> bool:
    """Take a principal out of a group; return whether it was in."""
    gone = sa.delete(membership).where(membership.c.principal_id == principal_id, membership.c.group_id == group_id)
    return bool(tx.execute(gone).rowcount)


def groups_of(tx: sa.Connection, principal_id: int) -> list[dict[str, Any]]:
    """Return the memberships of a principal, ended ones too."""
    query = (
        sa.select(principal.c.id, principal.c.name, membership.c.not_before, membership.c.not_after)
        .join(membership, membership.c.group_id == principal.c.id)
        .where(membership.c.principal_id == principal_id)
        .order_by(principal.c.name)
    )
    return [dict(row) for row in tx.execute(query).mappings()]


def members_of(tx: sa.Connection, group_id: int) -> list[dict[str, Any]]:
    """Return who is in a group."""
    query = (
        sa.select(principal.c.id, principal.c.name, principal.c.kind, membership.c.not_before, membership.c.not_after)
        .join(membership, membership.c.principal_id == principal.c.id)
        .where(membership.c.group_id == group_id)
        .order_by(principal.c.name)
    )
    return [dict(row) for row in tx.execute(query).mappings()]


def is_or_contains(tx: sa.Connection, target_id: int, principal_id: int) -> bool:
    """Whether `target` is the principal itself or a group it is in, now or later."""
    if target_id == principal_id:
        return True
    query = sa.select(membership.c.id).where(membership.c.group_id == target_id, membership.c.principal_id == principal_id)
    return tx.execute(query).first() is not None
