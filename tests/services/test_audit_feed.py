"""The audit log told over TLS: nothing twice while all is well, nothing missing after whatever went wrong."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from lxml import etree

from archive.db.tables import audit_event
from archive.errors import Forbidden, InvalidRequest
from archive.ledger.audit import Event, Kind, ObjectRef
from archive.node import Node
from archive.services import syslog
from archive.services.alerts import Alerts
from archive.services.audit_feed import BEHIND, PAUSES, AuditFeed
from archive.services.outgoing import Undeliverable
from tests.services import archives
from tests.services.collector import Collector

NOON = datetime(2031, 3, 3, 12, 0, tzinfo=UTC)
FORM = re.compile(rb"<(\d+)>1 2\S+Z \S+ strongroom \d+ DICOM\+RFC3881 - \xef\xbb\xbf(<AuditMessage>.*</AuditMessage>)", re.DOTALL)


class Clock:
    def __init__(self) -> None:
        self.at = NOON

    def __call__(self) -> datetime:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Collector]:
    """With a certificate of the archive's own authority, and asking for one of it."""
    config = archives.made(tmp_path)
    made = Collector(config.tls_dir / "server.pem", config.tls_dir / "server.key", ask_of=config.tls_dir / "ca.pem")
    yield made
    made.close()


@pytest.fixture
def node(tmp_path: Path, collector: Collector, clock: Clock) -> Iterator[Node]:
    tls = archives.configured(tmp_path).tls_dir
    section: dict[str, Any] = {
        "host": "127.0.0.1", "port": collector.port, "ca_file": str(tls / "ca.pem"), "certificate_file": str(tls / "server.pem"),
        "key_file": str(tls / "server.key"), "site": "West",
    }
    with archives.opened(archives.configured(tmp_path, syslog=section), clock=clock) as opened:
        opened.audit_feed.tick()
        collector.got.clear()
        yield opened


def plant(node: Node, count: int = 1) -> None:
    with node.core.database.begin() as tx:
        for number in range(count):
            event = Event(Kind.READ, objects=(ObjectRef("study", f"1.2.{number}"),), instances=1)
            node.core.ledger.record(tx, event, at=node.core.clock())


def studies(collector: Collector) -> list[str]:
    found = []
    for one in collector.got:
        parts = FORM.fullmatch(one)
        assert parts is not None, one
        root = etree.fromstring(parts[2])
        found += [each.get("ParticipantObjectID") for each in root.findall("ParticipantObjectIdentification")[:-1]]
    return found


def test_what_happens_is_told_once(node: Node, collector: Collector) -> None:
    plant(node, 3)
    assert node.audit_feed.tick() == 3
    assert node.audit_feed.tick() == 0
    assert studies(collector) == ["1.2.0", "1.2.1", "1.2.2"]
    assert all("Strongroom" in shown or "organizationName" in shown or "commonName" in shown for shown in collector.shown)
    assert [FORM.fullmatch(one)[1] for one in collector.got] == [b"85"] * 3  # type: ignore[index]
    status = node.audit_feed.status(archives.the_console(node))
    assert (status["behind"], status["problem"]) == (0, "")
    assert [check.state for check in node.health.checks() if check.name == "syslog"] == ["ok"]


@pytest.mark.parametrize("manner", ["resets", "silent", "refuses", "leaves"])
def test_nothing_is_missing_after_a_failure(
    node: Node, collector: Collector, clock: Clock, manner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syslog, "TIMEOUT_S", 0.5 if manner == "silent" else 5.0)
    collector.manner = manner
    plant(node, 20)
    assert node.audit_feed.tick() == 0
    status = node.audit_feed.status(archives.the_console(node))
    assert status["behind"] == 20
    assert status["problem"]
    assert [check.state for check in node.health.checks() if check.name == "syslog"] == ["warning"]
    collector.manner = "takes"
    collector.speak.set()
    monkeypatch.setattr(syslog, "TIMEOUT_S", 15.0)
    assert node.audit_feed.tick() == 0, "not before its time"
    clock.at += PAUSES[0]
    assert AuditFeed(node.core).tick() == 20  # another process goes on where this one stopped
    assert studies(collector) == [f"1.2.{number}" for number in range(20)]


def test_a_collector_away_for_an_hour_is_told_of(node: Node, collector: Collector, clock: Clock) -> None:
    collector.close()
    alerts = Alerts(node.core)
    plant(node)
    node.audit_feed.tick()
    clock.at += BEHIND
    alerts.tick()
    assert node.alerts.list(archives.the_console(node)) == []
    clock.at += timedelta(minutes=2)
    assert alerts.tick() == 1
    clock.at += timedelta(minutes=2)
    assert alerts.tick() == 0, "told once"
    [row] = node.alerts.list(archives.the_console(node))
    assert (row["rule"], "collector" in row["text"]) == ("collector-away", True)


