"""What a backup must never cost or bring back: other folders, other archives, a newer copy, sessions; and an old one, taken knowingly."""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.config import Config
from archive.db.tables import session
from archive.errors import ArchiveError, DigestMismatch, InvalidRequest, ReadOnly
from archive.node import open_node
from archive.services import manifest
from archive.services.backup import Backup
from archive.services.clock import utc_now
from archive.services.drill import Drill
from archive.services.restore import Way, restore
from tests.services import archives


def way(**options: object) -> Way:
    """How the command line restores."""
    return Way(
        opening=lambda config, keyring: open_node(config, keyring=keyring, role="serve"), clock=utc_now, mode="full",
        operator="tester", **options,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def backed_up(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """An archive with closed segments and an open one, and a backup of it with its keys."""
    folder: Path = tmp_path_factory.mktemp("archive")
    config = archives.made(folder)
    with archives.opened(config) as node:
        for number in range(1, 4):
            archives.store(node, archives.instance(number, study="1.2.3", rows=64))
        node.upkeep.tick()
    with archives.opened(config) as node:  # the first segment is closed, and now told in the ledger
        for _ in range(4):
            node.upkeep.tick()
        archives.store(node, archives.instance(1, study="1.2.4", rows=64))
        node.upkeep.checkpoint()
        assert Backup(node.core).run(archives.the_console(node), folder / "backup", keys=True).ok
    return config, folder / "backup"


def empty(folder: Path) -> Config:
    """A configuration of an archive that is not there yet."""
    folder.mkdir()
    return archives.configured(folder)


@pytest.fixture
def copied(backed_up: tuple[Config, Path], tmp_path: Path) -> Path:
    """The backup, carried elsewhere."""
    return shutil.copytree(backed_up[1], tmp_path / "carried")


def test_a_backup_that_is_old_is_taken_knowingly(backed_up: tuple[Config, Path], copied: Path, tmp_path: Path) -> None:
    """Keystore and ledger may have been signed beyond the copied index, and hours lie between: neither is a finding afterwards."""
    config = empty(tmp_path / "machine")
    later = utc_now() + timedelta(days=40)

    def clock() -> datetime:
        return later

    report = restore(copied, config, Way(
        opening=lambda config, keyring: open_node(config, keyring=keyring, role="serve", clock=clock), clock=clock, mode="full",
    ))
    assert report.findings == []
    with archives.opened(config, clock=clock) as node:
        node.upkeep.tick()
        assert node.verify.run(archives.the_console(node), "full").findings == []
        kinds_told = {row["kind"] for row in node.oversight.search(archives.the_console(node))}
        assert "rebuilt" in kinds_told


def test_sessions_do_not_come_back(tmp_path: Path) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config) as node:
        node.signin.password("admin", archives.PASSWORD, address="127.0.0.1", user_agent="test")
        assert Backup(node.core).run(archives.the_console(node), tmp_path / "backup", keys=True).ok
        with node.core.database.read() as tx:
            assert len(tx.execute(sa.select(session)).all()) == 1
    there = empty(tmp_path / "machine")
    restore(tmp_path / "backup", there, way())
    with archives.opened(there) as node, node.core.database.read() as tx:
        assert tx.execute(sa.select(session)).all() == []


# --- folders that are something else -----------------------------------------------------------------------------------------------


def test_the_archives_own_folders_and_foreign_ones_are_never_written_to(tmp_path: Path) -> None:
    config = archives.made(tmp_path)
    foreign = tmp_path / "foreign"
    (foreign / "segments").mkdir(parents=True)
    (foreign / "segments" / "precious").write_bytes(b"x")
    with archives.opened(config) as node:
        archives.store(node, archives.instance(1))
        before = sorted(path.name for path in config.segments_dir.iterdir())
        backup, console = Backup(node.core), archives.the_console(node)
        for folder in (config.storage_dir, config.segments_dir, config.keys_dir, config.storage_dir / "backup", tmp_path, foreign):
            with pytest.raises(InvalidRequest):
                backup.run(console, folder)
        assert sorted(path.name for path in config.segments_dir.iterdir()) == before
        assert node.verify.run(console, "full").findings == []
    assert (foreign / "segments" / "precious").read_bytes() == b"x"
    assert not (config.storage_dir / "sets").exists()


def test_another_archives_backup_is_left_alone(backed_up: tuple[Config, Path], copied: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = archives.made(tmp_path / "other", own_keys=True)
    before = sorted(str(path) for path in copied.rglob("*"))
    with archives.opened(other) as node, pytest.raises(ArchiveError, match="another archive"):
        Backup(node.core).run(archives.the_console(node), copied)
    assert [path for path in sorted(str(path) for path in copied.rglob("*")) if not path.endswith(".lock")] == [
        path for path in before if not path.endswith(".lock")
    ]


def test_an_archive_that_was_rolled_back_takes_no_newer_copys_place(backed_up: tuple[Config, Path], copied: Path) -> None:
    current = (copied / "current").read_bytes()
    node = open_node(backed_up[0], read_only="rolled back")
    try:
        with pytest.raises(ReadOnly):
            Backup(node.core).run(archives.the_console(node), copied)
    finally:
        node.close()
    assert (copied / "current").read_bytes() == current


def test_a_backup_that_failed_its_drill_is_mended_by_the_next_run(backed_up: tuple[Config, Path], copied: Path) -> None:
    (one,) = (copied / "segments").iterdir()
    data = one.read_bytes()
    tile = next(path for path in sorted((manifest.current(copied) / "ledger" / "bodies").rglob("*")) if path.is_file())
    for path in (one, tile):
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    with archives.opened(backed_up[0]) as node:
        console = archives.the_console(node)
        with pytest.raises(ArchiveError):
            Drill(node.core).run(console, copied, way())
        assert Backup(node.core).run(console, copied, keys=True).ok
        assert one.read_bytes() == data
        assert Drill(node.core).run(console, copied, way()).ok


def test_a_backup_whose_list_is_damaged_is_made_anew(backed_up: tuple[Config, Path], copied: Path) -> None:
    (manifest.current(copied) / "manifest.json").write_bytes(b"{")
    with archives.opened(backed_up[0]) as node:
        console = archives.the_console(node)
        assert Backup(node.core).run(console, copied, keys=True).ok
        assert Drill(node.core).run(console, copied, way()).ok


def test_an_attempt_that_is_refused_leaves_the_servers_database_empty(
    tmp_path: Path, backed_up: tuple[Config, Path], postgresql_url: str
) -> None:
    _config, kept = backed_up
    target = tmp_path / "backup"
    shutil.copytree(kept, target)
    path = next((target / "segments").iterdir())
    data = path.read_bytes()
    path.write_bytes(data[:4096] + bytes([data[4096] ^ 1]) + data[4097:])
    fresh = archives.configured(tmp_path / "fresh", database={"url": postgresql_url})
    with pytest.raises(DigestMismatch):
        restore(target, fresh, way())
    path.write_bytes(data)
    assert restore(target, fresh, way()).ok
    with archives.opened(fresh) as node:
        assert node.retrieve.instances(archives.user(node), "clinical", "1.2.3")
