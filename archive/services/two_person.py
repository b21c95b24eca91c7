"""What two people decide: where `[policy] two_person` is on, one asks and another approves, and what was asked is done once.

A use case says `demand` (or, inside a transaction of its own, leaves it by `Proposal`) when everything else was found to hold: who asks
may do it, and what it names is there. What is kept are the exact arguments, sealed together with who asked, when and until when.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa

from archive.access import roles
from archive.access.permissions import ADMINISTRATIVE, Permission
from archive.access.subject import Subject
from archive.db.engine import Database
from archive.db.tables import approval, principal
from archive.errors import AwaitsApproval, Forbidden, SealBroken
from archive.keys.keyring import Keyring
from archive.keys.sealing import WrongKey, canonical
from archive.ledger.audit import Event, Kind
from archive.ledger.log import AuditFilter, Ledger
from archive.services.core import Core

LASTS = timedelta(hours=24)
_LABEL, _CONTEXT = "approval", b"strongroom/v1/approval\0"
_A = approval.c
Arguments = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Room:
    """What a request is kept with."""

    database: Database
    ledger: Ledger
    keyring: Keyring

    @classmethod
    def of(cls, core: Core) -> Room:
        """Take it from an opened archive."""
        return cls(core.database, core.ledger, core.keyring)


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for: an operation of services/operations.py, what it is given, who may decide, and how people read it."""

    operation: str
    said: str
    need: Permission
    arguments: Arguments = field(default_factory=dict)
    reason: str = ""

    def digest(self) -> bytes:
        """Return what tells one wish from another."""
        return hashlib.sha256(canonical([self.operation, self.arguments])).digest()


class Proposal(Exception):
    """Leaves a transaction, everything in it undone, with what is to be asked for."""

    def __init__(self, wish: Wish) -> None:
        """Keep the wish."""
        super().__init__(wish.operation)
        self.wish = wish


def demand(core: Core, subject: Subject, wish: Wish) -> Subject:
    """Return the subject to go on with, or ask for the approval of another; what was approved goes on once, given again unchanged.

    Raises:
        AwaitsApproval: asked for, now or before.
        Forbidden: asked for by a token.
    """
    if not core.config.policy.two_person or subject.second is not None:
        return subject
    with core.database.begin() as tx:
        taken = _take(core, tx, subject, wish, core.clock())
    if taken is not None:
        return replace(subject, second=taken)
    raise ask(Room.of(core), subject, wish, at=core.clock())


def _take(core: Core, tx: sa.Connection, subject: Subject, wish: Wish, at: datetime) -> Subject | None:
    """Use up a request that was approved and is carried out where it was asked."""
    query = sa.select(approval).where(
        _A.asked_by == subject.principal_id, _A.operation == wish.operation, _A.arguments_sha256 == wish.digest(),
        _A.decision == "approved", _A.done_at.is_(None), _A.expires_at > at,
    ).order_by(_A.id)
    for row in tx.execute(query).mappings():
        opened(core.keyring, dict(row))
        if agreed(core.ledger, tx, dict(row)) and claimed(tx, row["id"], at=at):
            tx.execute(sa.update(approval).where(_A.id == row["id"]).values(outcome="done"))
            record(core.ledger, tx, subject, at, row["id"], "done", row["operation"])
            who = tx.execute(sa.select(principal.c.id, principal.c.name).where(principal.c.id == row["decided_by"])).one()
            return Subject(who.id, who.name, "user", "internal")
    return None


def agreed(ledger: Ledger, tx: sa.Connection, row: Arguments) -> bool:
    """Whether an event says that who is named agreed to a request: a row alone carries nothing out."""
    before: int | None = None
    while rows := ledger.search(tx, AuditFilter(kinds=(Kind.APPROVAL,), since=row["asked_at"], before=before)):
        before = rows[-1].n
        for event in rows:
            if event.body is not None and (said := event.body["detail"])["approval"] == row["id"] and said["what"] == "approved":
                return bool(event.body["subject"]["principal"] == row["decided_by"])
    return False


