"""Events are found by their objects before and after the checkpoint that gives them rows."""

from __future__ import annotations

import random
from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa

from archive.access.subject import Subject
from archive.db.engine import Database
from archive.db.tables import audit_object
from archive.keys.keyring import Keyring
from archive.ledger import checkpoints
from archive.ledger.audit import MAX_LEAF_OBJECTS, Event, Kind, ObjectRef
from archive.ledger.log import AuditFilter, Ledger
from archive.ledger.verify import Verifier

POOL = [ObjectRef("study", f"1.2.{number}") for number in range(6)] + [ObjectRef("patient", f"1.2.{number}") for number in range(3)]
MANY = tuple(ObjectRef("series", f"9.{number}") for number in range(MAX_LEAF_OBJECTS + 1))


def rows(database: Database) -> list[tuple[int, int]]:
    with database.read() as tx:
        query = sa.select(audit_object.c.n, audit_object.c.position).order_by(audit_object.c.n, audit_object.c.position)
        return [(row.n, row.position) for row in tx.execute(query)]


def findings(database: Database, keyring: Keyring) -> list[str]:
    with database.read() as tx:
        return [one.code for one in Verifier(tx, keyring, heartbeat=timedelta(days=365)).run(directory=None).findings]


def test_search_finds_the_same_before_and_after_a_checkpoint(
    database: Database, ledger: Ledger, keyring: Keyring, subject: Subject, now: datetime
) -> None:
    chance = random.Random(7)
    about: dict[ObjectRef, list[int]] = {one: [] for one in (*POOL, *MANY)}
    for step in range(60):
        if step % 20 == 10:
            with database.begin() as tx:
                assert checkpoints.make(tx, keyring, now + timedelta(seconds=step)) is not None
        objects = MANY if step % 25 == 24 else tuple(chance.sample(POOL, chance.randint(0, 4)))
        with database.begin() as tx:
            n = ledger.record(tx, Event(Kind.READ, subject=subject, objects=objects), at=now + timedelta(seconds=step))
        for one in objects:
            about[one].insert(0, n)
        if step % 5 == 0 or step > 55:
            with database.read() as tx:
                found = {one: [row.n for row in ledger.search(tx, AuditFilter(obj=one))] for one in about}
            assert found == about
    assert findings(database, keyring) == []


def test_rows_come_with_the_checkpoint_and_never_twice(
    database: Database, ledger: Ledger, keyring: Keyring, subject: Subject, now: datetime
) -> None:
    with database.begin() as tx:
        ledger.record(tx, Event(Kind.READ, subject=subject, objects=(POOL[1], POOL[0], POOL[1])), at=now)
        ledger.record(tx, Event(Kind.READ, subject=subject, objects=MANY), at=now)
        ledger.record(tx, Event(Kind.STARTED), at=now)
    many = [(1, position) for position in range(len(MANY))]
    assert rows(database) == many
    with database.begin() as tx:  # as a release that made every row with its event has left it
        tx.execute(sa.insert(audit_object), {"n": 0, "position": 0, "ref": POOL[1].pseudonym(keyring)})
    with database.begin() as tx:
        checkpoints.make(tx, keyring, now)
    assert rows(database) == [(0, 0), (0, 1), (0, 2), *many]
    assert findings(database, keyring) == []


@pytest.mark.parametrize("covered", [False, True])
def test_objects_that_a_leaf_does_not_name_are_found(
    database: Database, ledger: Ledger, keyring: Keyring, subject: Subject, now: datetime, covered: bool
) -> None:
    with database.begin() as tx:
        ledger.record(tx, Event(Kind.READ, subject=subject, objects=(POOL[0],)), at=now)
        ledger.record(tx, Event(Kind.READ, subject=subject, objects=MANY), at=now)
        if covered:
            checkpoints.make(tx, keyring, now)
    assert "V12" not in findings(database, keyring)
    with database.begin() as tx:
        tx.execute(sa.delete(audit_object).where(audit_object.c.n == 1, audit_object.c.position == 3))
    assert "V12" in findings(database, keyring)
    with database.begin() as tx:
        tx.execute(sa.delete(audit_object).where(audit_object.c.n == 0))
        tx.execute(sa.insert(audit_object), {"n": 0, "position": 0, "ref": bytes(32)})
        tx.execute(sa.insert(audit_object), {"n": 1, "position": 3, "ref": MANY[3].pseudonym(keyring)})
    assert findings(database, keyring).count("V12") == 1
