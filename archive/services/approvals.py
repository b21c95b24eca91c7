"""Requests for the approval of a second person: who sees them, who decides, and how what was approved is carried out, once."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.access import grants, policy, principals
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.tables import approval, principal
from archive.errors import ArchiveError, Forbidden, NotFound, StateConflict
from archive.ledger.audit import Kind
from archive.ledger.log import AuditFilter
from archive.services import two_person
from archive.services.changes import Changes
from archive.services.core import Core
from archive.services.operations import Operation

Row = dict[str, Any]
P = Permission
MOST = 200
_A = approval.c
_DECIDED = frozenset({"approved", "refused"})


class Approvals(Changes):
    """What approval of the command line and the web does."""

    def __init__(self, core: Core, operations: Mapping[str, Operation]) -> None:
        """Carry out `operations` by their names."""
        super().__init__(core.database, core.ledger, core.clock, read_only=core.read_only)
        self._core = core
        self._operations = operations

    @property
    def in_force(self) -> bool:
        """Whether two people decide here."""
        return self._core.config.policy.two_person

    def listed(self, subject: Subject, *, every: bool = False) -> list[Row]:
        """Return the requests one asked or may decide, newest first: those that wait, or with `every` the others too."""

        def work(tx: sa.Connection, at: datetime) -> list[Row]:
            query = sa.select(approval).where(self._seen(tx, subject, at)).order_by(_A.id.desc()).limit(MOST)
            if not every:
                query = query.where(_A.decision.in_(["", "approved"]), _A.expires_at > at, _A.done_at.is_(None))
            return [self._shown(tx, dict(row), at) for row in tx.execute(query).mappings()]

        return self._read(subject, None, work)

    def show(self, subject: Subject, number: int) -> Row:
        """Return a request.

        Raises:
            NotFound: also for one the subject neither asked nor may decide.
        """
        return self._read(subject, None, lambda tx, at: self._shown(tx, self._find(tx, subject, number, at), at))

    def approve(self, subject: Subject, number: int) -> Row:
        """Agree to a request, and carry it out with exactly what was asked for; what changes keys is given again at the console.

        Raises:
            Forbidden: by who asked, by a token, or by who may not do the same.
            NotFound, StateConflict: decided already, or too late.
        """
        row = self._decide(subject, number, "approved")
        operation = self._operations.get(row["operation"])
        if operation is None or operation.run is None:
            return self.show(subject, number)
        self._carry_out(subject, row, operation)
        return self.show(subject, number)

    def refuse(self, subject: Subject, number: int, *, note: str = "") -> Row:
        """Refuse a request, or take one's own back.

        Raises:
            Forbidden, NotFound, StateConflict.
        """
        self._decide(subject, number, "refused", note)
        return self.show(subject, number)

    # --- deciding ---

    def _decide(self, subject: Subject, number: int, decision: str, note: str = "") -> Row:
        if decision == "approved":
            self._entitled(subject, number)

        def work(tx: sa.Connection, at: datetime) -> Row:
            row = self._find(tx, subject, number, at)
            self._in_person(subject)
            asked = two_person.opened(self._core.keyring, row)
            if _state(row, at) != "waiting" or self._decided_before(tx, row):
                message = "the request waits no more"
                raise StateConflict(message, remedy="'archive approval show' says what became of it; ask again if it is still wanted")
            if decision == "approved":
                self._refuse_alone(subject, row)
            if row["asked_by"] != subject.principal_id and row["need"]:
                policy.require(tx, subject, P(row["need"]), at)
            waiting = sa.and_(_A.id == number, _A.decision == "", _A.decided_at.is_(None))
            change = sa.update(approval).where(waiting).values(decision=decision, decided_by=subject.principal_id, decided_at=at)
            if tx.execute(change).rowcount != 1:
                message = "somebody else decides about the request"
                raise StateConflict(message, remedy="'archive approval show' says what became of it")
            two_person.record(self._ledger, tx, subject, at, number, decision, row["operation"], note=note, said=asked["said"])
            return row | {"asked": asked}

        return self._change(subject, None, work)

    def _entitled(self, subject: Subject, number: int) -> None:
        """Ask for what no permission alone says: it reads in transactions of its own."""
        found = self._read(subject, None, lambda tx, at: self._find(tx, subject, number, at))
        operation = self._operations.get(found["operation"])
        if operation is not None and operation.entitled is not None and found["asked_by"] != subject.principal_id:
            asked = two_person.opened(self._core.keyring, found)
            try:
                operation.entitled(subject, _given(found, asked), self._asker(found, asked, None))
            except NotFound as absent:
                message = "what was asked for is not yours to approve"
                raise Forbidden(message, remedy="ask somebody who may do the same") from absent

    def _in_person(self, subject: Subject) -> None:
        if subject.kind != "console" and (subject.session_id is None or subject.token_id is not None or subject.kind != "user"):
            message = "two people decide about this, and a token is none"
            raise Forbidden(message, remedy="sign in with the browser, or use 'archive approval approve --as' on the server")

    def _refuse_alone(self, subject: Subject, row: Row) -> None:
        if subject.kind == "console":
            message = "the command line approves nothing by itself"
        elif row["asked_by"] == subject.principal_id:
            message = "whoever asks does not approve"
        else:
            return
        raise Forbidden(message, remedy="somebody else approves it, in the browser or with 'archive approval approve --as'")

    def _decided_before(self, tx: sa.Connection, row: Row) -> bool:
        """Whether the ledger knows of a decision, whatever the row says: what was done is never done again."""
        before: int | None = None
        while rows := self._ledger.search(tx, AuditFilter(kinds=(Kind.APPROVAL,), since=row["asked_at"], before=before)):
            before = rows[-1].n
            told = [event.body["detail"] for event in rows if event.body is not None]
            if any(one["approval"] == row["id"] and one["what"] in _DECIDED for one in told):
                return True
        return False

    # --- carrying out ---

    def _carry_out(self, subject: Subject, row: Row, operation: Operation) -> None:
        assert operation.run is not None
        claimed = self._change(subject, None, lambda tx, at: two_person.claimed(tx, row["id"], at=at))
        if not claimed:
            return
        outcome, why = "done", ""
        try:
            operation.run(self._asker(row, row["asked"], subject), _given(row, row["asked"]))
        except ArchiveError as error:
            outcome, why = "failed", error.message
        except BaseException:
            self._note(subject, row, "failed", "it was cut short: the ledger says what of it was done")
            raise
        self._note(subject, row, outcome, why)

    def _note(self, subject: Subject, row: Row, outcome: str, why: str) -> None:
        at = self._clock()
        with self._database.begin() as tx:
            tx.execute(sa.update(approval).where(_A.id == row["id"]).values(outcome=outcome))
            two_person.record(self._ledger, tx, subject, at, row["id"], outcome, row["operation"], why=why)

    def _asker(self, row: Row, asked: Row, second: Subject | None) -> Subject:
        """Return who asked as who acts now: what they may is looked at again."""
        with self._database.read() as tx:
            who = tx.execute(sa.select(principal).where(principal.c.id == row["asked_by"])).mappings().one()
        console = who["kind"] == "console"
        return Subject(
            who["id"], who["name"], "console" if console else "user", "console" if console else "internal", operator=asked["operator"],
            second=second,
        )

    # --- who sees what ---

    def _find(self, tx: sa.Connection, subject: Subject, number: int, at: datetime) -> Row:
        row = tx.execute(sa.select(approval).where(_A.id == number, self._seen(tx, subject, at))).mappings().first()
        if row is None:
            message = "there is no such request"
            raise NotFound(message, remedy="'archive approval list' names them")
        return dict(row)

    def _seen(self, tx: sa.Connection, subject: Subject, at: datetime) -> sa.ColumnElement[bool]:
        """Return the condition for the requests somebody asked, decided or may decide, and all of them for who audits."""
        held = P.AUDIT if subject.kind == "console" else policy.functions_of(tx, subject, at)
        if held & P.AUDIT:
            return sa.true()
        may = [sa.and_(_A.need != 0, _A.need.bitwise_and(int(held)) == _A.need)]
        if self._purges(tx, subject, at):
            may.append(_A.need == 0)
        return sa.or_(_A.asked_by == subject.principal_id, _A.decided_by == subject.principal_id, *may)

    def _purges(self, tx: sa.Connection, subject: Subject, at: datetime) -> bool:
        """Whether the subject may purge anything at all; whether all that is asked for is decided when they approve."""
        groups = [one["id"] for one in principals.groups_of(tx, subject.principal_id) if one["not_before"] <= at < one["not_after"]]
        held = [row for who in (subject.principal_id, *groups) for row in grants.listed(tx, at=at, to=who)]
        return any(row["effect"] == "allow" and row["state"] == "active" and "purge" in row["permissions"] for row in held)

    def _shown(self, tx: sa.Connection, row: Row, at: datetime) -> Row:
        both = sa.select(principal.c.id, principal.c.name).where(principal.c.id.in_([row["asked_by"], row["decided_by"] or 0]))
        names = {one.id: one.name for one in tx.execute(both)}
        asked = two_person.opened(self._core.keyring, row)
        return {
            "id": row["id"], "state": _state(row, at), "operation": row["operation"], "said": asked["said"], "reason": row["reason"],
            "asked_by": names.get(row["asked_by"], ""), "operator": asked["operator"], "asked_at": row["asked_at"],
            "expires_at": row["expires_at"], "decided_by": names.get(row["decided_by"], ""), "decided_at": row["decided_at"],
            "done_at": row["done_at"], "at_console": self._at_console(row["operation"]),
        }

    def _at_console(self, name: str) -> bool:
        operation = self._operations.get(name)
        return operation is None or operation.run is None


def _given(row: Row, asked: Row) -> Row:
    """Return what an operation is given: what was asked for, and when."""
    return {**asked["arguments"], "asked_at": row["asked_at"]}


def _state(row: Row, at: datetime) -> str:
    """Return waiting, approved (to be given again at the console), under way, done, failed, refused or expired."""
    if row["decision"] == "refused":
        return "refused"
    if row["outcome"] or row["done_at"] is not None:
        return row["outcome"] or "under way"
    if row["expires_at"] <= at:
        return "expired"
    return "approved" if row["decision"] == "approved" else "waiting"
