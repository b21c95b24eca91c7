"""A crash between any two steps of a store: what was acknowledged is there, nothing is half visible, a second start changes nothing."""

from __future__ import annotations

import random
import shutil
import string
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.db.tables import ledger_leaf, segment
from archive.errors import CommitUncertain, DatabaseUnavailable, OutOfSpace
from archive.node import Node, open_node
from archive.services import replay
from archive.services import store as stores
from archive.services.clock import utc_now
from archive.vault.vault import FoundRecord, Kind
from tests.services import archives, crowd


class PowerCut(BaseException):
    """Stands for the process ending here."""


def visible(node: Node) -> list[bytes]:
    admin = archives.user(node)
    try:
        found = node.retrieve.instances(admin, "clinical", "1.2.3")
    except Exception:  # noqa: BLE001 # nothing there
        return []
    return [b"".join(bytes(view) for view in node.retrieve.open(admin, one)) for one in found]


def leaves(node: Node) -> int:
    with node.core.database.read() as tx:
        return int(tx.execute(sa.select(sa.func.count()).select_from(ledger_leaf)).scalar_one())


def abandon(node: Node) -> None:
    """What the kernel does for a killed process: descriptors close, nothing else happens."""
    node.core.vault.segments._on_close = lambda _segment, _used, _replay_from: None  # type: ignore[attr-defined]
    for name in ("_shut", "roll"):
        setattr(node.core.vault.segments, name, lambda *_args: None)
    one = getattr(node.core.vault.segments, "_open", None)
    if one is not None:
        import os

        os.close(one.fd)
    for progress in node.core.vault.segments._progress.values():  # type: ignore[attr-defined]
        progress.let_go()
    node.core.database.close()
    node.core.keystore.close()


@pytest.fixture
def folder(tmp_path: Path, engine: dict[str, Any]) -> Path:
    archives.made(tmp_path, **engine)
    return tmp_path


def test_a_record_whose_commit_never_came_is_adopted_at_the_next_start(folder: Path) -> None:
    config = archives.configured(folder)
    node = archives.open_node(config)
    node.start()
    first, second = archives.instance(1), archives.instance(2)
    archives.store(node, first)

    def die(_tx: Any) -> None:
        raise PowerCut

    node.core.database.before_commit = die
    node.core.vault.forget = lambda _refs: None  # type: ignore[method-assign] # a dead process frees nothing
    with pytest.raises(PowerCut):
        archives.store(node, second)
    abandon(node)

    with archives.opened(config) as node:
        assert visible(node) == [first, second]
        count = leaves(node)
        assert node.verify.run(archives.the_console(node), "full").findings == []
        assert archives.store(node, second).status == "duplicate"
    with archives.opened(config) as node:
        assert visible(node) == [first, second]
        assert leaves(node) >= count


def test_a_second_start_changes_nothing(folder: Path) -> None:
    config = archives.configured(folder)
    with archives.opened(config) as node:
        archives.store(node, archives.instance(1))

    def state(node: Node) -> list[Any]:
        with node.core.database.read() as tx:
            return [tuple(row) for row in tx.execute(sa.select(segment.c.name, segment.c.state, segment.c.used, segment.c.replay_from))]

    with archives.opened(config) as node:
        once = state(node)
    with archives.opened(config) as node:
        assert state(node) == once
        assert visible(node) == [archives.instance(1)]


