"""Roles and who holds one: a role's function permissions count by assignment, its object permissions only through grants."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.access import principals
from archive.access.permissions import BUILTIN_ROLES, FUNCTION, OBJECT, Permission
from archive.db.tables import role, role_assignment
from archive.db.types import FOREVER
from archive.errors import InvalidRequest, NotFound


def add(tx: sa.Connection, name: str, permissions: Permission, *, at: datetime) -> int:
    """Add a role of the archive's own and return its id.

    Raises:
        InvalidRequest: the name is taken or no name, or the role would hold nothing.
    """
    name = principals.check_name(name)
    if not permissions:
        message = "a role holds at least one permission"
        raise InvalidRequest(message, remedy="name one with --permission; docs/access.md lists them")
    if tx.execute(sa.select(role.c.id).where(sa.func.lower(role.c.name) == name.lower())).first() is not None:
        message = "that name is taken"
        raise InvalidRequest(message, remedy="'archive role list' shows the roles there are")
    return _insert(tx, name, permissions, builtin=False, at=at)


def add_builtin(tx: sa.Connection, *, at: datetime) -> dict[str, int]:
    """Make the roles that exist from the start, those that are absent, and return all their ids."""
    there = {row.name: row.id for row in tx.execute(sa.select(role.c.id, role.c.name).where(role.c.builtin == sa.true()))}
    for name, permissions in BUILTIN_ROLES.items():
        if name not in there:
            there[name] = _insert(tx, name, permissions, builtin=True, at=at)
    return there


def _insert(tx: sa.Connection, name: str, permissions: Permission, *, builtin: bool, at: datetime) -> int:
    made = tx.execute(sa.insert(role).values(name=name, permissions=int(permissions), builtin=builtin, created_at=at))
    assert made.inserted_primary_key is not None
    return int(made.inserted_primary_key[0])


def find(tx: sa.Connection, ref: str | int) -> dict[str, Any]:
    """Return a role by name or id.

    Raises:
        NotFound.
    """
    wanted = role.c.id == int(ref) if str(ref).isdecimal() and len(str(ref)) < 19 else role.c.name == str(ref).strip()
    row = tx.execute(sa.select(role).where(wanted)).mappings().first()
    if row is None:
        message = "there is no such role"
        raise NotFound(message, remedy="'archive role list' shows the roles there are")
    return dict(row)


def listed(tx: sa.Connection) -> list[dict[str, Any]]:
    """Return every role with the names of what it holds."""
    return [shown(dict(row)) for row in tx.execute(sa.select(role).order_by(role.c.id)).mappings()]


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """Return a role as lists show it: function and object permissions apart."""
    held = Permission(row["permissions"])
    return {
        "id": row["id"], "name": row["name"], "builtin": row["builtin"], "permissions": names(held),
        "functions": names(held & FUNCTION), "objects": names(held & OBJECT),
        "second_factor": bool(row["mfa_level"]), "idle_minutes": row["idle_s"] // 60, "absolute_hours": row["max_session_s"] // 3600,
    }


def assign(
    tx: sa.Connection, principal_id: int, role_id: int, *, by: int, at: datetime, not_before: datetime | None = None,
    not_after: datetime = FOREVER,
) -> int:
    """Give a role's function permissions to a principal or group for a time; return the assignment's id."""
    made = tx.execute(sa.insert(role_assignment).values(
        principal_id=principal_id, role_id=role_id, not_before=not_before or at, not_after=not_after, granted_by=by, created_at=at
    ))
    assert made.inserted_primary_key is not None
    return int(made.inserted_primary_key[0])


def withdraw(tx: sa.Connection, principal_id: int, role_id: int, *, at: datetime) -> int:
    """Revoke every assignment of a role to a principal; return how many there were."""
    a = role_assignment.c
    live = sa.and_(a.principal_id == principal_id, a.role_id == role_id, a.revoked_at.is_(None))
    return tx.execute(sa.update(role_assignment).where(live).values(revoked_at=at)).rowcount


def of(tx: sa.Connection, principal_id: int, *, at: datetime) -> list[str]:
    """Return the names of the roles assigned to a principal now, not those of its groups."""
    a = role_assignment.c
    query = (
        sa.select(role.c.name).join(role_assignment, a.role_id == role.c.id)
        .where(a.principal_id == principal_id, a.revoked_at.is_(None), a.not_before <= at, a.not_after > at)
        .distinct().order_by(role.c.name)
    )
    return list(tx.execute(query).scalars())


def names(permissions: Permission) -> list[str]:
    """Return permissions as people write them: search, user-manage."""
    return [bit.name.lower().replace("_", "-") for bit in permissions if bit.name]


def parse(words: list[str] | tuple[str, ...]) -> Permission:
    """Return the permissions named.

    Raises:
        InvalidRequest: a word that is none.
    """
    found = Permission.NONE
    for word in words:
        try:
            bit = Permission[word.strip().upper().replace("-", "_")]
        except KeyError as error:
            message = "there is no such permission"
            raise InvalidRequest(message, remedy="take one of: " + ", ".join(names(FUNCTION | OBJECT))) from error
        found |= bit
    return found
