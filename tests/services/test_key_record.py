"""An older keyring.json in the place of the newest is told, whatever comes back with it, until somebody acknowledges it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archive.config import Config
from archive.errors import ReadOnly
from archive.keys.keyring import Keyring
from archive.node import Node, open_node
from archive.services import key_record
from archive.services.backup import Backup
from archive.services.clock import utc_now
from tests.services import archives, crowd
from tests.services.test_backup import put_back


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return archives.made(tmp_path)


CHANGES: dict[str, Callable[[Node, Path], object]] = {
    "kek": lambda node, _folder: node.keys.rotate(archives.the_console(node)),
    "slot": lambda node, folder: node.keys.slot_add(archives.the_console(node), key_file=folder / "second.key"),
    "log": lambda node, _folder: node.keys.replace(archives.the_console(node), "log"),
}


def told(config: Config) -> tuple[str, list[str]]:
    """What a start says, and what verify says of it."""
    node = open_node(config, role="serve")
    try:
        why = node.start()
        found = node.verify.run(archives.the_console(node), "quick").findings
    finally:
        node.close()
    return why, [one.detail for one in found if one.code == "V14"]


def keyring(config: Config) -> Path:
    return config.keys_dir / "keyring.json"


def lived(config: Config, change: str, folder: Path) -> Path:
    """Change keys, and return a copy of the keyring of before."""
    with archives.opened(config) as node:
        assert archives.store(node, archives.instance()).status == "stored"
    kept = Path(shutil.copy(keyring(config), folder / "yesterday.json"))
    with archives.opened(config) as node:
        CHANGES[change](node, folder)
    return kept


@pytest.mark.parametrize("change", CHANGES)
def test_an_older_keyring_is_told_at_the_start_and_by_verify(config: Config, tmp_path: Path, change: str) -> None:
    kept = lived(config, change, tmp_path)
    assert told(config) == ("", [])
    newest = keyring(config).read_bytes()
    shutil.copy(kept, keyring(config))
    why, found = told(config)
    assert "keyring.json is an older copy" in why
    assert "(V14)" in why
    assert [one for one in found if "keyring.json is an older copy" in one]
    node = open_node(config)  # a command, too
    try:
        assert "older copy" in node.core.read_only
        with pytest.raises(ReadOnly):
            node.keys.rotate(archives.the_console(node))
    finally:
        node.close()
    keyring(config).write_bytes(newest)
    assert told(config) == ("", [])


def test_it_is_told_right_after_the_change_without_a_start_between(config: Config, tmp_path: Path) -> None:
    kept = lived(config, "slot", tmp_path)
    shutil.copy(kept, keyring(config))
    assert "older copy" in told(config)[0]


@pytest.mark.parametrize("lost", ["the keystore too", "what the keystore remembers"])
def test_the_ledger_remembers_as_well(config: Config, tmp_path: Path, lost: str) -> None:
    keystore = tmp_path / "keystore.db"
    with archives.opened(config):
        pass
    shutil.copy(config.keystore_path, keystore)
    kept = lived(config, "slot", tmp_path)
    assert told(config) == ("", [])
    shutil.copy(kept, keyring(config))
    if lost == "the keystore too":
        for path in config.keystore_path.parent.glob("keystore.db*"):
            path.unlink()
        shutil.copy(keystore, config.keystore_path)
    else:
        from tests.tamper.world import Sql, run

        assert run(config, Sql(["DELETE FROM anchor WHERE name = 'keyring'"], keystore=True)) == 1
    assert "older copy" in told(config)[0]


def test_another_of_the_same_generation_is_told(config: Config, tmp_path: Path) -> None:
    kept = lived(config, "slot", tmp_path)
    shutil.copy(kept, keyring(config))
    ring = Keyring.open(config)
    ring.slot_add(at=utc_now(), key_file=tmp_path / "third.key")
    assert "another of generation" in told(config)[0]


def test_an_older_one_does_not_become_the_newest_by_slots(config: Config, tmp_path: Path) -> None:
    """Each change of it makes it look younger."""
    kept = lived(config, "slot", tmp_path)
    shutil.copy(kept, keyring(config))
    for number in range(2):
        node = open_node(config)
        try:
            with pytest.raises(ReadOnly, match="older copy"):
                node.keys.slot_add(archives.the_console(node), key_file=tmp_path / f"{number}.key")
            with pytest.raises(ReadOnly, match="older copy"):
                node.keys.slot_remove(archives.the_console(node), node.keyring.slots()[0]["id"])
        finally:
            node.close()
    assert keyring(config).read_bytes() == kept.read_bytes()
    assert "older copy" in told(config)[0]


def test_a_ledger_that_was_rolled_back_keeps_nobody_from_a_way_in(config: Config, tmp_path: Path) -> None:
    with archives.opened(config):
        pass
    node = open_node(config, read_only="the ledger was rolled back")
    try:
        assert node.keys.slot_add(archives.the_console(node), key_file=tmp_path / "second.key")
    finally:
        node.close()


def test_what_was_acknowledged_counts_from_then_on(config: Config, tmp_path: Path) -> None:
    kept = lived(config, "slot", tmp_path)
    with archives.opened(config) as node:
        gone = node.keyring.slots()[-1]["id"]
    lost = keyring(config).read_bytes()
    shutil.copy(kept, keyring(config))
    node = open_node(config)
    checkpoint = node.core.keystore.anchor("checkpoint")
    node.oversight.acknowledge(archives.the_console(node), reason="the newest is lost")
    node.close()
    assert told(config) == ("", [])
    with archives.opened(config) as node:
        rows = node.oversight.search(archives.the_console(node), kinds=["key-changed", "checkpoint-acknowledged"])
        assert [(row["kind"], row["outcome"]) for row in rows[:2]] == [("key-changed", 4), ("checkpoint-acknowledged", 0)]
        assert rows[0]["body"]["detail"]["slots_gone"] == [gone]
        assert checkpoint is not None
        assert len(rows[1]["body"]["detail"]["notes"]) == 1  # the ledger's own anchors go on to count
        assert crowd.part10(node, "1.2.3")
        node.keys.slot_add(archives.the_console(node), key_file=tmp_path / "other.key")
        node.keys.slot_add(archives.the_console(node), key_file=tmp_path / "fourth.key")
    assert told(config) == ("", [])
    newest = keyring(config).read_bytes()
    for older in (lost, kept.read_bytes()):  # neither of them comes back unnoticed
        keyring(config).write_bytes(older)
        assert "keyring.json" in told(config)[0]
    keyring(config).write_bytes(newest)
    assert told(config) == ("", [])


def test_one_that_was_given_up_is_not_the_newest_again_unnoticed(config: Config, tmp_path: Path) -> None:
    """It may have more changes than what went on without it, and knows none of the keys that were made since."""
    kept = lived(config, "kek", tmp_path)
    with archives.opened(config) as node:
        CHANGES["slot"](node, tmp_path)
    lost = keyring(config).read_bytes()
    shutil.copy(kept, keyring(config))
    node = open_node(config)
    node.oversight.acknowledge(archives.the_console(node), reason="the newest is lost")
    node.close()
    assert told(config) == ("", [])
    newest = keyring(config).read_bytes()
    keyring(config).write_bytes(lost)
    why, found = told(config)
    assert "given up" in why
    assert len(found) == 1
    keyring(config).write_bytes(newest)
    assert told(config) == ("", [])
    keyring(config).write_bytes(lost)
    node = open_node(config)
    node.oversight.acknowledge(archives.the_console(node), reason="it is found again")
    node.close()
    assert told(config) == ("", [])
    keyring(config).write_bytes(newest)
    assert "older copy" in told(config)[0]


def test_a_restore_and_a_drill_are_no_rollback(config: Config, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    with archives.opened(config) as node:
        archives.store(node, archives.instance())
        node.keys.rotate(archives.the_console(node))
        Backup(node.core).run(archives.the_console(node), target, keys=True)
        node.keys.rotate(archives.the_console(node))
    fresh, report = put_back(target, tmp_path / "new")
    assert report.ok
    assert told(fresh) == ("", [])


def test_a_release_before_left_nothing_to_compare_with(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_arguments: Any) -> dict[str, Any]:
        return {}

    with monkeypatch.context() as patched:
        patched.setattr(key_record, "_which", nothing)
        patched.setattr(key_record, "_remember", nothing)
        patched.setattr(key_record, "noticed", lambda *_arguments: False)
        with archives.opened(config):
            pass
    assert told(config) == ("", [])
    with archives.opened(config) as node:
        kinds = [row["kind"] for row in node.oversight.search(archives.the_console(node))]
        assert "key-changed" not in kinds
