"""What waits by one rule of forwarding and goes on by another to the same destination: that one is taken away, or may not send it.

An instance is queued once for each destination, by the rule that comes first; the others pass it by.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from archive.access import policy
from archive.access.permissions import Permission
from archive.access.policy import scope_of
from archive.access.subject import Subject
from archive.db.batches import batches
from archive.db.tables import delivery, forward_rule, peer, principal
from archive.index import arrivals
from archive.ledger.audit import Kind
from archive.ledger.log import AuditFilter
from archive.services import deliveries, forward_places
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
    before: int | None = None
    moment = AuditFilter(kinds=(Kind.CONFIGURED,), since=rule.created_at, until=rule.created_at + timedelta(microseconds=1))
    while rows := core.ledger.search(tx, replace(moment, before=before)):
        before = rows[-1].n
        for event in rows:
            said = {} if event.body is None else event.body["detail"]
            if said.get("what") == "forward rule added" and said["name"] == rule.name:
                return 0 if said["existing"] else min(rule.seen, forward_places.seen(tx, policy.system("verify"), event.n + 1))
    return 0  # nothing says: what both sides may is asked all the same


def beginnings(core: Core, tx: sa.Connection, peer_id: int, leaving: int) -> dict[int, int]:
    """Return from where on each other rule to a destination was to look at instances."""
    return {rule.id: begun(core, tx, rule) for rule in tx.execute(ACTIVE.where(_R.peer_id == peer_id, _R.id != leaving)).all()}


def hand_over(
    tx: sa.Connection, leaving: int, peer_id: int, begins: Mapping[int, int], at: datetime, *, among: Collection[int] | None = None,
    states: Collection[str] = _OPEN,
) -> set[int]:
    """Let what a rule has not sent yet go on by the first of these other rules that would have queued it; return what of it stays.

    With `among` those of these instances.
    """
    # Whoever looks by one of these rules meanwhile ends first, or looks again at what is queued.
    tx.execute(sa.select(_R.id).where(_R.peer_id == peer_id).order_by(_R.id).with_for_update()).all()
    which = _D.instance_pk.is_not(None) if among is None else _D.instance_pk.in_(among)
    waits = sa.and_(_D.rule_id == leaving, which, _D.state.in_(states))
    left = set(tx.execute(sa.select(_D.instance_pk).where(waits)).scalars())
    for rule in tx.execute(ACTIVE.where(_R.peer_id == peer_id, _R.id.in_(begins)).order_by(_R.id)).all():
        author, to = sides(rule)
        scope, also = scope_of(author, Permission.SEND, at), scope_of(to, Permission.RECEIVE, at, prefix="receiver")
        conditions = Conditions.of(rule.conditions)
        for some in batches(sorted(left)):
            found = arrivals.arrived(
                tx, scope, also, rule.datastore_id, peer_id=rule.peer_id, after=begins[rule.id], limit=len(some), among=some
            )
            wanted = {one.instance_pk: one.rejected for one in found if conditions.hold(one)}
            for state in (deliveries.WAITING, deliveries.REJECTED):
                keys = [key for key, rejected in wanted.items() if rejected == (state == deliveries.REJECTED)]
                tx.execute(sa.update(delivery).where(waits, _D.instance_pk.in_(keys)).values(
                    rule_id=rule.id, state=state, attempts=0, reason="", finished_at=None, run_at=at + timedelta(seconds=rule.quiet_s)
                ))
            left -= wanted.keys()
    return left


def take_over(tx: sa.Connection, fresh: int, peer_id: int, at: datetime) -> None:
    """Let what has failed by other rules to a destination go by a new one that is for what is there."""
    for other in tx.execute(sa.select(_R.id).where(_R.peer_id == peer_id, _R.id != fresh).order_by(_R.id)).scalars().all():
        hand_over(tx, other, peer_id, {fresh: 0}, at, states=(deliveries.FAILED,))


def take_away(tx: sa.Connection, leaving: int, peer_id: int, begins: Mapping[int, int], at: datetime) -> None:
    """Take a rule away: what it has not sent goes on by the others, and what it has sent is remembered while there is another."""
    hand_over(tx, leaving, peer_id, begins, at)
    heir = tx.execute(sa.select(sa.func.min(_R.id)).where(_R.peer_id == peer_id, _R.id != leaving)).scalar()
    if heir is not None:
        tx.execute(sa.update(delivery).where(_D.rule_id == leaving, _D.state == deliveries.DONE).values(rule_id=heir))
    tx.execute(sa.delete(delivery).where(_D.rule_id == leaving))
    tx.execute(sa.delete(forward_rule).where(_R.id == leaving))
