"""Where a passphrase may come from, in which order, and what is said when it does not."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from archive.cli import unlock
from archive.config import Archive, Config
from archive.errors import InvalidRequest, KeysUnavailable
from archive.keys import passphrase
from archive.keys.keyring import Keyring

GOOD = "kq7vw mh3xz pp2ra tn8bd"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """An archive that opens by passphrase alone."""
    monkeypatch.setattr(passphrase, "MEMORY_KIB", 19456)
    monkeypatch.setattr(passphrase, "ITERATIONS", 2)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    made = Config(archive=Archive(storage=str(tmp_path / "storage")))
    made.run_dir.mkdir(parents=True)
    ring = Keyring.create(made, at=datetime.now(UTC))
    ring.slot_add(at=datetime.now(UTC), passphrase=GOOD)
    ring.slot_remove(ring.slots()[0]["id"])
    return made


class Terminal:
    """Somebody who types."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *typed: str) -> None:
        self.typed, self.asked = list(typed), 0
        monkeypatch.setattr("sys.stdin.isatty", lambda: True)
        monkeypatch.setattr("click.prompt", self.prompt)

    def prompt(self, *_arguments: Any, **options: Any) -> str:
        assert options["hide_input"]
        self.asked += 1
        return self.typed.pop(0)


def private(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_a_file_and_standard_input(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert unlock.unlock(config, given=private(tmp_path / "p", f"{GOOD}\r\nmore\n")).index_key
    (tmp_path / "p").chmod(0o644)
    with pytest.raises(KeysUnavailable, match="group or others"):
        unlock.unlock(config, given=tmp_path / "p")
    with pytest.raises(InvalidRequest, match="empty"):
        unlock.unlock(config, given=private(tmp_path / "q", "\n"))
    (tmp_path / "r").write_bytes(b"\xff\xfe\n")
    (tmp_path / "r").chmod(0o600)
    with pytest.raises(KeysUnavailable, match="UTF-8"):
        unlock.unlock(config, given=tmp_path / "r")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{GOOD}\n".encode())))
    assert unlock.unlock(config, given=unlock.STDIN).index_key


def test_systemds_credential(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(KeysUnavailable, match="no terminal"):
        unlock.unlock(config)
    (tmp_path / unlock.CREDENTIAL).write_text(GOOD)
    assert unlock.unlock(config).index_key
    (tmp_path / unlock.CREDENTIAL).write_text("not the one it opens with")
    with pytest.raises(KeysUnavailable, match="wrong passphrase"):
        unlock.unlock(config)


def test_somebody_types(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    typing = Terminal(monkeypatch, "not the one it opens with", GOOD)
    assert unlock.unlock(config).index_key
    assert typing.asked == 2
    typing = Terminal(monkeypatch, *["not the one it opens with"] * 5)
    with pytest.raises(KeysUnavailable, match="wrong passphrase"):
        unlock.unlock(config)
    assert typing.asked == unlock.ATTEMPTS


def test_a_key_file_is_not_asked_for(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typing = Terminal(monkeypatch)
    ring = Keyring.open(config, passphrase=GOOD)
    ring.slot_add(at=datetime.now(UTC), key_file=tmp_path / "other.key")
    config.key_file.write_text((tmp_path / "other.key").read_text())
    assert unlock.unlock(config).index_key
    assert typing.asked == 0


@pytest.mark.parametrize("change", [lambda path: path.chmod(0o644), lambda path: path.write_text("nonsense")])
def test_a_key_file_that_is_wrong_is_told(config: Config, change: Callable[[Path], object]) -> None:
    """One that opens no slot any more is passed over; one that is open to others, or no key file, is not."""
    with pytest.raises(KeysUnavailable, match="no terminal"):
        unlock.unlock(config)
    change(config.key_file)
    with pytest.raises(KeysUnavailable, match=r"group or others|not a key file"):
        unlock.unlock(config)
