"""Starts the worker processes, watches them, restarts one that dies, drains and stops them.

Order of a start: lock, keyring, checks (start.py), sockets, workers, then `READY`. Order of a stop: DIMSE and web workers
drain, then the background worker; what has not ended at the deadline is killed; then the stop is recorded (start.py). Nothing
is lost by that: success is only answered for what is durable.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from archive.config import Config
from archive.errors import ArchiveError, Unavailable
from archive.serve import listeners, state
from archive.serve.handover import READY, Door, Handover
from archive.serve.ports import Sockets

DRAIN_S = 25.0
START_S = 90.0
TICK_S = 0.2
BACK_OFF_S = (0.2, 0.5, 1, 2, 5, 10, 30)
STEADY_S = 60.0
AGAIN_S = 30.0
"""How long what kept the workers from being replaced is waited for before it is tried again."""
START_ATTEMPTS = 3

log = logging.getLogger("archive.serve")


@dataclass(slots=True)
class Child:
    """One watched process and how often it has been started."""

    role: str
    number: int
    ready_links: int  # how many of its processes must say that they are ready
    process: Process | None = None
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started_s: float = 0.0
    restarts: int = 0
    quick_deaths: int = 0
    again_s: float = 0.0


class Process(Protocol):
    """What is used of subprocess.Popen."""

    @property
    def pid(self) -> int:
        """Its number."""

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""

    def wait(self) -> int:
        """Wait for its end."""

    def terminate(self) -> None:
        """Send SIGTERM."""


Command = Callable[[Child, Sockets, Config], Sequence[str]]
Launch = Callable[[Child, Sockets, Config], Process]


def worker_command(child: Child, sockets: Sockets, config: Config) -> Sequence[str]:
    """Return the command of a worker; it names no secret."""
    command = [sys.executable, "-W", "ignore", "-m", "archive.serve", child.role, str(state.socket_path(config))]
    if child.role == "dimse":
        for name, made in (("--tls-fd", sockets.dimse_tls), ("--plain-fd", sockets.dimse_plain)):
            if made is not None:
                command += [name, str(made.fileno())]
    return command


def executed(command: Command = worker_command) -> Launch:
    """Return what starts a worker as a program of its own."""

    def launch(child: Child, sockets: Sockets, config: Config) -> Process:
        passed = [made.fileno() for made in (sockets.dimse_tls, sockets.dimse_plain) if made is not None]
        return subprocess.Popen(  # noqa: S603 # our own interpreter and module
            command(child, sockets, config), pass_fds=passed if child.role == "dimse" else (),
            stdin=subprocess.DEVNULL, start_new_session=True,  # Ctrl-C reaches the supervisor alone, which drains in order
        )

    return launch


def plan(config: Config, *, viewer: bool = False) -> list[Child]:
    """Return the processes an archive of this configuration runs, one for a viewer's origin when there is one."""
    cores = os.cpu_count() or 1
    dimse = dimse_processes(config) if config.dimse.tls.enabled or config.dimse.plain.enabled else 0
    return [
        Child("background", 0, 1),
        *(Child("dimse", number, 1) for number in range(dimse)),
        Child("web", 0, config.http.workers or cores),
        *([Child("viewer", 0, 1)] if viewer else []),
        *([Child("events", 0, 1)] if config.events.enabled else []),
    ]


def dimse_processes(config: Config) -> int:
    """Return how many processes serve associations: as configured, or one, and two from two cores."""
    return config.dimse.workers or min(2, os.cpu_count() or 1)


