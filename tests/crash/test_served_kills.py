"""A served archive is killed under four dcmsend, STOW-RS and an import: whatever any of them was told is there afterwards.

ARCHIVE_TEST_SERVED_KILLS makes this longer than the suite's.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from archive.config import load
from archive.node import open_node
from tests.crash.promises import Promises
from tests.dimse.fakes import eventually
from tests.journeys import doors
from tests.journeys.running import RunningArchive
from tests.services import archives, crowd

KILLS = int(os.environ.get("ARCHIVE_TEST_SERVED_KILLS", "2"))
SENDERS, EACH = 4, 60
SETTINGS = '[dimse.plain]\nenabled = true\nport = 0\n[storage]\nsegment_bytes = 8388608\nreserve = "0%"\n'
ANSWER = re.compile(
    r"INCOMING DIMSE MESSAGE(?:(?!INCOMING).)*?Affected SOP Instance UID\s*: ([0-9.]+)(?:(?!INCOMING).)*?DIMSE Status\s*: 0x0000", re.DOTALL
)


def processes(root: int) -> dict[int, str]:
    """Every process below one and its command line, itself left out."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parents.setdefault(int((entry / "stat").read_text().rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found, waiting = {}, list(parents.get(root, []))
    while waiting:
        pid = waiting.pop()
        with suppress(OSError):
            found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        waiting += parents.get(pid, [])
    return found


