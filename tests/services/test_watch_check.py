"""Who watches the unified worklist by no event, otherwise than was said, or no more, behind the archive's back is found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.db.tables import principal, ups_subscriber, ups_subscription
from archive.dicom import workitem as rules
from archive.dicom.workitem_keys import key
from archive.ledger.audit import Event, Kind
from archive.node import Node
from archive.services.workitem_watch import KEEP_FINISHED, WorkitemWatch
from tests.services import archives
from tests.services.test_rebuild import lose, rebuild
from tests.web.dicomweb.test_ups import item

OTHERWISE = "a subscription to the unified worklist is not the one that was made"
BY_NONE, GONE = "somebody watches the unified worklist by no event", "a subscription to the unified worklist is gone"
_S = ups_subscription.c


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with archives.opened(archives.made(tmp_path)) as opened:
        subscribe(opened)
        yield opened


def subscribe(node: Node) -> None:
    """1: ole watches all by a filter, suspended; 2: but not the second workitem; 3: mia watches the first, locked; 4: all was given up."""
    console = archives.the_console(node)
    for name in ("mia", "ole"):
        node.accounts.add_user(console, name, roles=["technologist"], password=archives.PASSWORD)
    mia, ole = archives.user(node, "mia"), archives.user(node, "ole")
    first, second = (node.workitems.create(ole, "clinical", f"1.2.50.{n}", item()).uid for n in (1, 2))
    watch = node.workitem_watch
    watch.subscribe(mia, "clinical", rules.GLOBAL, "B", deletion_lock=False)
    watch.unsubscribe(mia, "clinical", rules.GLOBAL, "B")
    watch.subscribe(ole, "clinical", rules.FILTERED, "A", deletion_lock=False, filters=(key("00741202", "liver*"),))
    watch.suspend(ole, "clinical", rules.GLOBAL, "A")
    watch.unsubscribe(ole, "clinical", second, "A")
    watch.subscribe(mia, "clinical", second, "B", deletion_lock=False)
    watch.unsubscribe(mia, "clinical", second, "B")
    watch.subscribe(mia, "clinical", first, "B", deletion_lock=True)


def found(node: Node) -> list[str]:
    checked = node.verify.run(archives.the_console(node), "quick").findings
    return [one.detail for one in checked if one.code == "V12"]


def _of(name: str) -> Any:
    whose = sa.select(principal.c.id).where(principal.c.name == name).scalar_subquery()
    return sa.select(ups_subscriber.c.id).where(ups_subscriber.c.principal_id == whose).scalar_subquery()


def _set(name: str, everything: bool, **values: Any) -> Callable[[sa.Connection], Any]:
    which = (_S.subscriber_pk == _of(name), (_S.workitem_pk == 0) if everything else (_S.workitem_pk > 0))
    return lambda tx: tx.execute(sa.update(ups_subscription).where(*which).values(values))


def _slipped_in(tx: sa.Connection) -> None:
    tx.execute(sa.insert(ups_subscription).values(subscriber_pk=_of("mia"), workitem_pk=0, wanted=True))


@pytest.mark.parametrize(("edit", "said"), [
    (_slipped_in, [BY_NONE]),
    (_set("ole", everything=True, filter=[["00741202", "heart*"]]), [OTHERWISE]),
    (_set("ole", everything=True, until_workitem=None), [OTHERWISE]),
    (_set("ole", everything=True, workitem_pk=77), [BY_NONE, GONE]),
    (_set("ole", everything=False, wanted=True), [OTHERWISE]),
    (_set("mia", everything=False, wanted=False), [OTHERWISE]),
    (_set("mia", everything=False, deletion_lock=False), [OTHERWISE]),
    (_set("mia", everything=False, subscriber_pk=_of("ole")), [BY_NONE, GONE]),
    (lambda tx: tx.execute(sa.delete(ups_subscription).where(_S.deletion_lock)), [GONE]),
    (lambda tx: tx.execute(sa.delete(ups_subscription)), [GONE, GONE, GONE]),
    (lambda tx: tx.execute(sa.update(ups_subscriber).where(ups_subscriber.c.ae_title == "B").values(ae_title="C")), [BY_NONE, GONE]),
    (lambda tx: tx.execute(sa.update(ups_subscriber).where(ups_subscriber.c.ae_title == "B").values(told_until=10_000)),
     ["the subscriber 1 was told further than the log goes"]),
])  # fmt: skip
def test_a_subscription_edited_behind_our_back(node: Node, edit: Callable[[sa.Connection], Any], said: list[str]) -> None:
    assert found(node) == []
    with node.core.database.begin() as tx:
        edit(tx)
    assert found(node) == said


def test_a_workitem_that_was_swept_and_made_anew_takes_its_watchers_along(node: Node) -> None:
    mia = archives.user(node, "mia")
    node.workitem_watch.unsubscribe(mia, "clinical", "1.2.50.1", "B")
    node.workitem_watch.subscribe(mia, "clinical", "1.2.50.1", "B", deletion_lock=False)
    node.workitems.request_cancel(mia, "clinical", "1.2.50.1", {})
    WorkitemWatch(node.core).sweep(node.core.clock() + 2 * KEEP_FINISHED)
    assert found(node) == []
    node.workitems.create(mia, "clinical", "1.2.50.1", item())
    assert found(node) == []
    node.workitem_watch.subscribe(mia, "clinical", "1.2.50.1", "B", deletion_lock=False)
    assert found(node) == []


def test_of_what_an_earlier_release_was_asked_for_nothing_is_said(node: Node) -> None:
    mia = archives.user(node, "mia")
    detail = {"what": "subscribed", "workitem": "1.2.50.9", "ae_title": "B", "deletion_lock": False}
    with node.core.database.begin() as tx:
        node.core.ledger.record(tx, Event(Kind.WORKITEM_WATCHED, subject=mia, detail=detail), at=node.core.clock())
        tx.execute(sa.delete(ups_subscription).where(_S.deletion_lock))
    assert found(node) == []


def test_after_a_lost_index_no_subscription_is_missed_or_too_many(tmp_path: Path) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config, role="serve") as node:
        subscribe(node)
        node.upkeep.finish()
        mia, ole = archives.user(node, "mia"), archives.user(node, "ole")
        node.workitem_watch.unsubscribe(ole, "clinical", rules.GLOBAL, "A")
        node.workitem_watch.subscribe(mia, "clinical", rules.GLOBAL, "LATE", deletion_lock=False)
        node.upkeep.checkpoint()
    lose(config)
    rebuild(config)
    with archives.opened(config) as node:
        assert [one for one in found(node) if "worklist" in one or "subscri" in one] == []
