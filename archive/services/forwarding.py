"""Forwarding: rules say which instances go on to which registered peer and when; a queue says what is still to go.

A rule sends on the right of the user it was written for: what that user may send and the destination may receive, as their grants are
at the time. The audit event is committed durably before the first byte leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import sqlalchemy as sa

from archive.access import policy, principals
from archive.access.permissions import Permission
from archive.access.policy import scope_of
from archive.access.subject import Subject
from archive.db.tables import datastore, delivery, forward_rule, peer, principal
from archive.errors import InvalidRequest, NotFound
from archive.index import arrivals
from archive.ledger.audit import Event, Kind
from archive.services import datastores, deliveries, denials, forward_others
from archive.services.core import Core
from archive.services.deliveries import Deliveries, Due
from archive.services.forward_look import Looking
from archive.services.forward_others import ACTIVE
from archive.services.forward_rules import Conditions, check, closed_until
from archive.services.sending import Destination, Selected, Selection, Sending

Rows = list[dict[str, Any]]
T = TypeVar("T")

BATCH = 2000
SETTLE = timedelta(seconds=10)
"""How long an id may come after a higher one: what is older is looked at once more, and then no more."""
_D, _R = delivery.c, forward_rule.c


@dataclass(frozen=True, slots=True)
class Batch:
    """Deliveries of one rule that go on one association; `lost` are no longer to be sent by it."""

    rule: str
    selection: Selection
    due: dict[int, Due]
    lost: tuple[Due, ...]


class Forwarding:
    """Rules and what becomes of them; safe to share between threads and processes."""

    def __init__(self, core: Core, sending: Sending, queue: Deliveries) -> None:
        """Work on an opened archive."""
        self._core = core
        self._sending = sending
        self._queue = queue
        self._looking = Looking(core)

    # --- rules --------------------------------------------------------------------------------------------------------------------

    def add(
        self, subject: Subject, name: str, destination: str, *, on_behalf_of: str, conditions: Conditions, hours: str = "",
        quiet_s: int = 0, existing: bool = False, datastore_name: str = datastores.DEFAULT,
    ) -> dict[str, Any]:
        """Add a rule; it counts for what arrives from now on, and with `existing` for what is there, and has failed by others.

        Raises:
            Forbidden, InvalidRequest, NotFound.
        """
        check(name, conditions, hours, quiet_s)

        def work(tx: sa.Connection, at: datetime) -> dict[str, Any]:
            place = datastores.find(tx, datastore_name)
            author = principals.find(tx, on_behalf_of, ("user", "service"))
            to = _peer(tx, destination)
            if not to.host or to.port is None:
                message = "that peer has no address"
                raise InvalidRequest(message, remedy=f"add it again: archive peer add {destination} --address HOST:PORT")
            if tx.execute(sa.select(_R.id).where(_R.name == name)).first() is not None:
                message = "there is a rule of that name"
                raise InvalidRequest(message, remedy="'archive forward list' shows it")
            them = Subject(author["id"], author["name"], author["kind"], "internal")
            seen = 0 if existing else arrivals.newest(tx, scope_of(them, Permission.SEND, at))
            made = tx.execute(sa.insert(forward_rule).values(
                name=name, datastore_id=place.id, peer_id=to.id, principal_id=author["id"], conditions=asdict(conditions), hours=hours,
                quiet_s=quiet_s, enabled=True, seen=seen, created_at=at,
            ))
            assert made.inserted_primary_key is not None
            deliveries.need_destination(tx, to.id)
            if existing:
                forward_others.take_over(tx, made.inserted_primary_key[0], to.id, at)
            self._record(tx, subject, at, "forward rule added", name, destination=destination, on_behalf_of=author["name"],
                         conditions=asdict(conditions), hours=hours, quiet_s=quiet_s, existing=existing, datastore=datastore_name)
            return _shown(tx.execute(_RULES.where(_R.name == name)).mappings().one())

        return self._change(subject, work)

    def list(self, subject: Subject) -> Rows:
        """Return every rule.

        Raises:
            Forbidden.
        """
        with denials.recorded(self._core, subject), self._core.database.read() as tx:
            policy.require(tx, subject, Permission.JOB_MANAGE, self._core.clock())
            return [_shown(row) for row in tx.execute(_RULES.order_by(_R.name)).mappings()]

    def remove(self, subject: Subject, name: str) -> None:
        """Remove a rule, and what still waits by it; what another rule to the same destination sends too goes on by that one.

        Raises:
            Forbidden, NotFound.
        """
        core = self._core
        with core.database.read() as tx:
            there = tx.execute(sa.select(_R.id, _R.peer_id).where(_R.name == name)).first()
            begins = {} if there is None else forward_others.beginnings(core, tx, there.peer_id, there.id)

        reached, handed = 0, False

        def some(tx: sa.Connection, at: datetime) -> bool:
            nonlocal reached, handed
            row = _rule(tx, name)
            if row.enabled:  # from now on nothing is added to its queue, and nothing leaves by it
                tx.execute(sa.update(forward_rule).where(_R.id == row.id).values(enabled=False))
                self._record(tx, subject, at, "forward rule ended", name)
            if not handed:
                now = forward_others.hand_over_some(tx, row.id, row.peer_id, begins, at, after=reached)
                reached, handed = now or reached, now is None
            return not handed or forward_others.remember_some(tx, row.id, row.peer_id) or forward_others.forget_some(tx, row.id)

        def work(tx: sa.Connection, at: datetime) -> None:
            row = _rule(tx, name)
            forward_others.take_away(tx, row.id, row.peer_id, begins, at, after=reached)
            self._record(tx, subject, at, "forward rule removed", name)

        while self._change(subject, some):  # of many deliveries not all in one go: stores have their turn between
            pass
        self._change(subject, work)

    def pause(self, subject: Subject, destination: str, *, paused: bool) -> None:
        """Let a destination wait, or go on with it.

        Raises:
            Forbidden, NotFound.
        """
        def work(tx: sa.Connection, at: datetime) -> None:
            deliveries.pause(tx, _peer(tx, destination).id, paused=paused)
            self._record(tx, subject, at, "destination paused" if paused else "destination resumed", destination)

        self._change(subject, work)

    def retry(self, subject: Subject, *, destination: str = "", number: int | None = None) -> int:
        """Try what failed or waits again now; return how many deliveries that are.

        Raises:
            Forbidden, NotFound.
        """
        def work(tx: sa.Connection, at: datetime) -> int:
            count = deliveries.retry(tx, at, peer_id=_peer(tx, destination).id if destination else None, one=number)
            self._record(tx, subject, at, "deliveries retried", destination or str(number or "all"), count=count)
            return count

        return self._change(subject, work)

    def destinations(self, subject: Subject) -> Rows:
        """Return how each destination stands.

        Raises:
            Forbidden.
        """
        self._require(subject)
        return self._queue.destinations()

    def queue(self, subject: Subject, *, state: str = "", destination: str = "", limit: int = 100) -> Rows:
        """Return deliveries, the newest first; they name no patient.

        Raises:
            Forbidden, NotFound.
        """
        self._require(subject)
        peer_id = None
        if destination:
            with self._core.database.read() as tx:
                peer_id = _peer(tx, destination).id
        return self._queue.queue(state=state, peer_id=peer_id, limit=limit)

    # --- what rules make of what arrives ------------------------------------------------------------------------------------------

    def look(self) -> int:
        """Queue what has arrived since the last look, of each rule so much at a time; return how many deliveries that made.

        Raises:
            DatabaseUnavailable.
        """
        return self._looking.look(limit=BATCH, settle=SETTLE)

    @property
    def behind(self) -> bool:
        """Whether the last look left something that it could have looked at."""
        return self._looking.behind

    # --- what is sent -------------------------------------------------------------------------------------------------------------

    def batch(self, due: Sequence[Due]) -> Batch | None:
        """Return what of these deliveries goes to their destination now, on one rule's right; recorded durably before it returns.

        Raises:
            NotFound: the destination is no peer with an address any more. Unavailable: it could not be recorded.
        """
        core = self._core
        at = core.clock()
        with core.database.read() as tx:
            rule = tx.execute(ACTIVE.where(_R.id == due[0].rule_id)).first()
        if rule is None:
            self.lost([one for one in due if one.rule_id == due[0].rule_id], "the rule, its user or its destination counts no longer")
            return None
        opening = closed_until(rule.hours, at)
        mine = [one for one in due if one.rule_id == rule.id]
        if opening is not None:
            with core.database.begin(durable=False) as tx:
                tx.execute(sa.update(delivery).where(
                    _D.rule_id == rule.id, _D.state == deliveries.WAITING, _D.run_at < opening
                ).values(run_at=opening))
            return None
        to = self._sending.address(rule.peer_id)
        if to is None:
            message = "it is no registered peer with an address any more"
            raise NotFound(message)
        author, _ = forward_others.sides(rule)
        by_key = {one.instance_pk: one for one in mine if one.instance_pk is not None}
        with core.database.read() as tx:
            scope, also = scope_of(author, Permission.SEND, at), scope_of(to.subject, Permission.RECEIVE, at, prefix="receiver")
            chosen = arrivals.among(tx, scope, also, by_key)
        if chosen:
            self._sending.record_forward(author, to, chosen, rule=rule.name)
        found = {one.instance_pk: by_key[one.instance_pk] for one in chosen}
        lost = self.withheld(author, to, [one for key, one in by_key.items() if key not in found])
        return Batch(rule.name, Selection(author, Permission.SEND, to, tuple(chosen)), found, lost)

    def withheld(self, author: Subject, to: Destination, some: Sequence[Due]) -> tuple[Due, ...]:
        """Let those of these wait whose instances are rejected, until they are restored; return those of the others that may not go.

        What may go by now, because it was restored a moment ago, waits as it did.
        """
        if not some:
            return ()
        core = self._core
        at, keys = core.clock(), [one.instance_pk for one in some if one.instance_pk is not None]
        scope, also = scope_of(author, Permission.SEND, at), scope_of(to.subject, Permission.RECEIVE, at, prefix="receiver")
        with core.database.begin(durable=False) as tx:
            gone = arrivals.rejected(tx, scope, keys)
            ids = [one.id for one in some if one.instance_pk in gone]
            tx.execute(sa.update(delivery).where(_D.id.in_(ids), _D.state == deliveries.WAITING).values(state=deliveries.REJECTED))
            stay = gone | {one.instance_pk for one in arrivals.among(tx, scope, also, keys)}
        return tuple(one for one in some if one.instance_pk not in stay)

    def lost(self, some: Sequence[Due], reason: str) -> None:
        """Let what one rule may not send, nor ever will, go on by another to the same destination that may; the others have failed."""
        core, stay = self._core, {one.instance_pk for one in some}
        if some and (rule_id := some[0].rule_id) is not None:
            peer_id, keys = some[0].peer_id, {one.instance_pk for one in some if one.instance_pk is not None}
            with core.database.read() as tx:
                begins = forward_others.beginnings(core, tx, peer_id, rule_id)
            if begins:
                with core.database.begin(durable=False) as tx:
                    stay = {None} | forward_others.hand_over(tx, rule_id, peer_id, begins, core.clock(), among=keys)
        for one in some:
            if one.instance_pk in stay:
                self._queue.refused(one, reason, for_good=True)

    def _require(self, subject: Subject) -> None:
        with denials.recorded(self._core, subject), self._core.database.read() as tx:
            policy.require(tx, subject, Permission.JOB_MANAGE, self._core.clock())

    def _change(self, subject: Subject, work: Callable[[sa.Connection, datetime], T]) -> T:
        core = self._core
        core.require_writable()
        at = core.clock()
        with denials.recorded(core, subject), core.database.begin() as tx:
            policy.require(tx, subject, Permission.JOB_MANAGE, at)
            return work(tx, at)

    def _record(self, tx: sa.Connection, subject: Subject, at: datetime, what: str, name: str, **detail: Any) -> None:
        self._core.ledger.record(tx, Event(Kind.CONFIGURED, subject=subject, detail={"what": what, "name": name, **detail}), at=at)


_AUTHOR = principal.alias("author")
_RULES = (
    sa.select(forward_rule, peer.c.name.label("destination"), _AUTHOR.c.name.label("author"), datastore.c.name.label("datastore"))
    .join(peer, peer.c.id == _R.peer_id).join(_AUTHOR, _AUTHOR.c.id == _R.principal_id).join(datastore, datastore.c.id == _R.datastore_id)
)


def _shown(row: Any) -> dict[str, Any]:
    conditions = Conditions.of(row["conditions"])
    return {
        "name": row["name"], "destination": row["destination"], "as": row["author"], "datastore": row["datastore"],
        "conditions": {name: value for name, value in asdict(conditions).items() if value}, "hours": row["hours"],
        "quiet_s": row["quiet_s"], "enabled": bool(row["enabled"]), "created_at": row["created_at"],
    }


def _rule(tx: sa.Connection, name: str) -> Any:
    row = tx.execute(sa.select(_R.id, _R.peer_id, _R.enabled).where(_R.name == name)).first()
    if row is None:
        message = "there is no such rule"
        raise NotFound(message, remedy="'archive forward list' names them")
    return row


def _peer(tx: sa.Connection, name: str) -> Any:
    row = tx.execute(
        sa.select(peer.c.id, peer.c.host, peer.c.port).join(principal, principal.c.id == peer.c.principal_id)
        .where(peer.c.name == name, principal.c.removed_at.is_(None))
    ).first()
    if row is None:
        message = "there is no such peer"
        raise NotFound(message, remedy="'archive peer list' names them")
    return row


__all__ = ["Batch", "Conditions", "Destination", "Forwarding", "Selected", "closed_until"]
