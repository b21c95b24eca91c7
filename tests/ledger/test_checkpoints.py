"""Checkpoints: the tree in the table is the tree of the leaves, and nothing that does not continue it is ever signed."""

from __future__ import annotations

import random
from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa

from archive.access.subject import Subject
from archive.db.engine import Database
from archive.db.tables import checkpoint, ledger_leaf, ledger_node
from archive.errors import LedgerBroken
from archive.keys.keyring import Keyring
from archive.ledger import checkpoints, nodes, notes, tree
from archive.ledger.log import AuditFilter, Ledger
from archive.ledger.tree import Tree
from tests.ledger.conftest import ARCHIVE, fill, fill_fast, fixed_keyring

ORIGIN = f"strongroom/{ARCHIVE}"


def grow(database: Database, keyring: Keyring, count: int, at: datetime) -> checkpoints.Checkpoint:
    with database.begin() as tx:
        fill_fast(tx, count, first=nodes.size(tx))
        made = checkpoints.make(tx, keyring, at)
    assert made is not None
    return made


def test_grows_in_any_steps_to_the_same_tree(database: Database, keyring: Keyring, now: datetime) -> None:
    oracle = Tree(tree.leaf_hash(b"leaf %d" % n) for n in range(700))
    chance = random.Random(7)
    size = 0
    while size < 600:
        step = chance.choice([1, 1, 2, 3, 5, 17, 60])
        made = grow(database, keyring, step, now)
        size += step
        assert (made.size, made.root) == (size, oracle.root(size))
        note = notes.read(made.note, notes.verifiers(ORIGIN, keyring.public_keys()))
        assert (note.origin, note.size, note.root) == (ORIGIN, size, made.root)
    with database.read() as tx:
        latest = checkpoints.latest(tx)
        assert latest is not None
        assert latest.size == size
        find = nodes.lookup(tx)
        for old in chance.sample(range(1, size), 20):
            assert tree.root(find, old) == oracle.root(old)
            assert tree.inclusion_proof(find, old, size) == tree.inclusion_proof(oracle.lookup, old, size)
            assert tree.consistency_proof(find, old, size) == tree.consistency_proof(oracle.lookup, old, size)
        kept = {(row.level, row.position): bytes(row.hash) for row in tx.execute(sa.select(ledger_node))}
    expected = {(level, at): oracle.lookup(level, at) for level in range(1, 11) for at in range(size >> level)}
    assert kept == expected


def test_nothing_new_nothing_signed_but_the_heartbeat(embedded: Database, keyring: Keyring, now: datetime) -> None:
    with embedded.begin() as tx:
        assert checkpoints.make(tx, keyring, now) is None
        assert checkpoints.make(tx, keyring, now, heartbeat=True) is None
        assert checkpoints.latest(tx) is None
    made = grow(embedded, keyring, 5, now)
    later = now + timedelta(hours=1)
    with embedded.begin() as tx:
        assert checkpoints.make(tx, keyring, later) is None
        again = checkpoints.make(tx, keyring, later, heartbeat=True)
        assert again is not None
        assert (again.size, again.root, again.at) == (5, made.root, later)
        assert checkpoints.latest(tx) == again
        assert tx.execute(sa.select(sa.func.count()).select_from(checkpoint)).scalar_one() == 1


def test_a_long_log_is_taken_in_parts(
    embedded: Database, keyring: Keyring, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "MAX_LEAVES", 100)
    with embedded.begin() as tx:
        fill_fast(tx, 250)
        assert [made.size for made in iter(lambda: checkpoints.make(tx, keyring, now), None)] == [100, 200, 250]


@pytest.mark.parametrize("harm", [
    sa.update(ledger_leaf).where(ledger_leaf.c.n == 25).values(data=b"another"),
    sa.update(ledger_leaf).where(ledger_leaf.c.n == 25).values(hash=b"\0" * 32),
    sa.delete(ledger_leaf).where(ledger_leaf.c.n == 20),
    sa.delete(ledger_leaf).where(ledger_leaf.c.n == 25),
])
def test_a_wrong_leaf_is_not_signed(embedded: Database, keyring: Keyring, now: datetime, harm: sa.Executable) -> None:
    grow(embedded, keyring, 20, now)
    with embedded.begin() as tx:
        fill_fast(tx, 10, first=20)
        tx.execute(harm)
        with pytest.raises(LedgerBroken) as caught:
            checkpoints.make(tx, keyring, now)
    assert caught.value.verdict == "V11"


