"""What a command does before the archive is open: it changes nothing yet, for the keyring it reads may be an older copy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from archive.cli import failures, main
from archive.cli.session import Session
from archive.config import Config
from archive.db import rekey
from archive.keys.keyring import Keyring
from archive.node import open_node
from archive.services import index_key
from archive.services.clock import utc_now
from tests.services import archives, crowd
from tests.services.test_backup import back_up, put_back


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return archives.made_with_one(tmp_path)


def session(config: Config) -> Session:
    made = Session()
    made.use(config)
    return made


def begun(config: Config) -> bytes:
    """Begin to change the index's key, let it be encrypted anew, and return keyring.json as it was in between."""
    ring = Keyring.open(config)
    ring.prepare(["index"], at=utc_now())
    coming = ring.coming("index")
    assert coming is not None
    rekey.rekey(config.index_path, ring.index_key, coming.secret)
    return (config.keys_dir / "keyring.json").read_bytes()


def cut_short(config: Config, moment: str) -> None:
    """Begin it and end before or after the index was encrypted anew."""
    if moment == "after":
        begun(config)
    else:
        Keyring.open(config).prepare(["index"], at=utc_now())


def assert_settled(config: Config) -> None:
    """The index is under the one key that is left."""
    ring = Keyring.open(config)
    assert ring.waiting() == frozenset()
    assert rekey.opens(config.index_path, ring.index_key)


def started(config: Config) -> str:
    """Why a start, with the keyring that a command opens, lets nobody write."""
    node = open_node(config, keyring=session(config).opened(), role="serve")
    try:
        return node.start()
    finally:
        node.close()


def test_an_older_keyring_is_told_before_anything_in_it_is_settled(config: Config, tmp_path: Path) -> None:
    path, older = config.keys_dir / "keyring.json", begun(config)
    index_key.settle(config, Keyring.open(config), at=utc_now())
    with archives.opened(config) as node:
        node.keys.slot_add(archives.the_console(node), key_file=tmp_path / "second.key")
    path.write_bytes(older)
    command = session(config)
    try:
        assert "older copy" in command.node.core.read_only
        assert crowd.part10(command.node, "1.2.3")
    finally:
        command.close()
    assert "older copy" in started(config)
    assert path.read_bytes() == older
    command = session(config)
    try:
        command.node.oversight.acknowledge(archives.the_console(command.node), reason="the newest is lost")
    finally:
        command.close()
    assert path.read_bytes() == older
    assert started(config) == ""
    assert_settled(config)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_change_of_the_indexs_key_that_was_cut_short_keeps_no_command_from_its_work(config: Config, moment: str) -> None:
    cut_short(config, moment)
    command = session(config)
    try:
        assert command.node.core.read_only == ""
        assert crowd.part10(command.node, "1.2.3")
        assert archives.store(command.node, archives.instance(2)).status == "stored"
    finally:
        command.close()
    assert_settled(config)
    assert started(config) == ""
    with archives.opened(config) as node:
        assert len(crowd.part10(node, "1.2.3")) == 2
        crowd.check_sound(node)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_start_settles_it_too(config: Config, moment: str) -> None:
    cut_short(config, moment)
    assert started(config) == ""
    assert_settled(config)


@pytest.mark.parametrize("who", ["a command", "one without the root"])
def test_a_backup_made_before_it_is_settled_can_be_restored(config: Config, tmp_path: Path, who: str) -> None:
    begun(config)
    command = session(config)
    served = Keyring.from_bytes(command.keyring().to_bytes())
    node = command.node if who == "a command" else open_node(config, keyring=served)
    try:
        back_up(node, tmp_path / "backup", keys=True)
    finally:
        node.close()
    fresh, report = put_back(tmp_path / "backup", tmp_path / "new")
    assert report.ok
    assert started(fresh) == ""
    with archives.opened(fresh) as node:
        assert crowd.part10(node, "1.2.3")


def test_an_index_that_neither_key_opens_can_be_made_again(config: Config) -> None:
    Keyring.open(config).prepare(["index"], at=utc_now())
    for path in config.storage_dir.glob("index.db*"):
        path.unlink()
    config.index_path.write_bytes(os.urandom(8192))
    assert session(config).keyring().waiting() == {"index"}


def test_an_older_keyring_that_no_key_file_opens_is_acknowledged_with_the_kit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The slot of the key file in use is younger than the copy, and the one of before is destroyed."""
    (tmp_path / "config.toml").write_text('[archive]\nstorage = "storage"\n')
    kit, path = tmp_path / "kit.txt", tmp_path / "storage" / "keys" / "keyring.json"

    def run(status: int, *arguments: str) -> str:
        capsys.readouterr()
        assert main.run(["--config", str(tmp_path / "config.toml"), *arguments], Session()) == status
        shown = capsys.readouterr()
        return shown.out + shown.err

    run(0, "init", "--recovery-kit", str(kit))
    run(0, "key", "list")
    older = path.read_bytes()
    key = path.with_name("root.key")
    [slot] = [line.split()[0] for line in run(0, "key", "slot", "list").splitlines() if "key-file" in line]
    run(0, "key", "slot", "replace", slot, "--key-file", str(tmp_path / "new.key"))
    (tmp_path / "new.key").replace(key)
    path.write_bytes(older)
    assert "wrong key file" in run(failures.UNAVAILABLE, "ledger", "acknowledge", "--reason", "lost")
    assert "older copy" in run(failures.UNAVAILABLE, "key", "slot", "add", "--with-kit", str(kit), "--key-file", str(key))
    assert "acknowledged" in run(0, "ledger", "acknowledge", "--reason", "lost", "--with-kit", str(kit))
    run(0, "key", "slot", "add", "--with-kit", str(kit), "--key-file", str(key))
    assert "everything holds" in run(0, "ledger", "verify")
