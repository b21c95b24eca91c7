"""Purges and holds that somebody forged, hid or undid behind the archive's back are found, and destroy nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.access import policy
from archive.access.subject import Subject
from archive.db.tables import audit_event, hold, instance, ledger_leaf, purged, purged_key, segment, statement
from archive.errors import StateConflict
from archive.ledger.audit import Event, Kind, ObjectRef
from archive.node import Node
from archive.services import hold_rows
from archive.services.purge_finish import finish
from tests.services import archives
from tests.services.test_purge import ONE, rows, uids

TOKEN = policy.system("verify")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two studies, one purged, one in part out of sight; a third on hold."""
    folder = tmp_path_factory.mktemp("tampered")
    with archives.opened(archives.made(folder)) as node:
        console = archives.the_console(node)
        for number in (1, 2):
            archives.store(node, archives.instance(number))
            archives.store(node, archives.instance(number, study="1.2.4", PatientID="P2"))
            archives.store(node, archives.instance(number, study="1.2.5", PatientID="P3"))
        node.remove.reject(console, "clinical", "study", "1.2.4", reason="test")
        node.purge.run(console, study="1.2.4", reason="test")
        node.remove.reject(console, "clinical", "instance", f"{ONE}.1.1", reason="test")
        node.remove.reject(console, "clinical", "study", "1.2.5", reason="test")
        node.holds.add(console, "clinical", "1.2.5", reason="case", until=node.core.clock() + timedelta(days=400))
        node.upkeep.checkpoint()
        assert node.verify.run(console, "standard").findings == []
    return folder


@pytest.fixture
def node(tmp_path: Path, made: Path) -> Iterator[Node]:
    import shutil

    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    with archives.opened(archives.configured(tmp_path)) as node:
        yield node


@pytest.fixture
def console(node: Node) -> Subject:
    return archives.the_console(node)


def edit(node: Node, *statements: sa.Executable) -> None:
    with node.core.database.begin() as tx:
        for one in statements:
            policy.run_as(tx, TOKEN, one)


def codes(node: Node, mode: str = "quick") -> set[str]:
    return {one.code for one in node.verify.run(archives.the_console(node), mode).findings}  # type: ignore[arg-type]


def forged(node: Node) -> list[sa.Executable]:
    """A purge of an instance that everyone sees, as whoever holds the index would write it."""
    (row,) = rows(node, sa.select(instance).where(instance.c.sop_instance_uid == f"{ONE}.1.2"))
    place = {"segment_id": row.segment_id, "record_offset": row.record_offset, "record_bytes": row.record_bytes}
    (leaf,) = rows(node, sa.select(purged.c.leaf).limit(1))
    return [
        sa.delete(instance).where(instance.c.id == row.id), sa.delete(statement).where(statement.c.object_id == row.object_id),
        sa.insert(purged).values(object_id=row.object_id, leaf=leaf.leaf, freed_at=None, **place),
    ]


def to_event(node: Node) -> list[sa.Executable]:
    """The same, with an event's words changed to say so."""
    (row,) = rows(node, sa.select(instance).where(instance.c.sop_instance_uid == f"{ONE}.1.2"))
    (leaf,) = rows(node, sa.select(purged.c.leaf).limit(1))
    (kept,) = rows(node, sa.select(statement.c.envelope).where(statement.c.leaf == leaf.leaf))
    import msgspec

    change = msgspec.json.decode(bytes(kept.envelope))
    change["objects"].append(bytes(row.object_id).hex())
    change["places"].append([bytes(row.segment_id).hex(), row.record_offset, row.record_bytes])
    words = msgspec.json.encode(change, order="sorted")
    return [*forged(node), sa.update(statement).where(statement.c.leaf == leaf.leaf).values(envelope=words)]


