"""Looking: what has arrived since a rule of forwarding looked last is queued, a part at a time.

An id may come after a higher one, and a right soon after what it is for: so what is new is looked at at once, and once more when it is
old enough that nothing comes before it. Until where a rule has looked for good is in the index, until where it has looked once is in
memory, so that each instance is looked at twice, however many arrive together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from archive.access.permissions import Permission
from archive.access.policy import scope_of
from archive.db.batches import batches
from archive.db.tables import audit_event, delivery, forward_rule
from archive.index import arrivals
from archive.index.arrivals import Arrived
from archive.ledger import nodes
from archive.ledger.audit import Kind
from archive.services import deliveries, forward_others
from archive.services.core import Core
from archive.services.forward_others import ACTIVE
from archive.services.forward_rules import Conditions

PARTS, LONGEST_GRACE = 10, timedelta(minutes=1)
"""A study that must be quiet waits for a tenth longer, a minute at most: so not each of its instances moves all the others."""
_D, _R = delivery.c, forward_rule.c


@dataclass(slots=True)
class _Place:
    """Where one rule is in this process."""

    reached: int = 0
    """Instances up to this id were looked at once."""
    leaves: int | None = None
    """How many there were at the last look."""


@dataclass(frozen=True, slots=True)
class _Part:
    """What one look of a rule reads."""

    found: list[Arrived]
    reached: int
    seen: int
    more: bool


class Looking:
    """The looks of one process; by one thread at a time."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core
        self._looked_at: datetime | None = None
        self._places: dict[int, _Place] = {}
        self.behind = False
        """Whether the last look left something that it could have looked at."""

    def look(self, *, limit: int, settle: timedelta) -> int:
        """Queue what has arrived since the last look, of each rule at most what `limit` instances make; return how much that is.

        Raises:
            DatabaseUnavailable.
        """
        core = self._core
        self.behind = False
        if core.read_only:
            return 0
        at = core.clock()
        if self._looked_at is None or at < self._looked_at:
            with core.database.begin(durable=False) as tx:
                deliveries.bring_near(tx, at)
        self._looked_at = at
        with core.database.read() as tx:
            rules = tx.execute(ACTIVE).all()
            size = nodes.size(tx)
        self._places = {rule.id: self._places.get(rule.id, _Place()) for rule in rules}
        made = 0
        for rule in rules:
            others = [other.id for other in rules if other.id != rule.id]
            made += self._one(rule, others, self._places[rule.id], limit, settle)
            self._places[rule.id].leaves = size
        return made

    def _one(self, rule: Any, others: Sequence[int], place: _Place, limit: int, settle: timedelta) -> int:
        """Queue what arrived for a rule, and what came back for it or for one that counts no longer; `others` look for themselves."""
        core = self._core
        at = core.clock()
        author, to = forward_others.sides(rule)
        scope, also = scope_of(author, Permission.SEND, at), scope_of(to, Permission.RECEIVE, at, prefix="receiver")

        def part(after: int, upto: int | None = None) -> _Part:
            last, full = arrivals.reach(tx, scope, after=after, limit=limit)
            last = last if upto is None else min(last, upto)
            settled = arrivals.newest(tx, scope, after=after, upto=last, before=at - settle)
            end = last if upto is None else settled
            found = [] if end <= after else arrivals.arrived(
                tx, scope, also, rule.datastore_id, peer_id=rule.peer_id, after=after, upto=end, limit=limit
            )
            return _Part(found, last, settled, full and end == last)

        with core.database.read() as tx:
            reached = max(place.reached, rule.seen)
            fresh = part(reached)
            # What was looked at once already is looked at once more when it is old enough; what is old at its first look is not.
            again = part(rule.seen, reached) if reached > rule.seen else fresh
            back = arrivals.come_back(tx, scope, rule.peer_id, others, deliveries.REJECTED) if _restored(tx, place.leaves) else []
        found = fresh.found if again is fresh else again.found + fresh.found
        conditions = Conditions.of(rule.conditions)
        count = self._queue(rule, [one for one in found if conditions.hold(one)], back, again.seen, at)
        place.reached = fresh.reached
        self.behind = self.behind or fresh.more or again.more
        return count

    def _queue(self, rule: Any, wanted: Sequence[Arrived], back: Sequence[int], settled: int, at: datetime) -> int:
        if not wanted and not back and settled <= rule.seen:
            return 0
        quiet_until = at + timedelta(seconds=rule.quiet_s)
        run_at = quiet_until + min(timedelta(seconds=rule.quiet_s) / PARTS, LONGEST_GRACE)
        with self._core.database.begin() as tx:
            if tx.execute(sa.select(_R.id).where(_R.id == rule.id, _R.enabled).with_for_update()).first() is None:
                return 0  # removed meanwhile, or about to be
            known = set()
            for some in batches(wanted):  # another process may have looked too
                keys = [one.instance_pk for one in some]
                known |= set(tx.execute(sa.select(_D.instance_pk).where(_D.peer_id == rule.peer_id, _D.instance_pk.in_(keys))).scalars())
            rows = [
                {"kind": deliveries.FORWARD, "peer_id": rule.peer_id, "rule_id": rule.id, "run_at": run_at, "created_at": at,
                 "state": deliveries.REJECTED if one.rejected else deliveries.WAITING, "instance_pk": one.instance_pk,
                 "study_pk": one.study_pk}
                for one in wanted if one.instance_pk not in known
            ]
            if rows:
                tx.execute(sa.insert(delivery), rows)
            count = len(rows)
            for ids in batches(back):
                again = sa.and_(_D.id.in_(ids), _D.state == deliveries.REJECTED)
                count += tx.execute(sa.update(delivery).where(again).values(state=deliveries.WAITING, run_at=run_at)).rowcount
            if rows and rule.quiet_s:
                for study_pk in {row["study_pk"] for row in rows}:
                    tx.execute(sa.update(delivery).where(
                        _D.rule_id == rule.id, _D.state == deliveries.WAITING, _D.study_pk == study_pk, _D.attempts == 0,
                        _D.run_at < quiet_until,
                    ).values(run_at=run_at))
            if settled > rule.seen:
                tx.execute(sa.update(forward_rule).where(_R.id == rule.id, _R.seen < settled).values(seen=settled))
        return count


def _restored(tx: sa.Connection, since: int | None) -> bool:
    """Whether anything may have been restored since the ledger had so many leaves: itself, or by what was let in to its place."""
    e = audit_event.c
    later = sa.select(e.n).where(e.n >= (since or 0), e.kind.in_([Kind.RESTORED.label, Kind.RECONCILED.label])).limit(1)
    return since is None or tx.execute(later).first() is not None
