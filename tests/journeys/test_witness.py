"""An archive and its witness as two programs: what was rolled back or forged is found by the one that remembers."""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import requests

from archive.config import load
from archive.keys.keyring import Keyring
from archive.ledger import notes
from archive.witness import memory
from tests.journeys.running import RunningArchive
from tests.ports import free_port
from tests.services.archives import instance


class Program:
    """`python -m archive.witness` on a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = str(memory.make(folder, "nas.example/witness"))
        self.port = free_port()

    @contextmanager
    def running(self, log: str) -> Iterator[str]:
        """Serve, at the same port each time, and give the address."""
        arguments = ["serve", "--state", str(self.folder), "--listen", f"127.0.0.1:{self.port}", "--log", log]
        with subprocess.Popen([sys.executable, "-m", "archive.witness", *arguments], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                process.stdout.readline()
                assert int(process.stdout.readline().rpartition(":")[2]) == self.port
                yield f"http://127.0.0.1:{self.port}"
            finally:
                process.terminate()
                process.wait(30)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> RunningArchive:
    """An archive that nothing serves yet."""
    made = RunningArchive(tmp_path_factory.mktemp("witnessed"))
    (made.folder / "password").write_text("seven boats on a lake\n")
    made.json("init", "--admin", "admin", "--admin-password-file", str(made.folder / "password"))
    return made


@pytest.fixture(scope="module")
def witness(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return Program(tmp_path_factory.mktemp("outside") / "state")


def store(archive: RunningArchive, token: str, study: str) -> int:
    answer = requests.post(
        f"{archive.url}/dicomweb/studies", data=instance(study=study), verify=str(archive.ca), timeout=60,
        headers={"Content-Type": "application/dicom", "Authorization": f"Bearer {token}", "Accept": "application/dicom+json"},
    )
    return answer.status_code


def test_yesterdays_copy_of_everything_starts_read_only(archive: RunningArchive, witness: Program, tmp_path: Path) -> None:
    """T9: nothing inside can tell, for all of it went back together."""
    log = archive.json("ledger", "keys")["keys"][0]
    with witness.running(log) as url:
        added = archive.json("witness", "add", "nas", url, witness.key)
        assert added["log"] == log
        [told] = archive.json("witness", "ask")
        assert (told["problem"], told["size"] > 0) == ("", True)
        shutil.copytree(archive.storage, tmp_path / "yesterday")
        archive.json("user", "add", "mallory", "--password-file", str(archive.folder / "password"), "--role", "technologist")
        assert archive.json("witness", "ask")[0]["size"] > told["size"]
        shutil.rmtree(archive.storage)
        shutil.copytree(tmp_path / "yesterday", archive.storage)
        assert archive.run("ledger", "verify").returncode == 0, "it holds, as far as anything here knows"
        try:
            archive.start("serve")
            assert "V14" in archive.status["read_only"]
        finally:
            archive.stop()
    assert archive.run("user", "add", "eve").returncode != 0
    archive.json("ledger", "acknowledge", "--reason", "the disk broke; this is the copy there was")
    origin = log.split("+")[0]
    memory_of = [sys.executable, "-m", "archive.witness", "remembered", "--state", str(witness.folder)]
    assert subprocess.run(memory_of, capture_output=True, text=True, check=True, timeout=60).stdout.startswith(origin)
    archive.json("witness", "forget", "--state", str(witness.folder), "--origin", origin)
    with witness.running(log):
        assert archive.json("witness", "ask")[0]["problem"] == ""


def test_what_a_witness_shows_stops_a_serving_archive(archive: RunningArchive, witness: Program) -> None:
    """Two histories, one of them with the witness: the archive that serves the other goes on reading only, at once."""
    log = archive.json("ledger", "keys")["keys"][0]
    archive.start("serve")
    try:
        token = archive.token("admin")
        with witness.running(log):
            assert store(archive, token, "1.2.3") == 200
            deadline = time.monotonic() + 60
            while not archive.json("status")["witnesses"] and time.monotonic() < deadline:
                time.sleep(0.2)
            assert archive.json("witness", "ask")[0]["problem"] == ""
            [doctor] = [one for one in archive.json("doctor")["checks"] if one["name"] == "outside witness"]
            assert (doctor["state"], "nas agrees" in doctor["detail"]) == ("ok", True)
            _from_elsewhere(archive)
        keyring = Keyring.open(load(archive.config))
        held = memory.Memory(witness.folder)
        origin = held.forget(notes.origin_of(keyring.archive_uuid)).origin
        held.add(0, [], notes.write(origin, 9, bytes(32), keyring.log_signers, datetime.now(UTC)), datetime.now(UTC))
        held.close()
        with witness.running(log):
            asked = archive.run("--json", "witness", "ask")
            assert (asked.returncode, "V14" in asked.stdout) == (1, True)
            deadline = time.monotonic() + 60
            while not archive.json("status")["read_only"] and time.monotonic() < deadline:
                time.sleep(0.2)
        assert "V14" in archive.json("status")["read_only"]
        assert store(archive, token, "1.2.4") == 503
        assert base64.b64encode(bytes(32)).decode() in (archive.storage / "ledger" / "witness" / "nas.against").read_text()
    finally:
        archive.stop()


def _from_elsewhere(archive: RunningArchive) -> None:
    """An auditor's machine has the public keys, a token and the witness's key, and recomputes the whole log."""
    (archive.folder / "keys").write_text("\n".join(archive.json("ledger", "keys")["keys"]))
    (archive.folder / "token").write_text(archive.token("admin", "--permission", "audit"))
    asked = ["ledger", "verify", "--url", f"{archive.url}/api/ledger", "--keys", str(archive.folder / "keys"), "--ca", str(archive.ca)]
    assert archive.run(*asked).returncode == 4, "nobody without a token"
    seen = archive.json(*asked, "--token-file", str(archive.folder / "token"))
    assert seen["size"] > 0
