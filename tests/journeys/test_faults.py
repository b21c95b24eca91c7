"""Full and read-only disks, killed processes, missing or foreign keys and databases: nothing half-stored, and a word what to do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from archive.config import load
from archive.serve import state
from tests.dimse.fakes import eventually
from tests.dimse.rawpeer import AC, CT, EXPLICIT, p_data, store_command
from tests.journeys import disks, doors
from tests.journeys.instances import dataset_bytes
from tests.journeys.running import RunningArchive
from tests.web.samples import STUDY, instance

DISK_BYTES = 256 << 20


def large(number: int, study: int) -> bytes:
    """An instance of 16 MiB."""
    return instance(number, study=study, Rows=4096, Columns=2048, PixelData=os.urandom(1024) * (16 << 10))


def send(archive: RunningArchive, certificates: Path, number: int, study: int, data: bytes) -> int:
    """Store by C-STORE and return the status."""
    with doors.connect(archive, certificates) as peer:
        assert peer.associate([(CT, [EXPLICIT])]) == AC
        status = peer.store(1, CT, f"{STUDY}.{study}.1.{number}", dataset_bytes(data))
        peer.release()
    return status


def instances(archive: RunningArchive, asker: requests.Session, study: int) -> set[str]:
    """The SOP Instance UIDs of a study."""
    answer = asker.get(f"{archive.url}/dicomweb/studies/{STUDY}.{study}/instances", timeout=30)
    assert answer.status_code == 200
    return {row["00080018"]["Value"][0] for row in answer.json()}


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, bool]]:
    """A folder on a small disk of its own; without the right to mount one, on the disk everything is on. Says which."""
    folder = tmp_path_factory.mktemp("disk")
    with disks.mounted(folder, DISK_BYTES, "0700") as mounted:
        yield folder, mounted


def test_a_full_disk(small_disk: tuple[Path, bool]) -> None:
    folder, mounted = small_disk
    if not mounted:
        pytest.skip("mounting a small disk needs root; test_the_reserve covers the answers")
    home = folder / "full"
    home.mkdir()
    with RunningArchive(home, settings='[storage]\nreserve = "6%"\n') as archive:
        certificates = doors.enrol(archive)
        asker = doors.session(archive, archive.token("admin"))
        assert doors.stow(archive, asker, [instance(1, study=1), instance(2, study=1)])[0] == 200
        assert send(archive, certificates, 3, 1, instance(3, study=1)) == 0
        whole = {f"{STUDY}.1.1.{number}" for number in (1, 2, 3)}
        # The disk fills while large instances arrive.
        statuses, dimse = [], []
        for number in range(1, 8):
            statuses.append(doors.stow(archive, asker, [large(number, 2)])[0])
            dimse.append(send(archive, certificates, number, 3, large(number, 3)))
        assert set(statuses) == {200, 507}
        assert set(dimse) == {0, 0xA700}
        stored = {f"{STUDY}.2.1.{number}" for number, status in enumerate(statuses, 1) if status == 200}
        assert instances(archive, asker, 2) == stored
        assert instances(archive, asker, 3) == {f"{STUDY}.3.1.{number}" for number, status in enumerate(dimse, 1) if status == 0}
        # Below the reserve nothing comes in at all, and everything that is in comes out.
        disks.fill(folder / "filler", 3 << 20)
        status, taken, _reasons = doors.stow(archive, asker, [instance(4, study=1)])
        assert (status, taken) == (507, [])
        assert send(archive, certificates, 5, 1, instance(5, study=1)) == 0xA700
        (home / "one.dcm").write_bytes(instance(6, study=1))
        refused = archive.run("--json", "import", str(home / "one.dcm"))
        assert refused.returncode == 4
        assert json.loads(refused.stderr.splitlines()[-1])["error"] == "out-of-space"
        assert json.loads(refused.stderr.splitlines()[-1])["remedy"]
        assert instances(archive, asker, 1) == whole
        for sop in whole | stored:
            series = sop.rsplit(".", 1)[0]
            url = f"{archive.url}/dicomweb/studies/{series.rsplit('.', 1)[0]}/series/{series}/instances/{sop}"
            assert asker.get(url, headers={"Accept": "application/dicom; transfer-syntax=*"}, timeout=30).status_code == 200
        doctor = archive.run("--json", "doctor")
        assert any(one["state"] != "ok" and "space" in one["name"] for one in json.loads(doctor.stdout)["checks"]), doctor.stdout
        # With room again everything goes on; what was refused can be sent again.
        (folder / "filler").unlink()
        assert send(archive, certificates, 5, 1, instance(5, study=1)) == 0
        assert doors.stow(archive, asker, [instance(4, study=1)])[0] == 200
        assert archive.json("reconcile", "list") == []
        report = archive.json("verify", "--full")
        assert report["ok"], report["findings"]
        assert report["checked"] == len(stored) + dimse.count(0) + 5
    shutil.rmtree(home)


def test_the_reserve(tmp_path: Path) -> None:
    """A reserve larger than the disk: nothing comes in by any door, and reading and audit go on."""
    with RunningArchive(tmp_path, settings='[storage]\nreserve = "9000TiB"\n') as archive:
        certificates = doors.enrol(archive)
        asker = doors.session(archive, archive.token("admin"))
        assert doors.stow(archive, asker, [instance(2)])[0] == 507
        assert send(archive, certificates, 2, 1, instance(2)) == 0xA700
        (tmp_path / "one.dcm").write_bytes(instance(2))
        assert archive.run("import", str(tmp_path / "one.dcm")).returncode == 4
        assert instances(archive, asker, 1) == set()
        assert archive.json("audit", "search", "--kind", "searched")


def test_a_read_only_disk(small_disk: tuple[Path, bool]) -> None:
    folder, mounted = small_disk
    if not mounted:
        pytest.skip("mounting a read-only disk needs root")
    home = folder / "readonly"
    home.mkdir()
    archive = RunningArchive(home)
    assert archive.run("init").returncode == 0
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    try:
        refused = archive.run("--json", "serve")
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
    assert refused.returncode == 4, refused.stderr
    told = json.loads(refused.stderr.splitlines()[-1])
    assert told["error"] != "unexpected"
    assert "read-only" in told["message"].lower()
    assert told["remedy"]
    archive.start("serve")
    assert archive.stop() == 0
    shutil.rmtree(home)


@pytest.fixture(scope="module")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> RunningArchive:
    archive = RunningArchive(tmp_path_factory.mktemp("pristine"))
    assert archive.run("init").returncode == 0
    return archive


def without(name: str) -> Any:
    return lambda storage: (storage / name).unlink()


def written(name: str, data: bytes) -> Any:
    return lambda storage: (storage / name).write_bytes(data)


def modes(name: str, mode: int) -> Any:
    return lambda storage: (storage / name).chmod(mode)


FAULTS: dict[str, tuple[Any, str, str]] = {
    "no keys folder": (lambda storage: shutil.rmtree(storage / "keys"), "keys-unavailable", "backup"),
    "no key file": (without("keys/root.key"), "keys-unavailable", "root.key"),
    "no keyring": (without("keys/keyring.json"), "keys-unavailable", "keyring"),
    "another's key": (written("keys/root.key", b"strongroom-key:v1:" + b"A" * 43 + b"=\n"), "keys-unavailable", "key"),
    "a keyring cut short": (lambda storage: os.truncate(storage / "keys/keyring.json", 100), "keys-unavailable", "keyring"),
    "an open key file": (modes("keys/root.key", 0o640), "keys-unavailable", "chmod"),
    "an open keyring": (modes("keys/keyring.json", 0o604), "keys-unavailable", "chmod"),
    "an open keys folder": (modes("keys", 0o755), "keys-unavailable", "chmod"),
    "no index": (without("index.db"), "database-unavailable", "index"),
    "no keystore": (without("keystore.db"), "database-unavailable", "keystore"),
    "an index of zeros": (written("index.db", bytes(65536)), "database-unavailable", "index"),
    "a keystore that is something else": (written("keystore.db", b"SQLite format 3\0" + bytes(9000)), "database-unavailable", "keystore"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_start_that_cannot_be_right_is_refused_with_what_to_do(initialised: RunningArchive, tmp_path: Path, fault: str) -> None:
    harm, error, word = FAULTS[fault]
    shutil.copytree(initialised.folder, tmp_path, dirs_exist_ok=True)
    archive = RunningArchive(tmp_path)
    (tmp_path / "storage").chmod(0o700)
    harm(archive.storage)
    present = {path.relative_to(archive.storage) for path in archive.storage.rglob("*")}
    done = archive.run("--json", "serve")
    assert done.returncode == 4, done.stderr
    told = json.loads(done.stderr.splitlines()[-1])
    assert told["error"] == error
    assert told["remedy"]
    assert word in (told["message"] + told["remedy"]).lower()
    made = {path.relative_to(archive.storage) for path in archive.storage.rglob("*")} - present
    assert not [path for path in made if path.suffix in {".db", ".json", ".key"}], "something was made in the place of what is missing"
    if fault.startswith("no "):
        up = archive.run("--json", "up")
        assert up.returncode in {2, 4}, "a missing part must never be made anew in silence"
        assert json.loads(up.stderr.splitlines()[-1])["remedy"]


def processes(archive: RunningArchive) -> dict[str, int]:
    """The watched processes: what `archive status` tells."""
    status = state.read_status(load(archive.config))
    return {one.role: one.pid for one in status.processes} if status is not None else {}


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_killed_workers_come_back_and_what_was_acknowledged_is_there(tmp_path: Path) -> None:
    with RunningArchive(tmp_path) as archive:
        certificates = doors.enrol(archive)
        asker = doors.session(archive, archive.token("admin"))
        acknowledged = set()
        number = 0
        for role in ("background", "dimse", "web", "web worker"):
            for door in ("dimse", "stow"):
                number += 1
                data = instance(number, study=7)
                if door == "dimse":
                    assert send(archive, certificates, number, 7, data) == 0
                else:
                    assert doors.stow(archive, asker, [data])[0] == 200
                acknowledged.add(f"{STUDY}.7.1.{number}")
            before = processes(archive)
            victim = before[role] if role in before else children(before["web"])[-1]
            os.kill(victim, signal.SIGKILL)
            wait_until_it_works(archive, asker, certificates, before, role)
            assert instances(archive, asker, 7) == acknowledged
        # The whole archive at once, without a goodbye.
        assert archive.process is not None
        pids = list(processes(archive).values())
        everyone = [archive.process.pid, *pids, *(child for pid in pids for child in children(pid))]
        assert send(archive, certificates, 60, 7, instance(60, study=7)) == 0
        for pid in everyone:
            with suppress(ProcessLookupError):  # those that end with the one before them
                os.kill(pid, signal.SIGKILL)
        archive.process.wait(10)
        archive.stop()
        archive.start("serve")
        assert instances(archive, asker, 7) == acknowledged | {f"{STUDY}.7.1.60"}
        report = archive.json("verify", "--full")
        assert report["ok"], report["findings"]
        assert report["checked"] == len(acknowledged) + 1
        assert archive.json("ledger", "verify")["ok"]


def wait_until_it_works(
    archive: RunningArchive, asker: requests.Session, certificates: Path, before: dict[str, int], role: str
) -> None:
    """Wait until the killed worker has a successor and both doors answer."""
    end = time.monotonic() + 90
    while time.monotonic() < end:
        try:
            now = processes(archive)
            new = role not in before or (role in now and now[role] != before[role])
            if new and asker.get(f"{archive.url}/readyz", timeout=5).status_code == 200:
                with doors.connect(archive, certificates) as peer:
                    if peer.associate([(CT, [EXPLICIT])]) == AC:
                        peer.release()
                        return
        except (OSError, EOFError, requests.RequestException):
            pass
        time.sleep(0.1)
    pytest.fail(f"after {role} was killed the archive did not come back")


def unread(connection: socket.socket) -> int:
    """How many bytes of what was sent here over this connection lie at the other end, or on the way there; -1 when it cannot be told."""
    here, there = (f"0100007F:{port:04X}" for _, port in (connection.getsockname(), connection.getpeername()))
    rows = map(str.split, Path("/proc/net/tcp").read_text().splitlines())
    queues = {(row[1], row[2]): [int(size, 16) for size in row[4].split(":")] for row in rows if ":" in row[4]}  # sent, received
    if not {(here, there), (there, here)} <= queues.keys():  # told in pieces, while others come and go
        return -1
    return queues[here, there][0] + queues[there, here][1]


def turned_away(archive: RunningArchive, certificates: Path) -> bool:
    try:
        with doors.connect(archive, certificates) as peer:
            return peer.associate([(CT, [EXPLICIT])]) != AC
    except (OSError, EOFError):
        return True


def test_sigterm_lets_a_running_association_finish_its_instance(tmp_path: Path) -> None:
    with RunningArchive(tmp_path) as archive:
        asker = doors.session(archive, archive.token("admin"))
        certificates = doors.enrol(archive)
        data = instance(1, study=8, Rows=512, Columns=512, PixelData=bytes(512 << 10))
        dataset = dataset_bytes(data)
        assert archive.process is not None
        with doors.connect(archive, certificates) as quiet, doors.connect(archive, certificates) as peer:
            assert quiet.associate([(CT, [EXPLICIT])]) == AC
            assert peer.associate([(CT, [EXPLICIT])]) == AC
            peer.send(p_data(1, 3, store_command(CT.encode(), f"{STUDY}.8.1.1".encode())))
            half = len(dataset) // 2
            peer.send(b"".join(p_data(1, 0, dataset[at : min(at + 16000, half)]) for at in range(0, half, 16000)))
            assert eventually(lambda: unread(peer.connection) == 0)  # an association between two messages is ended at once
            time.sleep(1)
            archive.process.send_signal(signal.SIGTERM)
            assert eventually(lambda: turned_away(archive, certificates))
            assert archive.process.poll() is None, "it did not wait"
            peer.send(b"".join(p_data(1, 0, dataset[at : at + 16000]) for at in range(half, len(dataset) - 16000, 16000)))
            sent = half + len(range(half, len(dataset) - 16000, 16000)) * 16000
            peer.send(p_data(1, 2, dataset[sent:]))
            assert peer.response()[0x0900] == b"\0\0"
        assert archive.stop() == 0
        archive.start("serve")
        assert instances(archive, asker, 8) == {f"{STUDY}.8.1.1"}
        assert archive.json("verify", "--full")["ok"]
