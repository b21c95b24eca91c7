"""A folder that was made is on the disk before anything in it counts: the files of a folder whose name is lost are lost with it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from archive.config import Config
from archive.keys import private_files
from archive.ledger.audit import Event, Kind
from archive.services import setup
from archive.services.restore import restore
from tests.services import archives
from tests.services.test_backup import back_up, elsewhere, way

NOT_KEPT = {"run", "cache"}
"""Made anew when they are not there."""


class Folders:
    """Which folders were made below one, and which of their names a power cut could still take."""

    def __init__(self, below: Path) -> None:
        self.below, self.made, self.unsynced, self.relied_on = below, set[Path](), set[Path](), set[Path]()
        self.synced_files: set[int] = set()  # by inode: some are given their name later

    def mkdir(self, path: Path) -> None:
        if self.below in path.parents and not NOT_KEPT & set(path.relative_to(self.below).parts):
            self.made.add(path)
            self.unsynced.add(path)

    def fsync(self, path: Path, found: os.stat_result) -> None:
        if stat.S_ISREG(found.st_mode):  # somebody wants to rely on it
            self.relied_on |= self.unsynced.intersection(path.parents)
            self.synced_files.add(found.st_ino)
        self.unsynced = {one for one in self.unsynced if one.parent != path}


@contextmanager
def watched(below: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folders]:
    folders, mkdir, fsync = Folders(below), os.mkdir, os.fsync

    def seen_mkdir(path: Any, *args: Any, **options: Any) -> None:
        mkdir(path, *args, **options)
        folders.mkdir(Path(path))

    def seen_fsync(fd: int) -> None:
        fsync(fd)
        folders.fsync(Path(f"/proc/self/fd/{fd}").readlink(), os.fstat(fd))

    with monkeypatch.context() as patched:
        patched.setattr(os, "mkdir", seen_mkdir)
        patched.setattr(os, "fsync", seen_fsync)
        yield folders


def grown(config: Config) -> None:
    with archives.opened(config, role="background") as node:
        archives.store(node, archives.instance(1))
        with node.core.database.begin() as tx:
            for _ in range(600):  # more than one tile of each kind
                node.core.ledger.record(tx, Event(Kind.STOPPED), at=node.core.clock())
        node.accounts.add_user(archives.the_console(node), "mia")
        node.upkeep.checkpoint()
        node.upkeep.snapshot()


def test_of_a_new_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = archives.configured(tmp_path / "srv" / "strongroom")
    with watched(tmp_path, monkeypatch) as folders:
        setup.initialise(config, admin="admin", password=archives.PASSWORD)
    assert {config.storage_dir, config.keys_dir, config.segments_dir, config.ledger_dir, config.storage_dir.parent} <= folders.made
    assert (folders.unsynced, folders.relied_on) == (set(), set())


def test_of_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = archives.made(tmp_path)
    with watched(tmp_path, monkeypatch) as folders:
        grown(config)
    names = {str(path.relative_to(config.ledger_dir)) for path in folders.made if config.ledger_dir in path.parents}
    assert {"tile/0", "tile/0/002.p", "tile/1/000.p", "tile/entries", "bodies", "access"} <= names
    assert (folders.unsynced, folders.relied_on) == (set(), set())


def test_of_a_backup_and_of_what_is_restored_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, target = archives.made(tmp_path / "archive"), tmp_path / "mnt" / "backup"
    Path(config.path).write_text("# a configuration\n", encoding="utf-8")
    grown(config)
    with archives.opened(config, role="background") as node:
        node.core.vault.segments.roll()
        synced: set[int] = set()
        for _ in range(2):  # the second links what the first has
            with watched(tmp_path, monkeypatch) as folders:
                back_up(node, target, keys=True)
            assert {path.name for path in folders.made} >= {"ledger", "tile"}
            assert folders.unsynced == set()
            synced |= folders.synced_files
            files = [path for path in target.rglob("*") if path.is_file() and path.name != ".lock"]
            assert [path for path in files if path.stat().st_ino not in synced] == []
    other = elsewhere(tmp_path / "other")
    with watched(tmp_path / "other", monkeypatch) as folders:
        assert restore(target, other, way(mode="full")).findings == []
    assert other.storage_dir in folders.made
    assert {path for path in folders.unsynced if path.exists()} == set()


def test_a_folder_that_a_run_before_left_empty_is_synced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with watched(tmp_path, monkeypatch) as folders:
        (tmp_path / "left").mkdir()
        private_files.make_directory(tmp_path / "left")
        assert folders.unsynced == set()
        private_files.make_directory(tmp_path / "left" / "a" / "b")
        assert folders.unsynced == set()
    assert (tmp_path / "left" / "a" / "b").stat().st_mode & 0o777 == 0o700
