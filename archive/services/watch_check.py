"""Who watches the unified worklist is as the ledger's events say: from one who was made to watch no more something would be kept.

What was subscribed by an earlier release names no datastore in its events; of that nothing is said. Nor is it of a workitem whose UID was
given anew, or of what a lost index may have lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa

from archive.db.tables import datastore, ups_subscriber, ups_subscription, workitem
from archive.dicom import workitem as rules
from archive.ledger import nodes
from archive.ledger.audit import Kind
from archive.ledger.log import AuditFilter, AuditRow
from archive.services.core import Core
from archive.services.retrace import Found, bodies
from archive.services.webhook_check import LOST

Who = tuple[int, str, str]
"""A subscriber: principal, AE title, datastore."""
_ALL = ""
_S, _T = ups_subscription.c, ups_subscriber.c
_ROWS = (
    sa.select(
        _S.workitem_pk, _S.wanted, _S.deletion_lock, _S.filter, _S.until_workitem, _T.principal_id, _T.ae_title,
        workitem.c.sop_instance_uid, datastore.c.name.label("datastore"),
    )
    .outerjoin(ups_subscriber, _T.id == _S.subscriber_pk).outerjoin(datastore, datastore.c.id == _T.datastore_id)
    .outerjoin(workitem, workitem.c.id == _S.workitem_pk).order_by(_S.id)
)


@dataclass(frozen=True, slots=True)
class _Watch:
    wanted: bool = True
    lock: bool = False
    keys: Any = None
    suspended: bool = False
    sure: bool = True


@dataclass(slots=True)
class _Told:
    now: dict[Who, dict[str, _Watch]] = field(default_factory=dict)
    ever: dict[Who, dict[str, _Watch]] = field(default_factory=dict)
    unknown: set[tuple[int, str]] = field(default_factory=set)

    def take(self, event: AuditRow, said: dict[str, Any]) -> None:
        """Take in the next event."""
        what, uid = said.get("what"), str(said.get("workitem"))
        if event.kind == Kind.REBUILT.label:
            if what == LOST:  # a work snapshot may be older than what was watched, or given up, last
                self.now = {who: {one: replace(watch, sure=False) for one, watch in all_of.items()} for who, all_of in self.ever.items()}
        elif event.kind == Kind.WORKITEM_CHANGED.label:
            for watched in self.now.values() if what == "created" else ():
                if uid in watched:
                    watched[uid] = replace(watched[uid], sure=False)
        elif "datastore" not in said:
            self.unknown.add((event.principal_id or 0, str(said.get("ae_title"))))
        else:
            who = (event.principal_id or 0, said["ae_title"], said["datastore"])
            self._watched(self.now.setdefault(who, {}), what, _ALL if uid in (rules.GLOBAL, rules.FILTERED) else uid, said)
            self.ever.setdefault(who, {}).update(self.now[who])

    @staticmethod
    def _watched(watched: dict[str, _Watch], what: Any, uid: str, said: dict[str, Any]) -> None:
        if what == "subscribed":
            watched[uid] = _Watch(lock=said["deletion_lock"], keys=said.get("filter"))
        elif what == "suspended" and uid in watched:
            watched[uid] = replace(watched[uid], suspended=True)
        elif what == "unsubscribed" and uid == _ALL:
            watched.clear()
        elif what == "unsubscribed" and _ALL in watched:
            watched[uid] = _Watch(wanted=False)
        elif what == "unsubscribed":
            watched.pop(uid, None)


def watched(core: Core, tx: sa.Connection) -> Iterator[Found]:
    """Yield subscriptions that no event made, that say otherwise than theirs, or that are gone, and who was told what is to come."""
    rows, ahead = tx.execute(_ROWS).all(), tx.execute(sa.select(_T.id, _T.told_until)).all()
    last = nodes.size(tx) - 1
    for subscriber in ahead:
        if subscriber.told_until > last:
            yield "V12", f"the subscriber {subscriber.id} was told further than the log goes", ""
    told = _told(core, tx)
    for row in rows:
        who = (row.principal_id, row.ae_title, row.datastore)
        uid = row.sop_instance_uid if row.workitem_pk else _ALL
        said = told.now.get(who, {}).pop(uid, None)
        if who[:2] in told.unknown or (said is not None and not said.sure):
            continue
        if said is None:
            yield "V12", "somebody watches the unified worklist by no event", ""
        elif said != _Watch(row.wanted, row.deletion_lock, row.filter, row.until_workitem is not None):
            yield "V12", "a subscription to the unified worklist is not the one that was made", ""
    yield from _gone(tx, told)


def _told(core: Core, tx: sa.Connection) -> _Told:
    told = _Told()
    kinds = (Kind.WORKITEM_WATCHED, Kind.WORKITEM_CHANGED, Kind.REBUILT)
    for event in reversed(list(bodies(core, tx, AuditFilter(kinds=kinds)))):
        if event.body is not None:
            told.take(event, event.body["detail"])
    return told


def _gone(tx: sa.Connection, told: _Told) -> Iterator[Found]:
    """What watches a workitem that was swept went with it."""
    here = (workitem.c.sop_instance_uid, datastore.c.name)
    query = sa.select(*here).join(datastore, datastore.c.id == workitem.c.datastore_id)
    there = {(row.sop_instance_uid, row.name) for row in tx.execute(query)}
    for who, left in told.now.items():
        for uid, one in left.items():
            if who[:2] not in told.unknown and one.sure and (uid == _ALL or (uid, who[2]) in there):
                yield "V12", "a subscription to the unified worklist is gone", ""
