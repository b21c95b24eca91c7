"""Rules about whose images were opened and where from: each fires on what is planted and stays quiet beside it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.ledger.audit import Event, Kind, ObjectRef
from archive.node import Node
from archive.services import alert_travel
from archive.services.alert_rules import RULES
from archive.services.alerts import Alerts
from tests.services import archives, geoip

PLACES = {
    "192.0.2.0/24": {"country": {"iso_code": "CH"}, "location": {"latitude": 47.4, "longitude": 8.5}},  # Zürich
    "198.51.100.0/24": {"country": {"iso_code": "CH"}, "location": {"latitude": 46.9, "longitude": 7.4}},  # Bern
    "203.0.113.0/24": {"country": {"iso_code": "AU"}, "location": {"latitude": -33.9, "longitude": 151.2}},  # Sydney
    "100.64.0.0/10": {"country": {"iso_code": "XX"}},
}


class Clock:
    def __init__(self) -> None:
        self.at = datetime(2031, 3, 3, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.at


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, clock: Clock) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("persons")
    (folder / "watched.txt").write_text("VIP-1\n\n  VIP-2 \n")
    (folder / "cities.mmdb").write_bytes(geoip.written(PLACES))
    config = archives.made(folder, alerts={"geoip_file": "cities.mmdb", "watched_patients": "watched.txt"})
    with archives.opened(config, clock=clock) as opened:
        console = archives.the_console(opened)
        for name, full_name in (("mia", "Mia Müller"), ("ole", "Ole van den Berg"), ("kim", "Kim")):
            opened.accounts.add_user(console, name, password=archives.PASSWORD, full_name=full_name)
        patients = (
            ("1.2.1", "P1", "Muller^Mia"), ("1.2.2", "P2", "Berg^Ole^van den^Dr."), ("1.2.3", "VIP-2", "Famous^Person"),
            ("1.2.4", "P4", "Kim^Sun"), ("1.2.5", "P5", "Müller^Hans"),
        )
        for number, (uid, patient_id, name) in enumerate(patients):
            said = {"PatientID": patient_id, "PatientName": name, "SpecificCharacterSet": "ISO_IR 192"}
            archives.store(opened, archives.instance(number, study=uid, **said))
        opened.alerts.tick()
        yield opened


def sees(node: Node, who: str, *studies: str, kind: Kind = Kind.READ, outcome: int = 0) -> None:
    subject = archives.user(node, who)
    for uid in studies:
        seen = Event(kind, outcome=outcome, subject=subject, objects=(ObjectRef("study", uid),), instances=1)
        with node.core.database.begin() as tx:
            node.core.ledger.record(tx, seen, at=node.core.clock())


def opens(node: Node, who: str, *studies: str, kind: Kind = Kind.READ, outcome: int = 0) -> list[tuple[str, str]]:
    """Let a user see studies, and return what new alerts say."""
    console = archives.the_console(node)
    for row in node.alerts.list(console):
        node.alerts.acknowledge(console, row["id"], note="seen")
    sees(node, who, *studies, kind=kind, outcome=outcome)
    node.alerts.tick()
    return sorted((row["rule"], row["who"]) for row in node.alerts.list(console))


def test_own_record(node: Node) -> None:
    assert opens(node, "mia", "1.2.1") == [("own-record", "mia")]
    assert opens(node, "mia", "1.2.5", "1.2.4", "1.2.99") == [], "one name of two, a stranger, nothing there"
    assert opens(node, "kim", "1.2.4") == [], "one word is no name"
    assert opens(node, "mia", "1.2.1", outcome=8) == []


def test_colleague_record(node: Node) -> None:
    assert opens(node, "mia", "1.2.2") == [("colleague-record", "mia")]
    assert opens(node, "ole", "1.2.2") == [("own-record", "ole")]
    assert opens(node, "ole", "1.2.1", kind=Kind.EXPORTED) == [("colleague-record", "ole")]


def test_watched_record(node: Node) -> None:
    assert opens(node, "kim", "1.2.3") == [("watched-record", "kim")]
    watched = Path(node.config.base) / "watched.txt"
    watched.write_text("SOMEBODY\n")
    assert opens(node, "kim", "1.2.3") == [], "the file as it is now"
    watched.write_bytes("M\xfcller\nVIP-1\nVIP-2\n".encode("latin-1"))
    assert opens(node, "mia", "1.2.3") == [("watched-record", "mia")], "a line that is not UTF-8 costs the others nothing"
    watched.unlink()
    assert opens(node, "kim", "1.2.3") == []


def test_unrelated_after_hours(node: Node, clock: Clock) -> None:
    noon = clock.at
    opens(node, "kim", "1.2.4")
    clock.at = noon.replace(hour=23)
    said = {"PatientID": "P50", "PatientName": "A^B", "ReferringPhysicianName": "van den Berg^Ole"}
    archives.store(node, archives.instance(50, study="1.2.50", **said))
    try:
        assert opens(node, "kim", "1.2.4") == [], "opened before"
        assert opens(node, "ole", "1.2.50") == [], "the referring physician"
        assert opens(node, "kim", "1.2.50") == [("unrelated-after-hours", "kim")]
        assert opens(node, "kim", "1.2.50") == []
    finally:
        clock.at = noon
    archives.store(node, archives.instance(51, study="1.2.51", PatientID="P51", PatientName="C^D"))
    assert opens(node, "kim", "1.2.51") == [], "within working hours"


def test_a_batch_is_looked_at_once_and_not_event_by_event(node: Node, clock: Clock) -> None:
    archives.store(node, archives.instance(60, study="1.2.60", PatientID="P60", PatientName="E^F"))
    opens(node, "mia", "1.2.60")
    statements = [0]

    def counted(*_: Any) -> None:
        statements[-1] += 1

    sa.event.listen(node.core.database.engine, "before_cursor_execute", counted)
    noon, clock.at = clock.at, clock.at.replace(hour=23)
    node.alerts.tick()  # of what lasts at this hour
    try:
        for events in (1, 60):
            sees(node, "mia", *["1.2.60"] * events)
            statements.append(0)
            assert node.alerts.tick() == 0
            statements.append(0)
    finally:
        clock.at = noon
        sa.event.remove(node.core.database.engine, "before_cursor_execute", counted)
    _before, of_one, _between, of_sixty, _after = statements
    assert 0 < of_sixty == of_one


def signs_in(node: Node, address: str) -> list[str]:
    console = archives.the_console(node)
    for row in node.alerts.list(console):
        node.alerts.acknowledge(console, row["id"], note="seen")
    node.signin.password("ole", archives.PASSWORD, address=address, user_agent="Firefox")
    node.alerts.tick()
    return [row["rule"] for row in node.alerts.list(console)]


def test_impossible_travel(node: Node, clock: Clock) -> None:
    assert signs_in(node, "192.0.2.1") == []
    clock.at += timedelta(minutes=5)
    assert signs_in(node, "198.51.100.1") == [], "the next town"
    clock.at += timedelta(hours=23)
    assert signs_in(node, "203.0.113.1") == [], "a day's flight"
    clock.at += timedelta(hours=3)
    assert signs_in(node, "192.0.2.1") == ["impossible-travel"]
    [row] = node.alerts.list(archives.the_console(node))
    assert (row["detail"]["from"], row["detail"]["to"], row["detail"]["minutes"]) == ("AU", "CH", 180)
    assert 16_000 < row["detail"]["kilometres"] < 17_000
    for unknown in ("100.64.0.1", "127.0.0.1", "2001:db8::1"):
        assert signs_in(node, unknown) == []


def test_a_file_that_is_none_finds_nothing(tmp_path: Path, node: Node) -> None:
    assert alert_travel.place(str(tmp_path / "none"), "192.0.2.1") is None
    (tmp_path / "bad.mmdb").write_bytes(b"not one")
    assert alert_travel.place(str(tmp_path / "bad.mmdb"), "192.0.2.1") is None
    assert alert_travel.place(str(Path(node.config.base) / "cities.mmdb"), "not an address") is None


def test_what_is_found_names_no_patient(node: Node) -> None:
    opens(node, "mia", "1.2.1", "1.2.2", "1.2.3")
    said = repr(node.alerts.list(archives.the_console(node), every=True)).casefold()
    for word in ("muller", "müller", "famous", "vip", "1.2."):
        assert word not in said
    assert {"own-record", "colleague-record", "watched-record", "impossible-travel"} <= set(RULES)
    assert Alerts(node.core).tick() == 0