def test_another_authority_is_not_trusted(tmp_path: Path, clock: Clock) -> None:
    other = tmp_path / "other"
    other.mkdir()
    theirs, ours = archives.made(other, own_keys=True), archives.made(tmp_path)
    collector = Collector(theirs.tls_dir / "server.pem", theirs.tls_dir / "server.key")
    try:
        for host in ("127.0.0.1", "localhost"):
            with pytest.raises(Undeliverable, match="not trusted"):
                syslog.deliver([b"x"], syslog.Collector(host, collector.port, ours.tls_dir / "ca.pem"))
        with pytest.raises(Undeliverable, match="certificates"):
            syslog.deliver([b"x"], syslog.Collector("127.0.0.1", collector.port, tmp_path / "none.pem"))
        # The right authority, another name.
        elsewhere = syslog.Collector(socket.gethostname() + ".invalid", collector.port, theirs.tls_dir / "ca.pem")
        with pytest.raises(Undeliverable):
            syslog.deliver([b"x"], elsewhere)
        syslog.deliver([b"x"], syslog.Collector("127.0.0.1", collector.port, theirs.tls_dir / "ca.pem"))
        assert collector.got == [b"x"]
    finally:
        collector.close()
    shutil.rmtree(other)


def test_a_long_log_goes_in_batches_and_again(node: Node, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("archive.services.audit_feed.AT_ONCE", 10)
    console = archives.the_console(node)
    with node.core.database.read() as tx:
        first = node.core.ledger.size(tx)
    plant(node, 25)
    assert [node.audit_feed.tick() for _ in range(4)] == [10, 10, 5, 0]
    assert len(studies(collector)) == 25
    collector.got.clear()
    assert node.audit_feed.again(console, first)["events"] == 25
    assert sum(node.audit_feed.tick() for _ in range(4)) == 26, "and that it was asked for"
    assert studies(collector)[:25] == [f"1.2.{number}" for number in range(25)]
    collector.got.clear()
    node.audit_feed.test(console)
    [one] = collector.got
    assert b"110113" in one
    with pytest.raises(InvalidRequest):
        node.audit_feed.again(console, 10_000)


@pytest.mark.parametrize("away", [False, True])
def test_what_is_asked_for_again_while_a_batch_goes_out_is_told(node: Node, *, away: bool) -> None:
    with node.core.database.read() as tx:
        first = node.core.ledger.size(tx)
    plant(node)
    assert node.audit_feed.tick() == 1
    plant(node, 3)
    sent: list[int] = []

    def deliver(messages: Sequence[bytes], _: syslog.Collector) -> None:
        if not sent:
            node.audit_feed.again(archives.the_console(node), first)
        sent.append(len(messages))
        if away and len(sent) == 1:
            raise Undeliverable("it went away")

    feed = AuditFeed(node.core, deliver)
    feed.tick()
    feed.tick()
    assert sent == [3, 5], "from the first on, and that it was asked for"


def test_an_event_of_a_kind_nobody_knows_stops_nothing(node: Node, collector: Collector) -> None:
    """Somebody edited its row: verify tells of that, and the collector hears of everything all the same."""
    plant(node, 3)
    with node.core.database.begin() as tx:
        last = node.core.ledger.size(tx) - 1
        tx.execute(sa.update(audit_event).where(audit_event.c.n == last - 1).values(kind="nothing", body=None))
        tx.execute(sa.update(audit_event).where(audit_event.c.n == last).values(kind="nothing"))
    assert node.audit_feed.tick() == 3
    assert len(collector.got) == 3
    assert [b"110104" in one for one in collector.got] == [True, False, True], "what the body says, else an alert"
    assert b"110113" in collector.got[1]


def test_who_may(node: Node) -> None:
    node.accounts.add_user(archives.the_console(node), "mia", password=archives.PASSWORD)
    mia = archives.user(node, "mia")
    for call in (node.audit_feed.status, node.audit_feed.test, lambda who: node.audit_feed.again(who, 0)):
        with pytest.raises(Forbidden):
            call(mia)


def test_without_a_collector_nothing_is_done(tmp_path: Path) -> None:
    with archives.opened(archives.made(tmp_path)) as node:
        plant(node)
        assert node.audit_feed.tick() == 0
        assert node.audit_feed.status(archives.the_console(node))["collector"] == ""
        with pytest.raises(InvalidRequest):
            node.audit_feed.test(archives.the_console(node))
