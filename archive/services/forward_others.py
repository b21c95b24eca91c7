"""What waits by one rule of forwarding and goes on by another to the same destination: that one is taken away, or may not send it.

An instance is queued once for each destination, by the rule that comes first; the others pass it by.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from archive.access import policy
from archive.access.permissions import Permission
from archive.access.policy import scope_of
from archive.access.subject import Subject
from archive.db.batches import AT_ONCE
from archive.db.tables import delivery, forward_rule, peer, principal
from archive.index import arrivals
from archive.ledger.audit import Kind
from archive.ledger.log import AuditFilter
from archive.services import deliveries, forward_places, retrace
from archive.services.core import Core
from archive.services.forward_rules import Conditions

_D, _R = delivery.c, forward_rule.c
_OPEN = (deliveries.WAITING, deliveries.REJECTED, deliveries.FAILED)
_AUTHOR, _THEIRS = principal.alias("author"), principal.alias("theirs")
ACTIVE = (
    sa.select(
        forward_rule, peer.c.name.label("destination"), peer.c.principal_id.label("peer_principal_id"), _AUTHOR.c.name.label("author"),
        _AUTHOR.c.kind.label("author_kind"),
    )
    .join(peer, peer.c.id == _R.peer_id).join(_THEIRS, _THEIRS.c.id == peer.c.principal_id).join(_AUTHOR, _AUTHOR.c.id == _R.principal_id)
    .where(_R.enabled, peer.c.enabled, _THEIRS.c.enabled, _THEIRS.c.removed_at.is_(None), _AUTHOR.c.enabled, _AUTHOR.c.removed_at.is_(None))
)
"""The rules that count: their user and their destination do."""


def sides(rule: Any) -> tuple[Subject, Subject]:
    """Return on whose right a rule sends, and who receives."""
    author = Subject(rule.principal_id, rule.author, rule.author_kind, "internal")
    return author, Subject(rule.peer_principal_id, rule.destination, "device", "dimse", peer_id=rule.peer_id)


def begun(core: Core, tx: sa.Connection, rule: Any) -> int:
    """Return the id beyond which a rule was to look at instances when it was added: 0 when it was to look at all."""
    moment = AuditFilter(kinds=(Kind.CONFIGURED,), since=rule.created_at, until=rule.created_at + timedelta(microseconds=1))
    for event in retrace.bodies(core, tx, moment):  # one that was changed is told by verify, and keeps nothing else from going on
        said = {} if event.body is None else event.body["detail"]
        if said.get("what") == "forward rule added" and said["name"] == rule.name:
            return 0 if said["existing"] else min(rule.seen, forward_places.seen(tx, policy.system("verify"), event.n + 1))
    return 0  # nothing says: what both sides may is asked all the same


def beginnings(core: Core, tx: sa.Connection, peer_id: int, leaving: int) -> dict[int, int]:
    """Return from where on each other rule to a destination was to look at instances."""
    return {rule.id: begun(core, tx, rule) for rule in tx.execute(ACTIVE.where(_R.peer_id == peer_id, _R.id != leaving)).all()}


def hand_over(tx: sa.Connection, leaving: int, peer_id: int, begins: Mapping[int, int], at: datetime, among: Collection[int]) -> set[int]:
    """Let what waits by a rule, of these instances, go on by the first other one that would have queued it; return what stays."""
    waits = sa.and_(_D.rule_id == leaving, _D.instance_pk.in_(among), _D.state == deliveries.WAITING)
    return _given(tx, sa.select(_D.instance_pk, _D.id).where(waits), peer_id, begins, at)[1]


def hand_over_some(
    tx: sa.Connection, leaving: int, peer_id: int, begins: Mapping[int, int], at: datetime, *, after: int, states: Collection[str] = _OPEN
) -> int | None:
    """Let some of what a rule has not sent yet, of the instances beyond an id, go on as with `hand_over`.

    Returns:
        Where to go on; None when there is no more.
    """
    if not begins:
        return None
    # The sum leaves SQLite the index of the destination's instances: by that of the rule's it would sort all of them each time.
    waits = sa.and_(_D.peer_id == peer_id, _D.rule_id + 0 == leaving, _D.instance_pk > after, _D.state.in_(states))
    some = sa.select(_D.instance_pk, _D.id).where(waits).order_by(_D.instance_pk).limit(AT_ONCE)
    return max(_given(tx, some, peer_id, begins, at)[0], default=None)


def _given(tx: sa.Connection, some: sa.Select[Any], peer_id: int, begins: Mapping[int, int], at: datetime) -> tuple[set[int], set[int]]:
    """Return the instances of these deliveries, and those that no other rule takes on."""
    # Whoever looks by one of these rules meanwhile ends first, or looks again at what is queued.
    tx.execute(sa.select(_R.id).where(_R.peer_id == peer_id).order_by(_R.id).with_for_update()).all()
    left = {row.instance_pk: row.id for row in tx.execute(some)}
    looked_at = set(left)
    for rule in tx.execute(ACTIVE.where(_R.peer_id == peer_id, _R.id.in_(begins)).order_by(_R.id)).all():
        author, to = sides(rule)
        scope, also = scope_of(author, Permission.SEND, at), scope_of(to, Permission.RECEIVE, at, prefix="receiver")
        conditions = Conditions.of(rule.conditions)
        found = arrivals.arrived(
            tx, scope, also, rule.datastore_id, peer_id=peer_id, after=begins[rule.id], limit=len(left), among=left.keys()
        )
        wanted = {one.instance_pk: one.rejected for one in found if conditions.hold(one)}
        for state in (deliveries.WAITING, deliveries.REJECTED):
            ids = [left[key] for key, rejected in wanted.items() if rejected == (state == deliveries.REJECTED)]
            tx.execute(sa.update(delivery).where(_D.id.in_(ids), _D.state != deliveries.DONE).values(
                rule_id=rule.id, state=state, attempts=0, reason="", finished_at=None, run_at=at + timedelta(seconds=rule.quiet_s)
            ))
        left = {key: one for key, one in left.items() if key not in wanted}
    return looked_at, set(left)


def _hand_over_all(
    tx: sa.Connection, leaving: int, peer_id: int, begins: Mapping[int, int], at: datetime, *,
    after: int = 0, states: Collection[str] = _OPEN,
) -> None:
    reached: int | None = after
    while reached is not None:
        reached = hand_over_some(tx, leaving, peer_id, begins, at, after=reached, states=states)


def take_over(tx: sa.Connection, fresh: int, peer_id: int, at: datetime) -> None:
    """Let what has failed by other rules to a destination go by a new one that is for what is there."""
    for other in tx.execute(sa.select(_R.id).where(_R.peer_id == peer_id, _R.id != fresh).order_by(_R.id)).scalars().all():
        _hand_over_all(tx, other, peer_id, {fresh: 0}, at, states=(deliveries.FAILED,))


def remember_some(tx: sa.Connection, leaving: int, peer_id: int) -> bool:
    """Let another rule to a destination remember some of what a rule has sent, where there is one; return whether there is more."""
    heir = tx.execute(sa.select(sa.func.min(_R.id)).where(_R.peer_id == peer_id, _R.id != leaving)).scalar()
    some = sa.select(_D.id).where(_D.rule_id == leaving, _D.state == deliveries.DONE).limit(AT_ONCE)
    ids = [] if heir is None else list(tx.execute(some).scalars())
    tx.execute(sa.update(delivery).where(_D.id.in_(ids)).values(rule_id=heir))
    return len(ids) == AT_ONCE


def forget_some(tx: sa.Connection, leaving: int) -> bool:
    """Forget some of what goes with a rule that looks no more, and return whether there is more."""
    ids = list(tx.execute(sa.select(_D.id).where(_D.rule_id == leaving).limit(AT_ONCE)).scalars())
    tx.execute(sa.delete(delivery).where(_D.id.in_(ids)))
    return len(ids) == AT_ONCE


def take_away(tx: sa.Connection, leaving: int, peer_id: int, begins: Mapping[int, int], at: datetime, *, after: int = 0) -> None:
    """Take a rule away: what it has not sent goes on by the others, and what it has sent is remembered while there is another.

    What is up to the instance `after` has been handed over.
    """
    _hand_over_all(tx, leaving, peer_id, begins, at, after=after)
    while remember_some(tx, leaving, peer_id):
        pass
    tx.execute(sa.delete(delivery).where(_D.rule_id == leaving))
    tx.execute(sa.delete(forward_rule).where(_R.id == leaving))
