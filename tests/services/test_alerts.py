"""Alerts: each rule fires where something is planted and stays quiet beside it; what is found is kept, told and acknowledged."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.access.grants import Target
from archive.access.subject import Subject
from archive.config import Alerts as Settings
from archive.db.tables import alert
from archive.errors import Forbidden, InvalidRequest, NotFound, Unauthenticated
from archive.ledger.audit import Event, Kind, ObjectRef
from archive.node import Node
from archive.services.alert_rules import RULES
from archive.services.alert_states import STATES
from archive.services.alerts import AT_ONCE, Alerts
from tests.services import archives

MONDAY_NOON = datetime(2031, 3, 3, 12, 0, tzinfo=UTC)


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.at = MONDAY_NOON

    def __call__(self) -> datetime:
        return self.at

    def pass_(self, **much: float) -> None:
        self.at += timedelta(**much)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    import time

    with monkeypatch.context() as zone:
        zone.setenv("TZ", "UTC")
        time.tzset()
        yield Clock()
    time.tzset()


@pytest.fixture(params=["sqlite", "postgresql"])
def node(tmp_path: Path, clock: Clock, request: pytest.FixtureRequest) -> Iterator[Node]:
    sections = {} if request.param == "sqlite" else {"database": {"url": request.getfixturevalue("postgresql_url")}}
    with archives.opened(archives.made(tmp_path, **sections), clock=clock) as opened:
        for name in ("mia", "ole"):
            opened.accounts.add_user(archives.the_console(opened), name, password=archives.PASSWORD)
        opened.alerts.tick()
        yield opened


def plant(node: Node, kind: Kind, who: Subject | None = None, *, times: int = 1, outcome: int = 0, **detail: Any) -> None:
    """Record events as the services do, each about another study."""
    for number in range(times):
        with node.core.database.begin() as tx:
            objects = (ObjectRef("study", f"1.2.{detail.pop('first', 0) + number}"),) if kind in (Kind.READ, Kind.EXPORTED) else ()
            node.core.ledger.record(tx, Event(kind, outcome=outcome, subject=who, objects=objects, detail=detail), at=node.core.clock())


def many_reads(node: Node, who: Subject, studies: int, *, first: int = 0, checkpoint: bool = True) -> None:
    with node.core.database.begin() as tx:
        for number in range(studies):
            seen = Event(Kind.READ, subject=who, objects=(ObjectRef("study", f"1.2.{first + number}"),), instances=1)
            node.core.ledger.record(tx, seen, at=node.core.clock())
    if checkpoint:
        node.upkeep.checkpoint()


def raised(node: Node) -> list[tuple[str, str]]:
    node.alerts.tick()
    return [(row["rule"], row["who"]) for row in node.alerts.list(archives.the_console(node))]


def test_mass_look_up(node: Node, clock: Clock) -> None:
    mia, ole = archives.user(node, "mia"), archives.user(node, "ole")
    many_reads(node, mia, 30)
    many_reads(node, mia, 30)  # the same studies again
    assert raised(node) == []
    many_reads(node, mia, 1, first=100)
    assert raised(node) == [("mass-look-up", "mia")]
    assert node.alerts.list(archives.the_console(node))[0]["detail"] == {"studies_in_an_hour": 31, "usual": 0}
    clock.pass_(hours=2)
    for _ in range(25):  # a radiologist who reads twenty an hour, day after day
        many_reads(node, ole, 20, first=1000)
        clock.pass_(hours=2)
    many_reads(node, ole, 79, first=2000)
    assert raised(node) == [("mass-look-up", "mia")], "no more than four times what is usual"
    many_reads(node, ole, 2, first=3000)
    assert raised(node)[0] == ("mass-look-up", "ole")


def test_mass_look_up_before_a_checkpoint(node: Node) -> None:
    """Rows of objects come with the checkpoint; a look that comes first counts all the same."""
    mia = archives.user(node, "mia")
    many_reads(node, mia, 20)
    many_reads(node, mia, 20, checkpoint=False)
    assert raised(node) == []
    many_reads(node, mia, 11, first=100, checkpoint=False)
    assert raised(node) == [("mass-look-up", "mia")]


def test_a_rule_that_fails_silences_no_other(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_look: Any) -> Iterator[Any]:
        raise ValueError
        yield

    monkeypatch.setitem(RULES, "own-record", ("warning", "", broken))
    many_reads(node, archives.user(node, "mia"), 31)
    assert raised(node) == [("mass-look-up", "mia")]


def test_exports_by_number_and_by_hour(node: Node, clock: Clock) -> None:
    mia = archives.user(node, "mia")
    plant(node, Kind.EXPORTED, mia, times=20)
    assert raised(node) == []
    plant(node, Kind.EXPORTED, mia)
    assert raised(node) == [("export-volume", "mia")]
    clock.pass_(days=2)
    clock.at = clock.at.replace(hour=18, minute=59)
    plant(node, Kind.EXPORTED, archives.user(node, "ole"))
    assert len(raised(node)) == 1
    clock.pass_(minutes=1)
    plant(node, Kind.EXPORTED, archives.user(node, "ole"))
    assert raised(node)[0] == ("off-hours-export", "ole")
    clock.at = datetime(2031, 3, 8, 12, 0, tzinfo=UTC)  # a Saturday
    plant(node, Kind.EXPORTED, mia)
    assert raised(node)[0] == ("off-hours-export", "mia")


def test_enumeration(node: Node, clock: Clock) -> None:
    mia = archives.user(node, "mia")
    for _ in range(3):
        plant(node, Kind.DENIED, mia, times=19, outcome=4)
        assert raised(node) == []
        clock.pass_(minutes=11)
    plant(node, Kind.DENIED, mia, times=20, outcome=4)
    assert raised(node) == [("enumeration", "mia")]


def test_spraying(node: Node) -> None:
    def fail(name: str, address: str) -> None:
        with pytest.raises(Unauthenticated):
            node.signin.password(name, "wrong-password-here", address=address, user_agent="x")

    for name in ("a", "b", "c", "d"):
        fail(name, "192.0.2.7")
        fail(name, "198.51.100.9")
    for _ in range(3):
        fail("a", "203.0.113.1")
    assert raised(node) == []
    fail("mia", "192.0.2.8")
    assert raised(node) == [("spraying", "")]
    assert node.alerts.list(archives.the_console(node))[0]["detail"]["accounts"] == 5


def test_certificate_mismatch(node: Node) -> None:
    plant(node, Kind.ASSOCIATION_REJECTED, outcome=8, reason="the calling AE title is not known here", certificate="", calling_ae_title="X",
          address="192.0.2.7")
    assert raised(node) == []
    plant(node, Kind.ASSOCIATION_REJECTED, outcome=8, reason="the certificate is bound to no peer", certificate="ab" * 32,
          calling_ae_title="CT1", address="192.0.2.7")
    assert raised(node) == [("certificate-mismatch", "")]


def test_break_glass_and_integrity(node: Node) -> None:
    plant(node, Kind.VERIFIED, outcome=0)
    assert raised(node) == []
    plant(node, Kind.VERIFIED, outcome=8, findings=2)
    plant(node, Kind.BREAK_GLASS_STARTED, archives.user(node, "mia"))
    plant(node, Kind.BREAK_GLASS_STARTED, archives.user(node, "mia"))
    assert sorted(raised(node)) == [("break-glass", "mia"), ("break-glass", "mia"), ("integrity", "")], "each break-glass is reviewed"


def test_audit_gap(node: Node, clock: Clock) -> None:
    plant(node, Kind.STOPPED)
    plant(node, Kind.STARTED)
    assert raised(node) == []
    plant(node, Kind.KEY_USED)
    clock.pass_(hours=3)
    plant(node, Kind.STARTED)
    assert raised(node) == [("audit-gap", "")]
    assert node.alerts.list(archives.the_console(node))[0]["detail"] == {"silent_s": 3 * 3600}


def test_what_is_recorded_beside_a_stop_is_no_gap(node: Node, clock: Clock) -> None:
    plant(node, Kind.STOPPED)
    plant(node, Kind.WITNESS, what="heard again", witness="nas")  # shown the last checkpoint
    plant(node, Kind.VERIFIED)
    clock.pass_(hours=1)
    plant(node, Kind.REPLAYED)
    plant(node, Kind.STARTED)
    assert raised(node) == []
    clock.pass_(hours=1)
    plant(node, Kind.REPLAYED)
    plant(node, Kind.STARTED)
    assert raised(node) == [("audit-gap", "")]
    assert node.alerts.list(archives.the_console(node))[0]["detail"] == {"silent_s": 3600}


def test_witnesses(node: Node) -> None:
    plant(node, Kind.WITNESS, what="heard again", witness="nas")
    assert raised(node) == []
    plant(node, Kind.WITNESS, outcome=4, what="silent", witness="nas", hours=25)
    assert [row["rule"] for row in raised_rows(node)] == ["witness-silent"]
    plant(node, Kind.WITNESS, outcome=12, what="against", witness="nas", proven=1)
    assert [row["rule"] for row in raised_rows(node)] == ["witness-against", "witness-silent"]


def raised_rows(node: Node) -> list[dict[str, Any]]:
    node.alerts.tick()
    return node.alerts.list(archives.the_console(node))


def test_new_device_and_network(node: Node) -> None:
    def sign_in(address: str, program: str) -> None:
        node.signin.password("mia", archives.PASSWORD, address=address, user_agent=program)

    sign_in("192.0.2.7", "Firefox")  # the first ever
    sign_in("192.0.2.200", "Chrome")  # another program, the known network
    sign_in("2001:db8::1", "Firefox")  # the known program, another network
    sign_in("2001:db8::ffff", "Chrome")
    assert raised(node) == []
    sign_in("203.0.113.9", "curl")
    assert raised(node) == [("new-device-and-network", "mia")]


def test_every_rule_has_its_test() -> None:
    here = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    assert [name for name in (*RULES, *STATES) if here.count(f'"{name}"') < 1] == []


def test_what_is_found_again_goes_on_until_somebody_looks(node: Node, clock: Clock) -> None:
    console = archives.the_console(node)
    plant(node, Kind.VERIFIED, outcome=8)
    node.alerts.tick()
    plant(node, Kind.VERIFIED, outcome=8)
    assert node.alerts.tick() == 1
    assert node.alerts.tick() == 0
    assert [check.state for check in node.health.checks() if check.name == "alerts"] == ["warning"]
    [row] = node.alerts.list(console)
    assert (row["times"], row["last_event"] > row["first_event"]) == (2, True)
    for wrong in ("", "  "):
        with pytest.raises(InvalidRequest):
            node.alerts.acknowledge(console, row["id"], note=wrong)
    closed = node.alerts.acknowledge(console, row["id"], note="a disk was exchanged")
    assert closed["acknowledged_at"] == clock.at
    assert node.alerts.list(console) == []
    assert [check.state for check in node.health.checks() if check.name == "alerts"] == ["ok"]
    with pytest.raises(NotFound):
        node.alerts.acknowledge(console, row["id"], note="again")
    plant(node, Kind.VERIFIED, outcome=8)
    node.alerts.tick()
    assert [one["id"] for one in node.alerts.list(console, every=True)] == [row["id"] + 1, row["id"]]
    said = [one["body"]["detail"] for one in node.oversight.search(console, kinds=["alert"])]
    assert [(one["what"], one["alert"]) for one in said] == [("raised", row["id"] + 1), ("acknowledged", row["id"]), ("raised", row["id"])]
    assert said[1]["note"] == "a disk was exchanged"


def test_only_auditors_see_them(node: Node) -> None:
    with pytest.raises(Forbidden):
        node.alerts.list(archives.user(node, "mia"))
    node.accounts.add_user(archives.the_console(node), "dora", roles=["auditor"])
    assert node.alerts.list(archives.user(node, "dora")) == []


def test_rules_can_be_switched_off_and_a_batch_is_bounded(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    assert AT_ONCE > 4
    monkeypatch.setattr("archive.services.alerts.AT_ONCE", 4)
    quiet = Alerts(node.core)
    monkeypatch.setattr(quiet, "_settings", Settings(without=("integrity",)))
    plant(node, Kind.VERIFIED, outcome=8, times=11)
    assert quiet.tick() == 0
    plant(node, Kind.VERIFIED, outcome=8, times=11)
    assert node.alerts.tick() == 11
    assert [row["times"] for row in node.alerts.list(archives.the_console(node))] == [11]


def test_nothing_of_patients_is_in_an_alert(node: Node) -> None:
    archives.store(node, archives.instance(1, study="1.2.77", PatientID="CANARY1", PatientName="Canary^Name"))
    node.accounts.add_grant(archives.the_console(node), to="mia", role="radiologist", target=Target("everything"))
    mia = archives.user(node, "mia")
    plant(node, Kind.EXPORTED, mia, times=25)
    node.alerts.tick()
    with node.core.database.read() as tx:
        kept = repr(tx.execute(sa.select(alert)).all())
    assert "export-volume" in kept
    assert "CANARY" not in kept.upper()
    assert "1.2." not in kept


def test_without_mail_nothing_is_sent(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smtplib, "SMTP", None)
    plant(node, Kind.VERIFIED, outcome=8)
    assert node.alerts.tick() == 1
    with pytest.raises(InvalidRequest):
        node.alerts.test_mail(archives.the_console(node))


def test_working_hours() -> None:
    settings = Settings()
    assert [settings.working(0, minute) for minute in (419, 420, 1139, 1140)] == [False, True, True, False]
    assert [settings.working(day, 600) for day in range(7)] == [True] * 5 + [False] * 2
