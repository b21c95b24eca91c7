"""Policy as text: exported, tried against what is expected of it, and applied in one transaction (docs/access.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import msgspec
import sqlalchemy as sa

from archive.access import grants, policy, principals, roles
from archive.access.grants import Terms
from archive.access.permissions import ADMINISTRATIVE, Permission
from archive.access.subject import Subject
from archive.errors import StateConflict
from archive.ledger.audit import Kind
from archive.services import grant_events, policy_difference, policy_effect, policy_present
from archive.services.accounts import MEMBERS, Accounts, shortens
from archive.services.becoming import hides
from archive.services.policy_difference import Change
from archive.services.policy_document import Document, parse, write
from archive.services.policy_present import Row
from archive.services.two_person import Wish

P = Permission
_OF_GROUPS = frozenset({"group-add", "group-remove", "join", "leave"})
Act = Callable[[sa.Connection, Subject, Row, datetime], object]


class _Undo(Exception):
    """How a trial leaves its transaction."""

    def __init__(self, found: Row) -> None:
        super().__init__("a trial changes nothing")
        self.found = found


@dataclass(slots=True)
class _Asked:
    text: str
    wanted: Document
    reason: str = ""
    need: Permission = P.ROLE_MANAGE
    two: bool = False  # whether two people decide about what it comes to


class PolicyText(Accounts):
    """What policy of the command line and the web does."""

    def export(self, subject: Subject) -> str:
        """Return roles, groups, role assignments and standing grants that count now or later, as text.

        Raises:
            Forbidden.
        """

        def work(tx: sa.Connection, at: datetime) -> tuple[str, int]:
            there = policy_present.read(tx, at)
            return write(policy_present.document(there)), there.left_out

        text, left_out = self._read(subject, P.ROLE_MANAGE | P.AUDIT, work)
        self._looked(subject, "policy")
        note = f"# {left_out} grants that live on their own (passed on, asked for, given by rules, of albums) are not in this text.\n"
        return text + (note if left_out else "")

    def test(self, subject: Subject, text: str) -> Row:
        """Say what a policy would change, who would gain and lose what, and which expectations would not hold; nothing is kept.

        Raises:
            Forbidden: also for a change the subject may not make. NotFound, InvalidRequest, StateConflict.
        """
        asked = self._asked_for(subject, text)

        def work(tx: sa.Connection, at: datetime) -> Row:
            raise _Undo(self._carried_out(tx, subject, asked, at))

        try:
            found: Row = self._change(subject, P.ROLE_MANAGE, work)
        except _Undo as trial:
            found = trial.found
        self._looked(subject, "policy")
        return found

    def apply(self, subject: Subject, text: str, *, reason: str = "", difference: str | None = None) -> Row:
        """Make the archive as a policy says: everything or nothing; `difference` is that of a trial, and must still be the same.

        Raises:
            Forbidden: also for a change the subject may not make, as one of their own rights.
            StateConflict: an expectation would not hold, or the difference is another by now.
            NotFound, InvalidRequest.
        """
        asked = self._asked_for(subject, text, reason)

        def work(tx: sa.Connection, at: datetime) -> Row:
            found = self._carried_out(tx, subject, asked, at)
            if found["failed"]:
                numbers = ", ".join(str(one["number"]) for one in found["failed"][:20])
                message = f"{len(found['failed'])} expectations would not hold: number {numbers}"
                raise StateConflict(message, remedy="'archive policy test' tells of each")
            if difference is not None and difference != found["difference"]:
                message = "the archive changed since the policy was looked at"
                raise StateConflict(message, remedy="test it again, and look at what it changes")
            if asked.two:
                wish = {"text": text, "reason": reason, "difference": found["difference"]}
                said = f"apply a policy of {len(found['changes'])} changes: " + "; ".join(found["changes"][:20])
                self._second(subject, Wish("policy-apply", said, asked.need, wish, reason))
            return found | {"applied": bool(found["changes"])}

        return self._change(subject, P.ROLE_MANAGE, work, alone=True)

    def _asked_for(self, subject: Subject, text: str, reason: str = "") -> _Asked:
        """Read the text of who may apply one, outside any transaction."""
        self._read(subject, P.ROLE_MANAGE, lambda _tx, _at: None)
        return _Asked(text, parse(text), reason)

    def _carried_out(self, tx: sa.Connection, subject: Subject, asked: _Asked, at: datetime) -> Row:
        there = policy_present.read(tx, at)
        changes = policy_difference.changes(tx, there, asked.wanted, at=at, issuer=self._default_issuer)
        if any(one.what in _OF_GROUPS for one in changes):
            policy.require(tx, subject, P.USER_MANAGE, at)
            asked.need |= P.USER_MANAGE
        reached = set().union(*(one.reached for one in changes))
        touched = policy_effect.whose(tx, reached, at=at)
        before = policy_effect.measure(tx, touched, at=at)
        for one in changes:
            self._acts()[one.what](tx, subject, one.given, at)
            asked.two = asked.two or _takes_two(tx, one, there, at)
        if changes:
            digest = hashlib.sha256(asked.text.encode()).hexdigest()
            self._record(
                tx, Kind.ROLE_CHANGED, subject, at, what="policy applied", changes=len(changes), sha256=digest, reason=asked.reason,
            )
        return {
            "changes": [one.said for one in changes], "difference": _digest(changes), "applied": False,
            "effects": policy_effect.compare(before, policy_effect.measure(tx, touched, at=at)),
            "expectations": len(asked.wanted.expect), "failed": policy_effect.unmet(tx, asked.wanted.expect, at=at),
        }

    # --- how each change is done, with the bounds and the event it has by itself ---

    def _acts(self) -> dict[str, Act]:
        return {
            "role-add": lambda tx, subject, given, at: self._add_role(tx, subject, given["name"], given["permissions"], at),
            "role-change": lambda tx, subject, given, at: self._change_role(tx, subject, given["row"], given["permissions"], at),
            "role-remove": lambda tx, subject, given, at: self._remove_role(tx, subject, given["row"], at),
            "sign-in": lambda tx, subject, given, at: self._signs_in(tx, subject, roles.find(tx, given["name"]), given["asks"], at),
            "group-add": lambda tx, subject, given, at: self._new_group(tx, subject, given["name"], given["full_name"], at),
            "group-remove": lambda tx, subject, given, at: self._gone(tx, subject, given["row"], at),
            "join": self._text_joins, "leave": self._text_leaves, "assign": self._text_assigns, "withdraw": self._text_withdraws,
            "give": self._text_gives, "revoke": self._text_revokes,
        }

    def _text_joins(self, tx: sa.Connection, subject: Subject, given: Row, at: datetime) -> None:
        group, member = principals.find(tx, given["group"], ("group",)), principals.find(tx, given["member"], MEMBERS)
        self._joined(tx, subject, group, member, given["start"], given["end"], at)

    def _text_leaves(self, tx: sa.Connection, subject: Subject, given: Row, at: datetime) -> None:
        self._left(tx, subject, principals.find(tx, given["group"], ("group",)), principals.find(tx, given["member"], MEMBERS), at)

    def _text_assigns(self, tx: sa.Connection, subject: Subject, given: Row, at: datetime) -> None:
        who, what = principals.find(tx, given["to"]), roles.find(tx, given["role"])
        self._assigned(tx, subject, who, what, given["start"], given["end"], at)

    def _text_withdraws(self, tx: sa.Connection, subject: Subject, given: Row, at: datetime) -> None:
        self._withdrawn(tx, subject, principals.find(tx, given["to"]), roles.find(tx, given["role"]), at)

    def _text_gives(self, tx: sa.Connection, subject: Subject, given: Row, at: datetime) -> None:
        one = given["text"]
        who, what = principals.find(tx, one.to), roles.find(tx, one.role)
        grants.refuse_self(tx, subject, who["id"])
        grant_events.check_depth(one.delegable, what["permissions"], deny=one.effect == "deny")
        terms = Terms(
            not_before=given["start"], not_after=given["end"], deny=one.effect == "deny", modality=one.modality.strip().upper(),
            reason=one.reason,
        )
        key = grants.give(
            tx, to=who["id"], role_row=what, datastore_id=given["place"], terms=terms, by=subject.principal_id, at=at,
            depth=one.delegable, scope_key=given["scope_key"],
        )
        grant_events.record(self._ledger, tx, Kind.GRANTED, subject, at, grants.some(tx, [key], at=at)[0])

    def _text_revokes(self, tx: sa.Connection, subject: Subject, given: Row, at: datetime) -> None:
        row = given["row"]
        if row["effect"] == "deny":
            grants.refuse_self(tx, subject, row["subject_id"])
        grant_events.end(self._ledger, tx, subject, at, row["id"], because="not in the policy that was applied")


def _takes_two(tx: sa.Connection, change: Change, there: policy_present.Present, at: datetime) -> bool:
    """Whether two people decide about a change, as when it is made by itself."""
    given = change.given
    if change.what == "role-change":
        return True
    if change.what == "role-add":
        return bool(given["permissions"] & ADMINISTRATIVE)
    if change.what == "assign":
        return bool(roles.find(tx, given["role"])["permissions"] & ADMINISTRATIVE)
    if change.what == "join":
        group, held = principals.find(tx, given["group"], ("group",)), there.members.get((given["group"], given["member"]))
        lifts = held is not None and shortens(held, given["start"], given["end"], at) and hides(tx, group["id"], at)
        return lifts or bool(roles.coming(tx, group["id"], at=at) & ADMINISTRATIVE)
    if change.what == "revoke":
        return bool(given["row"]["effect"] == "deny")
    gone = {"leave": given.get("group"), "group-remove": given.get("row", {}).get("name")}.get(change.what)
    return any(row["effect"] == "deny" and row["subject"] == gone for row in there.grants)


def _digest(changes: list[Change]) -> str:
    """Return what tells one difference from another; times that begin with the application are no part of it."""
    return hashlib.sha256(msgspec.json.encode([[one.what, one.said] for one in changes])).hexdigest()
