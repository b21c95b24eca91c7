"""The systemd unit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from archive.cli.service import credential, owner_of, unit_for
from archive.config import Config, parse
from archive.errors import ConfigurationError


def configured(folder: Path, **sections: object) -> Config:
    return parse(dict(sections), folder / "config.toml")


def test_it_runs_serve_as_the_owner_and_may_write_storage_alone(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    unit = unit_for(configured(folder), "clinic")
    lines = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line)
    assert lines["ExecStart"] == f'{sys.executable} -m archive --config "{folder}/config.toml" serve'
    assert lines["User"] == "clinic"
    assert lines["ReadWritePaths"] == f'"{folder}/storage"'
    assert lines["ProtectSystem"] == "strict"
    assert lines["NoNewPrivileges"] == "yes"
    assert lines["CapabilityBoundingSet"] == ""


def test_keys_elsewhere_are_writable_too_and_a_low_port_gets_its_capability(tmp_path: Path) -> None:
    unit = unit_for(configured(tmp_path, keys={"directory": "/mnt/keys"}, http={"port": 443}), "clinic")
    assert f"ReadWritePaths={tmp_path}/storage /mnt/keys\n" in unit
    assert "AmbientCapabilities=CAP_NET_BIND_SERVICE\n" in unit


def test_systemd_hands_the_passphrase_over(tmp_path: Path) -> None:
    config = configured(tmp_path)
    assert "LoadCredential" not in unit_for(config, "clinic")
    for encrypted, word in ((False, "LoadCredential"), (True, "LoadCredentialEncrypted")):
        unit = unit_for(config, "clinic", credential(tmp_path / "50%", encrypted=encrypted))
        assert f"\n{word}=strongroom-passphrase:{tmp_path}/50%%\n" in unit
        assert unit.index("[Service]") < unit.index(word) < unit.index("[Install]")


def test_without_an_archive_nobody_owns_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no archive"):
        owner_of(configured(tmp_path))
    (tmp_path / "storage").mkdir()
    import pwd

    assert owner_of(configured(tmp_path)) == pwd.getpwuid(os.getuid()).pw_name


def test_systemd_accepts_it(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd is not installed")
    path = tmp_path / "strongroom.service"
    path.write_text(unit_for(configured(tmp_path), "root"))
    done = subprocess.run([analyze, "verify", "--man=no", str(path)], capture_output=True, text=True, check=False)
    assert "Unknown" not in done.stderr
    assert "strongroom.service" not in done.stderr
