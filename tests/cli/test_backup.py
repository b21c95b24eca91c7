"""`archive backup`, `restore` and `rebuild-index` as they are called: answers, exit statuses, what to do next."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from archive import locks
from archive.cli.main import run
from archive.cli.session import Session
from archive.config import load
from archive.errors import VaultUnavailable
from tests.services import archives


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive with one instance, and its configuration named in the environment."""
    folder = tmp_path / "home"
    folder.mkdir()
    path = folder / "config.toml"
    path.write_text('[storage]\nreserve = "0%"\nsegment_bytes = 4194304\n[http]\nport = 0\n[dimse.tls]\nport = 0\n', encoding="utf-8")
    monkeypatch.setenv("ARCHIVE_CONFIG", str(path))
    (folder / "password").write_text(archives.PASSWORD)
    assert run(["init", "--admin-password-file", str(folder / "password")], Session()) == 0
    with archives.opened(load(path)) as node:
        archives.store(node, archives.instance(1))
    return folder


def answered(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any, Any]:
    """Run a command with --json; return its status, answer and error."""
    capsys.readouterr()
    status = run(["--json", *arguments], Session())
    out, err = capsys.readouterr()
    return status, json.loads(out) if out else None, json.loads(err) if err else None


def test_there_and_back(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, other = str(tmp_path / "backup"), tmp_path / "other"
    there = ("restore", target, "--to", str(other))
    opened = (*there, "--key-file", str(home / "storage" / "keys" / "root.key"))
    assert answered(capsys, "status")[1]["warnings"]
    status, answer, _ = answered(capsys, "backup", target)
    assert (status, answer["ok"], answer["keys"]) == (0, True, False)
    assert answered(capsys, "status")[1]["warnings"] == []
    status, answer, _ = answered(capsys, "backup", "drill")
    assert (status, answer["ok"], answer["checked"]) == (0, True, 1)
    status, _, error = answered(capsys, *there)
    assert (status, error["error"]) == (4, "keys-unavailable")
    assert "--recovery-kit" in error["remedy"]
    assert not (other / "config.toml").exists()
    synced: list[int] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    with mock.patch("os.fsync", noted):
        status, answer, _ = answered(capsys, *opened, "--full")
    assert (status, answer["ok"], answer["checked"]) == (0, True, 1)
    assert any("rules of forwarding" in note and "grants" in note for note in answer["notes"])
    assert (other / "config.toml").stat().st_ino in synced
    assert answered(capsys, "--config", str(other / "config.toml"), "verify", "--full")[1]["ok"]
    status, _, error = answered(capsys, *opened)
    assert (status, error["error"]) == (2, "configuration")
    assert "nothing is ever overwritten" in error["remedy"]


def test_what_is_said_about_keys(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert home.exists()
    assert run(["backup", str(tmp_path / "backup")], Session()) == 0
    said = capsys.readouterr().out
    assert "The key file is not in it" in said
    assert "there is no recovery kit" in said
    assert run(["backup", str(tmp_path / "backup"), "--with-keys"], Session()) == 0
    assert "can open every image" in capsys.readouterr().out
    assert run(["backup", "drill"], Session()) == 0
    assert "can be restored" in capsys.readouterr().out
    elsewhere = tmp_path / "another place"
    assert run(["restore", str(tmp_path / "backup"), "--to", str(elsewhere)], Session()) == 0
    assert f"next: archive --config '{elsewhere}/config.toml' serve" in capsys.readouterr().out, "of that one, not of what lies here"


def test_no_backup_and_no_drill(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert home.exists()
    assert answered(capsys, "backup", "drill")[2]["remedy"] == "make one with 'archive backup DIR'"
    for arguments in (("restore", str(tmp_path / "nothing"), "--to", str(tmp_path / "x")), ("backup", "drill", str(tmp_path / "nothing"))):
        status, _, error = answered(capsys, *arguments)
        assert (status, error["error"]) == (1, "not-found")
    assert answered(capsys, "backup")[0] == 2


def test_rebuild_index(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, answer, _ = answered(capsys, "rebuild-index")
    assert (status, answer["ok"], answer["lost"], answer["instances"]) == (0, True, False, 1)
    for path in (home / "storage").glob("index.db*"):
        path.unlink()
    status, _, error = answered(capsys, "verify")
    assert status == 4
    assert "archive rebuild-index" in error["remedy"]
    status, answer, _ = answered(capsys, "rebuild-index")
    assert (status, answer["ok"], answer["lost"], answer["instances"]) == (0, True, True, 1)
    assert answered(capsys, "verify", "--full")[1]["ok"]
    for path in (home / "storage").glob("keystore.db*"):
        path.unlink()
    status, _, error = answered(capsys, "rebuild-index")
    assert (status, error["error"]) == (4, "database-unavailable")


def test_no_command_is_at_work_beside_a_rebuild(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What it writes would be about the numbers that patients and studies had; on a server they would wait for each other."""
    from archive.services.rebuild import Rebuild

    working = Session()
    working.config_path = home / "config.toml"
    assert working.node.core.read_only == ""
    status, _, error = answered(capsys, "rebuild-index")
    assert (status, error["message"]) == (4, "another command is at work in this archive")
    working.close()
    run_it, met = Rebuild.run, []

    def beside(*args: Any, **options: Any) -> Any:
        met.append(answered(capsys, "grant", "add", "--to", "admin", "--role", "referrer", "--study", "1.2.3"))
        met.append(answered(capsys, "doctor"))
        return run_it(*args, **options)

    monkeypatch.setattr(Rebuild, "run", beside)
    assert answered(capsys, "rebuild-index")[0] == 0
    (status, _, error), (_, checked, _) = met
    assert (status, error["message"]) == (4, "the index is being rebuilt")
    assert checked["checks"][0]["detail"] == "the index is being rebuilt"
    assert answered(capsys, "verify")[0] == 0


def test_on_a_full_disk_a_command_goes_on_without_its_lock(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rebuild has no room there either; what an archive holds is still to be looked at."""
    def full(path: Path) -> int:
        message = f"{path} cannot be written: no space left"
        raise VaultUnavailable(message)

    monkeypatch.setattr(locks, "_opened", full)
    working = Session()
    working.config_path = home / "config.toml"
    assert working.node.core.read_only == ""
    monkeypatch.undo()
    working.close()
