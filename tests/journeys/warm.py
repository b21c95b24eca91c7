"""The command line without its start: a process that has imported it all forks one for each command.

A command takes a second to import what it stands on, an archive two, and the journeys give hundreds. What runs is the same `main`, in a
process of its own, with its own arguments, environment, folder and standard streams; what /proc says of it is its parent's command line.
"""

from __future__ import annotations

import array
import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def run(arguments: Sequence[str], *, env: Mapping[str, str], stdin: str = "", timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run `archive` with these arguments, as `subprocess.run` would.

    Raises:
        subprocess.TimeoutExpired.
    """
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin.encode())
        given.seek(0)
        process = Process(arguments, env=env, files=(given.fileno(), out.fileno(), err.fileno()))
        try:
            status = process.wait(timeout)
        finally:
            process.forget()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return subprocess.CompletedProcess(["archive", *arguments], status, *texts)


class Process:
    """What is used of subprocess.Popen."""

    def __init__(self, arguments: Sequence[str], *, env: Mapping[str, str], files: tuple[int, int, int]) -> None:
        """Run `archive` with these arguments; `files` are its standard streams. It is killed with whoever started it."""
        self._arguments = ["archive", *arguments]
        self.returncode: int | None = None
        self._connection = _connected()
        asked = json.dumps({"argv": self._arguments, "env": dict(env), "cwd": os.getcwd()}).encode()
        self._connection.sendmsg([len(asked).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))])
        self._connection.sendall(asked)
        self._lines = self._connection.makefile()
        self.pid = int(self._lines.readline())

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit status; a signal's is negative.

        Raises:
            subprocess.TimeoutExpired.
        """
        if self.returncode is None:
            ready, _, _ = select.select([self._connection], [], [], timeout)
            if not ready:
                raise subprocess.TimeoutExpired(self._arguments, timeout or 0)
            self.returncode = int(self._lines.readline())
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, if it runs."""
        self.send_signal(signal.SIGKILL)

    def forget(self) -> None:
        """End what still runs of it."""
        self._lines.close()
        self._connection.close()


def _connected() -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(_serving(os.getpid()))
    return connection


@cache
def _serving(_pid: int) -> str:
    """Start the process and return where it listens; it ends with this one, whose end of the pipe it reads."""
    path = str(Path(tempfile.mkdtemp(prefix="warm-")) / "socket")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.journeys.warm", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    atexit.register(process.communicate)  # closes its standard input, by which it ends
    return path


def serve(path: str) -> None:
    """Import everything, then fork for each connection until standard input ends."""
    import alembic.command

    import archive.cli.unlock
    import archive.keys.ca
    import archive.node
    import archive.serve.start
    from archive.cli.main import load_commands

    assert all((alembic.command, archive.cli.unlock, archive.keys.ca, archive.serve.start))
    load_commands()
    archive.node.load()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a fork that answers for its command
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(16)
        print("ready", flush=True)
        os.close(1)
        while True:
            ready, _, _ = select.select([server, 0], [], [])
            if 0 in ready and not os.read(0, 1):
                break
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                _attend(connection)
            connection.close()
    with suppress(OSError):
        Path(path).unlink()
        Path(path).parent.rmdir()


def _attend(connection: socket.socket) -> None:
    """Run one command in a process of its own and answer with its exit status; kill it when nobody waits any more."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, ancillary, _, _ = connection.recvmsg(4, socket.CMSG_LEN(3 * array.array("i").itemsize))
    files = array.array("i")
    files.frombytes(ancillary[0][2])
    asked = json.loads(connection.makefile("rb").read(int.from_bytes(head, "big")))
    pid = os.fork()
    if pid == 0:
        _become(asked, list(files), connection)
    for file in files:
        os.close(file)
    connection.sendall(b"%d\n" % pid)

    def watch() -> None:
        with suppress(OSError):
            if not connection.recv(1):
                os.kill(pid, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    _, status = os.waitpid(pid, 0)
    with suppress(OSError):
        connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _become(asked: dict[str, Any], files: Sequence[int], connection: socket.socket) -> None:
    connection.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.closerange(3, 64)
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    sys.argv = asked["argv"]
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", buffering=8192), open(2, "w", buffering=1)  # noqa: SIM115
    status = 70
    try:
        from archive.cli.main import main

        main()
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
    except BaseException:  # noqa: BLE001 # as the interpreter does
        traceback.print_exc()
        status = 1
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[1])