EDITS: dict[str, Callable[[Node], list[sa.Executable]]] = {
    "a purge is forged": forged,
    "a purge is forged, and an event rewritten": to_event,
    "a key is said to be purged": lambda node: [
        sa.insert(purged_key).from_select(["key_id", "leaf"], sa.select(instance.c.key_id, sa.select(
            sa.func.min(purged.c.leaf)).scalar_subquery()).where(instance.c.sop_instance_uid == f"{ONE}.1.2"))
    ],
    "what was purged is forgotten": lambda _node: [sa.delete(purged)],
    "a purged object is another": lambda _node: [sa.update(purged).where(purged.c.object_id == sa.select(
        sa.func.min(purged.c.object_id)).scalar_subquery()).values(object_id=bytes(16))],
    "a purged record lay elsewhere": lambda _node: [sa.update(purged).values(record_offset=purged.c.record_offset + 4096)],
    "a purged record is another segment's": lambda _node: [sa.update(purged).values(segment_id=bytes(16))],
    "a purged record was longer": lambda _node: [sa.update(purged).values(record_bytes=purged.c.record_bytes + 1)],
    "another event purged it": lambda _node: [sa.update(purged).values(leaf=purged.c.leaf - 1)],
    "a destroyed key is forgotten": lambda _node: [sa.delete(purged_key)],
    "another event destroyed a key": lambda _node: [sa.update(purged_key).values(leaf=purged_key.c.leaf - 1)],
    "what is purged has a row again": lambda _node: [sa.update(instance).where(
        instance.c.sop_instance_uid == f"{ONE}.1.1").values(object_id=sa.select(sa.func.min(purged.c.object_id)).scalar_subquery())],
    "a hold is removed": lambda _node: [sa.delete(hold)],
    "a hold is shortened": lambda node: [sa.update(hold).values(hold_until=node.core.clock() - timedelta(days=1))],
    "a hold is another study's": lambda _node: [sa.update(hold).values(study_instance_uid="9.9")],
    "a hold is another's reason": lambda _node: [sa.update(hold).values(reason="none")],
    "a hold has another number": lambda _node: [sa.update(hold).values(id=hold.c.id + 7)],
}


@pytest.mark.parametrize("edit_", EDITS)
def test_an_edit_is_found_and_destroys_nothing(node: Node, edit_: str) -> None:
    with node.core.database.read() as tx:
        segments = tx.execute(sa.select(segment.c.name)).scalars().all()
    there = {name: (node.config.segments_dir / name).read_bytes() for name in segments}
    edit(node, *EDITS[edit_](node))
    finish(node.core)
    assert there == {name: (node.config.segments_dir / name).read_bytes() for name in segments}
    assert "V12" in codes(node)


def test_what_is_hidden_without_an_event_is_not_purged(node: Node, console: Subject) -> None:
    """Whoever sets a row's date of rejection does not get the archive to destroy it."""
    edit(node, sa.update(instance).where(instance.c.sop_instance_uid == f"{ONE}.1.2").values(
        rejected_at=node.core.clock() - timedelta(days=100)))
    done = node.purge.run(console, study=ONE, reason="test")
    assert (done.instances, done.doubted, done.ok) == (1, 1, False)
    assert node.purge.run(console, before=node.core.clock(), reason="test").instances == 0
    assert len(rows(node, sa.select(instance.c.id).where(instance.c.sop_instance_uid == f"{ONE}.1.2"))) == 1


