"""What a catch-up or a rebuild could not do was acknowledged perhaps: it stays, is told, and is done once that is possible."""

from __future__ import annotations

import shutil
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.db.tables import archive_state, instance, segment
from archive.errors import CommitUncertain, DigestMismatch, InvalidInstance
from archive.node import Node, open_node
from archive.services import catchup
from archive.services import purge as purges
from archive.services import store as stores
from archive.vault.vault import FoundRecord, Kind
from tests.services import archives, crowd
from tests.services.test_late_order import ONE, Killed, World, killed
from tests.services.test_nothing_lost import unsure
from tests.services.test_rebuild import lose, rebuild
from tests.services.test_replay import abandon


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(archives.made(tmp_path), tmp_path / "kept.db")


def changes(node: Node) -> list[bytes]:
    """The changes of state that lie in the segments."""
    return [
        found.ref.object_id for file in node.core.vault.segments.files() for found in node.core.vault.scan(file.segment_id)
        if isinstance(found, FoundRecord) and found.ref.kind == Kind.EVENT
    ]


def told(node: Node) -> list[str]:
    """What verify finds, but for the log's own course, which a clock that is set by hand and an older index do to."""
    found = node.verify.run(archives.the_console(node)).findings
    return [one.code for one in found if one.code not in ("V13", "V14", "V16")]


def due_again(world: World) -> None:
    """The same older index put back once more."""
    for path in world.config.storage_dir.glob("index.db*"):
        path.unlink()
    shutil.copy(world._kept, world.config.index_path)
    node = open_node(world.config, clock=world.clock)
    node.oversight.acknowledge(archives.the_console(node), reason="put back again")
    node.close()


def refused(*_args: Any, **_options: Any) -> None:
    raise DigestMismatch("not known here", verdict="V11", remedy="")


def test_a_change_that_could_not_be_done_again_is_kept_and_done_by_the_next_catch_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        archives.store(world.first, archives.instance(number))
    world.keep()
    world.first.remove.reject(archives.the_console(world.first), "clinical", "instance", f"{ONE}.1.2", reason="another patient")
    with monkeypatch.context() as patch:
        patch.setattr(catchup, "apply_change", refused)
        with world.put_back() as node:
            (kept,) = changes(node)
            assert "V11" in told(node)
    with archives.opened(world.config, clock=world.clock) as node:  # nor does a later start sweep it
        assert changes(node) == [kept]
        assert "V11" in told(node)
    due_again(world)
    with archives.opened(world.config, clock=world.clock) as node:
        assert set(crowd.part10(node, ONE)) == {f"{ONE}.1.1"}
        assert told(node) == []


