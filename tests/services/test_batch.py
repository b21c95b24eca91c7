"""Instances that share a sync and a commit: told of when they are durable, each for itself, nothing left behind by those that fail."""

from __future__ import annotations

import errno
import random
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.access import policy
from archive.db.tables import held, ledger_leaf, statement
from archive.errors import ArchiveError, DatabaseUnavailable, InvalidInstance, VaultUnavailable
from archive.index import catalog
from archive.node import Node
from archive.services import batch
from archive.services.batch import Batch
from archive.services.store import Outcome, Source
from archive.vault.disk import DISK
from tests.services import archives, crowd

STUDY = "1.2.3"


@pytest.fixture
def node(tmp_path: Path, engine: dict[str, Any]) -> Iterator[Node]:
    before = DISK.before
    with archives.opened(archives.made(tmp_path, **engine)) as node:
        archives.store(node, archives.instance(study="1.9"))  # keys and a segment are there
        yield node
        node.core.database.before_commit = lambda _tx: None
        DISK.before = before
        crowd.check_sound(node)
        crowd.check_ledger(node)


class Sender:
    """Sends instances through one batch, and hears of them."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.became: dict[int, Outcome | ArchiveError] = {}
        self.batch: Batch[int] = node.store.batch(self.became.__setitem__)

    def send(self, number: int, data: bytes) -> None:
        incoming = self.node.store.open(archives.the_console(self.node), "clinical", Source("stow"))
        try:
            self.batch.begin(incoming)
            for start in range(0, len(data), 65536):
                incoming.write(data[start : start + 65536])
            self.batch.add(number, incoming)
        finally:
            incoming.abort()

    def statuses(self) -> dict[int, str]:
        return {number: one.status if isinstance(one, Outcome) else one.code for number, one in self.became.items()}


def visible(node: Node) -> list[bytes]:
    return [data for _, data in sorted(crowd.part10(node, STUDY).items())]


def instances(count: int, **attributes: Any) -> list[bytes]:
    return [archives.instance(number, study=STUDY, **attributes) for number in range(1, count + 1)]


LONG = "".join(random.Random(1).choices(string.ascii_letters, k=20_000))
"""Longer than an index of PostgreSQL takes, which compresses what repeats itself."""


@pytest.mark.parametrize("keyword", ["PatientID", "PatientName", "AccessionNumber", "Modality", "IssuerOfPatientID"])
def test_a_value_no_index_takes_costs_nobody_else_anything(node: Node, keyword: str) -> None:
    sender = Sender(node)
    first, third = instances(2)
    for number, data in enumerate((first, archives.instance(9, study="1.7", **{keyword: LONG}), third)):
        sender.send(number, data)
    sender.batch.flush()
    became = sender.statuses()
    assert became.pop(1) == ("stored" if node.core.database.sqlite else "invalid-instance")
    assert became == {0: "stored", 2: "stored"}
    assert visible(node) == [first, third]


def leaves(node: Node) -> int:
    return crowd.count(node, sa.select(sa.func.count()).select_from(ledger_leaf))


def test_one_sync_and_one_commit_before_anybody_is_told(node: Node) -> None:
    sender, seen = Sender(node), []
    DISK.before = lambda _number, name: seen.append((name, len(sender.became)))
    node.core.database.before_commit = lambda _tx: seen.append(("commit", len(sender.became)))
    data = instances(7)
    for number, one in enumerate(data):
        sender.send(number, one)
    assert sender.became == {}
    sender.batch.flush()
    assert [step for step in seen if step[0] in {"fdatasync", "commit"}] == [("fdatasync", 0), ("commit", 0)]
    assert sender.statuses() == dict.fromkeys(range(7), "stored")
    size = leaves(node)
    assert [one.leaf for one in sender.became.values() if isinstance(one, Outcome)] == list(range(size - 7, size))
    assert visible(node) == data


def test_a_batch_ends_at_its_number_and_its_bytes(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    sender = Sender(node)
    monkeypatch.setattr(batch, "INSTANCES", 3)
    data = instances(4, rows=64)
    for number, one in enumerate(data):
        sender.send(number, one)
        assert len(sender.became) == (3 if number >= 2 else 0)
    monkeypatch.setattr(batch, "BYTES", len(data[0]) + 1)
    sender.send(4, archives.instance(9, study=STUDY))
    assert len(sender.became) == 5


def test_one_that_is_bad_stands_in_nobodys_way(node: Node) -> None:
    sender, (one, two, three) = Sender(node), instances(3)
    sender.send(1, one)
    with pytest.raises(InvalidInstance):
        sender.send(2, two[:-1000])
    sender.send(3, three)
    sender.batch.flush()
    assert sender.statuses() == {1: "stored", 3: "stored"}
    assert set(visible(node)) == {one, three}


def test_one_that_fails_in_the_transaction_fails_alone(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    sender, data = Sender(node), instances(3)
    insert = catalog.insert

    def failing(tx: sa.Connection, entry: catalog.Entry) -> catalog.Inserted:
        made = insert(tx, entry)
        if entry.scanned.sop_instance_uid.endswith(".2"):
            message = "x"
            raise DatabaseUnavailable(message)
        return made

    monkeypatch.setattr(catalog, "insert", failing)
    for number, one in enumerate(data):
        sender.send(number, one)
    sender.batch.flush()
    assert sender.statuses() == {0: "stored", 1: DatabaseUnavailable.code, 2: "stored"}
    assert list(sender.became) == [0, 2, 1]  # those that were kept are told of first
    assert set(visible(node)) == {data[0], data[2]}


def test_the_same_instance_again_in_one_batch_is_decided_by_what_is_stored(node: Node) -> None:
    sender, data = Sender(node), archives.instance(1, study=STUDY)
    other = archives.instance(1, study=STUDY, StudyDescription="OTHER")
    sender.send(1, data)
    sender.send(2, data)
    sender.send(3, other)
    sender.batch.flush()
    assert sender.statuses() == {1: "stored", 2: "duplicate", 3: "conflict"}
    assert visible(node) == [data]


def test_small_and_large_together(node: Node) -> None:
    sender = Sender(node)
    data = [archives.instance(1, study=STUDY), archives.instance(2, study=STUDY, rows=1600), archives.instance(3, study=STUDY)]
    for number, one in enumerate([*data, data[1]]):
        sender.send(number, one)
    sender.batch.flush()
    assert sender.statuses() == {0: "stored", 1: "stored", 2: "stored", 3: "duplicate"}
    assert set(visible(node)) == set(data)


@pytest.mark.parametrize(("step", "code"), [("pwrite", errno.EIO), ("fdatasync", errno.EIO), ("fdatasync", errno.ENOSPC)])
def test_a_failing_disk_fails_what_it_holds_and_nothing_remains(node: Node, step: str, code: int) -> None:
    sender, data, before = Sender(node), instances(3), leaves(node)

    def failing(_number: int, name: str) -> None:
        if name == step:
            raise OSError(code, "x")

    if step == "pwrite":
        sender.send(0, data[0])
        DISK.before = failing
        with pytest.raises(VaultUnavailable):
            sender.send(1, data[1])
        DISK.before = lambda _number, _name: None
        sender.send(2, data[2])
        sender.batch.flush()  # the first one's segment cannot be trusted any more, and says so
        assert sender.statuses()[0] == VaultUnavailable.code
        assert sender.statuses()[2] in {"stored", VaultUnavailable.code}
    else:
        for number, one in enumerate(data):
            sender.send(number, one)
        DISK.before = failing
        sender.batch.flush()
        DISK.before = lambda _number, _name: None
        assert not any(isinstance(one, Outcome) for one in sender.became.values())
        assert leaves(node) == before
    again = Sender(node)
    for number, one in enumerate(data):
        again.send(number, one)
    again.batch.flush()
    assert set(again.statuses().values()) <= {"stored", "duplicate"}
    assert set(visible(node)) == set(data)


def test_a_commit_that_fails_fails_all_of_it(node: Node) -> None:
    sender, data, before = Sender(node), instances(3), leaves(node)
    for number, one in enumerate(data):
        sender.send(number, one)

    def failing(_tx: sa.Connection) -> None:
        message = "x"
        raise DatabaseUnavailable(message)

    node.core.database.before_commit = failing
    sender.batch.flush()
    node.core.database.before_commit = lambda _tx: None
    assert sender.statuses() == dict.fromkeys(range(3), DatabaseUnavailable.code)
    assert leaves(node) == before
    assert crowd.count(node, sa.select(sa.func.count()).select_from(statement)) == 1


def test_who_sends_again_what_waits_and_has_rotted_is_not_told_that_it_is_kept(node: Node) -> None:
    """The sender's good copy would be thrown away, as that of what was let in would be."""
    archives.store(node, archives.instance(1, study=STUDY))
    data = archives.instance(2, study=STUDY, PatientID="P9")  # of another patient than its study
    assert archives.store(node, data).status == "held"
    with node.core.database.read() as tx:
        row = policy.run_as(tx, policy.system("verify"), sa.select(held)).one()
    path = node.config.segments_dir / f"{bytes(row.segment_id).hex()}.seg"
    original, at = path.read_bytes(), row.record_offset + row.record_bytes // 2

    def put(byte: int) -> None:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(bytes([byte]))

    put(original[at] ^ 1)
    with pytest.raises(ArchiveError):
        archives.store(node, data)
    sender = Sender(node)
    for number, one in enumerate((data, archives.instance(3, study=STUDY))):
        sender.send(number, one)
    sender.batch.flush()
    assert isinstance(sender.became[0], ArchiveError)
    assert sender.statuses()[1] == "stored"
    put(original[at])
    assert archives.store(node, data).status == "held"
    assert node.verify.run(archives.the_console(node), "full").findings == []
