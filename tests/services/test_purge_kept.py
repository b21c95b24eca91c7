"""A purge holds: through power cuts between any two of its steps, a rebuild, a backup and its restore, with nothing gone too much."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.config import Config
from archive.db.tables import instance, purged, purged_key
from archive.errors import ArchiveError
from archive.node import Node, open_node
from archive.services import backup as backups
from archive.services import state_events
from archive.services.drill import Drill
from archive.services.restore import restore
from archive.services.snapshot import Snapshots
from archive.vault.disk import DISK
from tests.services import archives, catalogs
from tests.services.test_backup import back_up, elsewhere, way
from tests.services.test_crash import DIED, FORK, KINDS, Fault, arm
from tests.services.test_purge import ONE, bytes_of, record_of, rows, sound, uids
from tests.services.test_rebuild import lose, rebuild
from tests.services.test_replay import abandon

GONE = f"{ONE}.1.1"
ANEW = ("created_at", "updated_at", "generation")


@pytest.fixture
def no_faults() -> Iterator[None]:
    before = DISK.before
    yield
    DISK.before = before


@pytest.fixture(scope="module")
def rejected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """One study out of sight, one instance of another, and what a byte of the first looks like on the disk."""
    folder = tmp_path_factory.mktemp("rejected")
    with archives.opened(archives.made(folder)) as node:
        console = archives.the_console(node)
        archives.store(node, archives.instance(1, rows=64))
        for number in (1, 2):
            archives.store(node, archives.instance(number, study="1.2.4", PatientID="P2"))
        lies = record_of(node, GONE)
        node.remove.reject(console, "clinical", "study", ONE, reason="test")
        node.remove.reject(console, "clinical", "instance", "1.2.4.1.1", reason="test")
    return folder, lies


def purge(node: Node) -> None:
    node.purge.run(archives.the_console(node), before=node.core.clock(), reason="test")


def strike(config: Config, where: str, kind: str, number: int) -> str:
    """Purge with a fault at one operation; what struck, or nothing when there were fewer."""
    fault = Fault(number, KINDS[kind][0])
    if kind == "death":
        def child() -> None:
            node = open_node(config, role="serve")
            arm(fault, where, node)
            purge(node)
            os._exit(0)

        process = FORK.Process(target=child)
        process.start()
        process.join(60)
        assert process.exitcode in {0, DIED}
        return "death" if process.exitcode == DIED else ""
    node = open_node(config, role="serve")
    try:
        arm(fault, where, node)
        purge(node)
    except ArchiveError:
        assert fault.struck
    finally:
        fault.number = -1
        DISK.before = lambda _number, _name: None
        node.close()
    return fault.struck


@pytest.mark.usefixtures("no_faults")
@pytest.mark.parametrize(("where", "kind", "step"), [("disk", "death", 2), ("commit", "death", 1), ("disk", "error", 5)])
def test_a_fault_at_every_operation_of_a_purge(tmp_path: Path, rejected: tuple[Path, bytes], where: str, kind: str, step: int) -> None:
    """Announced or not, nothing is half: either all is there to be restored, or it is gone, and the next start brings it to its end.

    Only writes and commits change what a start finds, so one before each of them is every moment there is.
    """
    number, outcomes = 0, set()
    step = 1 if "ARCHIVE_TEST_KILLS" in os.environ else step
    while True:
        folder = tmp_path / str(number)
        shutil.copytree(rejected[0], folder)
        config = archives.configured(folder)
        struck = strike(config, where, kind, number)
        with archives.opened(config) as node:
            left = {row.sop_instance_uid for row in rows(node, sa.select(instance))}
            outcomes.add(frozenset(left))
            assert "1.2.4.1.2" in left
            assert (GONE in left) == (rejected[1] in bytes_of(node)), (number, struck)
            assert rows(node, sa.select(purged.c.object_id).where(purged.c.freed_at.is_(None))) == []
            assert rows(node, sa.select(purged_key.c.key_id).where(purged_key.c.destroyed_at.is_(None))) == []
            report = node.verify.run(archives.the_console(node), "standard")
            assert report.findings == [], (number, struck, report.findings)
            assert uids(node, "1.2.4") == {"1.2.4.1.2"}
            if GONE in left:
                assert node.remove.restore(archives.the_console(node), "clinical", "study", ONE, reason="back") == 1
                assert uids(node) == {GONE}
            else:
                assert archives.store(node, archives.instance(1, rows=64)).status == "stored"
                assert uids(node) == {GONE}
        shutil.rmtree(folder)
        if not struck:
            break
        number += step
    assert number >= 3
    assert len(outcomes) >= 2, "it never was cut short before and after the event"


@pytest.mark.parametrize("lost", [False, True])
def test_a_rebuild_does_not_bring_it_back(tmp_path: Path, engine: dict[str, Any], rejected: tuple[Path, bytes], lost: bool) -> None:
    if engine and not lost:
        pytest.skip("one engine is enough where the index stays")
    config = archives.made(tmp_path, **engine)
    with archives.opened(config) as node:
        for number in (1, 2, 3):
            archives.store(node, archives.instance(number, StudyDescription=f"number {number}"))
        archives.store(node, archives.instance(1, study="1.2.4", PatientID="P2"))
        console = archives.the_console(node)
        node.remove.reject(console, "clinical", "instance", GONE, reason="test")
        node.remove.reject(console, "clinical", "study", "1.2.4", reason="test")
        older = {path.name: path.read_bytes() for path in config.segments_dir.glob("*.seg")}
        node.purge.run(console, before=node.core.clock(), reason="test")
        node.upkeep.checkpoint()
        Snapshots(node.core).write()
        before = catalogs.catalog(node, without=ANEW)
    if lost:
        lose(config)
    report = rebuild(config)
    assert report.problems == []
    with archives.opened(config) as node:
        assert uids(node) == {f"{ONE}.1.2", f"{ONE}.1.3"}
        assert {row.sop_instance_uid for row in rows(node, sa.select(instance))} == uids(node)
        assert len(rows(node, sa.select(purged))) == 2
        sound(node)
        after = catalogs.catalog(node, without=ANEW)
        assert {name: after[name] for name in ("instance", "series", "statement")} == {
            name: before[name] for name in ("instance", "series", "statement")}
        assert after["study"][ONE] == before["study"][ONE]
    if lost and not engine:
        # The segments as they were before the purge are put back: nothing of it is taken in, and it is told.
        for name, data in older.items():
            path = config.segments_dir / name
            now = path.read_bytes()
            path.write_bytes(data[: len(now)] + now[len(data) :])
        with archives.opened(config) as node:
            assert "V15" in {one.code for one in node.verify.run(archives.the_console(node), "quick").findings}
            assert len(rows(node, sa.select(instance))) == 2
        rebuild(config)
        with archives.opened(config) as node:
            assert len(rows(node, sa.select(instance))) == 2
            assert "V15" not in {one.code for one in node.verify.run(archives.the_console(node), "quick").findings}


def test_an_event_record_of_an_earlier_release_goes_with_the_key_of_its_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was sealed under the study's key: neither a start nor a rebuild takes it for damage, or for something that is missing."""
    config = archives.made(tmp_path)
    node = open_node(config, role="serve")
    assert node.start() == ""
    console = archives.the_console(node)
    archives.store(node, archives.instance(1))
    archives.store(node, archives.instance(1, study="1.2.4", PatientID="P2"))
    monkeypatch.setattr(state_events, "NO_STUDY", ONE)
    node.remove.reject(console, "clinical", "study", ONE, reason="test")
    monkeypatch.undo()
    assert node.purge.run(console, study=ONE, reason="test").keys == 1
    node.upkeep.checkpoint()
    Snapshots(node.core).write()
    abandon(node)
    with archives.opened(config) as node:
        sound(node)
        assert [row["kind"] for row in node.oversight.search(archives.the_console(node), limit=1000)].count("replayed") == 0
    lose(config)
    assert rebuild(config).problems == []
    with archives.opened(config) as node:
        assert {row.sop_instance_uid for row in rows(node, sa.select(instance))} == {"1.2.4.1.1"}
        sound(node)


