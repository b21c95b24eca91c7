"""What waits by one rule of forwarding and goes on by another to the same destination, once that one is taken away.

An instance is queued once for each destination, by the rule that comes first; the others pass it by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from archive.access import policy
from archive.access.permissions import Permission
from archive.access.policy import scope_of
from archive.access.subject import Subject
from archive.db.batches import batches
from archive.db.tables import delivery, forward_rule
from archive.index import arrivals
from archive.ledger.audit import Kind
from archive.ledger.log import AuditFilter
from archive.services import deliveries, forward_places
from archive.services.core import Core
from archive.services.forward_rules import Conditions

_D, _R = delivery.c, forward_rule.c
_OPEN = (deliveries.WAITING, deliveries.REJECTED, deliveries.FAILED)


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


def hand_over(tx: sa.Connection, leaving: int, others: Sequence[Any], begins: Mapping[int, int], at: datetime) -> None:
    """Let what a rule has not sent yet go on by the first of these other rules that would have queued it."""
    waits = sa.and_(_D.rule_id == leaving, _D.instance_pk.is_not(None), _D.state.in_(_OPEN))
    left = set(tx.execute(sa.select(_D.instance_pk).where(waits)).scalars())
    for rule in others:
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
