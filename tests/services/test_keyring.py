"""Slots change only with their events."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.errors import ArchiveError, DatabaseUnavailable
from archive.keys.keyring import Keyring
from archive.ledger.log import Ledger
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


def test_of_two_slots_that_change_places_one_always_stays(tmp_path: Path) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config) as node:
        console = archives.the_console(node)
        old = next(slot["id"] for slot in node.keyring.slots() if slot["kind"] == "key-file")
        commits = iter(["added", "removed"])

        def fail(_tx: sa.Connection) -> None:
            if next(commits) == "removed":
                said = "COMMIT"
                raise sa.exc.OperationalError(said, {}, Exception("disk I/O error"))

        node.core.database.before_commit = fail
        with pytest.raises(DatabaseUnavailable):
            node.keys.slot_add(console, key_file=tmp_path / "new.key", instead=old)
        node.core.database.before_commit = lambda _tx: None
        recorded = [row["body"]["detail"]["slot"] for row in node.oversight.search(console, kinds=["key-changed"])]
        left = [slot["id"] for slot in node.keyring.slots() if slot["kind"] == "key-file"]
    assert left
    assert left == [old] or left == recorded[:1]