def test_it_is_done_by_a_rebuild(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        archives.store(world.first, archives.instance(number))
    world.keep()
    world.first.remove.reject(archives.the_console(world.first), "clinical", "instance", f"{ONE}.1.2", reason="another patient")
    with monkeypatch.context() as patch:
        patch.setattr(catchup, "apply_change", refused)
        with world.put_back() as node:
            assert len(changes(node)) == 1
    rebuild(world.config)
    with archives.opened(world.config, clock=world.clock) as node:
        assert set(crowd.part10(node, ONE)) == {f"{ONE}.1.1"}
        assert told(node) == []


def test_a_change_that_a_hold_forbade_once_more_is_kept(world: World) -> None:
    """The older index does not know that the hold was let go."""
    console = archives.the_console(world.first)
    archives.store(world.first, archives.instance(1))
    hold = world.first.holds.add(console, "clinical", ONE, reason="a study")
    world.keep()
    world.first.holds.remove(console, hold, reason="over")
    world.first.remove.reject(console, "clinical", "study", ONE, reason="another patient")
    with world.put_back() as node:
        assert len(changes(node)) == 1
        assert "V12" in told(node)


def test_an_instance_that_this_index_does_not_take_is_kept_though_it_is_older_than_a_purge(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was acknowledged by an index of another kind."""
    console = archives.the_console(world.first)
    archives.store(world.first, archives.instance(1, study="1.2.9"))
    world.keep()
    archives.store(world.first, archives.instance(1))
    world.clock.at += timedelta(hours=1)
    world.first.remove.reject(console, "clinical", "study", "1.2.9", reason="another patient")
    world.first.purge.run(console, "clinical", study="1.2.9", reason="another patient")
    adopt = catchup.adopt

    def too_long(core: Any, arrival: Any, *args: Any, **options: Any) -> Any:
        if arrival.scanned.study_instance_uid == ONE:
            raise InvalidInstance("too long", remedy="")
        return adopt(core, arrival, *args, **options)

    monkeypatch.setattr(catchup, "adopt", too_long)
    with world.put_back() as node:
        pass
    monkeypatch.undo()
    due_again(world)
    with archives.opened(world.config, clock=world.clock) as node:
        assert set(crowd.part10(node, ONE)) == {f"{ONE}.1.1"}


def test_what_a_rebuild_misses_is_not_swept_though_it_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger names it, so it is no write cut short: a byte of it rotted, and what lies there is all there is."""
    config = archives.made(tmp_path)
    with archives.opened(config, role="serve") as node:
        with monkeypatch.context() as patch:
            patch.setattr(stores, "adopt", unsure)
            with suppress(CommitUncertain):
                archives.store(node, archives.instance(1))
        archives.store(node, archives.instance(2))
        (row,) = crowd.every(node, sa.select(instance))
        node.upkeep.finish()
    path = config.segments_dir / f"{bytes(row.segment_id).hex()}.seg"
    data = bytearray(path.read_bytes())
    data[row.record_offset + 1000] ^= 1
    path.write_bytes(data)
    lose(config)
    assert not rebuild(config).ok
    for _ in range(2):
        with archives.opened(config) as node:
            there = path.read_bytes()[row.record_offset:][:row.record_bytes]
            assert there == data[row.record_offset:][:row.record_bytes]
            assert "V07" in told(node)
    data[row.record_offset + 1000] ^= 1
    path.write_bytes(data)
    assert rebuild(config).ok
    with archives.opened(config) as node:
        assert set(crowd.part10(node, ONE)) == {f"{ONE}.1.1", f"{ONE}.1.2"}
        assert told(node) == []


@pytest.mark.parametrize("noted", ["now", "by an earlier release"])
def test_a_write_that_is_cut_short_later_is_swept_though_something_is_missed(tmp_path: Path, noted: str) -> None:
    """What is missed cannot lie in a segment that was begun since; else none with such a write would ever be closed."""
    config = archives.made(tmp_path)
    with archives.opened(config, role="serve") as node:
        archives.store(node, archives.instance(1))
        (row,) = crowd.every(node, sa.select(instance))
        node.upkeep.finish()
    (config.segments_dir / f"{bytes(row.segment_id).hex()}.seg").rename(tmp_path / "gone")
    lose(config)
    assert not rebuild(config).ok
    with archives.opened(config, role="serve") as node:
        if noted != "now":
            with node.core.database.begin() as tx:
                tx.execute(sa.update(archive_state).where(archive_state.c.name.startswith("untaken/")).values(value="V01"))
        archives.store(node, archives.instance(2))
        (row,) = crowd.every(node, sa.select(instance))
        path = config.segments_dir / f"{bytes(row.segment_id).hex()}.seg"
        first, end = path.read_bytes()[row.record_offset:][:4096], -(-(row.record_offset + row.record_bytes) // 4096) * 4096
        abandon(node)
    with path.open("r+b") as file:
        file.seek(end)
        file.write(first.replace(bytes(row.object_id), bytes(16)) + bytes(8192) + b"later blocks of it" * 100)
    with archives.opened(config) as node:
        (there,) = crowd.every(node, sa.select(segment).where(segment.c.id == row.segment_id))
        assert there.state == ("closed" if noted == "now" else "open")
        assert set(crowd.part10(node, ONE)) == {f"{ONE}.1.2"}


def test_what_lies_under_a_key_that_is_to_be_destroyed_is_swept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was committed under it went with it; and the purge was killed before it came to the key."""
    console = archives.the_console(world.first)
    archives.store(world.first, archives.instance(1))
    world.keep()
    with monkeypatch.context() as patch:
        patch.setattr(stores, "adopt", killed)
        with suppress(Killed):
            archives.store(world.second, archives.instance(2))
    world.first.remove.reject(console, "clinical", "study", ONE, reason="another patient")
    with monkeypatch.context() as patch:
        patch.setattr(purges, "finish", killed)
        with suppress(Killed):
            world.first.purge.run(console, "clinical", study=ONE, reason="another patient")
    with world.put_back() as node:
        assert told(node) == []
        assert crowd.every(node, sa.select(instance)) == []
