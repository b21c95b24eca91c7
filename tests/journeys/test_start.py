"""Starting, stopping and refusing to start."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.journeys.running import READY_S, RunningArchive


@pytest.fixture(scope="module")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> RunningArchive:
    archive = RunningArchive(tmp_path_factory.mktemp("start"), fresh=True)
    done = archive.run("--json", "init")
    assert done.returncode == 0, done.stderr
    return archive


def test_init_says_where_things_are_and_is_done_once(initialised: RunningArchive) -> None:
    again = initialised.run("--json", "init")
    assert again.returncode == 2
    assert json.loads(again.stderr)["error"] == "configuration"


def test_status_when_nothing_runs(initialised: RunningArchive) -> None:
    done = initialised.run("--json", "status")
    assert done.returncode == 1
    assert json.loads(done.stdout)["ready"] is False


def test_serve_status_second_serve_kill_and_stop(initialised: RunningArchive) -> None:
    initialised.start("serve")
    try:
        assert initialised.printed == ["READY"]
        assert initialised.status["ready"]
        second = initialised.run("serve")
        assert second.returncode == 4
        assert "already serves" in second.stderr
        pids = {one["role"]: one["pid"] for one in initialised.status["processes"]}
        assert set(pids) == {"background", "dimse", "web"}
        arguments = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes() for pid in pids.values())
        key = (initialised.storage / "keys" / "root.key").read_text().split(":")[-1].strip()
        assert key.encode() not in arguments
        os.kill(pids["dimse"], signal.SIGKILL)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            fresh = {one["role"]: one["pid"] for one in initialised.json("status")["processes"]}
            if fresh.get("dimse") not in (None, pids["dimse"]):
                break
            time.sleep(0.2)
        else:
            pytest.fail("the killed worker did not come back")
        assert fresh["web"] == pids["web"]
    finally:
        assert initialised.stop() == 0


@pytest.mark.parametrize("closed", ["read no more", "full", "not there"])
def test_an_archive_whose_output_goes_nowhere_serves_all_the_same(initialised: RunningArchive, closed: str) -> None:
    into, out = os.pipe()
    os.close(into)
    command = [sys.executable, "-m", "archive", "--config", str(initialised.config), "up"]
    if closed == "not there":
        command = ["sh", "-c", 'exec "$0" "$@" <&- >&-', *command]
    with (initialised.folder / "log").open("ab") as log, Path("/dev/full").open("wb") as full:
        process = subprocess.Popen(
            command, stdout=full if closed == "full" else out, stderr=log, stdin=subprocess.DEVNULL, env=initialised.environment(),
        )
    os.close(out)
    try:
        end = time.monotonic() + READY_S
        while not (status := json.loads(initialised.run("--json", "status").stdout))["ready"] and time.monotonic() < end:
            assert process.poll() is None, initialised.log()[-2000:]
            time.sleep(0.2)
        assert status["ready"]
        time.sleep(1)
        assert process.poll() is None, initialised.log()[-2000:]
        with urllib.request.urlopen(f"{status['http']['url']}/healthz", context=ssl._create_unverified_context()) as answer:
            assert answer.status == 200
        with socket.create_connection((status["dimse_tls"]["host"], status["dimse_tls"]["port"]), 30):
            pass
    finally:
        process.terminate()
        assert process.wait(60) == 0


def test_up_on_an_archive_that_is_there_names_its_first_user(initialised: RunningArchive) -> None:
    initialised.start("up")
    assert initialised.stop() == 0
    assert "  first user        admin" in initialised.printed


def test_open_keys_are_refused(initialised: RunningArchive) -> None:
    path = initialised.storage / "keys" / "root.key"
    path.chmod(0o644)
    try:
        done = initialised.run("--json", "serve")
        assert done.returncode == 4
        assert json.loads(done.stderr.splitlines()[-1])["error"] == "keys-unavailable"
        assert json.loads(done.stderr.splitlines()[-1])["remedy"]
        assert initialised.run("doctor").returncode == 4
    finally:
        path.chmod(0o600)


def test_a_taken_port_is_refused(initialised: RunningArchive, tmp_path: Path) -> None:
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        text = initialised.config.read_text()
        initialised.config.write_text(text.replace("[dimse.tls]\nport = 0", f"[dimse.tls]\nport = {other.getsockname()[1]}"))
        try:
            done = initialised.run("serve")
        finally:
            initialised.config.write_text(text)
    assert done.returncode == 2
    assert "dimse.tls.port" in done.stderr


def test_an_unknown_key_in_the_configuration_is_named(initialised: RunningArchive) -> None:
    text = initialised.config.read_text()
    initialised.config.write_text(text + "\n[colour]\nred = 1\n")
    try:
        done = initialised.run("serve")
    finally:
        initialised.config.write_text(text)
    assert done.returncode == 2
    assert "colour" in done.stderr


def test_another_revision_is_refused_with_the_command_that_mends_it(initialised: RunningArchive) -> None:
    from archive.config import load
    from archive.keys.keyring import Keyring
    from archive.services import setup

    config = load(initialised.config)

    def set_revision(value: str) -> str:
        database = setup.open_index(config, Keyring.open(config))
        try:
            with database.begin() as tx:
                before = str(tx.exec_driver_sql("SELECT version_num FROM alembic_version").scalar())
                tx.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{value}'")
        finally:
            database.close()
        return before

    before = set_revision("0000")
    try:
        done = initialised.run("--json", "serve")
        assert done.returncode == 4
        answer = json.loads(done.stderr.splitlines()[-1])
        assert answer["error"] == "database-unavailable"
        assert answer["remedy"]
    finally:
        set_revision(before)


def test_a_rolled_back_database_starts_read_only(initialised: RunningArchive) -> None:
    names = ("index.db", "index.db-wal", "index.db-shm")
    before = {name: (initialised.storage / name).read_bytes() for name in names if (initialised.storage / name).exists()}
    assert initialised.run("group", "add", "later").returncode == 0
    for name in names:
        (initialised.storage / name).unlink(missing_ok=True)
    for name, data in before.items():
        (initialised.storage / name).write_bytes(data)
    initialised.start("serve")
    try:
        assert "V14" in initialised.status["read_only"]
        refused = initialised.run("--json", "import", str(initialised.config))
        assert refused.returncode == 4, refused
        assert json.loads(refused.stderr)["error"] == "read-only"
        assert initialised.run("ledger", "acknowledge", "--reason", "restored by the test").returncode == 0
    finally:
        initialised.stop()
    initialised.start("serve")
    try:
        assert initialised.status["read_only"] == ""
    finally:
        initialised.stop()
