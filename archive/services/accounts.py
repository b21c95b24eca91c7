"""Users, groups and roles, and with services/rights.py the whole of access: each change with its event, in one transaction."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from archive.access import credentials, demands, factors, grants, passwords, policy, principals, roles, sessions, tokens
from archive.access.grants import Terms
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.types import FOREVER
from archive.errors import Forbidden, NotFound
from archive.ledger.audit import Kind, secret_digest
from archive.services.rights import PEOPLE, Rights, Row, When, instant, shown_token
from archive.services.sessions import refuse_above

WORDS = "abcdefghjkmnpqrstuvwxyz23456789"
P = Permission


class Accounts(Rights):
    """What user, group, role, grant, token and explain of the command line and the web do; every method asks its permission first."""

    # --- users ---

    def add_user(
        self, subject: Subject, name: str, *, roles: Sequence[str] = (), password: str | None = None, full_name: str = "",
        email: str = "", service: bool = False, must_change: bool = False,
    ) -> Row:
        """Add a user; without a password it cannot sign in until reset_password gives one. Roles need role-manage besides.

        Raises:
            Forbidden, InvalidRequest, NotFound.
        """
        phc = _sealed(password, name)

        def work(tx: sa.Connection, at: datetime) -> Row:
            if roles:
                policy.require(tx, subject, P.ROLE_MANAGE, at)
            key = principals.add(tx, "service" if service else "user", name, at=at, full_name=full_name, email=email)
            if phc is not None:
                credentials.keep(tx, key, phc, must_change=must_change, at=at)
            for role in roles:
                self._assign(tx, subject, key, role, at)
            self._record(
                tx, Kind.USER_CHANGED, subject, at, what="added", name=name, id=key, principal_kind="service" if service else "user",
                roles=list(roles), password="" if phc is None else secret_digest(phc),
            )
            return self._user(tx, principals.find(tx, key), at)

        return self._change(subject, P.USER_MANAGE, work)

    def list_users(self, subject: Subject) -> list[Row]:
        """Return every user and service."""
        return self._read(subject, P.USER_MANAGE | P.ROLE_MANAGE, lambda tx, at: [
            self._user(tx, row, at) for row in principals.listed(tx, PEOPLE)
        ])

    def show_user(self, subject: Subject, ref: str | int) -> Row:
        """Return a user with its tokens, and its grants to who may list them: they name patients and studies."""

        def work(tx: sa.Connection, at: datetime) -> Row:
            row = principals.find(tx, ref, PEOPLE)
            shown = self._user(tx, row, at)
            if policy.functions_of(tx, subject, at) & (P.ROLE_MANAGE | P.AUDIT):
                shown["grants"] = grants.listed(tx, at=at, to=row["id"])
            return shown | {"tokens": [shown_token(token, at) for token in tokens.listed(tx, principal_id=row["id"])]}

        found = self._read(subject, P.USER_MANAGE | P.ROLE_MANAGE, work)
        if "grants" in found:
            self._looked(subject, "grants", of=found["name"])
        return found

    def disable_user(self, subject: Subject, ref: str | int) -> Row:
        """Switch a user off: it sees nothing at its next statement, and its sessions end."""
        return self._switch(subject, ref, enabled=False)

    def enable_user(self, subject: Subject, ref: str | int) -> Row:
        """Switch a user on again; it signs in anew."""
        return self._switch(subject, ref, enabled=True)

    def _switch(self, subject: Subject, ref: str | int, *, enabled: bool) -> Row:
        def work(tx: sa.Connection, at: datetime) -> Row:
            row = principals.find(tx, ref, PEOPLE)
            self._refuse_above(tx, subject, row, at)
            principals.set_enabled(tx, row["id"], enabled=enabled, at=at)
            what = "enabled" if enabled else "disabled"
            self._record(tx, Kind.USER_CHANGED, subject, at, what=what, name=row["name"], id=row["id"])
            return self._user(tx, principals.find(tx, row["id"], PEOPLE), at)

        return self._change(subject, P.USER_MANAGE, work)

    def reset_password(self, subject: Subject, ref: str | int, password: str | None = None) -> Row:
        """Set a password that must be changed at the next sign-in, drawn when none is given, and end the user's sessions.

        Returns:
            `id`, `name` and, when it was drawn, `password`: shown once.

        Raises:
            Forbidden: also when the user may do more than the caller, or has grants and the caller no role-manage.
        """
        chosen = password if password is not None else drawn_password()
        phc = _sealed(chosen, "")
        assert phc is not None

        def work(tx: sa.Connection, at: datetime) -> Row:
            row = principals.find(tx, ref, ("user",))
            self._refuse_above(tx, subject, row, at)
            # Whoever sets a password may sign in with it: that must not open images user-manage alone does not.
            self._refuse_into(tx, subject, row, at)
            credentials.keep(tx, row["id"], phc, must_change=True, at=at)
            sessions.end_all(tx, row["id"], at=at)
            self._record(tx, Kind.PASSWORD_CHANGED, subject, at, what="reset", name=row["name"], id=row["id"],
                         password=secret_digest(phc))
            return {"id": row["id"], "name": row["name"]} | ({} if password is not None else {"password": chosen})

        return self._change(subject, P.USER_MANAGE, work)

    def reset_mfa(self, subject: Subject, ref: str | int) -> Row:
        """Take a user's second factors and recovery codes away, and end their sessions: for a lost phone.

        Raises:
            Forbidden: also when the user may do more than the caller, or has grants and the caller no role-manage.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            row = principals.find(tx, ref, ("user",))
            self._refuse_above(tx, subject, row, at)
            self._refuse_into(tx, subject, row, at)
            gone = factors.clear(tx, row["id"])
            sessions.end_all(tx, row["id"], at=at)
            self._record(tx, Kind.FACTOR_CHANGED, subject, at, what="reset", id=row["id"], name=row["name"], codes=[])
            return {"id": row["id"], "name": row["name"], "removed": gone}

        return self._change(subject, P.USER_MANAGE, work)

    def remove_user(self, subject: Subject, ref: str | int) -> Row:
        """Take a user away with everything it held."""
        return self._remove(subject, ref, PEOPLE)

    def _remove(self, subject: Subject, ref: str | int, kinds: tuple[principals.Kind, ...]) -> Row:
        def work(tx: sa.Connection, at: datetime) -> Row:
            row = principals.find(tx, ref, kinds)
            self._refuse_above(tx, subject, row, at)
            if row["kind"] == "group" and any(grant["effect"] == "deny" for grant in grants.listed(tx, at=at, to=row["id"])):
                # As leaving it: with the group goes what it hides from its members.
                policy.require(tx, subject, P.ROLE_MANAGE, at)
                grants.refuse_self(tx, subject, row["id"])
            principals.remove(tx, row["id"], row["name"], by=subject.principal_id, at=at)
            self._record(tx, Kind.USER_CHANGED, subject, at, what="removed", name=row["name"], id=row["id"])
            return {"id": row["id"], "name": row["name"]}

        return self._change(subject, P.USER_MANAGE, work)

    # --- groups ---

    def add_group(self, subject: Subject, name: str, *, full_name: str = "") -> Row:
        """Add an empty group."""

        def work(tx: sa.Connection, at: datetime) -> Row:
            key = principals.add(tx, "group", name, at=at, full_name=full_name)
            self._record(tx, Kind.USER_CHANGED, subject, at, what="group added", name=name, id=key, principal_kind="group")
            return self._group(tx, principals.find(tx, key))

        return self._change(subject, P.USER_MANAGE, work)

    def list_groups(self, subject: Subject) -> list[Row]:
        """Return every group with its members."""
        return self._read(subject, P.USER_MANAGE | P.ROLE_MANAGE, lambda tx, _at: [
            self._group(tx, row) for row in principals.listed(tx, ("group",))
        ])

    def join_group(
        self, subject: Subject, group: str | int, member: str | int, *, since: When = None, until: When = None
    ) -> Row:
        """Put a member into a group for a time. A group that holds roles or grants needs role-manage: joining it gives rights.

        Raises:
            Forbidden: also for oneself.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            where, who = principals.find(tx, group, ("group",)), principals.find(tx, member, ("user", "service", "device"))
            if roles.of(tx, where["id"], at=at) or any(row["state"] in ("active", "not yet") for row in grants.listed(
                tx, at=at, to=where["id"]
            )):
                policy.require(tx, subject, P.ROLE_MANAGE, at)
            grants.refuse_self(tx, subject, who["id"])
            start, end = instant(since, at) or at, instant(until, at) or FOREVER
            Terms(not_before=start, not_after=end).check()
            key = principals.join(tx, who["id"], where["id"], by=subject.principal_id, not_before=start, not_after=end)
            self._record(tx, Kind.USER_CHANGED, subject, at, what="joined", group=where["name"], name=who["name"], id=who["id"],
                         group_id=where["id"], since=start.isoformat(), until=end.isoformat())
            return {"id": key, "group": where["name"], "member": who["name"], "from": start, "until": end}

        return self._change(subject, P.USER_MANAGE, work)

    def leave_group(self, subject: Subject, group: str | int, member: str | int) -> Row:
        """Take a member out of a group.

        Raises:
            Forbidden: also for oneself: leaving may lift a deny.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            where, who = principals.find(tx, group, ("group",)), principals.find(tx, member)
            grants.refuse_self(tx, subject, who["id"])
            if any(row["effect"] == "deny" for row in grants.listed(tx, at=at, to=where["id"])):
                policy.require(tx, subject, P.ROLE_MANAGE, at)
            if not principals.leave(tx, who["id"], where["id"]):
                message = "that member is not in the group"
                raise NotFound(message, remedy="'archive group list' shows who is")
            self._record(tx, Kind.USER_CHANGED, subject, at, what="left", group=where["name"], name=who["name"], id=who["id"],
                         group_id=where["id"])
            return {"id": who["id"], "group": where["name"], "member": who["name"]}

        return self._change(subject, P.USER_MANAGE, work)

    def remove_group(self, subject: Subject, ref: str | int) -> Row:
        """Take a group away; what it gave its members ends, and what it hid. One with a deny needs role-manage.

        Raises:
            Forbidden: also for a group with a deny that one is in.
        """
        return self._remove(subject, ref, ("group",))

    # --- roles ---

    def list_roles(self, subject: Subject) -> list[Row]:
        """Return every role and what it holds."""
        return self._read(subject, P.USER_MANAGE | P.ROLE_MANAGE | P.PEER_MANAGE, lambda tx, _at: roles.listed(tx))

    def show_role(self, subject: Subject, ref: str | int) -> Row:
        """Return one role."""
        return self._read(
            subject, P.USER_MANAGE | P.ROLE_MANAGE | P.PEER_MANAGE, lambda tx, _at: roles.shown(roles.find(tx, ref))
        )

    def add_role(self, subject: Subject, name: str, permissions: Sequence[str]) -> Row:
        """Add a role of the archive's own; a role is never changed afterwards."""
        held = roles.parse(tuple(permissions))

        def work(tx: sa.Connection, at: datetime) -> Row:
            key = roles.add(tx, name, held, at=at)
            self._record(tx, Kind.ROLE_CHANGED, subject, at, what="added", name=name, id=key, permissions=roles.names(held))
            return roles.shown(roles.find(tx, key))

        return self._change(subject, P.ROLE_MANAGE, work)

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
            looser = (not asked["second_factor"] and row["mfa_level"]) or any(
                row[name] and (not asked[name] or asked[name] > row[name]) for name in ("idle_s", "max_session_s")
            )
            if looser and subject.kind != "console" and row["name"] in roles.of(tx, subject.principal_id, at=at):
                message = "nobody loosens what their own role asks"
                raise Forbidden(message, remedy="ask another who manages roles, or use the command line on the server")
            demands.put(tx, row["id"], **asked)
            self._record(tx, Kind.ROLE_CHANGED, subject, at, what="sign-in", name=row["name"], role_id=row["id"], **asked)
            return roles.shown(roles.find(tx, row["id"]))

        return self._change(subject, P.ROLE_MANAGE, work)

    def assign_role(self, subject: Subject, to: str | int, role: str, *, since: When = None, until: When = None) -> Row:
        """Give a role's function permissions to a user, service, peer or group; never to oneself."""

        def work(tx: sa.Connection, at: datetime) -> Row:
            who = principals.find(tx, to)
            start, end = instant(since, at) or at, instant(until, at) or FOREVER
            Terms(not_before=start, not_after=end).check()
            key = self._assign(tx, subject, who["id"], role, at, start, end)
            self._record(tx, Kind.ROLE_CHANGED, subject, at, what="assigned", name=who["name"], id=who["id"], role=role,
                         since=start.isoformat(), until=end.isoformat())
            return {"id": key, "subject": who["name"], "role": role, "from": start, "until": end}

        return self._change(subject, P.ROLE_MANAGE, work)

    def withdraw_role(self, subject: Subject, of: str | int, role: str) -> Row:
        """Take a role's function permissions away again."""

        def work(tx: sa.Connection, at: datetime) -> Row:
            who, what = principals.find(tx, of), roles.find(tx, role)
            if not roles.withdraw(tx, who["id"], what["id"], at=at):
                message = "that role is not assigned there"
                raise NotFound(message, remedy="'archive user show' lists the roles of a user")
            self._record(tx, Kind.ROLE_CHANGED, subject, at, what="withdrawn", name=who["name"], id=who["id"], role=what["name"])
            return {"id": who["id"], "subject": who["name"], "role": what["name"]}

        return self._change(subject, P.ROLE_MANAGE, work)

    def _assign(
        self, tx: sa.Connection, subject: Subject, to: int, role: str, at: datetime, *window: datetime
    ) -> int:
        grants.refuse_self(tx, subject, to)
        start, end = window or (at, FOREVER)
        return roles.assign(tx, to, roles.find(tx, role)["id"], by=subject.principal_id, at=at, not_before=start, not_after=end)

    # --- what answers show ---

    def _user(self, tx: sa.Connection, row: Row, at: datetime) -> Row:
        groups = [group["name"] for group in principals.groups_of(tx, row["id"]) if group["not_before"] <= at < group["not_after"]]
        return {
            "id": row["id"], "name": row["name"], "kind": row["kind"], "full_name": row["full_name"], "email": row["email"],
            "enabled": row["enabled"], "roles": roles.of(tx, row["id"], at=at), "groups": groups,
            "password": credentials.account(tx, row["name"]) is not None, "created_at": row["created_at"],
            "second_factors": sorted({found.kind for found in factors.of(tx, row["id"])}),
        }

    def _group(self, tx: sa.Connection, row: Row) -> Row:
        members = [
            {"id": found["id"], "name": found["name"], "from": found["not_before"], "until": found["not_after"]}
            for found in principals.members_of(tx, row["id"])
        ]
        return {
            "id": row["id"], "name": row["name"], "full_name": row["full_name"], "enabled": row["enabled"], "members": members,
        }

    def _refuse_above(self, tx: sa.Connection, subject: Subject, row: Row, at: datetime) -> None:
        refuse_above(tx, subject, row, at)


def drawn_password() -> str:
    """Return a new password of four words of five letters: 98 bits."""
    return "-".join("".join(secrets.choice(WORDS) for _ in range(5)) for _ in range(4))


def _sealed(password: str | None, name: str) -> str | None:
    """Check and hash a password before any lock is taken."""
    if password is None:
        return None
    passwords.check_new(password, name=name)
    return passwords.seal(password)
