"""Roles: made, changed, removed, assigned and withdrawn, and what they ask of sign-ins; each change with its event, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from archive.access import demands, grants, principals, roles
from archive.access.grants import Terms
from archive.access.permissions import ADMINISTRATIVE, Permission
from archive.access.subject import Subject
from archive.db.types import FOREVER
from archive.errors import Forbidden, InvalidRequest, NotFound, StateConflict
from archive.ledger.audit import Kind
from archive.services.rights import Rights, Row, When, instant
from archive.services.two_person import Wish

P = Permission
READERS = P.USER_MANAGE | P.ROLE_MANAGE | P.PEER_MANAGE


class Roles(Rights):
    """What role of the command line and the web does; every method asks its permission first."""

    def list_roles(self, subject: Subject) -> list[Row]:
        """Return every role and what it holds."""
        return self._read(subject, READERS, lambda tx, _at: roles.listed(tx))

    def show_role(self, subject: Subject, ref: str | int) -> Row:
        """Return one role."""
        return self._read(subject, READERS, lambda tx, _at: roles.shown(roles.find(tx, ref)))

    def add_role(self, subject: Subject, name: str, permissions: Sequence[str]) -> Row:
        """Add a role of the archive's own."""
        held = roles.parse(tuple(permissions))

        def work(tx: sa.Connection, at: datetime) -> Row:
            made = self._add_role(tx, subject, name, held, at)
            if held & ADMINISTRATIVE:
                asked = {"name": made["name"], "permissions": made["permissions"]}
                self._second(subject, Wish(
                    "role-add", f"add the role {made['name']} with {', '.join(made['permissions'])}", P.ROLE_MANAGE, asked,
                ))
            return made

        return self._change(subject, P.ROLE_MANAGE, work)

    def _add_role(self, tx: sa.Connection, subject: Subject, name: str, held: Permission, at: datetime) -> Row:
        key = roles.add(tx, name, held, at=at)
        self._record(tx, Kind.ROLE_CHANGED, subject, at, what="added", name=name, id=key, permissions=roles.names(held))
        return roles.shown(roles.find(tx, key))

    def change_role(
        self, subject: Subject, ref: str | int, *, add: Sequence[str] = (), remove: Sequence[str] = (), reason: str = ""
    ) -> Row:
        """Give a role of the archive's own permissions, or take some; every grant of it changes in the same transaction.

        Raises:
            Forbidden: also for a role that one has, or a group one is in.
            NotFound, InvalidRequest, StateConflict.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            more, less = roles.parse(tuple(add)), roles.parse(tuple(remove))
            if not more | less or more & less:
                message = "nothing is to be changed" if not more | less else "a permission is to be added and removed"
                raise InvalidRequest(message, remedy="name what to add or to remove, each once")
            row = roles.find(tx, ref)
            covered = self._change_role(tx, subject, row, Permission(row["permissions"]) & ~less | more, at, reason=reason)
            made = roles.shown(roles.find(tx, row["id"])) | {"grants": covered}
            before = roles.names(Permission(row["permissions"]))
            asked = {"role": row["id"], "before": before, "after": made["permissions"], "reason": reason}
            said = f"change the role {row['name']} from {', '.join(before)} to {', '.join(made['permissions'])}"
            self._second(subject, Wish("role-change", said, P.ROLE_MANAGE, asked, reason))
            return made

        return self._change(subject, P.ROLE_MANAGE, work, alone=True)

    def change_role_as_asked(self, subject: Subject, role: int, before: Sequence[str], after: Sequence[str], *, reason: str = "") -> Row:
        """Make of a role what was asked for, when it is still what it was then.

        Raises:
            Forbidden, NotFound, StateConflict.
        """
        was, will = roles.parse(tuple(before)), roles.parse(tuple(after))

        def work(tx: sa.Connection, at: datetime) -> Row:
            row = roles.find(tx, role)
            if Permission(row["permissions"]) != was:
                message = "the role was changed since that was asked for"
                raise StateConflict(message, remedy="look at it, and ask again")
            covered = self._change_role(tx, subject, row, will, at, reason=reason)
            return roles.shown(roles.find(tx, row["id"])) | {"grants": covered}

        return self._change(subject, P.ROLE_MANAGE, work, alone=True)

    def _change_role(
        self, tx: sa.Connection, subject: Subject, row: Row, permissions: Permission, at: datetime, *, reason: str = ""
    ) -> int:
        self._refuse_own(tx, subject, row["id"], at)
        before = Permission(row["permissions"])
        covered = roles.change(tx, row, permissions, at=at)
        if permissions != before:
            self._record(
                tx, Kind.ROLE_CHANGED, subject, at, what="changed", name=row["name"], role_id=row["id"], before=roles.names(before),
                permissions=roles.names(permissions), grants=covered, reason=reason,
            )
        return covered

    def remove_role(self, subject: Subject, ref: str | int) -> Row:
        """Take a role of the archive's own away that nobody has; its name is not given again.

        Raises:
            Forbidden, NotFound, StateConflict.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            row = roles.find(tx, ref)
            self._remove_role(tx, subject, row, at)
            return {"id": row["id"], "name": row["name"]}

        return self._change(subject, P.ROLE_MANAGE, work, alone=True)

    def _remove_role(self, tx: sa.Connection, subject: Subject, row: Row, at: datetime) -> None:
        roles.remove(tx, row, at=at)
        self._record(tx, Kind.ROLE_CHANGED, subject, at, what="removed", name=row["name"], role_id=row["id"])

    def _refuse_own(self, tx: sa.Connection, subject: Subject, role_id: int, at: datetime) -> None:
        for one in (subject, subject.second):
            if one is not None and one.kind != "console" and roles.held_by(tx, role_id, one.principal_id, at=at):
                message = "nobody changes a role that they have themselves"
                raise Forbidden(message, remedy="ask another who manages roles, or use the command line on the server")

    def matrix(self, subject: Subject) -> list[Row]:
        """Return each permission with its kind and the roles that hold it.

        Raises:
            Forbidden.
        """
        return self._read(subject, READERS, lambda tx, _at: roles.matrix(roles.listed(tx)))

    def role_signs_in(
        self, subject: Subject, ref: str | int, *, second_factor: bool | None = None, idle_minutes: int | None = None,
        absolute_hours: int | None = None,
    ) -> Row:
        """Set what a role asks of how its holders sign in; None leaves it, 0 takes the archive's own limit.

        Raises:
            Forbidden, NotFound, InvalidRequest.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            row = roles.find(tx, ref)
            asked: Row = {
                "second_factor": bool(row["mfa_level"]) if second_factor is None else second_factor,
                "idle_s": row["idle_s"] if idle_minutes is None else idle_minutes * 60,
                "max_session_s": row["max_session_s"] if absolute_hours is None else absolute_hours * 3600,
            }
            return self._signs_in(tx, subject, row, asked, at)

        return self._change(subject, P.ROLE_MANAGE, work, alone=True)

    def _signs_in(self, tx: sa.Connection, subject: Subject, row: Row, asked: Row, at: datetime) -> Row:
        looser = (not asked["second_factor"] and row["mfa_level"]) or any(
            row[name] and (not asked[name] or asked[name] > row[name]) for name in ("idle_s", "max_session_s")
        )
        if looser and subject.kind != "console" and roles.held_by(tx, row["id"], subject.principal_id, at=at):
            message = "nobody loosens what their own role asks"
            raise Forbidden(message, remedy="ask another who manages roles, or use the command line on the server")
        demands.put(tx, row["id"], **asked)
        self._record(tx, Kind.ROLE_CHANGED, subject, at, what="sign-in", name=row["name"], role_id=row["id"], **asked)
        return roles.shown(roles.find(tx, row["id"]))

    def assign_role(self, subject: Subject, to: str | int, role: str, *, since: When = None, until: When = None) -> Row:
        """Give a role's function permissions to a user, service, peer or group; never to oneself."""

        def work(tx: sa.Connection, at: datetime) -> Row:
            who, what = principals.find(tx, to), roles.find(tx, role)
            start, end = instant(since, at) or at, instant(until, at) or FOREVER
            made = self._assigned(tx, subject, who, what, start, end, at)
            if what["permissions"] & ADMINISTRATIVE:
                begins = None if since is None else start.isoformat()
                asked = {"to": who["id"], "role": what["id"], "since": begins, "until": end.isoformat()}
                self._second(subject, Wish("role-assign", f"give {who['name']} the role {what['name']}", P.ROLE_MANAGE, asked))
            return made

        return self._change(subject, P.ROLE_MANAGE, work, alone=True)

    def _assigned(self, tx: sa.Connection, subject: Subject, who: Row, what: Row, start: datetime, end: datetime, at: datetime) -> Row:
        Terms(not_before=start, not_after=end).check()
        key = self._assign(tx, subject, who["id"], what["name"], at, start, end)
        self._record(tx, Kind.ROLE_CHANGED, subject, at, what="assigned", name=who["name"], id=who["id"], role=what["name"],
                     since=start.isoformat(), until=end.isoformat())
        return {"id": key, "subject": who["name"], "role": what["name"], "from": start, "until": end}

    def _refuse_alone(self, tx: sa.Connection, role: str) -> None:
        """Where two people decide, nobody comes with a role that administers: it is assigned afterwards, which asks for the second.

        Raises:
            StateConflict.
        """
        if self._two_person and roles.find(tx, role)["permissions"] & ADMINISTRATIVE:
            message = "it takes two people to give a role that administers"
            raise StateConflict(message, remedy=f"add the user without it, then 'archive role assign {role}', which asks for the second")

    def withdraw_role(self, subject: Subject, of: str | int, role: str) -> Row:
        """Take a role's function permissions away again."""

        def work(tx: sa.Connection, at: datetime) -> Row:
            return self._withdrawn(tx, subject, principals.find(tx, of), roles.find(tx, role), at)

        return self._change(subject, P.ROLE_MANAGE, work)

    def _withdrawn(self, tx: sa.Connection, subject: Subject, who: Row, what: Row, at: datetime) -> Row:
        if not roles.withdraw(tx, who["id"], what["id"], at=at):
            message = "that role is not assigned there"
            raise NotFound(message, remedy="'archive user show' lists the roles of a user")
        self._record(tx, Kind.ROLE_CHANGED, subject, at, what="withdrawn", name=who["name"], id=who["id"], role=what["name"])
        return {"id": who["id"], "subject": who["name"], "role": what["name"]}

    def _assign(
        self, tx: sa.Connection, subject: Subject, to: int, role: str, at: datetime, *window: datetime
    ) -> int:
        grants.refuse_self(tx, subject, to)
        start, end = window or (at, FOREVER)
        return roles.assign(tx, to, roles.find(tx, role)["id"], by=subject.principal_id, at=at, not_before=start, not_after=end)
