"""Roles and who holds one: a role's function permissions count by assignment, its object permissions only through grants."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.access import naming, principals
from archive.access.permissions import ADMINISTRATIVE, BUILTIN_ROLES, FUNCTION, OBJECT, Permission
from archive.db.tables import auto_rule, grants, membership, metadata, principal, role, role_assignment
from archive.db.types import FOREVER
from archive.errors import InvalidRequest, NotFound, StateConflict


def add(tx: sa.Connection, name: str, permissions: Permission, *, at: datetime) -> int:
    """Add a role of the archive's own and return its id.

    Raises:
        InvalidRequest: the name is taken or no name, or the role would hold nothing.
    """
    name = principals.check_name(name)
    if not permissions:
        message = "a role holds at least one permission"
        raise InvalidRequest(message, remedy="name one with --permission; docs/access.md lists them")
    if naming.alike(tx, role.c.name, name):
        message = "that name is taken"
        remedy = "'archive role list' shows the roles there are; the name of a removed role is not given again"
        raise InvalidRequest(message, remedy=remedy)
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


def change(tx: sa.Connection, row: dict[str, Any], permissions: Permission, *, at: datetime) -> int:
    """Give a role other permissions, and every grant of it with it; return how many of those count now or later.

    What was passed on of a grant only ever shrinks: nobody gave it more.

    Raises:
        StateConflict: a role that exists from the start.
        InvalidRequest: the role would hold nothing, or grants of it nothing about images.
    """
    if row["builtin"]:
        message = "a role that exists from the start is never changed"
        raise StateConflict(message, remedy="add one of your own with 'archive role add'")
    if not permissions:
        message = "a role holds at least one permission"
        raise InvalidRequest(message, remedy="remove the role instead: archive role remove")
    g = grants.c
    live = sa.and_(g.role_id == row["id"], g.revoked_at.is_(None), g.not_after > at)
    covered = tx.execute(sa.select(sa.func.count()).select_from(grants).where(live)).scalar_one()
    if covered and not permissions & OBJECT:
        message = "there are grants of this role, which would do nothing any more"
        raise InvalidRequest(message, remedy="revoke them first: archive grant list")
    put(tx, row["id"], permissions)
    return int(covered)


def put(tx: sa.Connection, role_id: int, permissions: Permission) -> None:
    """Write what a role holds into it and into all its grants, ended ones too."""
    bits, g = int(permissions), grants.c
    tx.execute(sa.update(role).where(role.c.id == role_id).values(permissions=bits))
    tx.execute(sa.update(grants).where(g.role_id == role_id, g.parent_id.is_(None)).values(permissions=bits))
    part = sa.and_(g.role_id == role_id, g.parent_id.is_not(None))
    tx.execute(sa.update(grants).where(part).values(permissions=g.permissions.bitwise_and(bits)))


def remove(tx: sa.Connection, row: dict[str, Any], *, at: datetime) -> None:
    """Take a role away that nobody has; its name stays its own, for ended grants and the ledger tell of it.

    Raises:
        StateConflict: a role that exists from the start, or one that is assigned or granted, now or later.
    """
    if row["builtin"]:
        message = "a role that exists from the start is never removed"
        raise StateConflict(message, remedy="leave it unassigned")
    if _in_use(tx, row["id"], at):
        message = "the role is in use"
        raise StateConflict(message, remedy="withdraw its assignments and revoke its grants first: archive role show, archive grant list")
    tx.execute(sa.update(role).where(role.c.id == row["id"]).values(removed_at=at))


def _in_use(tx: sa.Connection, role_id: int, at: datetime) -> bool:
    """Whether any table refers to a role in a row that was not ended."""
    for table in metadata.sorted_tables:
        for column in table.columns:
            if not any(key.column is role.c.id for key in column.foreign_keys):
                continue
            query = sa.select(1).select_from(table).where(column == role_id)
            query = query.where(*(table.c[name].is_(None) for name in ("revoked_at", "removed_at") if name in table.c))
            if "not_after" in table.c:
                query = query.where(table.c.not_after > at)
            if tx.execute(query.limit(1)).first() is not None:
                return True
    return False


def held_by(tx: sa.Connection, role_id: int, principal_id: int, *, at: datetime) -> bool:
    """Whether a principal, or a group it is in, has a role now or later: by assignment, by a grant that allows or denies, or by a rule."""
    m, a, g = membership.c, role_assignment.c, grants.c
    them = sa.select(sa.literal(principal_id)).union_all(sa.select(m.group_id).where(m.principal_id == principal_id, m.not_after > at))
    assigned = sa.select(a.id).where(a.role_id == role_id, a.principal_id.in_(them), a.revoked_at.is_(None), a.not_after > at)
    granted = sa.select(g.id).where(g.role_id == role_id, g.subject_id.in_(them), g.revoked_at.is_(None), g.not_after > at)
    r = auto_rule.c
    ruled = sa.select(r.id).where(r.role_id == role_id, r.subject_id.in_(them), r.removed_at.is_(None))
    return any(tx.execute(query.limit(1)).first() is not None for query in (assigned, granted, ruled))


def find(tx: sa.Connection, ref: str | int) -> dict[str, Any]:
    """Return a role by name or id.

    Raises:
        NotFound.
    """
    wanted = role.c.id == int(ref) if str(ref).isdecimal() and len(str(ref)) < 19 else role.c.name == str(ref).strip()
    row = tx.execute(sa.select(role).where(wanted, role.c.removed_at.is_(None))).mappings().first()
    if row is None:
        message = "there is no such role"
        raise NotFound(message, remedy="'archive role list' shows the roles there are")
    return dict(row)


def listed(tx: sa.Connection) -> list[dict[str, Any]]:
    """Return every role with the names of what it holds."""
    query = sa.select(role).where(role.c.removed_at.is_(None)).order_by(role.c.id)
    return [shown(dict(row)) for row in tx.execute(query).mappings()]


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


def coming(tx: sa.Connection, principal_id: int, *, at: datetime) -> Permission:
    """Return what the roles of a principal and its groups hold together, now or later, whether it is switched off or not."""
    a, m = role_assignment.c, membership.c
    them = sa.select(sa.literal(principal_id)).union_all(sa.select(m.group_id).where(m.principal_id == principal_id, m.not_after > at))
    query = sa.select(role.c.permissions).join(role_assignment, a.role_id == role.c.id)
    held = Permission.NONE
    for bits in tx.execute(query.where(a.principal_id.in_(them), a.revoked_at.is_(None), a.not_after > at)).scalars():
        held |= Permission(bits)
    return held


def holders(tx: sa.Connection, permission: Permission, *, at: datetime) -> set[int]:
    """Return the users a role holding a function permission is assigned to now, by themselves or through a group."""
    a, m, p = role_assignment.c, membership.c, principal.c
    given = (
        sa.select(a.principal_id).join(role, role.c.id == a.role_id)
        .where(a.revoked_at.is_(None), a.not_before <= at, a.not_after > at, role.c.permissions.bitwise_and(int(permission)) != 0)
    )
    members = sa.select(m.principal_id).where(m.group_id.in_(given), m.not_before <= at, m.not_after > at)
    query = sa.select(p.id).where(p.kind == "user", p.enabled == sa.true(), p.removed_at.is_(None))
    return set(tx.execute(query.where(sa.or_(p.id.in_(given), p.id.in_(members)))).scalars())


def matrix(known: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row a permission: its name, its kind, whether it is administrative, and which of `known` roles hold it."""
    return [
        {
            "permission": names(bit)[0], "kind": "object" if bit & OBJECT else "function", "administrative": bool(bit & ADMINISTRATIVE),
            "roles": [one["name"] for one in known if names(bit)[0] in one["permissions"]],
        }
        for bit in Permission if bit & (OBJECT | FUNCTION)
    ]


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
