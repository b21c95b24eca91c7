"""The hand-over of the keyring to worker processes."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from archive.config import Config
from archive.errors import Unavailable
from archive.serve import handover
from archive.serve.handover import READY, Door, Handover, Link


def given(path: Path, payload: Handover) -> tuple[Door, list[tuple[socket.socket, int] | None], threading.Thread]:
    door = Door(path, payload)
    accepted: list[tuple[socket.socket, int] | None] = []
    thread = threading.Thread(target=lambda: accepted.append(door.accept()))
    thread.start()
    return door, accepted, thread


def test_worker_gets_what_was_handed_over(tmp_path: Path) -> None:
    payload = Handover(keyring=os.urandom(5000), config=Config(base=str(tmp_path)), read_only="V14")
    door, accepted, thread = given(tmp_path / "node.sock", payload)
    link = Link(tmp_path / "node.sock")
    thread.join(60)
    assert link.handover == payload
    assert accepted[0] is not None
    connection, pid = accepted[0]
    assert pid == os.getpid()
    link.ready()
    connection.setblocking(True)
    assert connection.recv(64) == READY
    connection.close()
    link.close()
    door.close()
    assert not (tmp_path / "node.sock").exists()


def test_socket_is_the_owners_alone(tmp_path: Path) -> None:
    door = Door(tmp_path / "node.sock", Handover(keyring=b"k", config=Config()))
    assert stat.S_IMODE((tmp_path / "node.sock").stat().st_mode) == 0o600
    door.close()


def test_another_user_gets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "peer_of", lambda _connection: (os.geteuid() + 1, 1))
    door, accepted, thread = given(tmp_path / "node.sock", Handover(keyring=b"secret", config=Config()))
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(tmp_path / "node.sock"))
        caller.settimeout(5)
        assert caller.recv(100) == b""
    thread.join(60)
    assert accepted == [None]
    door.close()


def test_path_longer_than_a_socket_address(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    door, accepted, thread = given(folder / "node.sock", Handover(keyring=b"k", config=Config()))
    link = Link(folder / "node.sock")
    thread.join(60)
    assert link.handover.keyring == b"k"
    assert accepted[0] is not None
    accepted[0][0].close()
    link.close()
    door.close()


def test_no_supervisor(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        Link(tmp_path / "node.sock")


def test_supervisor_that_hangs_up(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "node.sock"))
    listener.listen()
    thread = threading.Thread(target=lambda: listener.accept()[0].close())
    thread.start()
    with pytest.raises(Unavailable):
        Link(tmp_path / "node.sock")
    thread.join(60)
    listener.close()


def test_worker_ends_when_its_supervisor_is_gone(tmp_path: Path) -> None:
    door, accepted, thread = given(tmp_path / "node.sock", Handover(keyring=b"k", config=Config()))
    code = (
        "import sys, time, pathlib\nfrom archive.serve.handover import Link\n"
        "link = Link(pathlib.Path(sys.argv[1])); link.watch(); link.ready(); time.sleep(60)"
    )
    worker = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "node.sock")])
    thread.join(60)
    assert accepted[0] is not None
    connection, pid = accepted[0]
    assert pid == worker.pid
    connection.setblocking(True)
    assert connection.recv(64) == READY
    connection.close()
    assert worker.wait(20) == -signal.SIGTERM
    door.close()
