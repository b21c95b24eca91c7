"""New keys while the archive serves: stores go on before, during and after, in workers and in commands beside them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
import requests

from tests.journeys.running import RunningArchive
from tests.services.archives import instance

BESIDE = textwrap.dedent("""
    import sys
    from pathlib import Path
    from archive.config import load
    from archive.node import open_node
    from tests.services import archives
    node = open_node(load(Path(sys.argv[1])), role="cli")
    for line in sys.stdin:
        study = line.strip()
        print(archives.store(node, archives.instance(study=study)).status, flush=True)
    node.close()
""")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningArchive]:
    with RunningArchive(tmp_path_factory.mktemp("rotation"), fresh=True) as running:
        yield running


class Sender:
    """Stores a study of its own with each request, each therefore under a new data key."""

    def __init__(self, archive: RunningArchive) -> None:
        self.archive = archive
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.verify = str(archive.ca)
        self.session.headers["Authorization"] = f"Bearer {archive.token('admin')}"
        self.stored: dict[str, bytes] = {}
        self.refused: list[tuple[int, str]] = []
        self.lost = 0
        self._stop = threading.Event()

    def store(self, study: str) -> bool:
        data = instance(study=study)
        try:
            answer = self.session.post(
                f"{self.archive.url}/dicomweb/studies", data=data, timeout=60,
                headers={"Content-Type": "application/dicom", "Accept": "application/dicom+json"},
            )
        except requests.ConnectionError:
            self.lost += 1  # a worker was just being replaced
            return False
        if answer.status_code != 200:
            self.refused.append((answer.status_code, answer.text[:300]))
            return False
        self.stored[study] = data
        return True

    def read(self, study: str) -> bytes:
        answer = self.session.get(
            f"{self.archive.url}/dicomweb/studies/{study}/series/{study}.1/instances/{study}.1.1", timeout=60,
            headers={"Accept": "application/dicom; transfer-syntax=*"},
        )
        assert answer.status_code == 200, answer.text[:300]
        return answer.content

    def run(self) -> None:
        number = 0
        while not self._stop.is_set():
            if not self.store(f"1.2.50.{number}"):
                time.sleep(0.05)
            number += 1
            earlier = f"1.2.50.{number // 2}"
            if earlier in self.stored:
                try:
                    assert self.read(earlier) == self.stored[earlier]
                except requests.ConnectionError:
                    self.lost += 1
                except AssertionError as error:
                    self.refused.append((0, str(error)))
            time.sleep(0.02)  # what is stored here is read, verified and re-wrapped below

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.run)
        self._thread.start()
        return self

    def __exit__(self, *_args: object) -> None:
        self._stop.set()
        self._thread.join(90)


def test_keys_rotate_while_instances_come_in(archive: RunningArchive, tmp_path: Path) -> None:
    sender = Sender(archive)
    assert sender.store("1.2.1")
    beside = subprocess.Popen(
        [sys.executable, "-c", BESIDE, str(archive.config)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=archive.environment(), cwd=archive.folder,
    )

    def by_command(study: str) -> str:
        assert beside.stdin is not None
        assert beside.stdout is not None
        beside.stdin.write(study + "\n")
        beside.stdin.flush()
        return beside.stdout.readline().strip()

    assert by_command("1.2.2") == "stored"
    with sender:
        rotated = archive.json("key", "rotate")
        replaced = [archive.json("key", "rotate", which) for which in ("signing", "pepper")]
        count = len(sender.stored)
        deadline = time.monotonic() + 30
        while len(sender.stored) < count + 10 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert rotated["destroyed"] == 1
    assert rotated["rewrapped"] >= 2
    assert [[one["purpose"] for one in done["keys"]] for done in replaced] == [["instance"], ["pepper"]]
    assert sender.refused == []  # with the token that was given out under the pepper of before
    assert len(sender.stored) > count
    # A command that was open all the time holds an older keyring, and takes the new one.
    assert by_command("1.2.3") == "stored"
    assert beside.communicate(timeout=60) == ("", None)
    assert beside.returncode == 0
    assert sender.store("1.2.4")
    for study in [*sender.stored, "1.2.2", "1.2.3"]:
        assert sender.read(study) == instance(study=study)
    assert archive.json("verify", "--full")["ok"]
    kinds = [one["state"] for one in archive.json("key", "list") if one["purpose"] == "kek"]
    assert sorted(kinds) == ["active", "retired"]
    assert archive.json("ledger", "verify")["ok"]
    archive.stop()
    assert archive.json("key", "rotate", "index")["key"]
    archive.start("serve")
    sender.session.headers["Authorization"] = f"Bearer {archive.token('admin')}"
    for study in ("1.2.1", "1.2.2", "1.2.3", "1.2.4", *list(sender.stored)[::5]):
        assert sender.read(study) == instance(study=study)


PASSPHRASE = "kq7vw mh3xz pp2ra tn8bd"


def test_a_passphrase_instead_of_the_key_file(archive: RunningArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    added = archive.run("--json", "key", "slot", "add", "--new-passphrase-file", "-", "--label", "safe", stdin=PASSPHRASE + "\n")
    assert added.returncode == 0, added.stderr
    slots = {one["kind"]: one["id"] for one in archive.json("key", "slot", "list")}
    archive.json("key", "slot", "remove", slots["key-file"])
    last = archive.run("--json", "key", "slot", "remove", slots["passphrase"], "--passphrase-file", "-", stdin=PASSPHRASE + "\n")
    assert "last slot" in last.stderr
    (archive.storage / "keys" / "root.key").unlink()
    # Beside the archive that serves, commands that change no key take what its workers have; others ask.
    assert archive.json("status")["ready"]
    assert archive.json("user", "list")
    refused = archive.run("--json", "key", "slot", "list")
    assert refused.returncode == 4
    assert "no terminal" in refused.stderr
    archive.stop()
    assert archive.run("user", "list").returncode == 4
    wrong = archive.run("user", "list", "--passphrase-file", "-", stdin="another that is long enough\n")
    assert (wrong.returncode, "wrong passphrase" in wrong.stderr) == (4, True)
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "strongroom-passphrase").write_text(PASSPHRASE + "\n")
    with monkeypatch.context() as patched:
        patched.setenv("CREDENTIALS_DIRECTORY", str(credentials))
        archive.start("serve")
    sender = Sender(archive)
    assert sender.store("1.2.60")
    asked = archive.run("--json", "key", "rotate", "log", "--passphrase-file", "-", stdin=PASSPHRASE + "\n")
    assert asked.returncode == 0, asked.stderr  # the archive takes the new keys without being asked again
    assert sender.store("1.2.61")
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                shown = (process / name).read_bytes()
            except OSError:
                continue
            assert b"kq7vw mh3xz" not in shown
    assert "kq7vw" not in archive.log()
    assert archive.json("ledger", "verify")["ok"]
