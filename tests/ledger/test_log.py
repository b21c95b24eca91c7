"""Recording and finding events: in the transaction of their effect, in one order, without patient data in the leaf."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archive.access.subject import Subject
from archive.db.engine import Database
from archive.db.tables import audit_event, audit_object, ledger_leaf
from archive.errors import LedgerBroken
from archive.keys.keyring import Keyring
from archive.keys.sealing import canonical
from archive.ledger.audit import KINDS, MAX_LEAF_BYTES, MAX_LEAF_OBJECTS, Event, Kind, ObjectRef
from archive.ledger.bodies import Bodies, commitment
from archive.ledger.log import AuditFilter, Ledger
from archive.ledger.tree import leaf_hash
from tests.ledger.conftest import fixed_keyring, stored


def leaf_of(database: Database, n: int) -> dict[str, Any]:
    with database.read() as tx:
        return msgspec.json.decode(tx.execute(sa.select(ledger_leaf.c.data).where(ledger_leaf.c.n == n)).scalar_one())


def test_numbers_leaf_and_rows(database: Database, ledger: Ledger, subject: Subject, now: datetime) -> None:
    with database.begin() as tx:
        assert ledger.size(tx) == 0
        assert [ledger.record(tx, stored(subject, i), at=now) for i in range(3)] == [0, 1, 2]
        assert ledger.size(tx) == 3
    with database.read() as tx:
        for row in tx.execute(sa.select(ledger_leaf)):
            assert leaf_hash(bytes(row.data)) == bytes(row.hash)
            assert canonical(msgspec.json.decode(row.data)) == bytes(row.data)
        rows = tx.execute(sa.select(audit_event)).all()
        assert {(row.kind, row.action, row.outcome, row.principal_id, row.peer_id, row.instances) for row in rows} == {
            ("stored", "C", 0, 7, 3, 1)}
        assert {row.at for row in rows} == {now}
        assert tx.execute(sa.select(sa.func.count()).select_from(audit_object)).scalar_one() == 0  # they come with the checkpoint
    leaf = leaf_of(database, 1)
    assert leaf.keys() == {"v", "n", "t", "k", "ev", "a", "o", "c", "p", "s", "ob", "i", "stmt", "obj", "len"}
    assert (leaf["n"], leaf["t"], leaf["k"], leaf["ev"], leaf["a"]) == (1, "2026-01-02T03:04:05.678901Z", "stored", "110104", "C")
    assert bytes.fromhex(leaf["obj"]) == b"object0000000001"


def test_the_leaf_holds_no_patient_data_and_the_rows_none_in_clear(
    database: Database, ledger: Ledger, subject: Subject, now: datetime
) -> None:
    with database.begin() as tx:
        ledger.record(tx, stored(subject), at=now)
    with database.read() as tx:
        kept = repr(tx.execute(sa.select(ledger_leaf)).all()) + repr(tx.execute(sa.select(audit_event)).all())
        kept += repr(tx.execute(sa.select(audit_object)).all())
    for word in ("CANARY", "1.2.826", "10.0.0.9", "a1b2c3", "ct1"):
        assert word not in kept


def test_the_leaf_commits_to_the_sealed_body(database: Database, ledger: Ledger, subject: Subject, now: datetime) -> None:
    with database.begin() as tx:
        ledger.record(tx, stored(subject), at=now)
    with database.read() as tx:
        sealed = bytes(tx.execute(sa.select(audit_event.c.body)).scalar_one())
    opened = Bodies(ledger.keyring).open(0, sealed)
    assert opened is not None
    assert commitment(*opened).hex() == leaf_of(database, 0)["c"]
    assert msgspec.json.decode(opened[1])["objects"][0] == ["patient", "CANARY"]
    with pytest.raises(LedgerBroken) as caught:
        Bodies(ledger.keyring).open(1, sealed)
    assert caught.value.verdict == "V12"
    for position in range(len(sealed)):
        changed = sealed[:position] + bytes([sealed[position] ^ 1]) + sealed[position + 1:]
        if 1 <= position < 17:
            assert Bodies(ledger.keyring).open(0, changed) is None  # another key's id: that key was destroyed
        else:
            with pytest.raises(LedgerBroken):
                Bodies(ledger.keyring).open(0, changed)


def test_nothing_is_recorded_unless_the_work_commits(database: Database, ledger: Ledger, subject: Subject, now: datetime) -> None:
    class Undone(Exception):
        pass

    def fail(tx: sa.Connection) -> None:
        ledger.record(tx, stored(subject), at=now)
        raise Undone

    with database.begin() as tx:
        ledger.record(tx, stored(subject), at=now)
    with pytest.raises(Undone), database.begin() as tx:
        fail(tx)
    with pytest.raises(Undone):
        database.group(fail)
    with database.begin() as tx:
        assert ledger.record(tx, stored(subject), at=now) == 1


def test_many_writers_leave_no_gap(database: Database, ledger: Ledger, subject: Subject, now: datetime) -> None:
    numbers: list[int] = []
    failures: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for i in range(10):
                event = stored(subject, thread * 100 + i)
                if i % 2:
                    numbers.append(database.group(lambda tx: ledger.record(tx, event, at=now)))  # noqa: B023 # runs before the next turn
                else:
                    with database.begin() as tx:
                        numbers.append(ledger.record(tx, event, at=now))
        except BaseException as error:  # noqa: BLE001 # shown by the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert sorted(numbers) == list(range(60))
    with database.read() as tx:
        assert list(tx.execute(sa.select(ledger_leaf.c.n).order_by(ledger_leaf.c.n)).scalars()) == list(range(60))


def test_a_leaf_never_outgrows_its_bound(database: Database, ledger: Ledger, now: datetime) -> None:
    subject = Subject(2**62, "n" * 200, "user", "token", address="::1", token_id=2**62, user_agent="u" * 10_000)
    objects = tuple(ObjectRef("study", f"2.25.{i}" + "9" * 40) for i in range(500))
    event = Event(Kind.BREAK_GLASS_STARTED, 12, subject, objects, 2**62, 2**62, {"text": "x" * 100_000}, stored(subject).stored)
    with database.begin() as tx:
        ledger.record(tx, event, at=now)
        length = tx.execute(sa.select(sa.func.length(ledger_leaf.c.data))).scalar_one()
        assert tx.execute(sa.select(sa.func.count()).select_from(audit_object)).scalar_one() == 500
    assert length <= MAX_LEAF_BYTES
    leaf = leaf_of(database, 0)
    assert len(leaf["ob"]) == MAX_LEAF_OBJECTS
    assert len(leaf["om"]) == 64


def test_search(database: Database, ledger: Ledger, subject: Subject, now: datetime) -> None:
    other = Subject(8, "dr.no", "user", "web", session_id=5)
    with database.begin() as tx:
        ledger.record(tx, stored(subject), at=now)
        read = Event(Kind.READ, subject=other, objects=(ObjectRef("study", "1.2.826.77"),), instances=2)
        denied = Event(Kind.DENIED, 4, other, (ObjectRef("patient", "P2"),), detail={"why": "no grant"})
        ledger.record(tx, read, at=now + timedelta(hours=1))
        ledger.record(tx, denied, at=now + timedelta(hours=2))
        ledger.record(tx, Event(Kind.STARTED), at=now + timedelta(hours=3))
    cases: list[tuple[dict[str, Any], list[int]]] = [
        ({}, [3, 2, 1, 0]), ({"limit": 2}, [3, 2]), ({"before": 2}, [1, 0]),
        ({"principal_id": 8}, [2, 1]), ({"principal_id": 9}, []),
        ({"kinds": (Kind.READ, Kind.STARTED)}, [3, 1]),
        ({"obj": ObjectRef("study", "1.2.826.77")}, [1, 0]), ({"obj": ObjectRef("series", "1.2.826.77")}, []),
        ({"obj": ObjectRef("patient", "P2")}, [2]),
        ({"since": now + timedelta(hours=1)}, [3, 2, 1]), ({"until": now + timedelta(hours=1)}, [0]),
        ({"outcome": 4}, [2]), ({"outcome": 0}, [3, 1, 0]), ({"failed": True}, [2]),
        ({"principal_id": 8, "kinds": (Kind.READ,), "obj": ObjectRef("study", "1.2.826.77"), "since": now}, [1]),
    ]
    with database.read() as tx:
        for wanted, expected in cases:
            assert [row.n for row in ledger.search(tx, AuditFilter(**wanted))] == expected, wanted
        found = ledger.search(tx, AuditFilter(outcome=4))[0]
    assert found.body == {
        "kind": "denied", "at": "2026-01-02T05:04:05.678901Z", "outcome": 4, "objects": [["patient", "P2"]], "instances": 0, "bytes": 0,
        "detail": {"why": "no grant"}, "subject": {"principal": 8, "name": "dr.no", "kind": "user", "via": "web", "session": 5},
    }


def test_a_body_that_was_erased_or_whose_key_is_gone_reads_as_none(
    database: Database, ledger: Ledger, subject: Subject, now: datetime
) -> None:
    with database.begin() as tx:
        ledger.record(tx, stored(subject), at=now)
        ledger.record(tx, stored(subject), at=now)
        tx.execute(sa.update(audit_event).where(audit_event.c.n == 0).values(body=None))
    with database.read() as tx:
        assert [row.body is None for row in ledger.search(tx, AuditFilter())] == [False, True]
        elsewhere = Ledger(fixed_keyring(now, "another"))
        assert [row.body for row in elsewhere.search(tx, AuditFilter())] == [None, None]


def test_a_changed_body_is_not_shown(database: Database, ledger: Ledger, subject: Subject, now: datetime) -> None:
    with database.begin() as tx:
        ledger.record(tx, stored(subject), at=now)
        ledger.record(tx, stored(subject), at=now)
        body = tx.execute(sa.select(audit_event.c.body).where(audit_event.c.n == 0)).scalar_one()
        tx.execute(sa.update(audit_event).where(audit_event.c.n == 1).values(body=body))
    with database.read() as tx, pytest.raises(LedgerBroken) as caught:
        ledger.search(tx, AuditFilter())
    assert caught.value.verdict == "V12"


def test_every_kind_is_named_once() -> None:
    assert len(KINDS) == len(Kind)
    assert all(kind.event_id.startswith("1101") and kind.action in "CRUDE" for kind in Kind)


def test_every_kind_is_documented() -> None:
    documented = (Path(__file__).resolve().parents[2] / "docs" / "format.md").read_text()
    for kind in Kind:
        assert f"| `{kind.label}` | {kind.event} | {kind.action} |" in documented


class Nowhere:
    """A connection that keeps nothing: what is left is our own work."""

    dialect = Database("sqlite://").engine.dialect
    rowcount = 1

    @property
    def connection(self) -> Nowhere:
        return self

    driver_connection = connection

    def cursor(self) -> Nowhere:
        return self

    def execute(self, sql: str, values: Any) -> None:
        pass

    def executemany(self, sql: str, values: Any) -> None:
        pass

    def fetchone(self) -> tuple[int]:
        return (12344,)

    def close(self) -> None:
        pass


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
DETAIL = st.dictionaries(TEXT, st.one_of(TEXT, st.integers(-2**63, 2**63 - 1), st.lists(TEXT, max_size=3)), max_size=4)


@given(patient=TEXT, study=TEXT, name=TEXT, detail=DETAIL)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_text_comes_back(patient: str, study: str, name: str, detail: dict[str, Any], keyring: Keyring, now: datetime) -> None:
    recorded: dict[str, Any] = {}

    class Kept(Nowhere):
        def execute(self, sql: str, values: Any) -> None:
            recorded[sql.partition("(")[0]] = values

    objects = (ObjectRef("patient", patient), ObjectRef("study", study))
    event = Event(Kind.READ, subject=Subject(1, name, "user", "web"), objects=objects, detail=detail)
    tx: Any = Kept()
    Ledger(keyring).record(tx, event, at=now)
    n, leaf, _hash = recorded["INSERT INTO ledger_leaf "]
    opened = Bodies(keyring).open(n, recorded["INSERT INTO audit_event "][-1])
    assert opened is not None
    body = msgspec.json.decode(opened[1])
    assert (body["objects"], body["detail"], body["subject"]["name"]) == ([["patient", patient], ["study", study]], detail, name)
    assert commitment(*opened).hex() == msgspec.json.decode(leaf)["c"]
    assert all(a <= b for a, b in pairwise(sorted(body)))
