"""Backup while four dcmsend, STOW-RS and an import store; killed in the middle; restored elsewhere; and the index lost after that."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from archive.config import load
from archive.node import open_node
from tests.crash import test_served_kills
from tests.crash.promises import Promises
from tests.crash.test_served_kills import ANSWER, SETTINGS, Load, kill_everything
from tests.journeys import warm
from tests.journeys.running import RunningArchive
from tests.services import archives, catalogs


def told(load_: Load, folder: Path) -> Promises:
    """What anybody has been told by now."""
    known = dict(load_.promises.stored)
    for log in folder.glob("log-*"):
        known |= {uid: load_.sent[uid] for uid in ANSWER.findall(log.read_text(errors="replace"))}
    return Promises(known, by_data_set=True)


def check(config: Path, promises: Promises, *, repeat: bool) -> None:
    node = open_node(load(config))
    try:
        assert node.start() == ""
        promises.check(node)
        assert node.verify.run(archives.the_console(node), "full").findings == []
        studies = sorted({study for study, _data in promises.stored.values()})
        everything = catalogs.visible(node, "admin", *studies)
        assert len(everything) >= len(promises.stored)
        assert catalogs.visible(node, "reader", *studies) == everything
        assert catalogs.visible(node, "gone", *studies) == {}
        if repeat:
            uid, (study, data) = next(iter(promises.stored.items()))
            assert archives.store(node, data, study=study).status == "duplicate", uid
    finally:
        node.close()


def command(archive: RunningArchive, config: Path, *arguments: str) -> tuple[int, Any, str]:
    """Run a command on some configuration; return its status, its answer and what it complained of."""
    done = warm.run(["--config", str(config), "--json", *arguments], env=archive.environment(), timeout=300)
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


def interrupted(archive: RunningArchive, target: Path) -> bool:
    """Begin a backup and kill it once it has a folder; whether that was before its end."""
    before = len(list((target / "sets").iterdir()))
    begun = subprocess.Popen(
        [sys.executable, "-m", "archive", "--config", str(archive.config), "backup", str(target)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=archive.environment(),
    )
    while len(list((target / "sets").iterdir())) == before and begun.poll() is None:
        time.sleep(0.005)
    begun.send_signal(signal.SIGKILL)
    status = begun.wait(60)
    assert status in {0, -signal.SIGKILL}
    return status != 0


@pytest.mark.usefixtures("program")
def test_a_backup_under_load_comes_back_with_all_that_was_promised(
    tmp_path: Path, program: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program("dcmsend", "dcmtk")
    monkeypatch.setattr(test_served_kills, "EACH", 30)
    target, other = tmp_path / "backup", tmp_path / "other"
    home = tmp_path / "home"
    home.mkdir()
    archive = RunningArchive(home, settings=SETTINGS)
    archive.start()
    load_: Load | None = None
    try:
        archive.json("peer", "add", "SENDER", "--aet", "SENDER", "--network", "127.0.0.0/8", "--plain", "--role", "modality")
        (tmp_path / "password").write_text(archives.PASSWORD)
        for name in ("reader", "gone"):
            archive.json("user", "add", name, "--password-file", str(tmp_path / "password"))
            grant = archive.json("grant", "add", "--to", name, "--role", "radiologist", "--everything")
            if name == "gone":
                archive.json("grant", "revoke", str(grant["id"]))
        assert "no backup has been made" in archive.json("status")["warnings"][0]
        load_ = Load(archive, archive.token("admin"), tmp_path, 0)
        time.sleep(0.5)
        first = archive.json("backup", str(target))
        assert first["ok"]
        assert any(interrupted(archive, target) for _ in range(20))  # in the middle: those before still count
        assert archive.json("backup", "drill", str(target))["ok"]
        promised = told(load_, tmp_path)
        second = archive.json("backup", str(target))
        load_.end()
        assert second["ok"]
        assert second["copied_bytes"] <= second["bytes"]
        assert archive.json("status")["warnings"] == []
        status, _, complaint = command(archive, archive.config, "rebuild-index")
        assert status == 4
        assert "serves this storage" in complaint
    finally:
        kill_everything(archive)
        if load_ is not None:
            load_.end()
    assert len(promised.stored) > 20
    key = archive.storage / "keys" / "root.key"

    damaged = tmp_path / "damaged"
    shutil.copytree(target, damaged)
    one = next(path for path in damaged.rglob("*.seg"))
    one.write_bytes(one.read_bytes()[:-1] + b"x")
    restore, here = partial(command, archive, archive.config, "restore"), ("--key-file", str(key))
    status, _, complaint = restore(str(damaged), "--to", str(tmp_path / "never"), *here)
    assert status == 1
    assert "was changed" in complaint
    assert not (tmp_path / "never" / "config.toml").exists()

    status, answer, complaint = restore(str(target), "--to", str(other))
    assert status == 4, (answer, complaint)  # the backup holds no key, and none was given
    status, answer, complaint = restore(str(target), "--to", str(other), *here, "--full")
    assert (status, complaint) == (0, ""), answer
    check(other / "config.toml", promised, repeat=True)
    restored = RunningArchive(other, settings=SETTINGS)
    restored.start("serve")
    try:
        uid, (study, data) = next(iter(promised.stored.items()))
        client = restored.client(restored.token("reader"))
        found = client.retrieve_study(study)
        assert any(str(dataset.SOPInstanceUID) == uid for dataset in found), len(data)
        time.sleep(1.5)  # a checkpoint and a snapshot
    finally:
        kill_everything(restored)

    for path in (other / "storage").glob("index.db*"):
        path.unlink()
    status, answer, complaint = command(archive, other / "config.toml", "rebuild-index")
    assert (status, complaint) == (0, ""), answer
    assert answer["lost"]
    check(other / "config.toml", promised, repeat=False)
