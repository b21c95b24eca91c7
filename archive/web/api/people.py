"""/api/users, /api/groups: who there is, and who belongs together."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from msgspec import field

from archive.access.permissions import Permission
from archive.web.api.operation import Asked, Operation, Taken, Told
from archive.web.context import node, subject

_P = Permission
Row = dict[str, Any]


class User(Told):
    """A user or a service."""

    id: int
    name: str
    kind: str
    full_name: str
    email: str
    enabled: bool
    roles: list[str]
    groups: list[str]
    password: bool
    created_at: datetime
    second_factors: list[str]


class UserShown(User):
    """A user with what is granted to it; grants only for those who may see them."""

    grants: list[Row] | None = None


class NewUser(Taken):
    """A user to add; without a password it cannot sign in until it is given one."""

    name: str
    roles: tuple[str, ...] = ()
    password: str | None = None
    full_name: str = ""
    email: str = ""
    service: bool = False
    must_change: bool = True


class UserChange(Taken):
    """What of a user changes."""

    enabled: bool


class NewPassword(Taken):
    """A password to set; without one it is drawn."""

    password: str | None = None


class Reset(Told):
    """A password was set; one that was drawn is told this once."""

    id: int
    name: str
    password: str | None = None


class Gone(Told):
    """What was taken away."""

    id: int
    name: str


class NewAssignment(Taken):
    """A role for a time: RFC 3339, or counted from now (8h, 30d)."""

    role: str
    since: str | None = field(name="from", default=None)
    until: str | None = None


class Assignment(Told):
    """A role somebody has."""

    id: int
    subject: str
    role: str
    since: datetime = field(name="from")
    until: datetime


class Withdrawn(Told):
    """A role somebody has no longer."""

    id: int
    subject: str
    role: str


class Member(Told):
    """A member of a group, and how long."""

    id: int
    name: str
    since: datetime = field(name="from")
    until: datetime


class TheGroup(Told):
    """A group."""

    id: int
    name: str
    full_name: str
    enabled: bool
    members: list[Member]


class NewGroup(Taken):
    """A group to add, empty."""

    name: str
    full_name: str = ""


class NewMember(Taken):
    """Somebody to put into a group for a time: RFC 3339, or counted from now (8h, 30d)."""

    member: str
    since: str | None = field(name="from", default=None)
    until: str | None = None


class Membership(Told):
    """That somebody is a member."""

    id: int
    group: str
    member: str
    since: datetime = field(name="from")
    until: datetime


class Left(Told):
    """That somebody is a member no longer."""

    id: int
    group: str
    member: str


def _add_user(asked: Asked) -> Any:
    given: NewUser = asked.body
    return node().accounts.add_user(
        subject(), given.name, roles=given.roles, password=given.password, full_name=given.full_name, email=given.email,
        service=given.service, must_change=given.must_change,
    )


def _change_user(asked: Asked, user: str) -> Any:
    accounts = node().accounts
    return accounts.enable_user(subject(), user) if asked.body.enabled else accounts.disable_user(subject(), user)


def _assign(asked: Asked, user: str) -> Any:
    given: NewAssignment = asked.body
    return node().accounts.assign_role(subject(), user, given.role, since=given.since, until=given.until)


def _join(asked: Asked, group: str) -> Any:
    given: NewMember = asked.body
    return node().accounts.join_group(subject(), group, given.member, since=given.since, until=given.until)


OPERATIONS = (
    Operation("GET", "/users", "users", "List users and services", _P.USER_MANAGE, lambda _asked: node().accounts.list_users(subject()),
              list[User], tag="people"),
    Operation("POST", "/users", "user_add", "Add a user or a service", _P.USER_MANAGE, _add_user, User, NewUser, status=201,
              tag="people", refuses=(404, 409)),
    Operation("GET", "/users/<user>", "user_show", "Show a user, by name or id", _P.USER_MANAGE,
              lambda _asked, user: node().accounts.show_user(subject(), user), UserShown, tag="people", refuses=(404,)),
    Operation("PATCH", "/users/<user>", "user_change", "Switch a user on or off; off ends its sessions at once", _P.USER_MANAGE,
              _change_user, User, UserChange, tag="people", refuses=(404,)),
    Operation("DELETE", "/users/<user>", "user_remove", "Take a user away with everything it held", _P.USER_MANAGE,
              lambda _asked, user: node().accounts.remove_user(subject(), user), Gone, tag="people", refuses=(404,)),
    Operation("POST", "/users/<user>/password", "user_password", "Set a password that must be changed at the next sign-in", _P.USER_MANAGE,
              lambda asked, user: node().accounts.reset_password(subject(), user, asked.body.password), Reset, NewPassword, tag="people",
              refuses=(404,)),
    Operation("POST", "/users/<user>/roles", "user_role_add", "Give a role's function permissions, for a time", _P.ROLE_MANAGE, _assign,
              Assignment, NewAssignment, status=201, tag="people", refuses=(202, 404,)),
    Operation("DELETE", "/users/<user>/roles/<role>", "user_role_remove", "Take a role away", _P.ROLE_MANAGE,
              lambda _asked, user, role: node().accounts.withdraw_role(subject(), user, role), Withdrawn, tag="people", refuses=(404,)),
    Operation("GET", "/groups", "groups", "List groups and their members", _P.USER_MANAGE,
              lambda _asked: node().accounts.list_groups(subject()), list[TheGroup], tag="people"),
    Operation("POST", "/groups", "group_add", "Add a group", _P.USER_MANAGE,
              lambda asked: node().accounts.add_group(subject(), asked.body.name, full_name=asked.body.full_name), TheGroup, NewGroup,
              status=201, tag="people"),
    Operation("DELETE", "/groups/<group>", "group_remove", "Take a group away", _P.USER_MANAGE,
              lambda _asked, group: node().accounts.remove_group(subject(), group), Gone, tag="people", refuses=(202, 404,)),
    Operation("POST", "/groups/<group>/members", "group_join", "Put somebody into a group for a time", _P.USER_MANAGE, _join, Membership,
              NewMember, status=201, tag="people", refuses=(202, 404,)),
    Operation("DELETE", "/groups/<group>/members/<member>", "group_leave", "Take somebody out of a group", _P.USER_MANAGE,
              lambda _asked, group, member: node().accounts.leave_group(subject(), group, member), Left, tag="people", refuses=(202, 404,)),
)
