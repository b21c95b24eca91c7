"""Keys and slots change only with their events, wherever a change is cut short."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.config import Config
from archive.errors import ArchiveError, DatabaseUnavailable, KeysUnavailable
from archive.keys import keyring_file
from archive.keys.held import Held
from archive.keys.keyring import Keyring
from archive.ledger.log import Ledger
from archive.node import Node, open_node
from archive.services import index_key, key_record
from tests.services import archives


def test_a_slot_without_its_event_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config) as node:
        console = archives.the_console(node)
        kept = node.keys.slot_add(console, key_file=tmp_path / "kept.key")
        before = [slot["id"] for slot in Keyring.open(config).slots()]

        def refuse(*_arguments: object, **_options: object) -> int:
            message = "the database is busy"
            raise DatabaseUnavailable(message)

        monkeypatch.setattr(Ledger, "record", refuse)
        with pytest.raises(ArchiveError):
            node.keys.slot_add(console, key_file=tmp_path / "other.key")
        with pytest.raises(ArchiveError):
            node.keys.slot_add(console, recovery_kit=tmp_path / "kit")
        with pytest.raises(ArchiveError):
            node.keys.slot_remove(console, kept)
        assert [slot["id"] for slot in Keyring.open(config).slots()] == before
        monkeypatch.undo()
        node.keys.slot_remove(console, kept)
    assert kept not in [slot["id"] for slot in Keyring.open(config).slots()]


@pytest.mark.parametrize("how", ["commit", "write"])
def test_of_two_slots_that_change_places_one_always_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config) as node:
        console = archives.the_console(node)
        old = next(slot["id"] for slot in node.keyring.slots() if slot["kind"] == "key-file")

        def fail(*_arguments: Any, **_options: Any) -> None:
            if how == "commit":
                said = "COMMIT"
                raise sa.exc.OperationalError(said, {}, Exception("disk I/O error"))
            message = "keyring.json cannot be written"
            raise KeysUnavailable(message)

        with monkeypatch.context() as patched:
            if how == "commit":
                patched.setattr(node.core.database, "before_commit", fail)
            else:
                patched.setattr(keyring_file, "store", fail)
            with pytest.raises((DatabaseUnavailable, KeysUnavailable)):
                node.keys.slot_add(console, key_file=tmp_path / "new.key", instead=old)
        assert [slot["id"] for slot in node.keyring.slots()] == [old]
        assert [slot["id"] for slot in Keyring.open(config).slots()] == [old]
        told = changes(node)
        made = node.keys.slot_add(console, key_file=tmp_path / "other.key", instead=old)
        assert [slot["id"] for slot in node.keyring.slots()] == [made]
    if how == "commit":
        assert told == []
    else:  # the event was there first: that nothing came of it is said at once
        assert [one["what"] for one in told] == ["found-changed", "slot-removed", "slot-added"]
        assert told[0]["slots_added"] == [old] == [told[1]["slot"]]
        assert told[0]["slots_gone"] == [told[2]["slot"]]


# --- cut short ------------------------------------------------------------------------------------------------------------------------


class Interrupted(BaseException):
    """The process ends here."""


def changes(node: Node) -> list[dict[str, Any]]:
    """What events say of changes of keys, the newest first."""
    return [row["body"]["detail"] for row in node.oversight.search(archives.the_console(node), kinds=["key-changed"])]


def cut(node: Node, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """End the process before the `step`th thing that is made durable: a commit, or a write of the keyring; or right after one."""
    left = step

    def pass_(_tx: object = None) -> None:
        nonlocal left
        if left == 0:
            raise Interrupted
        left -= 1

    for database in (node.core.database, node.core.keystore._database):
        monkeypatch.setattr(database, "before_commit", pass_)
    real = keyring_file.store

    def store(*arguments: Any, **options: Any) -> Any:
        pass_()
        done = real(*arguments, **options)
        pass_()
        return done

    monkeypatch.setattr(keyring_file, "store", store)


CHANGES: dict[str, Callable[[Node, Path], object]] = {
    "slot added": lambda node, folder: node.keys.slot_add(archives.the_console(node), key_file=folder / "more.key"),
    "slot replaced": lambda node, folder: node.keys.slot_add(archives.the_console(node), key_file=folder / "new.key", instead=first(node)),
    "slot removed": lambda node, _folder: node.keys.slot_remove(archives.the_console(node), node.keyring.slots()[-1]["id"]),
    "kek": lambda node, _folder: node.keys.rotate(archives.the_console(node)),
    "index": lambda node, _folder: index(node),
    "signing": lambda node, _folder: node.keys.replace(archives.the_console(node), "signing"),
    "pepper": lambda node, _folder: node.keys.replace(archives.the_console(node), "pepper"),
}


def first(node: Node) -> str:
    return node.keyring.slots()[0]["id"]


def index(node: Node) -> None:
    node.keys.announce_index(archives.the_console(node))
    node.core.database.close()
    index_key.replace(node.config, node.keyring, at=datetime.now(UTC))


@pytest.mark.parametrize("change", CHANGES)
def test_no_change_is_without_its_event_wherever_it_is_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    with archives.opened(archives.made(tmp_path / "made")) as node:
        assert archives.store(node, archives.instance()).status == "stored"
        node.keys.slot_add(archives.the_console(node), recovery_kit=tmp_path / "kit")
    for step in range(100):
        folder = tmp_path / str(step)
        shutil.copytree(tmp_path / "made", folder)
        config = archives.configured(folder, keys={"key_file": str(tmp_path / "made" / "storage" / "keys" / "root.key")})
        node = open_node(config, role="background")
        before = node.keyring.held()
        with monkeypatch.context() as patched:
            cut(node, patched, step)
            done = False
            with suppress(Interrupted):
                CHANGES[change](node, folder)
                done = True
        node.core.database.close()
        node.core.keystore.close()
        if (folder / "new.key").exists():
            config = configured_with(config, folder, before)
        if change == "index":
            index_key.settle(config, Keyring.open(config), at=datetime.now(UTC))
        with archives.opened(config, role="background") as node:  # a start
            accounted(node, before)
            node.keys.compare()
            told = changes(node)
        with archives.opened(config, role="background") as node:
            assert changes(node) == told  # nothing is told twice
        if done:
            assert step > 2
            return
    pytest.fail("it never came to its end")


def configured_with(config: Config, folder: Path, before: Held) -> Config:
    """Open with the key file whose slot there is now."""
    now = {slot.id for slot in keyring_file.load(config.keys_dir / "keyring.json").slots}
    return config if now == set(before["slots"]) else archives.configured(folder, keys={"key_file": str(folder / "new.key")})


def accounted(node: Node, before: Held) -> None:
    """Every key and slot that came or went is named by an event, and the newest that says what there is says what there is."""
    now, told = node.keyring.held(), json.dumps([{**one, "holds": None} for one in changes(node)])
    for name in ("keys", "slots"):
        for one in set(before[name]) ^ set(now[name]):
            assert one in told
    with node.core.database.read() as tx:
        assert key_record.known(node.core, tx) == now