@pytest.mark.parametrize("what", ["statement", "leaf", "body"])
def test_a_rejection_that_was_rewritten_proves_nothing(node: Node, console: Subject, what: str) -> None:
    """An event of a rejection that is made to name another instance."""
    import hashlib

    (victim,) = rows(node, sa.select(instance).where(instance.c.sop_instance_uid == f"{ONE}.1.2"))
    (other,) = rows(node, sa.select(instance).where(instance.c.sop_instance_uid == f"{ONE}.1.1"))
    (row,) = [
        one for one in rows(node, sa.select(statement.c.leaf, statement.c.envelope, ledger_leaf.c.data).join(
            ledger_leaf, ledger_leaf.c.n == statement.c.leaf))
        if bytes(other.object_id).hex().encode() in bytes(one.envelope) and b'"rejected"' in bytes(one.envelope)
    ]
    words = bytes(row.envelope).replace(bytes(other.object_id).hex().encode(), bytes(victim.object_id).hex().encode())
    edits: list[sa.Executable] = [
        sa.update(statement).where(statement.c.leaf == row.leaf).values(envelope=words),
        sa.update(instance).where(instance.c.id == victim.id).values(rejected_at=other.rejected_at),
    ]
    if what != "statement":
        old, new = (hashlib.sha256(one).hexdigest().encode() for one in (bytes(row.envelope), words))
        leaf = bytes(row.data).replace(old, new)
        assert leaf != bytes(row.data)
        edits.append(sa.update(ledger_leaf).where(ledger_leaf.c.n == row.leaf).values(
            data=leaf, hash=hashlib.sha256(b"\0" + leaf).digest()))
    if what == "body":
        edits.append(sa.update(audit_event).where(audit_event.c.n == row.leaf).values(body=None))
    edit(node, *edits)
    done = node.purge.run(console, study=ONE, reason="test")
    assert done.instances == 0
    assert done.doubted > 0
    assert len(rows(node, sa.select(instance.c.id).where(instance.c.id == victim.id))) == 1


@pytest.mark.parametrize("edit_", [name for name in EDITS if name.startswith("a hold")])
def test_a_hold_counts_whatever_its_row_says_and_is_put_back(node: Node, console: Subject, edit_: str) -> None:
    before = rows(node, sa.select(hold))
    edit(node, *EDITS[edit_](node))
    assert node.purge.run(console, before=node.core.clock(), reason="test", dry_run=True).held == 1
    with pytest.raises(StateConflict):
        node.purge.run(console, study="1.2.5", reason="test")
    after = rows(node, sa.select(hold))
    assert [one for one in after if one.id == before[0].id] == before
    node.holds.remove(console, before[0].id, reason="closed")
    if edit_ == "a hold has another number":
        return  # one that no event put forbids, until somebody lets go
    assert codes(node) == set()
    assert node.purge.run(console, study="1.2.5", reason="test").instances == 2


def test_upkeep_puts_holds_back(node: Node) -> None:
    edit(node, sa.delete(hold))
    assert "V12" in codes(node)
    node.upkeep.tick()
    assert len(rows(node, sa.select(hold))) == 1
    assert codes(node) == set()
    assert hold_rows.mend(node.core, node.core.clock()) == 0


def test_a_purge_of_what_nobody_rejected_is_told(node: Node, console: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that the archive itself recorded, should a program ever do so."""
    from archive.ledger.audit import StoredRef
    from archive.services.purged import carry_out
    from archive.services.state_events import commit_change

    (row,) = rows(node, sa.select(instance).where(instance.c.sop_instance_uid == f"{ONE}.1.2"))
    edit(node, sa.update(instance).where(instance.c.id == row.id).values(rejected_at=node.core.clock()))
    more: dict[str, Any] = {"places": [[bytes(row.segment_id).hex(), row.record_offset, row.record_bytes]], "keys": [], "replaced": []}
    at = node.core.clock()

    def work(tx: sa.Connection, stored: StoredRef) -> int:
        detail = {"reason": "x", "payload": stored.statement_sha256.hex(), "segments": []}
        leaf = node.core.ledger.record(tx, Event(Kind.PURGED, objects=(ObjectRef("study", ONE),), stored=stored, detail=detail), at=at)
        carry_out(node.core, tx, {"study": ONE, "objects": [bytes(row.object_id).hex()], **more}, leaf=leaf, at=at)
        return leaf

    place = rows(node, sa.select(sa.text("uid")).select_from(sa.table("datastore")))[0].uid
    commit_change(node.core, "purged", datastore=bytes(place), study_instance_uid=ONE, objects=[bytes(row.object_id)], reason="x", at=at,
                  work=work, more=more)
    assert any("had not been rejected" in one.detail for one in node.verify.run(console, "quick").findings)
    assert len(uids(node)) == 0
