"""A restore that is killed at any moment is given again: nothing of the first stands in its way, and no key lies where nobody looks."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.config import Config
from archive.db.engine import Database
from archive.db.tables import ledger_leaf
from archive.errors import ConfigurationError, KeysUnavailable, OutOfSpace, Unavailable
from archive.keys import private_files
from archive.services import restore as restores
from archive.services import restoring, setup
from archive.services.restore import restore
from tests.services import archives, catalogs
from tests.services.test_backup import Cut, back_up, elsewhere, way


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """An archive and its backup with the key file."""
    place = tmp_path_factory.mktemp("whole")
    config = archives.made(place)
    with archives.opened(config) as node:
        for number in (1, 2):
            archives.store(node, archives.instance(number))
        back_up(node, place / "backup", keys=True)
    return config, place / "backup"


@pytest.fixture(scope="module")
def kitted(whole: tuple[Config, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A backup without its key file, and the recovery kit that opens it."""
    place = tmp_path_factory.mktemp("kitted")
    with archives.opened(whole[0]) as node:
        node.keys.slot_add(archives.the_console(node), recovery_kit=place / "kit.txt")
        back_up(node, place / "backup")
    return place / "backup", place / "kit.txt"


@pytest.mark.parametrize("opened_by", ["the key file", "a kit"])
@pytest.mark.parametrize("moment", ["staged", "root.key", "keyring.json", "swept"])
def test_a_restore_that_is_killed_is_given_again_and_leaves_no_key_in_its_stage(
    tmp_path: Path, whole: tuple[Config, Path], kitted: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, moment: str, opened_by: str
) -> None:
    fresh, write = elsewhere(tmp_path / "new"), private_files.write
    folder, given = (whole[1], way()) if opened_by == "the key file" else (kitted[0], way(recovery_kit=kitted[1]))
    stage = fresh.storage_dir / restoring.STAGE

    def cut(*_args: Any) -> None:
        if moment == "staged" or (fresh.keys_dir / "keyring.json").exists():
            raise Cut

    def cut_write(path: Path, data: bytes, **options: Any) -> None:
        if path.parent == fresh.keys_dir and path.name == moment:
            path.with_name(f".{moment}.0123456789ab").write_bytes(data)
            raise Cut
        write(path, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(restores, "_forget", lambda *_args, **_options: None)
        patch.setattr(restores, "_move", cut) if moment == "staged" else patch.setattr(restoring, "sweep", cut)
        patch.setattr(private_files, "write", cut_write)
        with pytest.raises(Cut):
            restore(folder, fresh, given)
    assert stage.is_dir()
    assert not list(stage.rglob("*.key"))
    if moment == "swept":
        with pytest.raises(ConfigurationError, match="not empty"):
            restore(folder, fresh, given)
    else:
        with pytest.raises(ConfigurationError) as refused:  # 'archive up' would serve an empty archive where the clinic's was to be
            setup.initialise(fresh, password=archives.PASSWORD)
        assert "archive restore" in refused.value.remedy
        assert restore(folder, fresh, given).ok
    assert not stage.exists()
    assert not list(fresh.keys_dir.glob(".*"))
    with archives.opened(fresh) as node:  # by its key file
        assert node.verify.run(archives.the_console(node), "full").findings == []


@pytest.mark.parametrize("moment", ["staged", "moved"])
def test_one_that_is_given_while_another_is_at_work_leaves_it_alone(
    tmp_path: Path, kitted: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    fresh, given = elsewhere(tmp_path / "new"), way(recovery_kit=kitted[1])
    refused = []

    def again(original: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            if not refused and (moment == "staged" or args[0] == fresh.keys_dir / "keyring.json"):
                refused.append(True)
                with pytest.raises(Unavailable, match="at work"):
                    restore(kitted[0], fresh, given)
            return original(*args, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(restores, "_move", again(restores._move)) if moment == "staged" else patch.setattr(
            private_files, "write", again(private_files.write))
        assert restore(kitted[0], fresh, given).ok
    assert refused
    assert not (fresh.storage_dir / restoring.STAGE).exists()
    with archives.opened(fresh) as node:
        assert node.verify.run(archives.the_console(node), "full").findings == []


def test_a_restore_with_a_kit_that_fails_leaves_no_key_file(
    tmp_path: Path, kitted: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = elsewhere(tmp_path / "new")

    def fails(*_args: Any) -> None:
        message = "the disk is full"
        raise OutOfSpace(message)

    monkeypatch.setattr(restores, "_settle", fails)
    with pytest.raises(OutOfSpace):
        restore(kitted[0], fresh, way(recovery_kit=kitted[1]))
    assert not [path for path in fresh.storage_dir.rglob("*") if path.is_file()]


def test_a_key_of_another_at_its_place_is_told_and_left(
    tmp_path: Path, whole: tuple[Config, Path], kitted: tuple[Path, Path]
) -> None:
    """A restored archive that its key file does not open would be found out by the next start."""
    fresh, of_another = elsewhere(tmp_path / "new"), archives.made(tmp_path / "other", own_keys=True).key_file.read_bytes()
    private_files.make_directory(fresh.keys_dir)
    private_files.write(fresh.key_file, of_another)
    for folder in (whole[1], kitted[0]):
        with pytest.raises(KeysUnavailable, match="already, and it is not the backup's"):
            restore(folder, fresh, way(key_file=whole[0].key_file))
        assert [path for path in fresh.storage_dir.rglob("*") if path.is_file()] == [fresh.key_file]
        assert fresh.key_file.read_bytes() == of_another


def test_a_key_that_opens_it_as_well_stays_at_its_place(tmp_path: Path, whole: tuple[Config, Path]) -> None:
    other = tmp_path / "second.key"
    with archives.opened(whole[0]) as node:
        node.keys.slot_add(archives.the_console(node), key_file=other)
        back_up(node, tmp_path / "backup")
    fresh = elsewhere(tmp_path / "new")
    private_files.make_directory(fresh.keys_dir)
    shutil.copy(other, fresh.key_file)
    assert restore(tmp_path / "backup", fresh, way(key_file=whole[0].key_file)).ok
    assert fresh.key_file.read_bytes() == other.read_bytes()
    with archives.opened(fresh):
        pass


@pytest.mark.parametrize("opened_by", ["the key file", "a kit"])
def test_a_restore_that_fails_takes_no_key_away_that_somebody_put_there_meanwhile(
    tmp_path: Path, whole: tuple[Config, Path], kitted: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, opened_by: str
) -> None:
    fresh = elsewhere(tmp_path / "new")
    folder, given = (whole[1], way()) if opened_by == "the key file" else (kitted[0], way(recovery_kit=kitted[1]))

    def fails(*_args: Any) -> None:
        fresh.key_file.unlink(missing_ok=True)
        private_files.make_directory(fresh.keys_dir)
        shutil.copy(whole[0].key_file, fresh.key_file)
        message = "the disk is full"
        raise OutOfSpace(message)

    monkeypatch.setattr(restores, "_settle", fails)
    with pytest.raises(OutOfSpace):
        restore(folder, fresh, given)
    assert fresh.key_file.read_bytes() == whole[0].key_file.read_bytes()


def test_a_start_takes_away_what_a_restore_left_that_was_whole(
    tmp_path: Path, whole: tuple[Config, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a restore given later, the keyring being lost, would take the archive for its own half-made one."""
    fresh = elsewhere(tmp_path / "new")
    with monkeypatch.context() as patch:
        patch.setattr(restoring, "sweep", lambda _config: None)
        assert restore(whole[1], fresh, way()).ok
    assert (fresh.storage_dir / restoring.STAGE / restoring.MOVING).exists()
    with archives.opened(fresh) as node:
        archives.store(node, archives.instance(3))
    assert not (fresh.storage_dir / restoring.STAGE).exists()
    shutil.move(fresh.keys_dir / "keyring.json", tmp_path / "lost.json")
    with pytest.raises(ConfigurationError, match="not empty"):
        restore(whole[1], fresh, way())
    shutil.move(tmp_path / "lost.json", fresh.keys_dir / "keyring.json")
    with archives.opened(fresh) as node:
        assert len(catalogs.visible(node, "admin", "1.2.3")) == 3


@pytest.mark.parametrize("gone_on", [False, True])
def test_a_restore_onto_a_server_that_is_killed_is_given_again(
    tmp_path: Path, whole: tuple[Config, Path], monkeypatch: pytest.MonkeyPatch, postgresql_url: str, *, gone_on: bool
) -> None:
    """The database is emptied where it holds what that restore filled it with, and nothing since."""
    (tmp_path / "server").mkdir()
    fresh = archives.configured(tmp_path / "server", database={"url": postgresql_url})
    write = private_files.write

    def cut(path: Path, data: bytes, **options: Any) -> None:
        if path == fresh.keys_dir / "keyring.json":
            raise Cut
        write(path, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(restores, "_forget", lambda *_args, **_options: None)
        patch.setattr(private_files, "write", cut)
        with pytest.raises(Cut):
            restore(whole[1], fresh, way())
    with closing(Database(postgresql_url)) as server, server.begin() as tx:
        newest = tx.execute(sa.select(ledger_leaf).order_by(ledger_leaf.c.n.desc()).limit(1)).one()
        if gone_on:
            tx.execute(sa.insert(ledger_leaf).values(n=newest.n + 1, data=b"{}", hash=bytes(32)))
    if gone_on:
        with pytest.raises(ConfigurationError, match="holds an archive already"):
            restore(whole[1], fresh, way())
        with closing(Database(postgresql_url)) as server, server.read() as tx:
            assert tx.execute(sa.select(sa.func.max(ledger_leaf.c.n))).scalar() == newest.n + 1
        return
    assert restore(whole[1], fresh, way()).ok
    with archives.opened(fresh) as node:
        assert node.verify.run(archives.the_console(node), "full").findings == []
        assert archives.store(node, archives.instance(9)).status == "stored"


@pytest.mark.parametrize("named", ["another", "none"])
def test_a_restore_that_is_killed_and_given_again_with_another_server_does_not_forget_the_first(
    tmp_path: Path, whole: tuple[Config, Path], monkeypatch: pytest.MonkeyPatch, postgresql_url: str, postgresql_index: str, named: str
) -> None:
    """What it was filled with names patients, and nobody would look there again."""
    (tmp_path / "server").mkdir()
    first = archives.configured(tmp_path / "server", database={"url": postgresql_url})
    second = archives.configured(tmp_path / "server", **({"database": {"url": postgresql_index}} if named == "another" else {}))
    write = private_files.write

    def cut(path: Path, data: bytes, **options: Any) -> None:
        if path == first.keys_dir / "keyring.json":
            raise Cut
        write(path, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(restores, "_forget", lambda *_args, **_options: None)
        patch.setattr(private_files, "write", cut)
        with pytest.raises(Cut):
            restore(whole[1], first, way())
    left = sorted(path for path in first.storage_dir.rglob("*") if path.is_file())
    with pytest.raises(ConfigurationError, match="filled another database") as refused:
        restore(whole[1], second, way())
    assert str(sa.make_url(postgresql_url).database) in refused.value.message
    assert sorted(path for path in first.storage_dir.rglob("*") if path.is_file()) == left
    assert restore(whole[1], first, way()).ok
    with archives.opened(first) as node:
        assert node.verify.run(archives.the_console(node), "full").findings == []
