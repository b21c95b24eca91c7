"""Whole-ledger verification: silent on a sound ledger, and each harm named by its verdict."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa

from archive.access.subject import Subject
from archive.db.engine import Database
from archive.db.tables import audit_event, audit_object, checkpoint, ledger_leaf, ledger_node, statement
from archive.keys.entries import make
from archive.keys.keyring import Keyring
from archive.ledger import checkpoints, files, nodes, notes
from archive.ledger.audit import Event, Kind, ObjectRef
from archive.ledger.log import Ledger
from archive.ledger.tree import leaf_hash
from archive.ledger.verify import Report, Verifier
from tests.ledger.conftest import ARCHIVE, fill, fixed_keyring

HOUR = timedelta(hours=1)


def checkpoint_now(database: Database, keyring: Keyring, at: datetime, folder: Path | None = None) -> checkpoints.Checkpoint:
    with database.begin() as tx:
        made = checkpoints.make(tx, keyring, at)
    assert made is not None
    if folder is not None:
        with database.read() as tx:
            files.publish(tx, made, folder)
    return made


def run(database: Database, keyring: Keyring, folder: Path | None = None, anchors: list[bytes | None] | None = None) -> Report:
    with database.read() as tx:
        return Verifier(tx, keyring, heartbeat=HOUR).run(anchors=anchors or [], directory=folder)


def build(database: Database, ledger: Ledger, subject: Subject, folder: Path, now: datetime) -> bytes:
    """Forty events, two checkpoints, two events that wait for the next; returns the newest note."""
    with database.begin() as tx:
        fill(tx, ledger, subject, 20, at=now)
    checkpoint_now(database, ledger.keyring, now + timedelta(seconds=30), folder)
    with database.begin() as tx:
        fill(tx, ledger, subject, 18, at=now, first=20)
        ledger.record(tx, Event(Kind.STARTED), at=now + timedelta(seconds=39))
        objects = tuple(ObjectRef("study", f"1.2.{i}") for i in range(40))
        ledger.record(tx, Event(Kind.READ, 0, subject, objects, 40), at=now + timedelta(seconds=40))
    note = checkpoint_now(database, ledger.keyring, now + timedelta(seconds=60), folder).note
    with database.begin() as tx:
        fill(tx, ledger, subject, 2, at=now + timedelta(seconds=60), first=100)
    return note


def test_a_sound_ledger(database: Database, ledger: Ledger, keyring: Keyring, subject: Subject, folder: Path, now: datetime) -> None:
    empty = run(database, keyring, folder)
    assert (empty.ok, empty.size, empty.root) == (True, 0, checkpoints.tree.EMPTY)
    note = build(database, ledger, subject, folder, now)
    report = run(database, keyring, folder, [note, None])
    assert report.findings == []
    assert (report.ok, report.size, report.checkpoints, report.erased) == (True, 42, 2, 0)
    with database.read() as tx:
        assert report.root == checkpoints.tree.root(nodes.lookup(tx), 42)


def test_pages_join(
    embedded: Database, ledger: Ledger, keyring: Keyring, subject: Subject, folder: Path, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = build(embedded, ledger, subject, folder, now)
    for page in (1, 3, 7, 16, 41, 42):
        monkeypatch.setattr(nodes, "PAGE", page)
        assert run(embedded, keyring, folder, [note]).findings == []


def test_erased_bodies_are_counted_not_found_fault_with(
    embedded: Database, ledger: Ledger, keyring: Keyring, subject: Subject, folder: Path, now: datetime
) -> None:
    build(embedded, ledger, subject, folder, now)
    entries = [key for key in keyring._entries if key.purpose != "audit"]
    [audit] = [key for key in keyring._entries if key.purpose == "audit"]
    gone = msgspec.structs.replace(audit, state="retired", not_after=now, secret=b"")
    destroyed = Keyring(ARCHIVE, [*entries, gone, make("audit", at=now)], generation=2)
    report = run(embedded, destroyed)
    assert (report.ok, report.erased) == (True, 42)


def test_a_body_is_not_erased_by_taking_it_away(
    embedded: Database, ledger: Ledger, keyring: Keyring, subject: Subject, folder: Path, now: datetime
) -> None:
    build(embedded, ledger, subject, folder, now)
    with embedded.begin() as tx:
        tx.execute(sa.update(audit_event).where(audit_event.c.n == 3).values(body=None))
        tx.execute(sa.update(audit_event).where(audit_event.c.n == 5).values(body=b""))
        tx.execute(sa.update(audit_event).where(audit_event.c.n == 7).values(body=b"\x01" + bytes(80)))
    report = run(embedded, keyring)
    said = [(found.code, found.detail.split(" is gone")[0]) for found in report.findings]
    assert said == [("V12", f"the body of event {n}") for n in (3, 5, 7)]
    assert report.erased == 0


def _forge_leaf(tx: sa.Connection) -> None:
    """A leaf rewritten with its hash and node rows left alone."""
    data = tx.execute(sa.select(ledger_leaf.c.data).where(ledger_leaf.c.n == 5)).scalar_one().replace(b'"o":0', b'"o":4')
    tx.execute(sa.update(ledger_leaf).where(ledger_leaf.c.n == 5).values(data=data, hash=leaf_hash(data)))


def _swap_bodies(tx: sa.Connection) -> None:
    rows = {row.n: row.body for row in tx.execute(sa.select(audit_event).where(audit_event.c.n.in_([3, 4])))}
    for n, other in ((3, 4), (4, 3)):
        tx.execute(sa.update(audit_event).where(audit_event.c.n == n).values(body=rows[other]))


def _smuggle(tx: sa.Connection) -> None:
    tx.execute(sa.update(statement).where(statement.c.leaf == 7).values(object_id=b"smuggled instanc", envelope=b"{}"))


def _smuggle_ahead(tx: sa.Connection) -> None:
    tx.execute(sa.insert(statement), {"object_id": b"smuggled instanc", "leaf": 700, "envelope": b"{}"})


def _swap_statement(tx: sa.Connection) -> None:
    envelope = tx.execute(sa.select(statement.c.envelope).where(statement.c.leaf == 8)).scalar_one()
    tx.execute(sa.update(statement).where(statement.c.leaf == 9).values(envelope=envelope))


def _retime(tx: sa.Connection) -> None:
    tx.execute(sa.update(checkpoint).values(at=datetime.fromisoformat("2026-01-02T04:00:00+00:00")))


def _backdate(tx: sa.Connection) -> None:
    tx.execute(sa.update(audit_event).where(audit_event.c.n == 9).values(at=datetime.fromisoformat("2025-01-01T00:00:00+00:00")))


HARMS: list[tuple[str, Callable[[sa.Connection], object], set[str]]] = [
    ("leaf-changed", lambda tx: tx.execute(sa.update(ledger_leaf).where(ledger_leaf.c.n == 5).values(data=b'{"n":5}')), {"V11", "V13"}),
    ("leaf-rehashed", _forge_leaf, {"V12", "V13"}),
    ("hash-changed", lambda tx: tx.execute(sa.update(ledger_leaf).where(ledger_leaf.c.n == 5).values(hash=b"\0" * 32)), {"V11"}),
    ("leaf-removed", lambda tx: tx.execute(sa.delete(ledger_leaf).where(ledger_leaf.c.n == 5)), {"V11", "V13"}),
    ("tail-removed", lambda tx: tx.execute(sa.delete(ledger_leaf).where(ledger_leaf.c.n >= 30)), {"V11", "V13"}),
    ("node-changed", lambda tx: tx.execute(sa.update(ledger_node).where(ledger_node.c.level == 3).values(hash=b"\0" * 32)), {"V13"}),
    ("node-removed", lambda tx: tx.execute(sa.delete(ledger_node).where(ledger_node.c.level == 2)), {"V13"}),
    ("checkpoint-root", lambda tx: tx.execute(sa.update(checkpoint).where(checkpoint.c.size == 20).values(root=b"\0" * 32)), {"V13"}),
    ("checkpoint-time", _retime, {"V13"}),
    ("checkpoint-note", lambda tx: tx.execute(sa.update(checkpoint).where(checkpoint.c.size == 20).values(note=b"x")), {"V13"}),
    ("bodies-swapped", _swap_bodies, {"V12"}),
    ("audit-removed", lambda tx: (tx.execute(sa.delete(audit_object).where(audit_object.c.n == 3)),
                                  tx.execute(sa.delete(audit_event).where(audit_event.c.n == 3))), {"V12"}),
    ("audit-principal", lambda tx: tx.execute(sa.update(audit_event).where(audit_event.c.n == 3).values(principal_id=8)), {"V12"}),
    ("audit-outcome", lambda tx: tx.execute(sa.update(audit_event).where(audit_event.c.n == 3).values(outcome=4)), {"V12"}),
    ("audit-kind", lambda tx: tx.execute(sa.update(audit_event).where(audit_event.c.n == 3).values(kind="read")), {"V12"}),
    ("audit-time", _backdate, {"V12"}),
    ("objects-removed", lambda tx: tx.execute(sa.delete(audit_object).where(audit_object.c.n == 3)), {"V12"}),
    ("objects-changed", lambda tx: tx.execute(sa.update(audit_object).where(audit_object.c.n == 3).values(ref=b"\0" * 32)), {"V12"}),
    ("one-of-many", lambda tx: tx.execute(sa.delete(audit_object).where(audit_object.c.n == 39, audit_object.c.position == 2)), {"V12"}),
    ("object-added", lambda tx: tx.execute(sa.insert(audit_object), {"n": 3, "position": 3, "ref": b"\0" * 32}), {"V12"}),
    ("smuggled", _smuggle, {"V11"}),
    ("smuggled-ahead", _smuggle_ahead, {"V11"}),
    ("statement-swapped", _swap_statement, {"V11"}),
]




@pytest.mark.parametrize(("harm", "verdicts"), [pytest.param(harm, verdicts, id=name) for name, harm, verdicts in HARMS])
def test_each_harm_is_named(
    embedded: Database, ledger: Ledger, keyring: Keyring, subject: Subject, folder: Path, now: datetime,
    harm: Callable[[sa.Connection], object], verdicts: set[str],
) -> None:
    build(embedded, ledger, subject, folder, now)
    with embedded.engine.connect() as connection:
        connection.exec_driver_sql("ROLLBACK")
        connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
        connection.exec_driver_sql("BEGIN")
        harm(connection)
        connection.commit()
        connection.exec_driver_sql("PRAGMA foreign_keys = ON")
    report = run(embedded, keyring)
    assert {finding.code for finding in report.findings} == verdicts, report.findings
    assert all("1.2.826" not in finding.detail and "CANARY" not in finding.detail for finding in report.findings)


def test_files_are_compared(embedded: Database, ledger: Ledger, keyring: Keyring, subject: Subject, folder: Path, now: datetime) -> None:
    build(embedded, ledger, subject, folder, now)
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert len(names) == 4
    for name in names:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        found = run(embedded, keyring, folder).findings
        assert {finding.code for finding in found} == {"V13"}
        (folder / name).unlink()
        assert {finding.code for finding in run(embedded, keyring, folder).findings} == {"V13"}
        (folder / name).write_bytes(data)
    assert run(embedded, keyring, folder).ok
    shutil.rmtree(folder)
    assert [finding.code for finding in run(embedded, keyring, folder).findings] == ["V13"]


def test_anchors_are_compared(embedded: Database, ledger: Ledger, keyring: Keyring, subject: Subject, folder: Path, now: datetime) -> None:
    build(embedded, ledger, subject, folder, now)
    ahead = notes.write(f"strongroom/{ARCHIVE}", 99, b"\0" * 32, keyring.log_signers, now)
    assert [finding.code for finding in run(embedded, keyring, folder, [ahead]).findings] == ["V14"]


def test_another_archives_keys_verify_nothing(
    embedded: Database, ledger: Ledger, subject: Subject, folder: Path, now: datetime
) -> None:
    build(embedded, ledger, subject, folder, now)
    codes = {finding.code for finding in run(embedded, fixed_keyring(now, "another")).findings}
    assert codes == {"V12", "V13"}  # pseudonyms and checkpoints are not theirs


# --- clock ---------------------------------------------------------------------------------------------------------------------------


def record(database: Database, ledger: Ledger, kind: Kind, at: datetime) -> None:
    with database.begin() as tx:
        ledger.record(tx, Event(kind), at=at)


def test_a_clock_set_back_is_told(embedded: Database, ledger: Ledger, keyring: Keyring, now: datetime) -> None:
    record(embedded, ledger, Kind.READ, now)
    record(embedded, ledger, Kind.READ, now - timedelta(minutes=14))  # a large instance, recorded when it had arrived
    assert run(embedded, keyring).ok
    record(embedded, ledger, Kind.READ, now - timedelta(hours=1))
    findings = run(embedded, keyring).findings
    assert [finding.code for finding in findings] == ["V16"]
    assert "event 2" in findings[0].detail


def test_events_that_waited_too_long_for_a_checkpoint(embedded: Database, ledger: Ledger, keyring: Keyring, now: datetime) -> None:
    record(embedded, ledger, Kind.READ, now)
    checkpoint_now(embedded, keyring, now + 2 * HOUR)
    assert run(embedded, keyring).ok
    record(embedded, ledger, Kind.READ, now + 2 * HOUR)
    checkpoint_now(embedded, keyring, now + 5 * HOUR)
    assert [finding.code for finding in run(embedded, keyring).findings] == ["V16"]


def test_a_crash_and_a_later_start_is_no_pause(embedded: Database, ledger: Ledger, keyring: Keyring, now: datetime) -> None:
    record(embedded, ledger, Kind.READ, now)
    record(embedded, ledger, Kind.STARTED, now + timedelta(days=3))
    checkpoint_now(embedded, keyring, now + timedelta(days=3))
    assert run(embedded, keyring).ok
