"""Slots change only with their events."""

from __future__ import annotations

from pathlib import Path

import pytest

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
