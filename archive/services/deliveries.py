"""The queue of what is to be delivered to registered peers: when each is due, who delivers it, what became of it.

Everything lies in the index, so that a restart forgets nothing. One process at a time has a destination (a lease, void when its process
is gone); a destination that cannot be reached is asked again later and later, without counting against what waits for it. A delivery
may be made twice when a process dies in between, never lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from archive.access import policy
from archive.db import guard, upsert
from archive.db.tables import commitment, delivery, delivery_destination, forward_rule, instance, peer, statement
from archive.errors import NotFound, Unavailable
from archive.services import forward_places
from archive.services.core import Core
from archive.services.forward_rules import closed_until
from archive.services.processes import is_alive, this_worker

REPORT, FORWARD = "report", "forward"
WAITING, DONE, FAILED, REJECTED = "waiting", "done", "failed", "rejected"
"""REJECTED: what was to go is rejected; it waits again once that is restored."""
FIRST_WAIT, LONGEST_WAIT = timedelta(seconds=5), timedelta(hours=1)
LEASE = timedelta(minutes=30)
"""Held for longer while a delivery goes on; a process that ends gives its leases back by ending."""
RENEW_AFTER = timedelta(minutes=5)
MAXIMUM_ATTEMPTS = 12
"""How often one delivery may fail at a destination that was reached; with the longest wait that is about half a day."""
KEEP_DONE = timedelta(days=30)

_D, _T, _R = delivery.c, delivery_destination.c, forward_rule.c
_FORWARDS = _D.kind == FORWARD


def backoff(failures: int) -> timedelta:
    """Return how long to wait after so many failures in a row."""
    return min(FIRST_WAIT * (1 << min(max(failures, 1) - 1, 20)), LONGEST_WAIT)


class LeaseLost(Unavailable):
    """A destination is another's by now; nothing more may be sent."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A destination that is this thread's alone for a while."""

    peer_id: int
    holder: str


@dataclass(frozen=True, slots=True)
class Due:
    """One delivery that is due."""

    id: int
    kind: str
    peer_id: int
    ae_title: str
    commitment_id: int | None
    rule_id: int | None
    instance_pk: int | None
    attempts: int


class Deliveries:
    """The one way to the queue; safe to share between threads and processes."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core

    # --- for who delivers ---------------------------------------------------------------------------------------------------------

    def claim(self) -> Claimed | None:
        """Return a destination with something due that nobody else has, None when there is none.

        Raises:
            DatabaseUnavailable.
        """
        core = self._core
        at = core.clock()
        if core.read_only:
            return None
        ready = sa.and_(sa.not_(_T.paused), sa.or_(_T.retry_at.is_(None), _T.retry_at <= at))
        query = sa.select(delivery_destination).where(ready, self._something_due(at)).order_by(_T.reached_at.asc().nulls_first())
        with core.database.read() as tx:
            free = [row.peer_id for row in tx.execute(query) if _free(row, at)]
        if not free:
            return None
        holder = f"{this_worker()}/{threading.get_ident()}"
        with core.database.begin(durable=False) as tx:
            for peer_id in free:
                row = tx.execute(sa.select(delivery_destination).where(_T.peer_id == peer_id).with_for_update()).first()
                if row is not None and _free(row, at):
                    tx.execute(sa.update(delivery_destination).where(_T.peer_id == peer_id).values(
                        leased_by=holder, leased_until=at + LEASE
                    ))
                    return Claimed(peer_id, holder)
        return None

    def due(self, claimed: Claimed, kind: str, *, limit: int, rules: frozenset[int] | None = None) -> list[Due]:
        """Return what is due for a destination, the oldest first; of forwards those of these rules."""
        query = (
            sa.select(_D.id, _D.kind, _D.peer_id, _D.ae_title, _D.commitment_id, _D.rule_id, _D.instance_pk, _D.attempts)
            .where(_D.state == WAITING, _D.kind == kind, _D.peer_id == claimed.peer_id, _D.run_at <= self._core.clock())
            .order_by(_D.run_at, _D.id).limit(limit)
        )
        if rules is not None:
            query = query.where(_D.rule_id.in_(rules))
        with self._core.database.read() as tx:
            return [Due(*row) for row in tx.execute(query)]

    def keep(self, claimed: Claimed) -> bool:
        """Hold a destination for longer; False when it is another's by now, or paused: then nothing more may be sent."""
        with self._core.database.begin(durable=False) as tx:
            mine = sa.and_(_T.peer_id == claimed.peer_id, _T.leased_by == claimed.holder, sa.not_(_T.paused))
            return bool(tx.execute(sa.update(delivery_destination).where(mine).values(leased_until=self._core.clock() + LEASE)).rowcount)

    def holding(self, claimed: Claimed) -> Callable[[], None]:
        """Return what is to be called while one delivery goes on: it holds the destination for longer in time.

        It raises LeaseLost when the destination is another's by now. One that is paused meanwhile still gets the rest of this one.
        """
        core = self._core
        renewed = core.clock()

        def hold() -> None:
            nonlocal renewed
            at = core.clock()
            if at - renewed < RENEW_AFTER:
                return
            mine = sa.and_(_T.peer_id == claimed.peer_id, _T.leased_by == claimed.holder)
            with core.database.begin(durable=False) as tx:
                if not tx.execute(sa.update(delivery_destination).where(mine).values(leased_until=at + LEASE)).rowcount:
                    raise LeaseLost("another process delivers to this destination")
            renewed = at

        return hold

    def release(self, claimed: Claimed) -> None:
        """Give a destination back."""
        with self._core.database.begin(durable=False) as tx:
            mine = sa.and_(_T.peer_id == claimed.peer_id, _T.leased_by == claimed.holder)
            tx.execute(sa.update(delivery_destination).where(mine).values(leased_by="", leased_until=None))

    def done(self, one: int) -> None:
        """A delivery was taken."""
        with self._core.database.begin(durable=False) as tx:
            finish(tx, one, self._core.clock())

    def refused(self, one: Due, reason: str, *, for_good: bool) -> None:
        """A delivery was not taken; it is tried again later unless that is of no use. What goes on by another rule by now is that one's."""
        at, attempts = self._core.clock(), one.attempts + 1
        ended = for_good or attempts >= MAXIMUM_ATTEMPTS
        values: dict[str, Any] = {"attempts": attempts, "reason": reason, "run_at": at + backoff(attempts)}
        if ended:
            values |= {"state": FAILED, "finished_at": at}
        same = _D.rule_id.is_not_distinct_from(one.rule_id)
        with self._core.database.begin(durable=False) as tx:
            tx.execute(sa.update(delivery).where(_D.id == one.id, _D.state == WAITING, same).values(values))

    def put_off(self, one: Due, reason: str) -> None:
        """What is due for one title of a destination waits for as long again as its oldest has waited; none of it has failed."""
        at = self._core.clock()
        same = sa.and_(
            _D.peer_id == one.peer_id, _D.kind == one.kind, _D.ae_title == one.ae_title, _D.state == WAITING, _D.run_at <= at
        )
        with self._core.database.begin(durable=False) as tx:
            since = tx.execute(sa.select(sa.func.min(_D.created_at)).where(same)).scalar() or at
            wait = min(max(at - since, FIRST_WAIT), LONGEST_WAIT)
            tx.execute(sa.update(delivery).where(same).values(run_at=at + wait, reason=reason))

    def reached(self, peer_id: int) -> None:
        """A destination was reached."""
        with self._core.database.begin(durable=False) as tx:
            tx.execute(sa.update(delivery_destination).where(_T.peer_id == peer_id).values(
                failures=0, retry_at=None, reason="", reached_at=self._core.clock()
            ))

    def unreachable(self, peer_id: int, reason: str) -> None:
        """A destination was not reached: all that waits for it waits longer, none of it has failed."""
        at = self._core.clock()
        with self._core.database.begin(durable=False) as tx:
            failures = (tx.execute(sa.select(_T.failures).where(_T.peer_id == peer_id)).scalar() or 0) + 1
            tx.execute(sa.update(delivery_destination).where(_T.peer_id == peer_id).values(
                failures=failures, retry_at=at + backoff(failures), reason=reason
            ))

    # --- for who looks after it ---------------------------------------------------------------------------------------------------

    def destinations(self) -> list[dict[str, Any]]:
        """Return how each destination stands."""
        counted = sa.select(_D.peer_id, _D.state, sa.func.count().label("n")).group_by(_D.peer_id, _D.state)
        with self._core.database.read() as tx:
            counts: dict[int, dict[str, int]] = {}
            for row in tx.execute(counted):
                counts.setdefault(row.peer_id, {})[row.state] = row.n
            query = sa.select(delivery_destination, peer.c.name).join(peer, peer.c.id == _T.peer_id).order_by(peer.c.name)
            return [
                {
                    "destination": row["name"], "state": _state(row), "waiting": counts.get(row["peer_id"], {}).get(WAITING, 0),
                    "done": counts.get(row["peer_id"], {}).get(DONE, 0), "failed": counts.get(row["peer_id"], {}).get(FAILED, 0),
                    "failures": row["failures"], "retry_at": row["retry_at"], "reached_at": row["reached_at"], "reason": row["reason"],
                }
                for row in tx.execute(query).mappings()
            ]

    def queue(self, *, state: str = "", peer_id: int | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """Return deliveries, the newest first."""
        query = (
            sa.select(_D.id, _D.kind, peer.c.name.label("destination"), _R.name.label("rule"), _D.state, _D.attempts, _D.run_at, _D.reason,
                      _D.created_at, _D.finished_at)
            .select_from(delivery.outerjoin(peer, peer.c.id == _D.peer_id).outerjoin(forward_rule, _R.id == _D.rule_id))
            .order_by(_D.id.desc()).limit(limit)
        )
        if state:
            query = query.where(_D.state == state)
        if peer_id is not None:
            query = query.where(_D.peer_id == peer_id)
        with self._core.database.read() as tx:
            return [dict(row) for row in tx.execute(query).mappings()]

    @staticmethod
    def _something_due(at: datetime) -> sa.ColumnElement[bool]:
        # Both kinds are named, so that the index leads to what is due: many may wait for other destinations.
        return sa.exists(sa.select(1).where(
            _D.peer_id == _T.peer_id, _D.kind.in_([REPORT, FORWARD]), _D.state == WAITING, _D.run_at <= at
        ))


def need_destination(tx: sa.Connection, peer_id: int) -> None:
    """Make sure a destination has its row."""
    if tx.execute(sa.select(_T.peer_id).where(_T.peer_id == peer_id).with_for_update()).first() is None:
        made = upsert.insert(delivery_destination, sqlite=tx.dialect.name == "sqlite").values(peer_id=peer_id, leased_by="", reason="")
        tx.execute(made.on_conflict_do_nothing())  # something else may be the first for it meanwhile


def finish(tx: sa.Connection, one: int, at: datetime) -> None:
    """Note that a delivery was taken."""
    tx.execute(sa.update(delivery).where(_D.id == one).values(state=DONE, finished_at=at, reason=""))


def set_aside(tx: sa.Connection, token: guard.Token) -> None:
    """Let deliveries and rules say by events, below zero, what they are about: a rebuild gives instances other numbers.

    In their rows, for there may be one of every instance and destination; what is about nothing any more is forgotten.
    """
    arrived = sa.select(-1 - instance.c.leaf).where(instance.c.id == _D.instance_pk).scalar_subquery()
    policy.run_as(tx, token, sa.update(delivery).where(_FORWARDS).values(instance_pk=arrived))
    tx.execute(sa.delete(delivery).where(_FORWARDS, _D.instance_pk.is_(None)))
    for rule in tx.execute(sa.select(_R.id, _R.seen)).all():
        unseen = forward_places.first_unseen(tx, token, rule.seen)
        tx.execute(sa.update(forward_rule).where(_R.id == rule.id).values(seen=-1 - unseen))


def put_back(tx: sa.Connection, token: guard.Token) -> None:
    """Let deliveries be about the same instances again, and rules go on with what arrived after their last look."""
    there = sa.select(instance.c.id).join(statement, statement.c.object_id == instance.c.object_id).where(
        statement.c.leaf == -1 - _D.instance_pk
    )
    policy.run_as(tx, token, sa.update(delivery).where(_FORWARDS).values(instance_pk=there.scalar_subquery()))
    tx.execute(sa.delete(delivery).where(_FORWARDS, _D.instance_pk.is_(None)))
    of = sa.select(instance.c.study_pk).where(instance.c.id == _D.instance_pk).scalar_subquery()
    policy.run_as(tx, token, sa.update(delivery).where(_FORWARDS).values(study_pk=of))
    for rule in tx.execute(sa.select(_R.id, _R.seen)).all():
        tx.execute(sa.update(forward_rule).where(_R.id == rule.id).values(seen=forward_places.seen(tx, token, -1 - rule.seen)))


def bring_near(tx: sa.Connection, at: datetime) -> None:
    """Let nothing wait for longer than it would if it began to wait now: the clock may have been set back since its time was noted."""
    latest = at + LONGEST_WAIT
    tx.execute(sa.update(delivery_destination).where(_T.retry_at > latest).values(retry_at=latest))
    tx.execute(sa.update(commitment).where(commitment.c.state == "checking", commitment.c.run_at > latest).values(run_at=latest))
    late = sa.and_(_D.state == WAITING, _D.run_at > latest)
    tx.execute(sa.update(delivery).where(late, _D.kind == REPORT).values(run_at=latest))
    for rule in tx.execute(sa.select(_R.id, _R.hours, _R.quiet_s).where(_R.id.in_(sa.select(_D.rule_id).where(late)))).all():
        allowed = max(latest, at + timedelta(seconds=rule.quiet_s), closed_until(rule.hours, at) or at)
        tx.execute(sa.update(delivery).where(late, _D.rule_id == rule.id, _D.run_at > allowed).values(run_at=allowed))


def forget_delivered(tx: sa.Connection, at: datetime) -> None:
    """Forget reports that were taken long ago; what was forwarded is remembered, so that it goes once."""
    tx.execute(sa.delete(delivery).where(_D.state == DONE, _D.kind == REPORT, _D.finished_at < at - KEEP_DONE))


def pause(tx: sa.Connection, peer_id: int, *, paused: bool) -> None:
    """Let a destination wait, or go on with it at once."""
    need_destination(tx, peer_id)
    values: dict[str, Any] = {"paused": paused} if paused else {"paused": False, "failures": 0, "retry_at": None}
    tx.execute(sa.update(delivery_destination).where(_T.peer_id == peer_id).values(values))


def retry(tx: sa.Connection, at: datetime, *, peer_id: int | None, one: int | None) -> int:
    """Let what failed or waits be tried again now; return how many that are."""
    wanted: list[sa.ColumnElement[bool]] = [_D.state.in_([WAITING, FAILED])]
    if peer_id is not None:
        wanted.append(_D.peer_id == peer_id)
    if one is not None:
        wanted.append(_D.id == one)
    found = tx.execute(sa.update(delivery).where(*wanted).values(state=WAITING, attempts=0, run_at=at, finished_at=None)).rowcount
    if one is not None and not found:
        message = "there is no such delivery that waits or failed"
        raise NotFound(message, remedy="'archive forward queue' lists them")
    whose = sa.true() if peer_id is None else _T.peer_id == peer_id
    tx.execute(sa.update(delivery_destination).where(whose).values(failures=0, retry_at=None))
    return found


def _free(row: Any, at: datetime) -> bool:
    if not row.leased_by or row.leased_until is None or row.leased_until <= at:
        return True
    return not is_alive(row.leased_by.partition("/")[0])


def _state(row: Any) -> str:
    if row["paused"]:
        return "paused"
    return "unreachable" if row["failures"] else "ready"
