"""How rules of forwarding look at what arrives: at all of it, however much comes at once, and at each instance no more than twice."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from archive.access.grants import Target
from archive.db.tables import delivery, forward_rule
from archive.index import arrivals
from archive.services import forwarding as forwarding_module
from tests.dimse.clinic import Clinic, Receiver
from tests.dimse.test_forward import EVERYTHING, it, queue, receiver, rule, run, uids  # noqa: F401 # fixtures
from tests.services.archives import instance


def test_what_a_rule_is_about_goes_at_once_though_much_that_it_is_not_about_came_before(
    it: Clinic, receiver: Receiver, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    monkeypatch.setattr(forwarding_module, "BATCH", 2)
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    rule(it, conditions={"modality": ("MR",)})
    it.put(*(instance(n, study="1.2.3") for n in range(1, 6)), instance(1, study="1.2.4", Modality="MR"))
    run(it)
    assert uids(receiver) == ["1.2.4.1.1"]


def test_each_instance_is_looked_at_twice_and_not_many_at_a_time(
    it: Clinic, receiver: Receiver, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    """Of a burst each look went through all that had come since it was quiet: of tens of thousands, for a minute."""
    looked: list[int] = []
    arrived = arrivals.arrived

    def watched(tx: sa.Connection, *of: Any, after: int, upto: int, **options: Any) -> list[arrivals.Arrived]:
        looked.extend(range(after + 1, upto + 1))
        assert upto - after <= 2
        return arrived(tx, *of, after=after, upto=upto, **options)

    monkeypatch.setattr(forwarding_module, "BATCH", 2)
    monkeypatch.setattr(arrivals, "arrived", watched)
    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    rule(it)
    it.put(*(instance(n, study="1.2.3") for n in range(1, 8)))
    for _ in range(3):
        run(it)
    assert [state for state, _, _ in queue(it)] == ["done"] * 7
    assert sorted(looked) == list(range(1, 8))
    monkeypatch.setattr(forwarding_module, "SETTLE", timedelta())
    for _ in range(3):
        run(it)
    assert sorted(looked) == sorted([*range(1, 8)] * 2)
    with it.node.core.database.read() as tx:
        assert tx.execute(sa.select(forward_rule.c.seen)).scalar_one() == 7
    assert len(receiver.received) == 7


def test_what_is_let_in_late_is_found_by_the_second_look(
    it: Clinic, receiver: Receiver, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    """As an id that comes after a higher one, or a right that comes soon after the instance."""
    it.put(instance(1, study="1.2.3"), instance(1, study="1.2.4"))
    it.plain_peer("DST", port=receiver.port, target=Target("study", "1.2.3"))
    rule(it)
    run(it)
    it.grant("DST", Target("study", "1.2.4"))
    it.put(instance(2, study="1.2.3"))
    run(it)
    assert uids(receiver) == ["1.2.3.1.1", "1.2.3.1.2"]
    monkeypatch.setattr(forwarding_module, "SETTLE", timedelta())
    run(it)
    assert uids(receiver) == ["1.2.3.1.1", "1.2.3.1.2", "1.2.4.1.1"]


def test_of_a_study_that_goes_on_arriving_each_look_moves_little(
    it: Clinic, receiver: Receiver  # noqa: F811
) -> None:
    """Each look moved all that waited of the study: of ten thousand instances in a thousand looks five million rows."""
    database, moved = it.node.core.database, []

    def count(_connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE delivery SET run_at"):
            moved.append(cursor.rowcount)

    it.plain_peer("DST", port=receiver.port, target=EVERYTHING)
    rule(it, quiet_s=600)
    sa.event.listen(database.engine, "after_cursor_execute", count)
    for n in range(1, 6):
        it.put(instance(n, study="1.2.3"))
        it.node.forwarding.look()
        with database.read() as tx:
            first = tx.execute(sa.select(sa.func.min(delivery.c.run_at))).scalar_one()
        assert first >= it.node.core.clock() + timedelta(seconds=599)
    sa.event.remove(database.engine, "after_cursor_execute", count)
    assert len(queue(it)) == 5
    assert sum(moved) == 0
    with database.begin() as tx:
        tx.execute(sa.update(delivery).values(run_at=it.node.core.clock() + timedelta(seconds=590)))
    it.put(instance(6, study="1.2.3"))
    it.node.forwarding.look()
    with database.read() as tx:
        first, last = tx.execute(sa.select(sa.func.min(delivery.c.run_at), sa.func.max(delivery.c.run_at))).one()
    assert first >= it.node.core.clock() + timedelta(seconds=599), "ten seconds too early by now"
    assert last <= it.node.core.clock() + timedelta(seconds=660), "and a tenth later at most"