def test_a_torn_record_is_ignored_and_acknowledged_ones_stay(folder: Path) -> None:
    config = archives.configured(folder)
    node = archives.open_node(config)
    node.start()
    archives.store(node, archives.instance(1))
    ref = node.retrieve.instances(archives.user(node), "clinical", "1.2.3")[0].row.ref
    path = config.segments_dir / f"{ref.location.segment_id.hex()}.seg"
    end = ref.location.offset + ref.location.record_bytes
    abandon(node)
    with path.open("r+b") as file:
        file.seek(-(-end // 4096) * 4096)
        file.write(b"\x89SRM\r\n\x1a\n" + bytes(range(200)) * 15)  # what a write that never finished can look like
    with archives.opened(config) as node:
        assert visible(node) == [archives.instance(1)]


@pytest.mark.parametrize("failure", [DatabaseUnavailable("x"), OutOfSpace("x")])
def test_a_commit_that_fails_is_answered_as_failure_and_leaves_nothing(folder: Path, failure: Exception) -> None:
    config = archives.configured(folder)
    with archives.opened(config) as node:
        calls = []

        def refuse(_tx: Any) -> None:
            calls.append(1)
            raise failure

        archives.store(node, archives.instance(1))
        before = node.core.database.before_commit
        node.core.database.before_commit = refuse
        with pytest.raises(type(failure)):
            archives.store(node, archives.instance(2))
        node.core.database.before_commit = before
        assert calls
        assert visible(node) == [archives.instance(1)]
        assert archives.store(node, archives.instance(2)).status == "stored"
    with archives.opened(config) as node:
        assert visible(node) == [archives.instance(1), archives.instance(2)]
        assert node.verify.run(archives.the_console(node), "full").findings == []


def test_an_unacknowledged_rejection_is_swept(folder: Path) -> None:
    config = archives.configured(folder)
    node = archives.open_node(config)
    node.start()
    archives.store(node, archives.instance(1))

    def die(_tx: Any) -> None:
        raise PowerCut

    node.core.database.before_commit = die
    node.core.vault.forget = lambda _refs: None  # type: ignore[method-assign]
    with pytest.raises(PowerCut):
        node.remove.reject(archives.the_console(node), "clinical", "study", "1.2.3", reason="test")
    abandon(node)
    with archives.opened(config) as node:
        assert visible(node) == [archives.instance(1)]
        assert node.verify.run(archives.the_console(node), "full").findings == []


def segments_of(node: Node) -> list[Any]:
    with node.core.database.read() as tx:
        return [tuple(row) for row in tx.execute(sa.select(segment.c.name, segment.c.state, segment.c.used, segment.c.replay_from))]


def replays(node: Node) -> int:
    with node.core.database.read() as tx:
        return int(tx.execute(sa.select(sa.func.count()).where(ledger_leaf.c.data.contains(b'"replayed"'))).scalar_one())


def test_a_record_cut_short_is_swept_once_and_is_no_damage(folder: Path) -> None:
    config = archives.configured(folder)
    node = archives.open_node(config)
    node.start()
    archives.store(node, archives.instance(1))
    ref = node.retrieve.instances(archives.user(node), "clinical", "1.2.3")[0].row.ref
    path = config.segments_dir / f"{ref.location.segment_id.hex()}.seg"
    abandon(node)
    data = path.read_bytes()
    start, end = ref.location.offset, ref.location.offset + ref.location.record_bytes
    padded = -(-end // 4096) * 4096
    torn = data[start : start + 4096].replace(ref.object_id, bytes(16))
    with path.open("r+b") as file:
        file.seek(padded)
        file.write(torn + bytes(8192) + b"later blocks of it" * 100)
    with archives.opened(config) as node:
        assert visible(node) == [archives.instance(1)]
        assert node.verify.run(archives.the_console(node), "keyless").findings == []
        once, told = segments_of(node), replays(node)
    with archives.opened(config) as node:
        assert (segments_of(node), replays(node)) == (once, told)


def test_a_damaged_record_that_has_its_row_is_not_swept(folder: Path) -> None:
    config = archives.configured(folder)
    node = archives.open_node(config)
    node.start()
    archives.store(node, archives.instance(1))
    ref = node.retrieve.instances(archives.user(node), "clinical", "1.2.3")[0].row.ref
    with node.core.database.begin() as tx:
        tx.execute(sa.update(segment).values(replay_from=4096))
    path = config.segments_dir / f"{ref.location.segment_id.hex()}.seg"
    abandon(node)
    with path.open("r+b") as file:
        file.seek(ref.location.offset + 300)
        file.write(b"x")
    before = path.read_bytes()[:ref.location.offset + ref.location.record_bytes]
    with archives.opened(config):
        assert path.read_bytes()[:len(before)] == before


def test_files_and_rows_of_segments_that_never_held_a_record_go(folder: Path) -> None:
    import os

    config = archives.configured(folder)
    node = archives.open_node(config)
    node.start()
    archives.store(node, archives.instance(1))
    abandon(node)
    empty = config.segments_dir / f"{os.urandom(16).hex()}.seg"
    empty.write_bytes(b"")
    headed = config.segments_dir / f"{os.urandom(16).hex()}.seg"
    headed.write_bytes(b"\x89SRS" + bytes(1 << 20))
    ghost = os.urandom(16)
    node = archives.open_node(config)
    node.core.vault.segments._on_open(ghost, f"{ghost.hex()}.seg")  # type: ignore[attr-defined]
    node.close()
    with archives.opened(config) as node:
        assert not empty.exists()
        assert not headed.exists()
        assert len(segments_of(node)) == 1
        assert replays(node) == 0
        assert node.verify.run(archives.the_console(node), "full").findings == []


def unsettled(folder: Path, data: bytes) -> None:
    """Leave a record that no row names."""
    node = archives.open_node(archives.configured(folder))
    incoming = node.store.open(archives.the_console(node), "clinical", archives.Source("stow"))
    incoming.write(data)
    scanned = incoming._intake.finish()
    if incoming._writer is None:
        incoming._open_record(scanned)
    assert incoming._writer is not None
    incoming._seal(scanned, incoming._writer, durable=True)
    abandon(node)


def test_a_record_that_no_index_takes_does_not_stop_the_start(folder: Path) -> None:
    """PostgreSQL refuses it for good: it was never acknowledged there, and stays where it lies."""
    long = "".join(random.Random(1).choices(string.ascii_letters, k=20_000))
    unsettled(folder, archives.instance(7, study="1.7", PatientID=long))
    for _ in range(2):
        with archives.opened(archives.configured(folder)) as node:
            assert archives.store(node, archives.instance(1)).status in {"stored", "duplicate"}
            assert visible(node) == [archives.instance(1)]


def test_an_unsettled_copy_of_a_rejected_instance_does_not_stop_the_start(folder: Path) -> None:
    config = archives.configured(folder)
    unsettled(folder, archives.instance(1))
    node = archives.open_node(config)
    archives.store(node, archives.instance(1))
    node.remove.reject(archives.the_console(node), "clinical", "study", "1.2.3", reason="test")
    node.close()
    with archives.opened(config) as node:
        assert visible(node) == []
        assert node.verify.run(archives.the_console(node), "full").findings == []


def test_a_large_copy_of_what_is_stored_is_swept_with_its_file(folder: Path) -> None:
    config = archives.configured(folder)
    data = archives.instance(1, rows=1600)
    unsettled(folder, data)
    node = archives.open_node(config)
    archives.store(node, data)
    node.close()
    with archives.opened(config) as node:
        assert visible(node) == [data]
        assert len(list(config.segments_dir.iterdir())) == len(segments_of(node)) == 1
        assert node.verify.run(archives.the_console(node), "full").findings == []


def test_a_start_beside_a_store_may_adopt_its_record_first(folder: Path) -> None:
    from archive.services.replay import Replay

    config = archives.configured(folder)
    data = archives.instance(1, rows=1600)  # its segment is closed before its rows are committed
    with archives.opened(config) as node, archives.opened(config) as other:
        group = node.core.database.group_all

        def first(works: Any, **options: Any) -> Any:
            Replay(other.core).run()
            return group(works, **options)

        node.core.database.group_all = first  # type: ignore[method-assign]
        assert archives.store(node, data).status == "stored"
        node.core.database.group_all = group  # type: ignore[method-assign]
        assert visible(node) == [data]
        assert node.verify.run(archives.the_console(node), "full").findings == []


def test_a_closed_segment_that_was_hashed_is_not_cut_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was closed while its last record waited, and that one was not kept: the hole it left is part of what was hashed."""
    config, at = archives.made(tmp_path), [utc_now()]
    with archives.opened(config, role="background", clock=lambda: at[0]) as node:
        archives.store(node, archives.instance(1))

        def closed_meanwhile(core: Any, *_arguments: Any, **_named: Any) -> Any:
            core.vault.segments.roll()
            raise DatabaseUnavailable("none left", remedy="")

        with monkeypatch.context() as then:
            then.setattr(stores, "adopt", closed_meanwhile)
            with pytest.raises(DatabaseUnavailable):
                archives.store(node, archives.instance(2))
        at[0] += replay.UNSETTLED_AT_MOST * 2
        for _ in range(3):
            node.upkeep.tick()
        before, = crowd.every(node, sa.select(segment.c.name, segment.c.sha256))
        assert before.sha256 is not None
        size = (config.segments_dir / before.name).stat().st_size
    with archives.opened(config, clock=lambda: at[0]) as node:
        assert (config.segments_dir / before.name).stat().st_size == size
        assert node.verify.run(archives.the_console(node), "keyless").findings == []
        assert visible(node) == [archives.instance(1)]


def test_a_change_of_state_that_rots_is_damage_and_not_a_write_cut_short(tmp_path: Path) -> None:
    config = archives.made(tmp_path)
    node = archives.open_node(config)
    node.start()
    archives.store(node, archives.instance(1))
    node.remove.reject(archives.the_console(node), "clinical", "study", "1.2.3", reason="sent twice")
    place = node.core.vault.segments.files()[0]
    records = [found for found in node.core.vault.scan(place.segment_id) if isinstance(found, FoundRecord)]
    event = next(found for found in records if found.ref.kind == Kind.EVENT)
    abandon(node)
    where = event.ref.location.offset + event.ref.location.record_bytes - 20
    path = config.segments_dir / place.name
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)
    for _ in range(2):
        node = archives.open_node(config)
        node.start()
        assert path.read_bytes()[where] == data[where], "it is left where it is"
        assert visible(node) == []
        abandon(node)


def test_a_lost_segment_that_held_changes_of_state_alone_is_told(folder: Path) -> None:
    config = archives.configured(folder)
    with archives.opened(config) as node:
        archives.store(node, archives.instance(1))
    node = archives.open_node(config)
    node.start()
    node.remove.reject(archives.the_console(node), "clinical", "study", "1.2.3", reason="sent twice")
    (name,) = [row[0] for row in segments_of(node) if row[1] == "open"]
    abandon(node)
    (config.segments_dir / name).unlink()
    for _ in range(2):
        with archives.opened(config) as node:
            found = node.verify.run(archives.the_console(node)).findings
            assert ("V01", f"segment {name} is missing") in [(one.code, one.detail) for one in found]


def test_what_came_after_a_purge_by_a_clock_that_was_ahead_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no leftover from before, though its time says so: the power went before its rows were on the disk."""
    config, at = archives.made(tmp_path), [utc_now() + timedelta(hours=3)]
    node = open_node(config, role="dimse", clock=lambda: at[0])
    console = archives.the_console(node)
    for number in (1, 2):
        archives.store(node, archives.instance(number))
    node.remove.reject(console, "clinical", "instance", "1.2.3.1.2", reason="another patient")
    node.purge.run(console, "clinical", study="1.2.3", reason="another patient")
    at[0] -= timedelta(hours=2)
    archives.store(node, archives.instance(3))
    with monkeypatch.context() as then:
        then.setattr(stores, "adopt", _gone)
        with pytest.raises(_Gone):
            archives.store(node, archives.instance(4))
    node.core.vault.close()
    node.core.database.close()
    node.core.keystore.close()
    at[0] += timedelta(minutes=30)
    with archives.opened(config, clock=lambda: at[0]) as node:
        assert visible(node) == [archives.instance(number) for number in (1, 3, 4)]


class _Gone(BaseException):
    """The process ends here."""


def _gone(*_arguments: Any, **_named: Any) -> Any:
    raise _Gone


@pytest.mark.parametrize("purged_after", [timedelta(hours=1), timedelta(seconds=1)])
def test_what_nobody_was_promised_does_not_come_back_after_a_purge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, purged_after: timedelta
) -> None:
    """A commit that was not answered leaves its record; the instance sent again was stored, and purged while its study stayed."""
    config, at = archives.made(tmp_path), [utc_now()]
    with archives.opened(config, clock=lambda: at[0]) as node:
        console = archives.the_console(node)
        archives.store(node, archives.instance(1))

        def unanswered(*_arguments: Any, **_named: Any) -> Any:
            raise CommitUncertain("nobody knows", remedy="")

        with monkeypatch.context() as then:
            then.setattr(stores, "adopt", unanswered)
            with pytest.raises(CommitUncertain):
                archives.store(node, archives.instance(2))
        archives.store(node, archives.instance(2))
        at[0] += purged_after
        node.remove.reject(console, "clinical", "instance", "1.2.3.1.2", reason="another patient")
        node.purge.run(console, "clinical", study="1.2.3", reason="another patient")
        assert visible(node) == [archives.instance(1)]
    with archives.opened(config, clock=lambda: at[0]) as node:
        # So soon after, the record might be one whose commit is under way: what was acknowledged must not be lost.
        expected = [archives.instance(1)] if purged_after > replay.UNSETTLED_AT_MOST else [archives.instance(1), archives.instance(2)]
        assert visible(node) == expected
        assert node.verify.run(archives.the_console(node), "full").findings == []


@pytest.mark.parametrize(("between", "later"), [(True, timedelta(hours=3)), (False, timedelta(minutes=5))])
def test_what_was_acknowledged_after_a_purge_is_taken_in_though_the_clock_was_set_back(
    tmp_path: Path, between: bool, later: timedelta
) -> None:
    """It was hours ahead at the purge, so that by it the record is older; the power went before its rows were synced."""
    config, at = archives.made(tmp_path), [utc_now() + timedelta(hours=2)]
    node = archives.open_node(config, clock=lambda: at[0])
    console = archives.the_console(node)
    archives.store(node, archives.instance(1, study="1.2.9"))
    node.remove.reject(console, "clinical", "study", "1.2.9", reason="another patient")
    node.purge.run(console, "clinical", study="1.2.9", reason="another patient")
    at[0] -= timedelta(hours=2)
    if between:
        node.accounts.add_user(console, "mia")
    node.core.database.checkpoint()
    shutil.copy(config.index_path, tmp_path / "synced.db")
    assert archives.store(node, archives.instance(1)).status == "stored"
    abandon(node)
    for path in config.storage_dir.glob("index.db*"):
        path.unlink()
    shutil.copy(tmp_path / "synced.db", config.index_path)
    at[0] += later
    with archives.opened(config, clock=lambda: at[0]) as node:
        assert visible(node) == [archives.instance(1)]
