"""Shredding: a whole study with its key, a receipt that checks elsewhere, a crash at every step, and nothing that brings it back."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.access.grants import Target
from archive.access.subject import Subject
from archive.db.tables import data_key, held, instance, purged, purged_key, study
from archive.errors import Forbidden, InvalidRequest, LedgerBroken, NotFound, StateConflict
from archive.ledger import documents, proofs
from archive.ledger.notes import Verifier
from archive.node import Node, open_node
from archive.vault.disk import Disk
from tests.services import archives, crowd

ONE = "1.2.3"
STRIDE = 1 if os.environ.get("ARCHIVE_TEST_EVERY_STEP") == "1" else 9
"""Which steps a crash is tried at; the suite takes a sample."""


class Interrupted(BaseException):
    """The process ends here."""


@pytest.fixture
def node(tmp_path: Path, engine: dict[str, Any]) -> Iterator[Node]:
    with archives.opened(archives.made(tmp_path, **engine)) as node:
        fill(node)
        yield node


@pytest.fixture
def console(node: Node) -> Subject:
    return archives.the_console(node)


def fill(node: Node) -> None:
    """A study with two instances in sight, one rejected, one that waits, one in conflict; and another study."""
    for number in (1, 2, 3):
        archives.store(node, archives.instance(number, StudyDescription="one"))
    console = archives.the_console(node)
    node.remove.reject(console, "clinical", "instance", f"{ONE}.1.3", reason="blurred")
    assert archives.store(node, archives.instance(4, PatientID="P9")).status == "held"
    archives.store(node, archives.instance(1, StudyDescription="two"))
    archives.store(node, archives.instance(1, study="1.2.4"))


def rows(node: Node, query: sa.Select[Any]) -> list[Any]:
    return crowd.every(node, query)


def keys_of(node: Node) -> dict[str, int]:
    with node.core.keystore._database.read() as tx:
        states = [row.state for row in tx.execute(sa.select(data_key))]
    return {state: states.count(state) for state in set(states)}


def check_gone(node: Node) -> None:
    console = archives.the_console(node)
    with pytest.raises(NotFound):
        node.retrieve.instances(archives.user(node), "clinical", ONE)
    assert rows(node, sa.select(held.c.id)) == []
    assert [row.sop_instance_uid for row in rows(node, sa.select(instance.c.sop_instance_uid))] == ["1.2.4.1.1"]
    assert rows(node, sa.select(purged.c.object_id).where(purged.c.freed_at.is_(None))) == []
    assert rows(node, sa.select(purged_key.c.key_id).where(purged_key.c.destroyed_at.is_(None))) == []
    assert len(node.shred.receipts(console, ONE)) == 1
    crowd.check_sound(node)


def test_everything_of_it_goes_and_the_receipt_checks_elsewhere(node: Node, console: Subject) -> None:
    trusted = [Verifier.parse(key) for key in node.oversight.public_keys()]
    node.upkeep.checkpoint()
    done = node.shred.run(console, ONE, reason="asked by the patient")
    assert (done.instances, done.keys) == (5, 1)
    check_gone(node)
    assert keys_of(node)["shredded"] == 1
    node.upkeep.checkpoint()
    proof = node.oversight.prove(console, str(done.event))
    said = proofs.check(proof, trusted=trusted).document
    assert said is not None
    assert (said["study"], said["reason"], said["instances"], len(said["keys"])) == (ONE, "asked by the patient", 5, 1)
    assert said["checkpoint"]["size"] > 0
    assert said == node.shred.receipts(console, ONE)[0].said
    # sent again it is a study like any other, under a key of its own
    archives.store(node, archives.instance(1))
    assert set(crowd.part10(node, ONE)) == {f"{ONE}.1.1"}
    (row,) = rows(node, sa.select(study.c.key_id).where(study.c.study_instance_uid == ONE))
    assert node.core.keystore.state(bytes(row.key_id)) == "active"
    again = node.shred.run(console, ONE, reason="once more")
    assert again.event != done.event
    assert len(node.shred.receipts(console, ONE)) == 2
    crowd.check_sound(node)


def test_a_forged_receipt_proves_nothing(node: Node, console: Subject) -> None:
    trusted = [Verifier.parse(key) for key in node.oversight.public_keys()]
    done = node.shred.run(console, ONE, reason="x")
    node.upkeep.checkpoint()
    lines = node.oversight.prove(console, str(done.event)).split("\n")
    extra = json.loads(base64.b64decode(lines[1].removeprefix("extra ")))
    other = documents.sign("receipt", {**documents.read(done.receipt).said, "instances": 1}, [node.keyring.instance_signer])
    extra["document"] = base64.b64encode(other.encode()).decode()
    lines[1] = "extra " + base64.b64encode(json.dumps(extra, sort_keys=True, separators=(",", ":")).encode()).decode()
    with pytest.raises(LedgerBroken, match="another document"):
        proofs.check("\n".join(lines), trusted=trusted)


def test_what_refuses(node: Node, console: Subject) -> None:
    node.accounts.add_role(console, "cleaner", ["purge"])
    for who in ("mia", "tom", "eve"):
        node.accounts.add_user(console, who, password=archives.PASSWORD)
    node.accounts.add_grant(console, to="mia", role="cleaner", target=Target("study", ONE))
    node.accounts.add_grant(console, to="tom", role="cleaner", target=Target("study", "1.2.4"))
    archives.store(node, archives.instance(7, series=f"{ONE}.2"))
    node.accounts.add_grant(console, to="eve", role="cleaner", target=Target("series", f"{ONE}.2"))
    told = set()
    for who, uid in (("tom", ONE), ("eve", ONE), ("tom", "9.9.9")):  # not theirs, not all theirs, not there
        with pytest.raises(NotFound) as refused:
            node.shred.run(archives.user(node, who), uid, reason="x")
        told.add((refused.value.message, refused.value.remedy))
    assert len(told) == 1
    with pytest.raises(InvalidRequest):
        node.shred.run(console, ONE, reason=" ")
    hold = node.holds.add(console, "clinical", ONE, reason="court")
    for who in (console, archives.user(node, "mia")):
        with pytest.raises(StateConflict, match="hold"):
            node.shred.run(who, ONE, reason="x")
    assert len(crowd.part10(node, ONE)) == 3
    with pytest.raises(Forbidden):
        node.shred.receipts(archives.user(node, "mia"), ONE)
    node.holds.remove(console, hold, reason="over")
    assert node.shred.run(archives.user(node, "mia"), ONE, reason="x").instances == 6


# --- cut short -----------------------------------------------------------------------------------------------------------------------


class Cut:
    """Ends the process before the `step`th commit or disk operation."""

    def __init__(self, node: Node, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
        self.count, self.step = 0, step
        for database in (node.core.database, node.core.keystore._database):
            database.before_commit = lambda _tx: self.pass_()
        real = Disk._step

        def before(disk: Disk, name: str) -> int | None:
            self.pass_()
            return real(disk, name)

        monkeypatch.setattr(Disk, "_step", before)

    def pass_(self) -> None:
        self.count += 1
        if self.count > self.step:
            raise Interrupted


def test_cut_short_at_every_step_it_is_finished_or_never_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with archives.opened(archives.made(tmp_path / "made")) as node:
        fill(node)
    step, cut_short, finished = 0, True, 0
    while cut_short:
        folder = tmp_path / str(step)
        shutil.copytree(tmp_path / "made", folder)
        config = archives.configured(folder)
        node = open_node(config, role="background")
        console = archives.the_console(node)
        with monkeypatch.context() as patched:
            Cut(node, patched, step)
            try:
                node.shred.run(console, ONE, reason="x")
                cut_short = False
            except Interrupted:
                pass
        for database in (node.core.database, node.core.keystore._database):
            database.before_commit = lambda _tx: None
            database.close()
        with archives.opened(config, role="background") as node:
            begun = rows(node, sa.select(purged_key.c.key_id))
            if begun:
                finished += 1
            else:
                node.shred.run(archives.the_console(node), ONE, reason="x")
            if step % 4 == 0:
                check_gone(node)
            assert len(node.shred.receipts(archives.the_console(node), ONE)) == 1
            assert keys_of(node)["shredded"] == 1
        shutil.rmtree(folder)
        step += STRIDE
    assert finished > 1


# --- older copies --------------------------------------------------------------------------------------------------------------------


def test_an_older_copy_of_index_and_records_does_not_bring_it_back(tmp_path: Path) -> None:
    """T30: the keystore has moved on."""
    config = archives.made(tmp_path / "made")
    with archives.opened(config) as node:
        fill(node)
        node.core.vault.close()
        copy = {path: path.read_bytes() for path in (*config.segments_dir.iterdir(), config.index_path)}
    with archives.opened(config) as node:
        copy[config.index_path] = config.index_path.read_bytes()
        for path in config.segments_dir.iterdir():
            copy[path] = path.read_bytes()
        node.core.database.checkpoint()
        copy[config.index_path] = config.index_path.read_bytes()
        done = node.shred.run(archives.the_console(node), ONE, reason="x")
        assert done.keys == 1
    for path, data in copy.items():
        path.write_bytes(data)
    for suffix in ("-wal", "-shm"):
        config.index_path.with_name(config.index_path.name + suffix).unlink(missing_ok=True)
    node = open_node(config, role="background")
    try:
        assert "V14" in node.start()
        admin = archives.user(node)
        for one in node.retrieve.instances(admin, "clinical", ONE):
            with pytest.raises(Exception, match="destroyed"):
                b"".join(bytes(view) for view in node.retrieve.open(admin, one))
        found = node.verify.run(archives.the_console(node), "quick").findings
        assert {one.code for one in found if one.sop_instance_uid.startswith(f"{ONE}.")} == {"V05"}
    finally:
        node.close()


def test_a_rebuild_gives_no_second_receipt(tmp_path: Path) -> None:
    from archive.services.rebuild import Rebuild

    config = archives.made(tmp_path)
    with archives.opened(config) as node:
        fill(node)
        node.shred.run(archives.the_console(node), ONE, reason="x")
        node.upkeep.checkpoint()
        node.core.vault.close()
    with archives.opened(config) as node:
        Rebuild(node.core).run(lost=False)
    with archives.opened(config) as node:
        check_gone(node)
