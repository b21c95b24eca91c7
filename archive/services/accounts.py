"""Users and groups, and with services/roles.py and rights.py the whole of access: each change with its event, in one transaction."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from archive.access import credentials, factors, grants, passwords, policy, principals, roles, sessions, tokens
from archive.access.grants import Terms
from archive.access.permissions import ADMINISTRATIVE, Permission
from archive.access.subject import Subject
from archive.db.types import FOREVER
from archive.errors import NotFound
from archive.ledger.audit import Kind, secret_digest
from archive.services.becoming import given_to, hides, refuse_anew, refuse_besides, refuse_into
from archive.services.rights import Row, When, instant
from archive.services.roles import Roles
from archive.services.sessions import refuse_above
from archive.services.tokens import PEOPLE, shown_token
from archive.services.two_person import Wish, refuse_becoming

WORDS = "abcdefghjkmnpqrstuvwxyz23456789"
P = Permission
MEMBERS: tuple[principals.Kind, ...] = ("user", "service", "device")


class Accounts(Roles):
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
            if self._binds_into_groups and not service:
                refuse_besides(tx, subject, key, at)
            if phc is not None:
                credentials.keep(tx, key, phc, must_change=must_change, at=at)
            for role in roles:
                self._refuse_alone(tx, role)
                self._assign(tx, subject, key, role, at)
            self._record(
                tx, Kind.USER_CHANGED, subject, at, what="added", name=name, id=key, principal_kind="service" if service else "user",
                roles=list(roles), password="" if phc is None else secret_digest(phc),
            )
            return self._user(tx, principals.find(tx, key), at)

        return self._change(subject, P.USER_MANAGE, work, alone=True)

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
            refuse_into(tx, subject, row["id"], at)
            refuse_becoming(tx, subject, row, at, on=self._two_person)
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
            refuse_into(tx, subject, row["id"], at)
            refuse_becoming(tx, subject, row, at, on=self._two_person)
            gone = factors.clear(tx, row["id"])
            sessions.end_all(tx, row["id"], at=at)
            self._record(tx, Kind.FACTOR_CHANGED, subject, at, what="reset", id=row["id"], name=row["name"], codes=[])
            return {"id": row["id"], "name": row["name"], "removed": gone}

        return self._change(subject, P.USER_MANAGE, work)

    def remove_user(self, subject: Subject, ref: str | int) -> Row:
        """Take a user away with everything it held. One who is denied something needs role-manage: made anew they would not be.

        Raises:
            Forbidden.
        """
        return self._remove(subject, ref, PEOPLE)

    def _remove(self, subject: Subject, ref: str | int, kinds: tuple[principals.Kind, ...]) -> Row:
        def work(tx: sa.Connection, at: datetime) -> Row:
            row = principals.find(tx, ref, kinds)
            hidden = row["kind"] == "group" and hides(tx, row["id"], at)
            gone = self._gone(tx, subject, row, at)
            if hidden:
                said = f"take away the group {row['name']}, which hides from its members"
                self._second(subject, Wish("group-remove", said, P.USER_MANAGE | P.ROLE_MANAGE, {"group": row["id"]}))
            return gone

        return self._change(subject, P.USER_MANAGE, work, alone=True)

    def _gone(self, tx: sa.Connection, subject: Subject, row: Row, at: datetime) -> Row:
        if row["kind"] != "group":
            self._refuse_above(tx, subject, row, at)
            refuse_anew(tx, subject, row, at)
        else:  # as leaving it: with the group goes what it gives its members, and what it hides from them
            refuse_members(tx, subject, row, at)
            if hides(tx, row["id"], at):
                grants.refuse_self(tx, subject, row["id"])
        principals.remove(tx, row["id"], row["name"], by=subject.principal_id, at=at)
        self._record(tx, Kind.USER_CHANGED, subject, at, what="removed", name=row["name"], id=row["id"])
        return {"id": row["id"], "name": row["name"]}

    # --- groups ---

    def add_group(self, subject: Subject, name: str, *, full_name: str = "") -> Row:
        """Add an empty group."""

        return self._change(subject, P.USER_MANAGE, lambda tx, at: self._new_group(tx, subject, name, full_name, at))

    def _new_group(self, tx: sa.Connection, subject: Subject, name: str, full_name: str, at: datetime) -> Row:
        key = principals.add(tx, "group", name, at=at, full_name=full_name)
        self._record(tx, Kind.USER_CHANGED, subject, at, what="group added", name=name, id=key, principal_kind="group")
        return self._group(tx, principals.find(tx, key))

    def list_groups(self, subject: Subject) -> list[Row]:
        """Return every group with its members."""
        return self._read(subject, P.USER_MANAGE | P.ROLE_MANAGE, lambda tx, _at: [
            self._group(tx, row) for row in principals.listed(tx, ("group",))
        ])

    def join_group(
        self, subject: Subject, group: str | int, member: str | int, *, since: When = None, until: When = None
    ) -> Row:
        """Put a member into a group for a time. A group that holds roles or grants needs role-manage: joining it gives rights.

        An earlier membership is replaced, so where the group hides something a shorter one is as leaving it.

        Raises:
            Forbidden: also for oneself.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            where, who = principals.find(tx, group, ("group",)), principals.find(tx, member, MEMBERS)
            start, end = instant(since, at) or at, instant(until, at) or FOREVER
            held = [(row["not_before"], row["not_after"]) for row in principals.groups_of(tx, who["id"]) if row["id"] == where["id"]]
            made = self._joined(tx, subject, where, who, start, end, at)
            lifts = hides(tx, where["id"], at) and any(shortens(one, start, end, at) for one in held)
            if lifts or roles.coming(tx, where["id"], at=at) & ADMINISTRATIVE:
                asked = {
                    "group": where["id"], "member": who["id"], "since": None if since is None else start.isoformat(),
                    "until": end.isoformat(),
                }
                said = f"put {who['name']} into {where['name']}"
                said += f", which hides from its members, from {start.isoformat()} until {end.isoformat()} alone" if lifts else ""
                self._second(subject, Wish("group-join", said, P.USER_MANAGE | P.ROLE_MANAGE, asked))
            return made

        return self._change(subject, P.USER_MANAGE, work)

    def _joined(
        self, tx: sa.Connection, subject: Subject, where: Row, who: Row, start: datetime, end: datetime, at: datetime
    ) -> Row:
        refuse_members(tx, subject, where, at)
        grants.refuse_self(tx, subject, who["id"])
        Terms(not_before=start, not_after=end).check()
        key = principals.join(tx, who["id"], where["id"], by=subject.principal_id, not_before=start, not_after=end)
        self._record(tx, Kind.USER_CHANGED, subject, at, what="joined", group=where["name"], name=who["name"], id=who["id"],
                     group_id=where["id"], since=start.isoformat(), until=end.isoformat())
        return {"id": key, "group": where["name"], "member": who["name"], "from": start, "until": end}

    def leave_group(self, subject: Subject, group: str | int, member: str | int) -> Row:
        """Take a member out of a group. One that holds roles or grants, or hides, needs role-manage, as joining it does.

        Raises:
            Forbidden: also for oneself: leaving may lift a deny.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            where, who = principals.find(tx, group, ("group",)), principals.find(tx, member)
            made = self._left(tx, subject, where, who, at)
            if hides(tx, where["id"], at):
                asked = {"group": where["id"], "member": who["id"]}
                said = f"take {who['name']} out of {where['name']}, which hides from its members"
                self._second(subject, Wish("group-leave", said, P.USER_MANAGE | P.ROLE_MANAGE, asked))
            return made

        return self._change(subject, P.USER_MANAGE, work)

    def _left(self, tx: sa.Connection, subject: Subject, where: Row, who: Row, at: datetime) -> Row:
        refuse_members(tx, subject, where, at)
        grants.refuse_self(tx, subject, who["id"])
        if not principals.leave(tx, who["id"], where["id"]):
            message = "that member is not in the group"
            raise NotFound(message, remedy="'archive group list' shows who is")
        self._record(tx, Kind.USER_CHANGED, subject, at, what="left", group=where["name"], name=who["name"], id=who["id"],
                     group_id=where["id"])
        return {"id": who["id"], "group": where["name"], "member": who["name"]}

    def remove_group(self, subject: Subject, ref: str | int) -> Row:
        """Take a group away; what it gave its members ends, and what it hid. One with roles, grants or a deny needs role-manage.

        Raises:
            Forbidden: also for a group with a deny that one is in.
        """
        return self._remove(subject, ref, ("group",))

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


def refuse_members(tx: sa.Connection, subject: Subject, group: Row, at: datetime) -> None:
    """Who is in a group that gives or hides anything, now or later, is for those who give: a member comes to it, and loses it, by that.

    Raises:
        Forbidden.
    """
    if roles.coming(tx, group["id"], at=at) or given_to(tx, group["id"], at) or hides(tx, group["id"], at):
        policy.require(tx, subject, P.ROLE_MANAGE, at)


def shortens(held: tuple[datetime, datetime], start: datetime, end: datetime, at: datetime) -> bool:
    """Whether a membership from `start` to `end`, in place of the one held, leaves out any of what is still to come of that."""
    return held[1] > at and (start > max(held[0], at) or end < held[1])


def drawn_password() -> str:
    """Return a new password of four words of five letters: 98 bits."""
    return "-".join("".join(secrets.choice(WORDS) for _ in range(5)) for _ in range(4))


def _sealed(password: str | None, name: str) -> str | None:
    """Check and hash a password before any lock is taken."""
    if password is None:
        return None
    passwords.check_new(password, name=name)
    return passwords.seal(password)