def claimed(tx: sa.Connection, number: int, *, at: datetime) -> bool:
    """Take what was approved as the one who carries it out; nobody else does then."""
    mine = sa.and_(_A.id == number, _A.decision == "approved", _A.done_at.is_(None))
    return tx.execute(sa.update(approval).where(mine).values(done_at=at)).rowcount == 1


def ask(room: Room, subject: Subject, wish: Wish, *, at: datetime) -> AwaitsApproval:
    """Keep a request, or find the same one waiting, and return what tells the asker.

    Raises:
        Forbidden: a token asks.
    """
    if subject.kind != "console" and (subject.token_id is not None or subject.kind != "user"):
        message = "two people decide about this, and a token is none"
        raise Forbidden(message, remedy="sign in with the browser, and ask there")
    with room.database.begin() as tx:
        room.ledger.alone(tx)  # whoever asks the same meanwhile finds this
        same = tx.execute(sa.select(_A.id).where(
            _A.asked_by == subject.principal_id, _A.operation == wish.operation, _A.arguments_sha256 == wish.digest(),
            _A.decision == "", _A.expires_at > at,
        )).scalar()
        number = same if same is not None else _keep(room, tx, subject, wish, at)
    message = f"this takes two people: request {number} waits for the approval of another"
    remedy = "ask somebody who may do the same to approve it: /approvals, or 'archive approval approve'"
    return AwaitsApproval(message, approval=number, remedy=remedy)


def _keep(room: Room, tx: sa.Connection, subject: Subject, wish: Wish, at: datetime) -> int:
    row: dict[str, Any] = {
        "operation": wish.operation, "need": int(wish.need), "sealed_arguments": b"", "arguments_sha256": wish.digest(),
        "asked_by": subject.principal_id, "asked_at": at, "reason": wish.reason[:2000], "expires_at": at + LASTS,
    }
    key = tx.execute(sa.insert(approval).values(**row)).inserted_primary_key
    assert key is not None
    number = int(key[0])
    kept = canonical({"said": wish.said, "arguments": wish.arguments, "operator": subject.operator})
    sealed = room.keyring.seal(_LABEL, kept, _context(row | {"id": number}))
    tx.execute(sa.update(approval).where(_A.id == number).values(sealed_arguments=sealed))
    detail = {"said": wish.said, "sha256": wish.digest().hex(), "reason": wish.reason, "until": row["expires_at"].isoformat()}
    record(room.ledger, tx, subject, at, number, "asked", wish.operation, **detail)
    return number


def _context(row: Arguments) -> bytes:
    bound = [row["id"], row["operation"], row["need"], row["asked_by"], row["asked_at"].isoformat(), row["expires_at"].isoformat(),
             bytes(row["arguments_sha256"]).hex(), row["reason"]]
    return _CONTEXT + canonical(bound)


def refuse_becoming(tx: sa.Connection, subject: Subject, row: Arguments, at: datetime, *, on: bool) -> None:
    """Where two people decide, nobody takes over the account of one who administers, and so becomes both: only the console does.

    Who is to administer later, or is switched off for now, is one of them.

    Raises:
        Forbidden.
    """
    if on and subject.kind != "console" and roles.coming(tx, row["id"], at=at) & ADMINISTRATIVE:
        message = "two people decide here, and nobody comes in as another who administers"
        raise Forbidden(message, remedy="let it be done on the server: 'archive user'")


def opened(keyring: Keyring, row: Arguments) -> Arguments:
    """Return what a request is for: `said`, `arguments`, `operator`.

    Raises:
        SealBroken: the row is not the one that was asked.
    """
    try:
        found: Arguments = msgspec.json.decode(keyring.unseal(_LABEL, bytes(row["sealed_arguments"]), _context(row)))
    except WrongKey:
        message = "a request for approval is not the one that was asked"
        raise SealBroken(message, remedy="run 'archive verify', and ask again", verdict="V12") from None
    return found


def record(
    ledger: Ledger, tx: sa.Connection, subject: Subject, at: datetime, number: int, what: str, operation: str, **detail: Any
) -> None:
    """Record what became of a request."""
    said = {"what": what, "approval": number, "operation": operation, **detail}
    ledger.record(tx, Event(Kind.APPROVAL, subject=subject, detail=said), at=at)
