"""A clock that was hours ahead and is set right: what was to be tried again then is tried again after its longest wait at most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.db.tables import delivery, delivery_destination, forward_rule
from archive.ledger.audit import Event, Kind
from archive.node import Node
from archive.services import audit_feed, commitment_lease, syslog
from archive.services.alerts import STATES_EVERY, Alerts
from archive.services.clock import utc_now
from archive.services.deliveries import FORWARD, LONGEST_WAIT, REPORT
from archive.services.mail import Mail
from archive.services.outgoing import Undeliverable
from tests.services import archives
from tests.services.everything import filled

HOURS = timedelta(hours=30)


class Clock:
    def __init__(self) -> None:
        self.by = HOURS

    def __call__(self) -> datetime:
        return utc_now() + self.by


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def node(tmp_path: Path, clock: Clock) -> Iterator[Node]:
    with archives.opened(archives.made(tmp_path), clock=clock) as opened:
        yield opened


class Away:
    """Takes nothing until it is there."""

    wanted = works = True

    def __init__(self) -> None:
        self.there = False
        self.got: list[object] = []

    def send(self, subject: str, text: str, *, to: Sequence[str] = ()) -> None:
        self(subject, text, to)

    def __call__(self, *what: object) -> None:
        if not self.there:
            message = "away"
            raise Undeliverable(message)
        self.got.append(what)


def test_alerts_are_told_and_states_looked_at(node: Node, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    away = Away()
    monkeypatch.setattr(Mail, "wanted", True)
    monkeypatch.setattr(Mail, "send", lambda _self, *what, **_options: away(*what))
    alerts, looked = Alerts(node.core), []
    monkeypatch.setattr(alerts, "_lasting", lambda at: looked.append(at) or 0)
    alerts.tick()
    with node.core.database.begin() as tx:
        node.core.ledger.record(tx, Event(Kind.VERIFIED, outcome=8), at=clock())
    alerts.tick()
    away.there, clock.by = True, timedelta(0)
    before = len(looked)
    alerts.tick()
    assert (len(away.got), len(looked)) == (1, before + 1)
    clock.by = STATES_EVERY
    alerts.tick()
    assert (len(away.got), len(looked)) == (1, before + 2)


def test_the_collector_is_told(tmp_path: Path, clock: Clock) -> None:
    away = Away()

    def deliver(messages: Sequence[bytes], _to: syslog.Collector) -> None:
        away(*messages)

    with archives.opened(archives.made(tmp_path, syslog={"host": "192.0.2.1"}), clock=clock) as node:
        feed = audit_feed.AuditFeed(node.core, deliver)
        feed.tick()
        node.accounts.add_group(archives.the_console(node), "team")
        assert feed.tick() == 0
        away.there, clock.by = True, timedelta(0)
        assert feed.tick() == 1


def test_what_waits_for_a_destination_is_delivered(node: Node, clock: Clock) -> None:
    filled(node)
    with node.core.database.read() as tx:
        waiting = set(tx.execute(sa.select(delivery.c.id).where(delivery.c.state == "waiting")).scalars())
        peers = tx.execute(sa.select(delivery_destination.c.peer_id)).scalars().all()
    for _ in range(6):
        while (claimed := node.deliveries.claim()) is not None:
            for one in node.deliveries.due(claimed, FORWARD, limit=10) + node.deliveries.due(claimed, REPORT, limit=10):
                node.deliveries.refused(one, "out of resources", for_good=False)
            node.deliveries.release(claimed)
        clock.by += LONGEST_WAIT
    for peer_id in peers:
        node.deliveries.unreachable(peer_id, "away")
    for _ in range(6):
        commitment_lease.later(node.core, 3, "")
    clock.by = timedelta(0)
    node.forwarding.look()
    clock.by = LONGEST_WAIT
    found = set()
    while (claimed := node.deliveries.claim()) is not None:
        for kind in (FORWARD, REPORT):
            for one in node.deliveries.due(claimed, kind, limit=10):
                found.add(one.id)
                node.deliveries.done(one.id)
        node.deliveries.release(claimed)
    assert found == waiting
    assert node.commitments.check_next()


def test_a_study_still_waits_until_it_is_quiet(node: Node, clock: Clock) -> None:
    filled(node)
    quiet = 2 * LONGEST_WAIT
    with node.core.database.begin() as tx:
        tx.execute(sa.update(forward_rule).values(quiet_s=int(quiet.total_seconds())))
        tx.execute(sa.update(delivery).where(delivery.c.kind == FORWARD).values(run_at=clock() + quiet))
    clock.by = timedelta(0)
    at = clock()
    node.forwarding.look()
    with node.core.database.read() as tx:
        times = tx.execute(sa.select(delivery.c.run_at).where(delivery.c.kind == FORWARD, delivery.c.state == "waiting")).scalars().all()
    assert times
    assert all(at + quiet <= one <= clock() + quiet for one in times)