class Supervisor:
    """The process that `archive serve` is."""

    def __init__(self, config: Config, handover: Handover, sockets: Sockets, *, launch: Launch | None = None,
                 children: Sequence[Child] | None = None, on_ready: Callable[[state.Status], None] = lambda _status: None,
                 again: Callable[[], Handover] | None = None) -> None:
        """`handover.config` and `config` hold real ports; `on_ready` is called once, when every listener accepts.

        `again` makes the handover anew at SIGHUP, after which the workers are replaced one by one.
        """
        self._config = config
        self._sockets = sockets
        self._launch = launch or executed()
        self._children = list(plan(config, viewer=sockets.viewer is not None) if children is None else children)
        self._on_ready = on_ready
        self._started_at = datetime.now(UTC)
        self._handover = handover
        self._again = again
        self._generation = handover.generation
        self._hangups = 0
        self._again_s = 0.0
        self._untaken = False
        self._failed: list[Child] = []  # replaced, and not come up since
        self._ready = False
        self._signals = 0
        self._links: dict[socket.socket, int] = {}
        self._ready_pids: set[int] = set()
        self._door = Door(state.socket_path(config), handover)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._door.socket, selectors.EVENT_READ, "door")

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain and return.

        Raises:
            Unavailable: a worker does not come up.
        """
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._on_hangup)
        try:
            self._write_status()
            for child in self._children:
                self._start(child)
            deadline = time.monotonic() + START_S
            while not self._signals:
                self._wait(TICK_S)
                self._revive()
                if not self._ready:
                    self._look_ready(deadline)
                elif self._hangups or (self._untaken and time.monotonic() >= self._again_s):
                    self._begin_anew()
                elif self._failed and (self._all_ready() or time.monotonic() >= self._again_s):
                    self._replace([] if self._all_ready() else self._failed)
            log.info("draining")
        finally:
            self._stop()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._signals += 1

    def _on_hangup(self, _number: int, _frame: object) -> None:
        self._hangups += 1

    def _begin_anew(self) -> None:
        """Make the handover anew and replace every worker; when it cannot be made now, that is tried again."""
        self._hangups, self._untaken = 0, False
        if self._again is None:
            return
        try:
            self._handover = self._again()
        except (ArchiveError, OSError) as error:
            why, remedy = (error.message, error.remedy) if isinstance(error, ArchiveError) else (type(error).__name__, "")
            log.error("the keyring was not taken again: %s; tried again in %.0f s", why, AGAIN_S, extra={"remedy": remedy})
            self._untaken, self._again_s = True, time.monotonic() + AGAIN_S
            return
        self._door.offer(self._handover)
        log.info("replacing the workers")
        self._replace(self._children)

    def _replace(self, children: Sequence[Child]) -> None:
        """Drain each of these and start it again before the next one's turn; one that does not come up is told, and has another later."""
        failed: list[Child] = []
        for turn, child in enumerate(children, 1):
            self._drain([child], time.monotonic() + DRAIN_S)
            self._forget_gone()
            self._start(child)
            child.restarts += 1
            if self._comes_up([*failed, *(one for one in children[turn:] if one in self._failed)]):
                continue
            if self._signals:
                return
            failed.append(child)
            log.error("a replaced worker does not come up; tried again in %.0f s", AGAIN_S, extra={"worker": child.role})
        self._failed, self._again_s = failed, time.monotonic() + AGAIN_S
        if not failed:
            self._generation = self._handover.generation
            log.info("workers replaced")
        self._write_status()

    def _comes_up(self, failed: Sequence[Child]) -> bool:
        """Wait until all but those that failed say that they are ready; False at a signal, or when it takes longer than a start may."""
        deadline = time.monotonic() + START_S
        while not self._signals and time.monotonic() < deadline:
            if self._all_ready(failed):
                return True
            self._wait(TICK_S)
            self._revive()
        return False

    def _forget_gone(self) -> None:
        """Hear the ends of the lines that ended workers held."""
        end = time.monotonic() + 1
        while not all(_lives(pid) for pid in self._ready_pids) and time.monotonic() < end:
            self._wait(0.02)

    def _start(self, child: Child) -> None:
        child.started_at, child.started_s = datetime.now(UTC), time.monotonic()
        try:
            child.process = self._launch(child, self._sockets, self._config)
        except OSError as error:  # no room for another process now
            child.process = None
            child.quick_deaths += 1
            child.again_s = time.monotonic() + _pause_s(child)
            what = {"worker": child.role, "error": type(error).__name__, "again_in_s": _pause_s(child)}
            log.error("worker could not be started", extra=what)
            return
        log.info("worker started", extra={"worker": child.role, "worker_pid": child.process.pid})

    def _wait(self, timeout_s: float) -> None:
        for key, _events in self._selector.select(timeout_s):
            if key.data == "door":
                accepted = self._door.accept()
                if accepted is not None:
                    connection, pid = accepted
                    self._links[connection] = pid
                    self._selector.register(connection, selectors.EVENT_READ, "link")
            else:
                self._hear(key.fileobj)  # type: ignore[arg-type] # only sockets are registered

    def _hear(self, link: socket.socket) -> None:
        try:
            said = link.recv(64)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        pid = self._links[link]
        if said.startswith(READY):
            self._ready_pids.add(pid)
        if not said:
            self._selector.unregister(link)
            self._ready_pids.discard(self._links.pop(link))
            link.close()

    def _revive(self) -> None:
        """Start again what died, later each time it dies quickly."""
        now = time.monotonic()
        for child in self._children:
            if child.process is None:
                if now >= child.again_s:
                    child.restarts += 1
                    self._start(child)
                    self._write_status()
                continue
            code = child.process.poll()
            if code is None:
                continue
            steady = now - child.started_s >= STEADY_S
            child.quick_deaths = 1 if steady else child.quick_deaths + 1
            if not self._ready and child.quick_deaths >= START_ATTEMPTS:
                message = f"the {child.role} worker ends right after its start (exit status {code})"
                raise Unavailable(message, remedy="the log lines above say why; 'archive doctor' checks the rest")
            pause_s = _pause_s(child)
            what = {"worker": child.role, "worker_pid": child.process.pid, "exit_status": code, "again_in_s": pause_s}
            log.error("worker died", extra=what)
            child.process, child.again_s = None, now + pause_s

    def _all_ready(self, but: Sequence[Child] = ()) -> bool:
        return len(self._ready_pids) >= sum(child.ready_links for child in self._children if child not in but)

    def _look_ready(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            message = f"the workers did not come up within {START_S:.0f} s"
            raise Unavailable(message, remedy="the log lines above say why; 'archive doctor' checks the rest")
        if not self._all_ready():
            return
        # A DIMSE worker says that it is ready when it accepts; granian's say so a moment before, so those are asked.
        http = self._config.http
        ports = [http.port, *([self._config.viewer.port] if self._sockets.viewer is not None else [])]
        ports += [self._config.events.port] if self._sockets.events is not None else []
        if all(listeners.answers(http.host, port, tls=http.tls != "off") for port in ports):
            self._ready = True
            self._on_ready(self._write_status())
            log.info("ready")

    def _write_status(self) -> state.Status:
        config = self._config
        tls, plain = config.dimse.tls, config.dimse.plain
        status = state.Status(
            ready=self._ready, pid=os.getpid(), started_at=self._started_at, read_only=self._handover.read_only,
            generation=self._generation,
            http=state.web_at(config, config.http.port, config.archive.public_url),
            viewer=state.web_at(config, config.viewer.port, config.viewer_url) if self._sockets.viewer is not None else None,
            events=state.web_at(config, config.events.port, config.events_url) if self._sockets.events is not None else None,
            dimse_tls=state.Address(host=tls.host, port=tls.port) if self._sockets.dimse_tls is not None else None,
            dimse_plain=state.Address(host=plain.host, port=plain.port) if self._sockets.dimse_plain is not None else None,
            processes=[
                state.Process(role=child.role, pid=child.process.pid, started_at=child.started_at, restarts=child.restarts)
                for child in self._children if child.process is not None
            ],
        )
        state.write_status(config, status)
        return status

    def _stop(self) -> None:
        self._sockets.refuse()
        deadline = time.monotonic() + DRAIN_S
        self._drain([child for child in self._children if child.role != "background"], deadline)
        self._drain([child for child in self._children if child.role == "background"], max(deadline, time.monotonic() + 5))
        for child in self._children:
            if child.process is not None:
                child.process.wait()
        for link in list(self._links):
            link.close()
        self._selector.close()
        self._door.close()
        self._sockets.close()
        state.remove_status(self._config)

    def _drain(self, children: Sequence[Child], deadline: float) -> None:
        """Ask `children` to end, and kill those that have not at the deadline or at a second signal."""
        patience = self._signals + 1
        running = [(child, child.process) for child in children if child.process is not None]
        for _child, process in running:
            with suppress(ProcessLookupError):
                process.terminate()
        while any(process.poll() is None for _child, process in running):
            if time.monotonic() > deadline or self._signals > patience:
                break
            self._wait(0.05)
        for child, process in running:
            if process.poll() is None:
                log.warning("worker killed at the deadline", extra={"worker": child.role, "worker_pid": process.pid})
                kill_session(process)


def kill_session(process: Process) -> None:
    """Kill a worker and what it forked: each runs in a session, so in a process group, of its own."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _pause_s(child: Child) -> float:
    return BACK_OFF_S[min(child.quick_deaths, len(BACK_OFF_S)) - 1]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