@pytest.mark.parametrize(("harm", "verdict"), [
    (sa.update(ledger_node).where(ledger_node.c.level == 4).values(hash=b"\0" * 32), "V13"),
    (sa.update(checkpoint).values(root=b"\0" * 32), "V13"),
    (sa.update(checkpoint).values(size=19), "V13"),
    (sa.update(checkpoint).values(note=b"strongroom"), "V13"),
    (sa.delete(ledger_leaf).where(ledger_leaf.c.n >= 15), "V13"),
])
def test_a_log_that_does_not_continue_is_not_signed(
    embedded: Database, keyring: Keyring, now: datetime, harm: sa.Executable, verdict: str
) -> None:
    grow(embedded, keyring, 20, now)
    with embedded.begin() as tx:
        fill_fast(tx, 5, first=20)
        tx.execute(harm)
        with pytest.raises(LedgerBroken) as caught:
            checkpoints.make(tx, keyring, now)
    assert caught.value.verdict == verdict


# --- anchors -------------------------------------------------------------------------------------------------------------------------


def test_anchors_of_this_log_pass(embedded: Database, keyring: Keyring, now: datetime) -> None:
    notes_made = [grow(embedded, keyring, count, now).note for count in (3, 4, 9)]
    with embedded.begin() as tx:
        checkpoints.check_anchor(tx, keyring, [None])
        checkpoints.check_anchor(tx, keyring, [*notes_made, None])
        fill_fast(tx, 3, first=16)
        checkpoints.check_anchor(tx, keyring, notes_made)


def refused(database: Database, keyring: Keyring, note: bytes) -> None:
    with database.read() as tx, pytest.raises(LedgerBroken) as caught:
        checkpoints.check_anchor(tx, keyring, [None, note])
    assert caught.value.verdict == "V14"
    assert caught.value.remedy


def test_a_rolled_back_log_is_refused(embedded: Database, keyring: Keyring, now: datetime) -> None:
    """The database as it was at 10 events, while the anchor remembers 15."""
    grow(embedded, keyring, 10, now)
    newest = grow(embedded, keyring, 5, now)
    with embedded.begin() as tx:
        tx.execute(sa.delete(checkpoint).where(checkpoint.c.size > 10))
        for node in tx.execute(sa.select(ledger_node)).all():
            if (node.position + 1) << node.level > 10:
                mine = (ledger_node.c.level == node.level) & (ledger_node.c.position == node.position)
                tx.execute(sa.delete(ledger_node).where(mine))
        tx.execute(sa.delete(ledger_leaf).where(ledger_leaf.c.n >= 10))
    refused(embedded, keyring, newest.note)
    with embedded.begin() as tx:  # and it goes on from there: another 20 events are not those that were signed
        fill_fast(tx, 20, first=1000)
        for n in range(20):
            tx.execute(sa.update(ledger_leaf).where(ledger_leaf.c.n == 1000 + n).values(n=10 + n))
        assert checkpoints.make(tx, keyring, now) is not None
    refused(embedded, keyring, newest.note)


def test_a_forged_or_foreign_anchor_is_refused(embedded: Database, keyring: Keyring, now: datetime) -> None:
    made = grow(embedded, keyring, 10, now)
    other = fixed_keyring(now, "another")
    refused(embedded, keyring, notes.write(ORIGIN, made.size, made.root, other.log_signers, now))
    refused(embedded, keyring, notes.write(ORIGIN, made.size, b"\0" * 32, keyring.log_signers, now))
    refused(embedded, keyring, notes.write(ORIGIN, made.size - 1, made.root, keyring.log_signers, now))
    refused(embedded, keyring, made.note[:-2] + b"A\n")
    refused(embedded, keyring, b"")


def test_an_acknowledged_rollback_passes_and_only_that(
    embedded: Database, ledger: Ledger, keyring: Keyring, subject: Subject, now: datetime
) -> None:
    ahead = notes.write(ORIGIN, 99, b"\1" * 32, keyring.log_signers, now)
    further = notes.write(ORIGIN, 100, b"\2" * 32, keyring.log_signers, now)
    with embedded.begin() as tx:
        fill(tx, ledger, subject, 2, at=now)
        ledger.record(tx, checkpoints.acknowledgement([ahead, None], subject=subject, reason="disk lost"), at=now)
    with embedded.read() as tx:
        row = ledger.search(tx, AuditFilter())[0]
        assert row.body is not None
        assert row.body["detail"]["reason"] == "disk lost"
        acknowledged = frozenset(row.body["detail"]["notes"])
        checkpoints.check_anchor(tx, keyring, [ahead], acknowledged=acknowledged)
        with pytest.raises(LedgerBroken):
            checkpoints.check_anchor(tx, keyring, [ahead, further], acknowledged=acknowledged)
