"""Asking for access: whoever may not see something names it, and whoever may give it decides.

Nothing is looked up when something is asked for, so the answer is the same whether it is there, hidden, or made up.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa

from archive.access import grants, policy, principals, roles
from archive.access.grants import Target, Terms
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.tables import access_request, principal
from archive.errors import ArchiveError, Forbidden, InvalidRequest, NotFound, StateConflict
from archive.ledger.audit import Event, Kind, ObjectRef
from archive.services import delegation, grant_events
from archive.services.changes import Changes
from archive.services.core import Core
from archive.services.delegation import READING, in_person
from archive.services.rights import DEFAULT_DATASTORE, Row, When, instant

P = Permission
Level = Literal["patient", "study", ""]
"""What is named; empty: nothing, or both, which is refused."""

ASKABLE = READING | P.ORIGINAL | P.SEND | P.SHARE
WAITS = timedelta(days=14)
USUAL = timedelta(days=7)
LONGEST = timedelta(days=366)
OPEN_AT_MOST = 20
REASON_CHARACTERS = 10
LISTED = 500
_R = access_request.c


class AccessRequests(Changes):
    """What `request` of the command line, /api/access-requests and the pages do."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        super().__init__(core.database, core.ledger, core.clock, read_only=core.read_only)
        self._issuer = core.config.identity.issuer

    def ask(
        self, subject: Subject, *, level: Level, value: str, issuer: str = "", permissions: Sequence[str] = (), until: When = None,
        reason: str = "", datastore: str = DEFAULT_DATASTORE,
    ) -> Row:
        """Ask for a patient by PatientID or a study by UID; it waits fourteen days for somebody who decides.

        Raises:
            Forbidden: the console, which signs in as nobody. InvalidRequest: no word why, too many open, or more than may be asked for.
        """
        bits, value, issuer = roles.parse(tuple(permissions)) or READING, named(value, level), issuer.strip()
        if bits & ~ASKABLE:
            message = "that cannot be asked for"
            raise InvalidRequest(message, remedy="ask for some of " + ", ".join(roles.names(ASKABLE)))

        def work(tx: sa.Connection, at: datetime) -> Row:
            if subject.kind == "console":
                message = "the console asks for nothing"
                raise Forbidden(message, remedy="give a grant with 'archive grant add'")
            end = instant(until, at) or at + USUAL
            if not at < end <= at + LONGEST:
                message = "access is asked for from now until within a year"
                raise InvalidRequest(message, remedy="name an end such as 8h, 7d or a date")
            waiting = sa.select(sa.func.count()).select_from(access_request).where(*_open(at), _R.requester_id == subject.principal_id)
            if tx.execute(waiting).scalar_one() >= OPEN_AT_MOST:
                message = f"{OPEN_AT_MOST} requests of yours wait already"
                raise InvalidRequest(message, remedy="withdraw one, or wait until they are decided")
            made = tx.execute(sa.insert(access_request).values(
                requester_id=subject.principal_id, datastore=datastore.strip()[:64], level=level, object=value, issuer=issuer[:64],
                permissions=int(bits), asked_until=end, reason=worded(reason), created_at=at, expires_at=min(end, at + WAITS),
            ))
            assert made.inserted_primary_key is not None
            row = _one(tx, int(made.inserted_primary_key[0]))
            self._told(tx, subject, at, "asked", row, permissions=roles.names(bits), until=end.isoformat(), reason=row["reason"])
            return shown(row, at)

        return self._change(subject, None, work, alone=True)  # of several at once each would count without the others

    def mine(self, subject: Subject) -> list[Row]:
        """Return what the caller asked for, the newest first."""
        query = _rows().where(_R.requester_id == subject.principal_id).order_by(_R.id.desc()).limit(LISTED)
        return self._read(subject, None, lambda tx, at: [shown(row, at) for row in tx.execute(query).mappings()])

    def waiting(self, subject: Subject, *, every: bool = False) -> list[Row]:
        """Return the open requests of others that the caller may decide, oldest first; with role-manage all, and with `every` the decided.

        Looking is an event: requests name patients and studies.
        """

        def work(tx: sa.Connection, at: datetime) -> list[Row]:
            all_of_them = bool(policy.functions_of(tx, subject, at) & P.ROLE_MANAGE)
            query = _rows().where(_R.requester_id != subject.principal_id)
            query = query.order_by(_R.id.desc() if every else _R.id).limit(LISTED)
            if not (every and all_of_them):
                query = query.where(*_open(at))
            if not all_of_them and (_by_token(subject) or not delegation.can_delegate(tx, subject, at)):
                return []
            rows = [dict(row) for row in tx.execute(query).mappings()]
            return [shown(row, at) for row in rows if all_of_them or self._may(tx, subject, row, at)]

        found = self._read(subject, None, work)
        if found:
            event = Event(Kind.AUDIT_READ, subject=subject, detail={"what": "access requests", "count": len(found)})
            with self._database.begin() as tx:
                self._ledger.record(tx, event, at=self._clock())
        return found

    def withdraw(self, subject: Subject, number: int) -> Row:
        """Take back a request of one's own that is still open.

        Raises:
            NotFound: not open, or not one's own.
        """

        def work(tx: sa.Connection, at: datetime) -> Row:
            mine = sa.update(access_request).where(_R.id == number, _R.requester_id == subject.principal_id, *_open(at))
            if not tx.execute(mine.values(state="withdrawn", decided_at=at, decided_by=subject.principal_id)).rowcount:
                raise _absent()
            row = _one(tx, number)
            self._told(tx, subject, at, "withdrawn", row)
            return shown(row, at)

        return self._change(subject, None, work, alone=True)

    def decide(
        self, subject: Subject, number: int, *, approve: bool, until: When = None, permissions: Sequence[str] = (), note: str = "",
    ) -> Row:
        """Refuse a request, or give what it asks for or a part of it: the grant, the decision and both events in one transaction.

        Whoever manages roles gives a grant of its own; whoever may delegate what is asked for passes it on.

        Raises:
            NotFound: there is no such request that the caller may decide, or nothing (any more) that it asks for.
            Forbidden: one's own. StateConflict: it was decided. InvalidRequest.
        """
        part = roles.parse(tuple(permissions))

        def work(tx: sa.Connection, at: datetime) -> Row:
            row = tx.execute(_rows().where(_R.id == number)).mappings().first()
            manages = bool(policy.functions_of(tx, subject, at) & P.ROLE_MANAGE)
            if row is None or not (manages or self._may(tx, subject, dict(row), at)):
                raise _absent()
            if row["requester_id"] == subject.principal_id:
                message = "nobody decides what they asked for themselves"
                raise Forbidden(message, remedy="ask somebody else who may")
            if _state(row, at) != "open":
                message = f"the request was {_state(row, at)} already"
                raise StateConflict(message, remedy="'archive request list --all' shows how")
            values: dict[str, Any] = {
                "state": "granted" if approve else "refused", "decided_at": at, "decided_by": subject.principal_id,
                "note": note.strip()[:2000],
            }
            if not tx.execute(sa.update(access_request).where(_R.id == number, _R.state == "open").values(values)).rowcount:
                message = "somebody else has just decided it"  # meanwhile, and this one waited for that
                raise StateConflict(message, remedy="'archive request list --all' shows how")
            if approve:
                values["grant_id"] = self._give(tx, subject, dict(row), part, instant(until, at), at, manages=manages)
                tx.execute(sa.update(access_request).where(_R.id == number).values(grant_id=values["grant_id"]))
            done = _one(tx, number)
            self._told(tx, subject, at, str(values["state"]), done, note=values["note"], grant=values.get("grant_id", 0))
            return shown(done, at)

        return self._change(subject, None, work, alone=True)

    # -----------------------------------------------------------------------------------------------------------------------------------

    def _give(  # what was asked for, and by whom it is decided
        self, tx: sa.Connection, subject: Subject, row: Row, part: Permission, until: datetime | None, at: datetime, *, manages: bool
    ) -> int:
        bits = part or P(row["permissions"])
        if bits & ~P(row["permissions"]):
            message = "that is more than was asked for"
            raise InvalidRequest(message, remedy="give what was asked for or less; for more use 'archive grant add'")
        who = principals.find(tx, row["requester_id"], ("user", "service"))
        reason = f"request {row['id']}: {row['reason']}"
        if manages:
            terms = Terms(not_before=at, not_after=until or row["asked_until"], reason=reason)
            grants.refuse_self(tx, subject, who["id"])
            store = policy.datastore_id(tx, row["datastore"])
            target = Target(row["level"], row["object"], issuer=row["issuer"] or None, expected=row["level"] == "patient")
            key = grants.give(
                tx, to=who["id"], role_row=None, datastore_id=store, permissions=bits, terms=terms, by=subject.principal_id, at=at,
                kind="requested", scope_key=grants.scope_key(tx, store, target, at=at, default_issuer=self._issuer),
            )
        else:
            store, keys, above = self._above(tx, subject, row, bits, at)
            terms = Terms(not_before=at, not_after=min(until or row["asked_until"], above["not_after"]), reason=reason)
            key = delegation.pass_on(
                tx, subject, to=who["id"], above=above, scope_key=keys[0], permissions=bits, terms=terms, depth=0, at=at, kind="requested"
            )
        grant_events.record(self._ledger, tx, Kind.GRANTED, subject, at, grants.some(tx, [key], at=at)[0])
        return key

    def _above(self, tx: sa.Connection, subject: Subject, row: Row, bits: Permission, at: datetime) -> tuple[int, list[int], Row]:
        """Return datastore, scope keys and the grant by which the caller may pass on what a request asks for."""
        in_person(subject, "decides on a request")
        store = policy.datastore_id(tx, row["datastore"])
        keys = delegation.covering(tx, subject, store, Target(row["level"], row["object"], issuer=row["issuer"] or None), bits, at)
        return store, keys, delegation.choose(tx, subject, store, keys, bits, at)

    def _may(self, tx: sa.Connection, subject: Subject, row: Row, at: datetime) -> bool:
        """Whether the caller may pass on at least a look at what a request asks for."""
        try:
            self._above(tx, subject, row, P(row["permissions"]) & READING or P(row["permissions"]), at)
        except ArchiveError:
            return False
        return True

    def _told(self, tx: sa.Connection, subject: Subject, at: datetime, what: str, row: Row, **more: Any) -> None:
        detail = {"what": what, "request": row["id"], "requester": row["requester_id"], "level": row["level"], **more}
        objects = (ObjectRef(row["level"], row["object"]),)
        self._ledger.record(tx, Event(Kind.ACCESS_REQUESTED, subject=subject, objects=objects, detail=detail), at=at)


