"""Access reviews: who still needs this? Each row is kept or revoked by somebody it does not belong to, and closing signs all of it.

The record of a closed review is its event: sealed body, leaf, checkpoint. The table holds what is still to be decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from archive.access import principals, roles
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.tables import access_review, access_review_item, grants, principal, role, role_assignment
from archive.errors import Forbidden, InvalidRequest, NotFound, StateConflict
from archive.ledger.audit import Event, Kind
from archive.ledger.bodies import parse
from archive.services import grant_events, review_rows
from archive.services.changes import Changes
from archive.services.core import Core
from archive.services.review_rows import Chosen

Row = dict[str, Any]
Rows = list[Row]
Decision = Literal["keep", "revoke"]
P = Permission
TITLE, NOTE = 200, 500
_R, _I = access_review.c, access_review_item.c


class Reviews(Changes):
    """What `archive review`, /api/reviews and the page do; auditors look, whoever manages roles decides."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        super().__init__(core.database, core.ledger, core.clock, read_only=core.read_only)
        self._core = core

    def start(self, subject: Subject, title: str, *, due: datetime, chosen: Chosen) -> Row:
        """Take down what stands now, to be decided until `due`.

        Raises:
            Forbidden, NotFound; InvalidRequest: a due date gone by, nothing chosen or too much.
        """
        title = " ".join(title.split())[:TITLE]

        def work(tx: sa.Connection, at: datetime) -> Row:
            if due <= at or not title:
                message = "a review has a title and a due date to come"
                raise InvalidRequest(message, remedy="name --due 2w")
            items = review_rows.rows(tx, self._core.keyring, chosen, at)
            made = tx.execute(sa.insert(access_review).values(
                title=title, chosen=chosen.kept(), started_by=subject.principal_id, started_at=at, due_at=due,
            ))
            assert made.inserted_primary_key is not None
            key = int(made.inserted_primary_key[0])
            tx.execute(sa.insert(access_review_item), [{"review_id": key, **item} for item in items])
            self._record(tx, Kind.ACCESS_REVIEWED, subject, at, what="started", review=key, title=title, chosen=chosen.kept(),
                         due=due.isoformat(), rows=[[item["kind"], item["number"]] for item in items])
            return _told(tx, at, _R.id == key)[0]

        return self._change(subject, P.ROLE_MANAGE, work)

    def list(self, subject: Subject) -> Rows:
        """Return the reviews, newest first, with how much is undecided.

        Raises:
            Forbidden.
        """
        return self._read(subject, P.ROLE_MANAGE | P.AUDIT, _told)

    def show(self, subject: Subject, number: int) -> Row:
        """Return a review with its rows; of a closed one what its signed record says. Grants name patients, so looking is an event.

        Raises:
            Forbidden, NotFound.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            found = _one(tx, number, at)
            if found["state"] == "closed":
                return {**found, "items": self._signed(tx, found["leaf"])}
            query = sa.select(access_review_item, principal.c.name.label("decider")).outerjoin(principal, principal.c.id == _I.decided_by)
            return {**found, "items": [_item(row) for row in tx.execute(query.where(_I.review_id == number).order_by(_I.id)).mappings()]}

        found = self._read(subject, P.ROLE_MANAGE | P.AUDIT, work)
        event = Event(Kind.AUDIT_READ, subject=subject, detail={"what": "access review", "review": number})
        with self._database.begin() as tx:
            self._ledger.record(tx, event, at=self._clock())
        return found

    def decide(self, subject: Subject, number: int, items: Sequence[int], decision: Decision, *, note: str = "") -> Row:
        """Keep or revoke rows; it takes effect when the review is closed, and may be decided anew until then.

        Raises:
            Forbidden: also for a row of one's own, or of a group one is in.
            NotFound, StateConflict.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            self._open(tx, number, at)
            wanted = sorted(set(items))
            rows = tx.execute(sa.select(_I.id, _I.subject_id).where(_I.review_id == number, _I.id.in_(wanted))).all()
            if not rows or len(rows) != len(wanted):
                message = "there is no such row in this review"
                raise NotFound(message, remedy=f"'archive review show {number}' numbers them")
            for row in rows:
                _refuse_own(tx, subject, row.subject_id)
            values = {"decision": decision, "decided_by": subject.principal_id, "decided_at": at, "note": " ".join(note.split())[:NOTE]}
            tx.execute(sa.update(access_review_item).where(_I.id.in_(wanted)).values(**values))
            self._record(tx, Kind.ACCESS_REVIEWED, subject, at, what="decided", review=number, rows=wanted, decision=decision,
                         note=values["note"])
            return _one(tx, number, at)

        return self._change(subject, P.ROLE_MANAGE, work, alone=True)

    def close(self, subject: Subject, number: int, *, undecided: Decision | None = None) -> Row:
        """End what was to be revoked and sign the record, in one transaction.

        Raises:
            Forbidden: an undecided row is one's own.
            StateConflict: rows are undecided, and nothing was said of them.
            NotFound.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            found = self._open(tx, number, at)
            rows = [dict(row) for row in tx.execute(
                sa.select(access_review_item).where(_I.review_id == number).order_by(_I.id)).mappings()]
            left = [row for row in rows if not row["decision"]]
            if left and undecided is None:
                message = f"{len(left)} rows are undecided"
                raise StateConflict(message, remedy="decide them, or say what becomes of them: --undecided keep or --undecided revoke")
            for row in left:
                _refuse_own(tx, subject, row["subject_id"])
                row |= {"decision": undecided, "decided_by": subject.principal_id, "decided_at": at}
            ended = [self._carry_out(tx, subject, row, found["title"], at) for row in rows]
            names = {one.id: one.name for one in tx.execute(sa.select(principal.c.id, principal.c.name))}
            record = [
                {
                    "kind": row["kind"], "number": row["number"], **row["shown"], "decision": row["decision"],
                    "by": names.get(row["decided_by"], ""), "decided_at": row["decided_at"].isoformat(), "note": row["note"],
                    "last_used_at": "" if row["last_used_at"] is None else row["last_used_at"].isoformat(), "done": done,
                }
                for row, done in zip(rows, ended, strict=True)
            ]
            detail = {
                "what": "closed", "review": number, "title": found["title"], "started_at": found["started_at"].isoformat(),
                "due": found["due_at"].isoformat(), "chosen": found["chosen"], "rows": record,
            }
            leaf = self._ledger.record(tx, Event(Kind.ACCESS_REVIEWED, subject=subject, detail=detail), at=at)
            values = {"closed_by": subject.principal_id, "closed_at": at, "leaf": leaf}
            tx.execute(sa.update(access_review).where(_R.id == number).values(**values))
            tx.execute(sa.delete(access_review_item).where(_I.review_id == number))
            return {**_one(tx, number, at), "revoked": ended.count("revoked"), "kept": ended.count("kept")}

        return self._change(subject, P.ROLE_MANAGE, work, alone=True)

    # -------------------------------------------------------------------------------------------------------------------------------

    def _carry_out(self, tx: sa.Connection, subject: Subject, row: Row, title: str, at: datetime) -> str:
        """Do what was decided of a row, and return what became of it."""
        if row["decision"] == "keep":
            return "kept"
        if row["kind"] == "grant":
            live = sa.select(grants.c.id).where(grants.c.id == row["number"], grants.c.revoked_at.is_(None))
            if tx.execute(live).first() is None:
                return "ended before"
            grant_events.end(self._ledger, tx, subject, at, row["number"], because=f"access review: {title}")
            return "revoked"
        held = tx.execute(
            sa.select(role_assignment.c.principal_id, role.c.id, role.c.name).join(role, role.c.id == role_assignment.c.role_id)
            .where(role_assignment.c.id == row["number"])
        ).first()
        if held is None or not roles.withdraw(tx, held.principal_id, held.id, at=at):
            return "ended before"
        self._record(tx, Kind.ROLE_CHANGED, subject, at, what="withdrawn", name=row["shown"]["subject"], id=held.principal_id,
                     role=held.name, because=f"access review: {title}")
        return "revoked"

    def _open(self, tx: sa.Connection, number: int, at: datetime) -> Row:
        found = _one(tx, number, at)
        if found["state"] == "closed":
            message = "that review is closed"
            raise StateConflict(message, remedy="start another")
        return found

    def _signed(self, tx: sa.Connection, leaf: int) -> Rows:
        try:
            return list(parse(self._ledger.opening(tx, leaf)[1])["detail"]["rows"])
        except NotFound:
            return []  # erased



def overdue(tx: sa.Connection, at: datetime) -> Sequence[str]:
    """Return the titles of reviews that should have been closed."""
    return tx.execute(sa.select(_R.title).where(_R.closed_at.is_(None), _R.due_at < at).order_by(_R.due_at)).scalars().all()


def _refuse_own(tx: sa.Connection, subject: Subject, whose: int) -> None:
    if subject.kind != "console" and principals.is_or_contains(tx, whose, subject.principal_id):
        message = "nobody reviews their own access"
        raise Forbidden(message, remedy="ask another who manages roles")


def _one(tx: sa.Connection, number: int, at: datetime) -> Row:
    found = _told(tx, at, _R.id == number)
    if not found:
        message = "there is no such review"
        raise NotFound(message, remedy="'archive review list' numbers them")
    return found[0]


def _told(tx: sa.Connection, at: datetime, *which: sa.ColumnElement[bool]) -> Rows:
    counts = {
        (row.review_id, row.decision): row.count for row in tx.execute(
            sa.select(_I.review_id, _I.decision, sa.func.count().label("count")).group_by(_I.review_id, _I.decision))
    }
    names = {row.id: row.name for row in tx.execute(sa.select(principal.c.id, principal.c.name))}
    return [
        {
            "id": row.id, "title": row.title, "chosen": row.chosen, "started_by": names.get(row.started_by, ""),
            "started_at": row.started_at, "due_at": row.due_at, "closed_at": row.closed_at,
            "closed_by": names.get(row.closed_by, "") if row.closed_by is not None else "", "leaf": row.leaf,
            "state": "closed" if row.closed_at is not None else "overdue" if row.due_at < at else "open",
            "undecided": counts.get((row.id, ""), 0), "to_keep": counts.get((row.id, "keep"), 0),
            "to_revoke": counts.get((row.id, "revoke"), 0),
        }
        for row in tx.execute(sa.select(access_review).where(*which).order_by(_R.id.desc()))
    ]


def _item(row: sa.RowMapping) -> Row:
    return {
        "id": row["id"], "kind": row["kind"], "number": row["number"], **row["shown"],
        "last_used_at": "" if row["last_used_at"] is None else row["last_used_at"].isoformat(), "decision": row["decision"],
        "by": row["decider"] or "", "note": row["note"],
    }
