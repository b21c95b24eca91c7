"""What the ledger says of a stop: told last, and told of no other end."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from archive.config import load
from archive.node import open_node
from tests.journeys.running import RunningArchive


def until(check: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not check():
        if time.monotonic() > end:
            pytest.fail("did not happen in time")
        time.sleep(0.2)


def own(archive: RunningArchive) -> list[tuple[int, str]]:
    """Starts and stops, the oldest first."""
    return [(row["id"], row["kind"]) for row in reversed(archive.json("audit", "search", "--kind", "started", "--kind", "stopped"))]


def test_a_kill_is_told_after_workers_were_replaced_and_an_orderly_stop_is_not(tmp_path: Path) -> None:
    archive = RunningArchive(tmp_path)
    archive.json("init")
    with closing(open_node(load(archive.config))) as node:
        node.alerts.tick()  # what was before the first look is not told
    archive.start("serve")
    assert archive.stop() == 0
    archive.json("group", "add", "team")
    archive.start("serve")
    try:
        before = {one["pid"] for one in archive.status["processes"]}
        os.kill(archive.status["pid"], signal.SIGHUP)
        until(lambda: not before & {one["pid"] for one in archive.json("status")["processes"]})
    finally:
        archive.stop(signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{one['pid']}").exists() for one in archive.status["processes"]))
    archive.start("serve")
    try:
        starts = own(archive)
        assert [kind for _, kind in starts] == ["started", "stopped", "started", "started"]
        until(lambda: bool(archive.json("alert", "list", "--all")))
        [alert] = archive.json("alert", "list", "--all")
        assert (alert["rule"], alert["first_event"]) == ("audit-gap", starts[-1][0])
    finally:
        assert archive.stop() == 0
    assert own(archive)[-1][1] == "stopped"
    assert archive.json("ledger", "prove", str(own(archive)[-1][0])), "the last checkpoint covers it"


def test_a_start_that_comes_to_nothing_is_no_gap(tmp_path: Path) -> None:
    archive = RunningArchive(tmp_path)
    archive.json("init")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        text = archive.config.read_text()
        archive.config.write_text(text.replace("[http]\nport = 0", f"[http]\nport = {other.getsockname()[1]}"))
        done = archive.run("serve")
        assert done.returncode != 0
        assert str(other.getsockname()[1]) in done.stderr, done.stderr
        archive.config.write_text(text)
    assert [kind for _, kind in own(archive)] == ["started", "stopped"]