def named(value: str, level: str) -> str:
    """Return an identifier as it is kept.

    Raises:
        InvalidRequest: none, or one that cannot be.
    """
    if level not in ("patient", "study"):
        message = "name a patient or a study"
        raise InvalidRequest(message, remedy="a patient by PatientID, or a study by its Study Instance UID")
    value = value.strip().strip("\0").strip()
    digits = level == "study" and not all(part.isascii() and part.isdigit() for part in value.split("."))
    if not value or len(value) > 64 or digits or not value.isprintable():
        message = "that is no Study Instance UID" if level == "study" else "that is no PatientID"
        raise InvalidRequest(message, remedy="copy it as it stands on the request or report")
    return value


def worded(reason: str) -> str:
    """Return why, in at least ten characters.

    Raises:
        InvalidRequest.
    """
    reason = " ".join(reason.split())
    if len(reason) < REASON_CHARACTERS:
        message = f"say why, in at least {REASON_CHARACTERS} characters"
        raise InvalidRequest(message, remedy="whoever decides or reviews reads it")
    return reason[:2000]


def waiting_count(tx: sa.Connection, at: datetime) -> int:
    """Return how many requests wait for somebody."""
    return int(tx.execute(sa.select(sa.func.count()).select_from(access_request).where(*_open(at))).scalar_one())


