"""/api/roles: what each role may do, and what it asks of sign-ins."""

from __future__ import annotations

from typing import Any, Literal

from archive.access.permissions import Permission
from archive.web.api.operation import Asked, Operation, Taken, Told
from archive.web.context import node, subject

_P = Permission


class Role(Told):
    """A role and what it holds; object permissions count through grants only."""

    id: int
    name: str
    builtin: bool
    permissions: list[str]
    functions: list[str]
    objects: list[str]
    second_factor: bool
    idle_minutes: int
    absolute_hours: int


class NewRole(Taken):
    """A role to add."""

    name: str
    permissions: tuple[str, ...]


class RoleChange(Taken):
    """Permissions a role holds from now on, or no more."""

    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    reason: str = ""


class RoleChanged(Role):
    """A role that was changed, and how many grants changed with it."""

    grants: int


class RoleGone(Told):
    """A role that was taken away; its name is not given again."""

    id: int
    name: str


class PermissionRow(Told):
    """A permission, and the roles that hold it."""

    permission: str
    kind: Literal["object", "function"]
    administrative: bool
    roles: list[str]


def _change(asked: Asked, role: str) -> Any:
    given: RoleChange = asked.body
    return node().accounts.change_role(subject(), role, add=given.add, remove=given.remove, reason=given.reason)


OPERATIONS = (
    Operation("GET", "/roles", "roles", "List roles and what each holds", _P.USER_MANAGE,
              lambda _asked: node().accounts.list_roles(subject()), list[Role], tag="roles"),
    Operation("GET", "/roles/<role>", "role_show", "Show a role", _P.USER_MANAGE,
              lambda _asked, role: node().accounts.show_role(subject(), role), Role, tag="roles", refuses=(404,)),
    Operation("POST", "/roles", "role_add", "Add a role of the archive's own", _P.ROLE_MANAGE,
              lambda asked: node().accounts.add_role(subject(), asked.body.name, asked.body.permissions), Role, NewRole, status=201,
              tag="roles",
              refuses=(202,)),
    Operation("GET", "/roles/matrix", "role_matrix", "Show every permission and the roles that hold it", _P.USER_MANAGE,
              lambda _asked: node().accounts.matrix(subject()), list[PermissionRow], tag="roles"),
    Operation("PATCH", "/roles/<role>", "role_change", "Change what a role holds, and every grant of it at once", _P.ROLE_MANAGE,
              _change, RoleChanged, RoleChange, tag="roles", refuses=(202, 404, 409)),
    Operation("DELETE", "/roles/<role>", "role_remove", "Take away a role that nobody has", _P.ROLE_MANAGE,
              lambda _asked, role: node().accounts.remove_role(subject(), role), RoleGone, tag="roles", refuses=(404, 409)),
)
