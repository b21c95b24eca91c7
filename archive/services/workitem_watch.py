"""Watching the worklist: subscriptions, and the events each subscriber is due.

A subscriber is an AE title of one principal: two users never share one, so nobody learns who else watches. What is due is decided when it
is handed over, by the same condition as a search; events wait a week for a subscriber that is away.

Source: PS3.4 CC.2.3, PS3.18 11.10 to 11.13.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement

from archive.access.policy import Scope
from archive.access.subject import Subject
from archive.db.tables import ups_event, ups_subscriber, ups_subscription, workitem
from archive.dicom import workitem as rules
from archive.dicom.workitem import Dataset
from archive.dicom.workitem_keys import Key, key, met
from archive.errors import NotFound
from archive.index import workitems as rows
from archive.ledger import nodes
from archive.ledger.audit import Event, Kind
from archive.services import denials
from archive.services.core import Core
from archive.services.workitems import change, enter, objects_of, record_read, tell

KEEP_EVENTS = timedelta(days=7)
KEEP_FINISHED = timedelta(days=90)
_BATCH = 100
_ALL = 0  # the workitem_pk that stands for every one
_S, _T = ups_subscription, ups_subscriber


@dataclass(frozen=True, slots=True)
class Due:
    """Events in order; `told_until` is what to acknowledge once they are out, `more` says that others wait."""

    bodies: list[Dataset]
    told_until: int
    more: bool


class WorkitemWatch:
    """Subscriptions and events; safe to share between threads."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core

    def subscribe(
        self, subject: Subject, datastore: str, uid: str, ae_title: str, *, deletion_lock: bool, filters: tuple[Key, ...] = ()
    ) -> None:
        """Watch one workitem, all (`GLOBAL`), or all that match (`FILTERED`); one that is watched already is watched anew.

        The state of a single one is the first event; of many, those that come.

        Raises:
            NotFound, Forbidden, ReadOnly, Unavailable.
        """
        kept = [[one.name, one.text] for one in filters] if uid == rules.FILTERED else None

        def work(tx: sa.Connection, scope: Scope, place: int, at: datetime) -> None:
            row = self._one(tx, scope, place, uid)
            event = Event(
                Kind.WORKITEM_WATCHED, subject=subject, objects=objects_of([] if row is None else [row.dataset]),
                detail={
                    "what": "subscribed", "workitem": uid, "ae_title": ae_title, "datastore": datastore, "deletion_lock": deletion_lock,
                    **({} if kept is None else {"filter": kept}),
                },
            )
            leaf = self._core.ledger.record(tx, event, at=at)
            subscriber = self._subscriber(tx, subject, place, ae_title)
            if subscriber is None:
                made = tx.execute(sa.insert(_T).values(
                    datastore_id=place, principal_id=subject.principal_id, ae_title=ae_title, told_until=leaf - 1, created_at=at
                ))
                assert made.inserted_primary_key is not None
                subscriber = int(made.inserted_primary_key[0])
            self._set(tx, subscriber, _ALL if row is None else row.id, deletion_lock=deletion_lock, filter=kept)
            if row is not None:
                tell(tx, leaf, row.id, [rules.state_report(row.dataset)], at=at, subscriber_pk=subscriber)

        change(self._core, subject, datastore, work)

    def unsubscribe(self, subject: Subject, datastore: str, uid: str, ae_title: str) -> None:
        """Watch one workitem no more, whatever is said of all; or, by `GLOBAL` or `FILTERED`, none at all.

        Raises:
            NotFound: also when the AE title watches nothing.
            Forbidden, ReadOnly, Unavailable.
        """

        def work(tx: sa.Connection, scope: Scope, place: int, at: datetime) -> None:
            row = self._one(tx, scope, place, uid)
            subscriber = self._existing(tx, subject, place, ae_title)
            if row is None:
                tx.execute(sa.delete(_S).where(_S.c.subscriber_pk == subscriber))
            elif self._watches_all(tx, subscriber):
                self._set(tx, subscriber, row.id, wanted=False)
            else:
                gone = tx.execute(sa.delete(_S).where(_S.c.subscriber_pk == subscriber, _S.c.workitem_pk == row.id)).rowcount
                if not gone:
                    raise _unknown()
            self._note(tx, subject, "unsubscribed", uid, ae_title, datastore, at)

        change(self._core, subject, datastore, work)

    def suspend(self, subject: Subject, datastore: str, uid: str, ae_title: str) -> None:
        """Go on with the workitems there are, and do not begin to watch those that come.

        Raises:
            NotFound: the AE title does not watch all.
            Forbidden, ReadOnly, Unavailable.
        """

        def work(tx: sa.Connection, scope: Scope, place: int, at: datetime) -> None:  # noqa: ARG001 # one signature for all
            subscriber = self._existing(tx, subject, place, ae_title)
            newest = tx.execute(sa.select(sa.func.max(workitem.c.id))).scalar() or 0
            there = sa.update(_S).where(_S.c.subscriber_pk == subscriber, _S.c.workitem_pk == _ALL)
            if not tx.execute(there.values(until_workitem=newest)).rowcount:
                raise _unknown()
            self._note(tx, subject, "suspended", uid, ae_title, datastore, at)

        change(self._core, subject, datastore, work)

    def newest(self) -> int:
        """Return what grows with every event: cheap to ask often."""
        with self._core.database.read() as tx:
            return int(tx.execute(sa.select(sa.func.max(ups_event.c.leaf))).scalar() or -1)

    def due(self, subject: Subject, datastore: str, ae_title: str) -> Due:
        """Return what a subscriber has not been told yet and may know now; recorded before it returns.

        Raises:
            NotFound: the AE title watches nothing.
            Forbidden: the caller's sign-in, token or permission no longer counts.
            Unavailable.
        """
        core = self._core
        at = core.clock()
        with denials.recorded(core, subject), core.database.read() as tx:
            scope, place = enter(tx, subject, datastore, at)
            row = tx.execute(self._of(subject, place, ae_title)).first()
            if row is None:
                raise _unknown()
            size = nodes.size(tx)
            found = scope.run(tx, _due(scope, row.id, row.told_until)).all()
        cut = len(found) > _BATCH and found[_BATCH].leaf
        if cut is not False:  # the events of one leaf stay together
            found = [one for one in found if one.leaf < cut] or [one for one in found if one.leaf == found[0].leaf]
        told = [one for one in found if one.subscriber_pk == row.id or _wanted(one)]
        if told:
            record_read(core, subject, Kind.READ, [one.dataset for one in told], what="workitem-events", ae_title=ae_title)
        return Due([dict(one.body) for one in told], found[-1].leaf if cut is not False else size - 1, cut is not False)

    def told(self, subject: Subject, datastore: str, ae_title: str, until: int) -> None:
        """Note that a subscriber has been told everything up to a leaf."""

        def work(tx: sa.Connection, scope: Scope, place: int, at: datetime) -> None:  # noqa: ARG001 # one signature for all
            tx.execute(
                sa.update(_T).where(
                    _T.c.datastore_id == place, _T.c.principal_id == subject.principal_id, _T.c.ae_title == ae_title,
                    _T.c.told_until < until,
                ).values(told_until=until)
            )

        change(self._core, subject, datastore, work)

    def sweep(self, at: datetime) -> None:
        """Forget events nobody fetched, and finished workitems that no subscriber holds back.

        Raises:
            DatabaseUnavailable.
        """
        holds = sa.select(_S.c.id).join(_T, _T.c.id == _S.c.subscriber_pk).where(
            _S.c.deletion_lock == sa.true(), _T.c.datastore_id == workitem.c.datastore_id,
            sa.or_(_S.c.workitem_pk == workitem.c.id, sa.and_(_S.c.workitem_pk == _ALL, _S.c.wanted == sa.true())),
        ).correlate(workitem)
        old = sa.select(workitem.c.id).where(workitem.c.deletable_at < at - KEEP_FINISHED, sa.not_(sa.exists(holds))).limit(_BATCH)
        with self._core.database.begin() as tx:
            tx.execute(sa.delete(ups_event).where(ups_event.c.at < at - KEEP_EVENTS))
            gone = list(tx.execute(old).scalars())
            if gone:
                tx.execute(sa.delete(_S).where(_S.c.workitem_pk.in_(gone)))
                tx.execute(sa.delete(workitem).where(workitem.c.id.in_(gone)))
                self._core.ledger.record(tx, Event(Kind.WORKITEM_CHANGED, detail={"what": "swept", "count": len(gone)}), at=at)

    def _one(self, tx: sa.Connection, scope: Scope, place: int, uid: str) -> Any | None:
        if uid in {rules.GLOBAL, rules.FILTERED}:
            return None
        row = rows.find(tx, scope, place, uid)
        if row is None:
            message = "there is no such workitem"
            raise NotFound(message)
        return row

    def _of(self, subject: Subject, place: int, ae_title: str) -> sa.Select[Any]:
        return sa.select(_T.c.id, _T.c.told_until).where(
            _T.c.datastore_id == place, _T.c.principal_id == subject.principal_id, _T.c.ae_title == ae_title
        )

    def _subscriber(self, tx: sa.Connection, subject: Subject, place: int, ae_title: str) -> int | None:
        row = tx.execute(self._of(subject, place, ae_title)).first()
        return None if row is None else int(row.id)

    def _existing(self, tx: sa.Connection, subject: Subject, place: int, ae_title: str) -> int:
        found = self._subscriber(tx, subject, place, ae_title)
        if found is None:
            raise _unknown()
        return found

    @staticmethod
    def _watches_all(tx: sa.Connection, subscriber: int) -> bool:
        return tx.execute(sa.select(_S.c.id).where(_S.c.subscriber_pk == subscriber, _S.c.workitem_pk == _ALL)).first() is not None

    @staticmethod
    def _set(tx: sa.Connection, subscriber: int, workitem_pk: int, *, wanted: bool = True, **values: Any) -> None:
        tx.execute(sa.delete(_S).where(_S.c.subscriber_pk == subscriber, _S.c.workitem_pk == workitem_pk))
        tx.execute(sa.insert(_S).values(subscriber_pk=subscriber, workitem_pk=workitem_pk, wanted=wanted, **values))

    def _note(self, tx: sa.Connection, subject: Subject, what: str, uid: str, ae_title: str, datastore: str, at: datetime) -> None:
        detail = {"what": what, "workitem": uid, "ae_title": ae_title, "datastore": datastore}
        self._core.ledger.record(tx, Event(Kind.WORKITEM_WATCHED, subject=subject, detail=detail), at=at)