def shown(row: Any, at: datetime) -> Row:
    """Return a request as lists show it."""
    return {
        "id": row["id"], "requester": row["requester"], "level": row["level"], "object": row["object"], "issuer": row["issuer"],
        "datastore": row["datastore"], "permissions": roles.names(P(row["permissions"])), "until": row["asked_until"],
        "reason": row["reason"], "state": _state(row, at), "created_at": row["created_at"], "expires_at": row["expires_at"],
        "decided_at": row["decided_at"], "decided_by": row["decider"] or "", "note": row["note"], "grant": row["grant_id"],
    }


def _state(row: Any, at: datetime) -> str:
    return "expired" if row["state"] == "open" and at >= row["expires_at"] else str(row["state"])


def _open(at: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    return _R.state == "open", _R.expires_at > at


def _rows() -> sa.Select[Any]:
    asker, decider = principal.alias("asker"), principal.alias("decider")
    return (
        sa.select(access_request, asker.c.name.label("requester"), decider.c.name.label("decider"))
        .join(asker, asker.c.id == _R.requester_id).outerjoin(decider, decider.c.id == _R.decided_by)
    )


def _one(tx: sa.Connection, number: int) -> Row:
    return dict(tx.execute(_rows().where(_R.id == number)).mappings().one())


def _absent() -> NotFound:
    message = "there is no such open request"
    return NotFound(message, remedy="'archive request list' shows those that wait")


def _by_token(subject: Subject) -> bool:
    return subject.session_id is None and subject.via != "console"
