"""A keyring from fixed keys, a ledger over it, and ways to fill it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.access.subject import Subject
from archive.db.engine import Database
from archive.db.tables import ledger_leaf, statement
from archive.keys import entries
from archive.keys.keyring import Keyring
from archive.ledger import statements
from archive.ledger.audit import Event, Kind, ObjectRef, StoredRef
from archive.ledger.log import Ledger
from archive.ledger.tree import leaf_hash
from tests import databases

ARCHIVE = "6f1c2b1e-8a55-4d6b-9a37-3c0c5a1f2e4d"
PURPOSES = ("index", "keystore", "audit", "pepper", "instance", "log", "log-pq")


def fixed_keyring(at: datetime, seed: str = "strongroom test") -> Keyring:
    """The same keys every time."""
    made = [entries.make(purpose, at=at, secret=hashlib.sha256(f"{seed} {purpose}".encode()).digest()) for purpose in PURPOSES]
    return Keyring(ARCHIVE, made, generation=1)


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Database]:
    """The index on SQLite alone, where a test is about something else than the engine."""
    with closing(databases.embedded(tmp_path)) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder for the ledger's files."""
    (tmp_path / "ledger").mkdir()
    return tmp_path / "ledger"


@pytest.fixture
def keyring(now: datetime) -> Keyring:
    return fixed_keyring(now)


@pytest.fixture
def ledger(keyring: Keyring) -> Ledger:
    return Ledger(keyring)


@pytest.fixture
def subject() -> Subject:
    return Subject(7, "ct1", "device", "dimse", address="10.0.0.9", peer_id=3, association="a1b2c3", user_agent="")


def stored(subject: Subject, number: int = 1) -> Event:
    """The event of a stored instance of a patient called CANARY."""
    return Event(
        Kind.STORED, subject=subject,
        objects=(ObjectRef("patient", "CANARY"), ObjectRef("study", "1.2.826.77"), ObjectRef("series", f"1.2.826.77.{number}")),
        instances=1, bytes=526_000, detail={"via": "dimse"},
        stored=StoredRef(hashlib.sha256(b"envelope %d" % number).digest(), b"object%010d" % number, 526_288),
    )


def fill(tx: sa.Connection, ledger: Ledger, subject: Subject, count: int, *, at: datetime, first: int = 0) -> None:
    """Record `count` stored instances a second apart, each with its statement's row."""
    for number in range(first, first + count):
        then = at + timedelta(seconds=number)
        made = statements.statement(
            datastore=b"d" * 16, object_id=b"object%010d" % number, sop_instance_uid=f"1.2.826.77.{number}", sop_class_uid="1.2.840.1",
            study_instance_uid="1.2.826.77", series_instance_uid="1.2.826.77.1", transfer_syntax_uid="1.2.840.10008.1.2.1",
            part10_bytes=526_000, sha256=hashlib.sha256(b"%d" % number).digest(), dataset_offset=372, received_at=then,
            origin=statements.Origin("dimse"), software="test",
        )
        envelope = statements.sign(ledger.keyring.instance_signer, made)
        event = replace(stored(subject, number), stored=StoredRef(statements.digest(envelope), b"object%010d" % number, 526_288))
        leaf = ledger.record(tx, event, at=then)
        tx.execute(sa.insert(statement), {"object_id": b"object%010d" % number, "leaf": leaf, "envelope": envelope})


def fill_fast(tx: sa.Connection, count: int, *, first: int = 0) -> None:
    """Put bare leaves in, for tests of the tree alone."""
    rows = [{"n": n, "data": b"leaf %d" % n, "hash": leaf_hash(b"leaf %d" % n)} for n in range(first, first + count)]
    tx.execute(sa.insert(ledger_leaf), rows)