def _due(scope: Scope, subscriber: int, told_until: int) -> sa.Select[Any]:
    w, e = rows.W, ups_event
    own, everything = _S.alias("own"), _S.alias("everything")
    mine: ColumnElement[bool] = sa.or_(e.c.subscriber_pk == subscriber, sa.and_(
        e.c.subscriber_pk.is_(None), sa.or_(own.c.wanted == sa.true(), sa.and_(own.c.id.is_(None), everything.c.id.is_not(None)))
    ))
    joined = (
        e.join(w, w.c.id == e.c.workitem_pk)
        .outerjoin(own, sa.and_(own.c.subscriber_pk == subscriber, own.c.workitem_pk == w.c.id))
        .outerjoin(everything, sa.and_(everything.c.subscriber_pk == subscriber, everything.c.workitem_pk == _ALL))
    )
    return (
        sa.select(
            e.c.leaf, e.c.subscriber_pk, e.c.body, w.c.dataset, w.c.id.label("workitem_pk"), own.c.wanted.label("own"),
            everything.c.filter, everything.c.until_workitem,
        )
        .select_from(joined).where(e.c.leaf > told_until, mine, rows.visible(scope.shape))
        .order_by(e.c.leaf, e.c.position).limit(_BATCH + 1)
    )


def _wanted(row: Any) -> bool:
    if row.own:
        return True
    if row.until_workitem is not None and row.workitem_pk > row.until_workitem:
        return False
    return met([key(name, text) for name, text in row.filter or []], row.dataset)


def _unknown() -> NotFound:
    message = "there is no such subscription"
    return NotFound(message, remedy="subscribe first")
