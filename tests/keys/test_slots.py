"""Ways into the keyring: key files and recovery kits."""

from __future__ import annotations

import errno
import os
import stat
from datetime import datetime
from pathlib import Path

import pytest

from archive.config import Archive, Config
from archive.config import Keys as KeysSection
from archive.errors import InvalidRequest, KeysUnavailable, NotFound
from archive.keys import slots
from archive.keys.keyring import Keyring


def test_recovery_kit_opens_when_the_key_file_is_lost(config: Config, tmp_path: Path, now: datetime) -> None:
    kit = tmp_path / "kit.txt"
    made = Keyring.create(config, at=now, recovery_kit=kit)
    assert stat.S_IMODE(kit.stat().st_mode) == 0o600
    config.key_file.unlink()
    with pytest.raises(KeysUnavailable):
        Keyring.open(config)
    opened = Keyring.open(config, recovery_kit=kit)
    assert opened.index_key == made.index_key
    replacement = tmp_path / "new.key"
    opened.slot_add(at=now, key_file=replacement)
    moved = Config(archive=config.archive, keys=KeysSection(key_file=str(replacement)))
    assert Keyring.open(moved).index_key == made.index_key


def test_the_server_keeps_no_private_half(config: Config, tmp_path: Path, now: datetime) -> None:
    kit = tmp_path / "kit.txt"
    Keyring.create(config, at=now, recovery_kit=kit)
    secret = slots.parse_kit(kit.read_text())
    line = next(line for line in kit.read_text().splitlines() if line.startswith("kit:"))
    for path in (config.storage_dir).rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert secret not in data
            assert secret.hex().encode() not in data
            assert line.encode() not in data
            assert b"SRK1" not in data


def test_a_typed_kit_opens(config: Config, tmp_path: Path, now: datetime) -> None:
    kit = tmp_path / "kit.txt"
    made = Keyring.create(config, at=now, recovery_kit=kit)
    line = next(line for line in kit.read_text().splitlines() if line.startswith("kit:"))
    typed = tmp_path / "typed.txt"
    for text in (
        line.lower(), line.replace("-", " "), line.replace("SRK1-", "SRK1 "), f"  {line}  ", f"hello\n{line}\nbye",
        line[:9] + line[9:].replace("O", "0").replace("I", "1").replace("B", "8"),
    ):
        typed.write_text(text)
        assert Keyring.open(config, recovery_kit=typed).index_key == made.index_key


def test_every_typing_error_is_told(config: Config, tmp_path: Path, now: datetime) -> None:
    kit = tmp_path / "kit.txt"
    Keyring.create(config, at=now, recovery_kit=kit)
    line = next(line for line in kit.read_text().splitlines() if line.startswith("kit:"))
    start = line.index("SRK1-") + 5
    for i in range(start, len(line)):
        if line[i] == "-":
            continue
        wrong = line[:i] + ("A" if line[i] != "A" else "C") + line[i + 1:]
        with pytest.raises(KeysUnavailable, match="typing error"):
            slots.parse_kit(wrong)
    for wrong in (line[:-1], line + "A", line + "-AAAA", "kit: SRK1-", "kit: SRK1-é"):
        with pytest.raises(KeysUnavailable, match="typing error"):
            slots.parse_kit(wrong)
    for wrong in ("", "SRK1-AAAA", "kit: SRK2-AAAA"):
        with pytest.raises(KeysUnavailable, match="not a recovery kit"):
            slots.parse_kit(wrong)


def test_a_kit_of_another_archive(config: Config, tmp_path: Path, now: datetime) -> None:
    Keyring.create(config, at=now, recovery_kit=tmp_path / "kit.txt")
    Keyring.create(Config(archive=Archive(storage=str(tmp_path / "other"))), at=now, recovery_kit=tmp_path / "other.txt")
    with pytest.raises(KeysUnavailable, match="wrong recovery kit"):
        Keyring.open(config, recovery_kit=tmp_path / "other.txt")
    with pytest.raises(KeysUnavailable, match="cannot be read"):
        Keyring.open(config, recovery_kit=tmp_path / "absent.txt")


def test_kits_and_key_files_are_never_overwritten(config: Config, keyring: Keyring, tmp_path: Path, now: datetime) -> None:
    kit = tmp_path / "kit.txt"
    kit.write_text("something else")
    with pytest.raises(KeysUnavailable, match="already"):
        keyring.slot_add(at=now, recovery_kit=kit)
    assert kit.read_text() == "something else"
    assert len(keyring.slots()) == 1
    with pytest.raises(InvalidRequest, match="slot already"):
        keyring.slot_add(at=now, key_file=config.key_file)


def test_a_stick_where_a_file_has_one_name_only(
    keyring: Keyring, tmp_path: Path, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))  # as link(2) of FAT does

    monkeypatch.setattr(os, "link", refuse)
    kit = tmp_path / "kit.txt"
    keyring.slot_add(at=now, recovery_kit=kit)
    assert slots.parse_kit(kit.read_text())
    assert stat.S_IMODE(kit.stat().st_mode) == 0o600
    with pytest.raises(KeysUnavailable, match="already"):
        keyring.slot_add(at=now, recovery_kit=kit)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["kit.txt"]


def test_slots_come_and_go_but_never_the_last(config: Config, keyring: Keyring, tmp_path: Path, now: datetime) -> None:
    first = keyring.slots()[0]["id"]
    second = keyring.slot_add(at=now, key_file=tmp_path / "second.key", label="safe")
    third = keyring.slot_add(at=now, recovery_kit=tmp_path / "kit.txt")
    assert [(slot["id"], slot["kind"], slot["label"]) for slot in keyring.slots()] == [
        (first, "key-file", "first key file"), (second, "key-file", "safe"), (third, "recovery", "recovery kit")]
    keyring.slot_remove(first)
    with pytest.raises(KeysUnavailable, match="wrong key file"):
        Keyring.open(config)
    by_second = Config(archive=config.archive, keys=KeysSection(key_file=str(tmp_path / "second.key")))
    opened = Keyring.open(by_second)
    opened.slot_remove(third)
    with pytest.raises(KeysUnavailable, match="wrong recovery kit"):
        Keyring.open(config, recovery_kit=tmp_path / "kit.txt")
    with pytest.raises(NotFound):
        opened.slot_remove(third)
    with pytest.raises(InvalidRequest, match="last slot"):
        opened.slot_remove(second)
    Keyring.open(by_second)


def test_slot_add_wants_exactly_one(keyring: Keyring, tmp_path: Path, now: datetime) -> None:
    with pytest.raises(InvalidRequest):
        keyring.slot_add(at=now)
    with pytest.raises(InvalidRequest):
        keyring.slot_add(at=now, key_file=tmp_path / "a", recovery_kit=tmp_path / "b")
