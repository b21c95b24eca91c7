"""The supervisor, watched over workers that only play their part."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import msgspec
import pytest

from archive.config import Config, parse
from archive.errors import ConfigurationError, Unavailable
from archive.serve import ports, state, supervisor

WORKER = textwrap.dedent(
    """
    import http.server, os, pathlib, signal, socket, sys, threading, time
    from archive.serve.handover import Link
    role, path, port, behaviour = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    if behaviour == "dies":
        sys.exit(3)
    link = Link(pathlib.Path(path))
    assert link.handover.keyring == b"the keyring"
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set() if behaviour != "deaf" else None)
    if role == "web":
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
            def log_message(self, *_): pass
        class Server(http.server.ThreadingHTTPServer):
            allow_reuse_port = True
            def server_bind(self):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1); super().server_bind()
        server = Server(("127.0.0.1", port), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    link.watch()
    while behaviour == "stuck" and link.handover.generation and pathlib.Path(path).with_name("stuck").exists():
        time.sleep(0.02)
    link.ready()
    while not stop.is_set():
        time.sleep(0.02)
    """
)
SERVE = textwrap.dedent(
    """
    import pathlib, sys
    from archive.config import load
    from archive.errors import Unavailable
    from archive.serve import logs, ports, state, supervisor
    from archive.serve.handover import Handover
    sys.path.insert(0, sys.argv[2])
    import worker_code
    config = load(pathlib.Path(sys.argv[1]))
    behaviour = dict(pair.split("=") for pair in sys.argv[3:])
    logs.configure("serve")
    supervisor.DRAIN_S, supervisor.AGAIN_S = 2, 1
    lock = state.RunLock(config)
    sockets, real = ports.open_sockets(config)
    def command(child, _sockets, config):
        return [sys.executable, "-c", worker_code.WORKER, child.role, str(state.socket_path(config)), str(config.http.port),
                behaviour.get(child.role, "well")]
    children = [supervisor.Child(role, 0, 1) for role in ("background", "dimse", "web")]
    started, taken = [], []
    def launch(child, sockets, config):
        started.append(child.role)
        if behaviour.get("launch") == "fails" and started.count(child.role) == 2:
            raise BlockingIOError
        return supervisor.executed(command)(child, sockets, config)
    def again():
        taken.append(1)
        if behaviour.get("again") == "fails" and len(taken) == 1:
            raise Unavailable("not now")
        return Handover(keyring=b"the keyring", config=real, generation=7)
    def on_ready(_status):
        supervisor.START_S = float(behaviour.get("start_s", 90))
        print("READY", flush=True)
    watch = supervisor.Supervisor(real, Handover(keyring=b"the keyring", config=real), sockets, children=children,
                                  launch=launch, on_ready=on_ready, again=again)
    watch.run()
    lock.release()
    """
)


def configured(folder: Path) -> Path:
    path = folder / "config.toml"
    path.write_text(
        '[archive]\npublic_url = "http://127.0.0.1:8443"\n[http]\nport = 0\ntls = "off"\n[dimse.tls]\nport = 0\n'
        "[dimse.plain]\nenabled = true\nport = 0\n"
    )
    return path


@contextlib.contextmanager
def serving(folder: Path, *behaviour: str):
    path = configured(folder)
    (folder / "worker_code.py").write_text(f"WORKER = {WORKER!r}\n")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(path), str(folder), *behaviour], stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            yield process, parse({}, path)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            process.stdout.close()


def until(check, seconds: float = 60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        result = check()
        if result:
            return result
        time.sleep(0.05)
    pytest.fail("did not happen in time")


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_ready_status_and_a_clean_stop(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, config):
        assert process.stdout.readline() == "READY\n"
        status = state.read_status(config)
        assert status is not None
        assert status.ready
        assert status.pid == process.pid
        assert status.http.port != 0
        assert status.http.public_url == f"http://127.0.0.1:{status.http.port}"
        assert status.dimse_tls is not None
        assert status.dimse_plain is not None
        socket.create_connection(("127.0.0.1", status.dimse_plain.port), 30).close()
        assert {one.role for one in status.processes} == {"background", "dimse", "web"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert all(gone(one.pid) for one in status.processes)
    assert state.read_status(config) is None
    assert not state.socket_path(config).exists()
    assert not (config.run_dir / state.STATUS).exists()


@pytest.mark.parametrize("role", ["background", "dimse", "web"])
def test_a_killed_worker_returns(tmp_path: Path, role: str) -> None:
    with serving(tmp_path) as (process, config):
        assert process.stdout.readline() == "READY\n"
        before = {one.role: one for one in state.read_status(config).processes}
        os.kill(before[role].pid, signal.SIGKILL)

        def again():
            status = state.read_status(config)
            found = [one for one in status.processes if one.role == role and one.restarts == 1] if status else []
            return found and found[0].pid != before[role].pid

        until(again)
        after = {one.role: one.pid for one in state.read_status(config).processes}
        assert {name: pid for name, pid in after.items() if name != role} == {n: p.pid for n, p in before.items() if n != role}


def test_a_new_keyring_reaches_every_worker(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, config):
        assert process.stdout.readline() == "READY\n"
        before = {one.role: one.pid for one in state.read_status(config).processes}
        state.reload_keyring(config, 7, deadline_s=60)
        status = state.read_status(config)
        assert status.generation == 7
        assert {one.role for one in status.processes} == set(before)
        assert all(one.pid != before[one.role] for one in status.processes)
        assert all(gone(pid) for pid in before.values())
        state.reload_keyring(config, 7, deadline_s=1)  # nothing to do any more
        with pytest.raises(Unavailable):
            state.reload_keyring(config, 8, deadline_s=3)


def test_one_worker_that_does_not_come_up_keeps_no_other_from_a_new_keyring(tmp_path: Path) -> None:
    with serving(tmp_path, "dimse=stuck", "background=stuck", "start_s=3") as (process, config):
        assert process.stdout.readline() == "READY\n"
        before = {one.role: one.pid for one in state.read_status(config).processes}
        stuck = config.run_dir / "stuck"
        stuck.touch()
        os.kill(process.pid, signal.SIGHUP)
        log = tmp_path / "log"
        until(lambda: "does not come up" in log.read_text())
        until(lambda: all(one.pid != before[one.role] for one in state.read_status(config).processes))
        assert all(gone(pid) for pid in before.values())
        assert state.read_status(config).generation == 0, "not every worker holds it"
        stuck.unlink()
        until(lambda: state.read_status(config).generation == 7)
        assert len(state.read_status(config).processes) == 3


def test_a_keyring_that_cannot_be_taken_now_is_taken_later(tmp_path: Path) -> None:
    with serving(tmp_path, "again=fails") as (process, config):
        assert process.stdout.readline() == "READY\n"
        state.reload_keyring(config, 7, deadline_s=60)
        assert "not now" in (tmp_path / "log").read_text()


def test_a_worker_that_cannot_be_started_now_is_started_later(tmp_path: Path) -> None:
    with serving(tmp_path, "launch=fails") as (process, config):
        assert process.stdout.readline() == "READY\n"
        before = {one.role: one.pid for one in state.read_status(config).processes}
        os.kill(before["dimse"], signal.SIGKILL)
        until(lambda: "could not be started" in (tmp_path / "log").read_text())
        until(lambda: {one.role: one.pid for one in state.read_status(config).processes}.get("dimse") not in (None, before["dimse"]))
        assert process.poll() is None


def test_a_keyring_is_reloaded_at_once_when_nothing_serves(tmp_path: Path) -> None:
    state.reload_keyring(parse({}, configured(tmp_path)), 8, deadline_s=1)


def test_workers_end_with_a_killed_supervisor(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, config):
        assert process.stdout.readline() == "READY\n"
        pids = [one.pid for one in state.read_status(config).processes]
        process.kill()
        process.wait()
        until(lambda: all(gone(pid) for pid in pids))
        assert not state.is_serving(config)


def test_a_worker_deaf_to_the_signal_is_killed_at_the_deadline(tmp_path: Path) -> None:
    with serving(tmp_path, "dimse=deaf") as (process, config):
        assert process.stdout.readline() == "READY\n"
        pids = [one.pid for one in state.read_status(config).processes]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert all(gone(pid) for pid in pids)


def test_a_worker_that_cannot_start_ends_the_start(tmp_path: Path) -> None:
    with serving(tmp_path, "dimse=dies") as (process, config):
        assert process.wait(60) == 1
        assert process.stdout.read() == ""
        assert state.read_status(config) is None
    assert "Unavailable" in (tmp_path / "log").read_text()


def test_second_archive_on_one_storage_is_refused(tmp_path: Path) -> None:
    config = parse({}, configured(tmp_path))
    lock = state.RunLock(config)
    assert state.is_serving(config)
    with pytest.raises(Unavailable, match="already serves"):
        state.RunLock(config)
    lock.release()
    assert not state.is_serving(config)
    state.RunLock(config).release()


@pytest.mark.parametrize("section", ["http", "dimse_tls", "dimse_plain"])
def test_a_taken_port_is_named(tmp_path: Path, section: str) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        raw: dict[str, object] = {"http": {"port": 0}, "dimse": {"tls": {"port": 0}, "plain": {"enabled": True, "port": 0}}}
        target = raw["http"] if section == "http" else raw["dimse"][section.removeprefix("dimse_")]
        target["port"] = port
        with pytest.raises(ConfigurationError) as caught:
            ports.open_sockets(parse(raw, tmp_path / "config.toml"))
        assert str(port) in caught.value.message
        assert section.replace("_", ".") in caught.value.remedy


@pytest.mark.parametrize(("url", "expected"), [
    ("https://127.0.0.1:8443", "https://127.0.0.1:555"), ("https://archive.example", "https://archive.example:555"),
    ("https://[::1]:8443/a", "https://[::1]:555/a"), ("https://[::1]", "https://[::1]:555"),
])
def test_a_free_port_shows_in_the_public_url(url: str, expected: str) -> None:
    config = Config()
    config = msgspec.structs.replace(
        config, archive=msgspec.structs.replace(config.archive, public_url=url), http=msgspec.structs.replace(config.http, port=0)
    )
    assert ports.with_ports(config, 555, 0, 0).archive.public_url == expected


def test_a_chosen_port_leaves_the_public_url_alone() -> None:
    assert ports.with_ports(Config(), 8443, 2762, 0) == Config()


@pytest.mark.parametrize(("cores", "set_to", "dimse"), [(1, 0, 1), (2, 0, 2), (4, 0, 2), (64, 0, 2), (2, 3, 3), (4, 1, 1)])
def test_how_many_dimse_workers(monkeypatch: pytest.MonkeyPatch, cores: int, set_to: int, dimse: int) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    config = Config()
    config = msgspec.structs.replace(config, dimse=msgspec.structs.replace(config.dimse, workers=set_to))
    planned = supervisor.plan(config)
    assert [child.number for child in planned if child.role == "dimse"] == list(range(dimse))
    assert next(child for child in planned if child.role == "web").ready_links == cores


def test_no_secret_in_a_worker_command(tmp_path: Path) -> None:
    config = parse({"http": {"port": 0}, "dimse": {"tls": {"port": 0}}}, tmp_path / "config.toml")
    sockets, config = ports.open_sockets(config)
    for child in supervisor.plan(config):
        command = supervisor.worker_command(child, sockets, config)
        assert command[3:6] == ["-m", "archive.serve", child.role]
        assert all(part.startswith(("--", "/")) or part.isdigit() for part in command[6:])
    sockets.close()
