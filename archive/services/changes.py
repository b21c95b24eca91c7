"""How an administrative change is made: permission asked, work done and event recorded in one durable transaction."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

import sqlalchemy as sa

from archive.access import policy
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.engine import Database
from archive.errors import AwaitsApproval, Forbidden
from archive.ledger.audit import Event, Kind
from archive.ledger.log import Ledger
from archive.services import two_person
from archive.services.clock import Clock, utc_now
from archive.services.core import refuse_when

T = TypeVar("T")
Work = Callable[[sa.Connection, datetime], T]


class Changes:
    """The frame of every administrative use case."""

    _two_person = False  # whether two people decide about what `_second` names

    def __init__(self, database: Database, ledger: Ledger, clock: Clock = utc_now, *, read_only: str = "") -> None:
        """Keep what every change needs; `read_only` says why nothing may change now."""
        self._read_only = read_only
        self._database = database
        self._ledger = ledger
        self._clock = clock

    def _change(self, subject: Subject, need: Permission | None, work: Work[T], *, alone: bool = False) -> T:
        """Run `work` in a durable transaction once the subject holds `need` (None: once it is who it says).

        `alone`: no other change is made meanwhile, for what copies from a row that another changes, as grants do from their role; and
        who gives a patient or study waits where those do that store into it, not each for the other.
        """
        refuse_when(self._read_only)
        at = self._clock()
        try:
            with self._database.begin() as tx:
                _check(tx, subject, need, at)
                if alone:
                    self._ledger.alone(tx)
                return work(tx, at)
        except two_person.Proposal as proposal:
            raise self._awaits(subject, proposal.wish, at) from None
        except Forbidden as refusal:
            self._denied(subject, refusal, at)
            raise

    def _second(self, subject: Subject, wish: two_person.Wish) -> None:
        """Leave the transaction, everything undone, where two people decide and only one has: it is asked for instead.

        To be called last, when everything else was found to hold.

        Raises:
            two_person.Proposal.
        """
        if self._two_person and subject.second is None:
            raise two_person.Proposal(wish)

    def _awaits(self, subject: Subject, wish: two_person.Wish, at: datetime) -> AwaitsApproval:
        room = two_person.Room(self._database, self._ledger, self._ledger.keyring)
        try:
            return two_person.ask(room, subject, wish, at=at)
        except Forbidden as refusal:
            self._denied(subject, refusal, at)
            raise

    def _read(self, subject: Subject, need: Permission | None, work: Work[T]) -> T:
        """Run `work` in a read transaction; one bit of `need` is enough."""
        at = self._clock()
        try:
            with self._database.read() as tx:
                if need is None:
                    policy.require_live(tx, subject, at)
                else:
                    policy.require_any(tx, subject, need, at)
                return work(tx, at)
        except Forbidden as refusal:
            self._denied(subject, refusal, at)
            raise

    def _denied(self, subject: Subject, refusal: Forbidden, at: datetime) -> None:
        with self._database.begin() as tx:
            self._ledger.record(tx, Event(Kind.DENIED, outcome=8, subject=subject, detail={"why": refusal.message}), at=at)

    def _record(self, tx: sa.Connection, kind: Kind, subject: Subject, at: datetime, **detail: Any) -> None:
        self._ledger.record(tx, Event(kind, subject=subject, detail=detail), at=at)


def _check(tx: sa.Connection, subject: Subject, need: Permission | None, at: datetime) -> None:
    if need is None:
        policy.require_live(tx, subject, at)
    else:
        policy.require(tx, subject, need, at)