def test_a_backup_after_it_is_without_it(tmp_path: Path, rejected: tuple[Path, bytes]) -> None:
    shutil.copytree(rejected[0], tmp_path / "one")
    config, target = archives.configured(tmp_path / "one"), tmp_path / "backup"
    with archives.opened(config) as node:
        node.core.vault.segments.roll()
        node.upkeep.tick()
        back_up(node, target, keys=True)
        assert rejected[1] in b"".join(path.read_bytes() for path in target.rglob("*.seg"))
        purge(node)
        node.upkeep.tick()
        back_up(node, target, keys=True)
        assert rejected[1] not in b"".join(path.read_bytes() for path in target.rglob("*.seg"))
        assert Drill(node.core).run(archives.the_console(node), target, way(mode="full")).ok
    other = elsewhere(tmp_path / "other")
    report = restore(target, other, way(mode="full"))
    assert report.findings == []
    with archives.opened(other) as node:
        assert {row.sop_instance_uid for row in rows(node, sa.select(instance))} == {"1.2.4.1.2"}
        sound(node)


def test_a_purge_while_a_backup_runs(tmp_path: Path, rejected: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """The index in it is older than the segments: the restore does the purge again, and a drill changes no file of the backup."""
    shutil.copytree(rejected[0], tmp_path / "one")
    config, target = archives.configured(tmp_path / "one"), tmp_path / "backup"
    copied = backups._Run._index
    with archives.opened(config) as node:
        node.upkeep.tick()

        def late(run: Any) -> int:
            leaves = copied(run)
            purge(node)
            return leaves

        monkeypatch.setattr(backups._Run, "_index", late)
        back_up(node, target, keys=True)
        there = {path: path.read_bytes() for path in target.rglob("*.seg")}
        drilled = Drill(node.core).run(archives.the_console(node), target, way(mode="full"))
        assert drilled.findings == []
        assert there == {path: path.read_bytes() for path in target.rglob("*.seg")}
    other = elsewhere(tmp_path / "other")
    assert restore(target, other, way(mode="full")).findings == []
    with archives.opened(other) as node:
        assert {row.sop_instance_uid for row in rows(node, sa.select(instance))} == {"1.2.4.1.2"}
        node.upkeep.tick()
        sound(node)