def kill(*pids: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def working(pid: int) -> bool:
    """Whether a process has a thread that has not ended: one that was killed may have a write to end first, and keeps its locks."""
    try:
        return any(
            (task / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX" for task in Path(f"/proc/{pid}/task").iterdir()
        )
    except OSError:
        return Path(f"/proc/{pid}/task").exists()  # a thread went while we looked: look again


def kill_everything(archive: RunningArchive) -> None:
    """As when the machine kills it: nobody gets to say anything. Returns when all are gone, and with them their locks."""
    assert archive.process is not None
    with suppress(ProcessLookupError):
        os.kill(archive.process.pid, signal.SIGSTOP)  # none is begun behind our back
    found = set(processes(archive.process.pid))  # one whose first thread has ended has no command line any more
    while True:
        found |= set(named(str(archive.config)))
        if not (left := [pid for pid in found if working(pid)]):
            break
        kill(*left)
        time.sleep(0.01)
    archive.stop(signal.SIGKILL)


def named(text: str) -> list[int]:
    """Every process with this in its command line: also one whose parent was killed before."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and text.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


class Load:
    """Four dcmsend, a STOW-RS client and an import at once, each with instances of its own; what they are told is kept."""

    def __init__(self, archive: RunningArchive, token: str, folder: Path, round_: int) -> None:
        self.archive, self.token, self.folder, self.round = archive, token, folder, round_
        self.promises = Promises(by_data_set=True)
        self.sent: dict[str, tuple[str, bytes]] = {}
        self._lock = threading.Lock()
        self._running: list[subprocess.Popen[bytes]] = []
        self._stopping = False
        self._threads = [threading.Thread(target=one) for one in (*self._dcmsends(), self._stow, self._import)]
        for thread in self._threads:
            thread.start()

    def _make(self, who: int, count: int) -> list[Path]:
        """Write instances of one sender; some are shared by all, so that they meet."""
        study = f"1.2.{self.round + 1}.{who + 1}"
        made = self.folder / f"{self.round}-{who}"
        made.mkdir()
        for number in range(count):
            shared = f"1.2.{self.round + 1}.99" if number % 10 == 0 else study
            uid = f"{shared}.1.{number}"
            data = archives.instance(number, study=shared, rows=512 if number % 7 == 0 else 64)
            self.sent[uid] = (shared, data)
            (made / f"{number}.dcm").write_bytes(data)
        return sorted(made.iterdir())

    def _told(self, uid: str) -> None:
        with self._lock:
            self.promises.stored[uid] = self.sent[uid]

    def _dcmsends(self) -> list[Callable[[], None]]:
        return [self._dcmsend(who, self._make(who, EACH)) for who in range(SENDERS)]

    def _dcmsend(self, who: int, paths: list[Path]) -> Callable[[], None]:
        where = self.archive.status["dimse_plain"]
        log = self.folder / f"log-{self.round}-{who}"

        def run() -> None:
            with log.open("wb") as out:
                process = subprocess.Popen(
                    ["dcmsend", "-d", "-nh", "-aet", "SENDER", "-aec", "STRONGROOM", where["host"], str(where["port"]), *map(str, paths)],
                    stdout=out, stderr=out, env={**os.environ, "TCP_NODELAY": "1"},
                )
                self._running.append(process)
                process.wait(120)
            for uid in ANSWER.findall(log.read_text(errors="replace")):
                self._told(uid)

        return run

    def _stow(self) -> None:
        asker = doors.session(self.archive, self.token)
        paths = self._make(SENDERS, 200)
        for start in range(0, len(paths), 5):
            if self._stopping:
                return
            try:
                _status, stored, _reasons = doors.stow(self.archive, asker, [path.read_bytes() for path in paths[start : start + 5]])
            except requests.RequestException:
                time.sleep(0.05)  # nothing was said: nothing was promised
                continue
            for uid in stored:
                self._told(uid)

    def _import(self) -> None:
        paths = self._make(SENDERS + 1, 60)
        report = self.folder / f"report-{self.round}"
        command = [sys.executable, "-m", "archive", "--config", str(self.archive.config), "import", "--report", str(report)]
        process = subprocess.Popen(
            [*command, str(paths[0].parent)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=self.archive.environment(),
        )
        self._running.append(process)
        process.wait(120)
        if report.exists():
            for line in report.read_text().splitlines():
                with suppress(ValueError):
                    row = json.loads(line)
                    if row["outcome"] in {"stored", "duplicate"}:
                        self._told(row["sop_instance_uid"])

    def end(self) -> None:
        """Wait until nobody sends any more."""
        self._stopping = True
        kill(*[process.pid for process in self._running if process.poll() is None])
        for thread in self._threads:
            thread.join(150)
            assert not thread.is_alive()


def check(archive: RunningArchive, promises: Promises, *, thorough: bool) -> None:
    """Open what the kill left as a start does, twice."""
    config = load(archive.config)
    states = []
    for start in range(2):
        node = open_node(config)
        try:
            assert node.start() == ""
            promises.check(node)
            states.append(crowd.state(node))
            if thorough and start == 0:  # the second finds the same archive
                crowd.check_sound(node)
        finally:
            node.close()
    assert states[0] == states[1]


@pytest.mark.usefixtures("program")
def test_killed_while_everybody_stores(tmp_path: Path, program: Callable[[str, str], str]) -> None:
    program("dcmsend", "dcmtk")
    chance = random.Random(20261121)
    told = 0
    archive = RunningArchive(tmp_path, settings=SETTINGS, fresh=True)
    archive.start()
    try:
        archive.json("peer", "add", "SENDER", "--aet", "SENDER", "--network", "127.0.0.0/8", "--plain", "--role", "modality")
        token = archive.token("admin")
        for round_ in range(KILLS):
            assert archive.process is not None
            load_ = Load(archive, token, tmp_path, round_)
            time.sleep(chance.uniform(0.1, 1.5))
            if round_ % 2:  # one worker first: the supervisor puts another in its place, under the same load
                kill(chance.choice(list(processes(archive.process.pid))))
                time.sleep(chance.uniform(0.1, 2.0))
            if round_ == KILLS - 1:  # a slow machine stores little in the time of all
                assert eventually(lambda known=told, now=load_: known + len(now.promises.stored) > KILLS * 5)
            kill_everything(archive)
            load_.end()
            told += len(load_.promises.stored)
            check(archive, load_.promises, thorough=round_ in {0, KILLS - 1})
            archive.start("serve")
    finally:
        kill_everything(archive)
    assert told > KILLS * 5, "hardly anything was stored between the kills"
