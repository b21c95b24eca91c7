"""Children made by fork: what they answer, how they end, what they take along."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from archive.errors import DatabaseUnavailable, Unavailable
from archive.serve.forked import FORKS, Forked, called

pytestmark = [
    pytest.mark.skipif(not FORKS, reason="workers are forked on Linux alone"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # pytest has threads of its own
]


def test_it_ends_with_its_result() -> None:
    child = Forked(lambda: 7)
    assert child.wait(10) == 7
    assert child.poll() == 7


def test_a_signal_ends_it() -> None:
    child = Forked(lambda: time.sleep(60) or 0)
    assert child.poll() is None
    time.sleep(0.1)
    child.terminate()
    assert child.wait(10) == -signal.SIGTERM
    child.terminate()


def test_an_exception_is_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise RuntimeError("x")

    assert Forked(fail).wait(10) == 1
    assert Forked(lambda: sys.exit(5)).wait(10) == 5
    assert "RuntimeError" in capfd.readouterr().err


def test_it_takes_along_what_it_is_handed_and_nothing_else(tmp_path: Path) -> None:
    kept, other = socket.socketpair()
    lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    list_of = tmp_path / "descriptors"

    def look() -> int:
        listing = " ".join(os.listdir("/proc/self/fd"))
        list_of.write_text(listing)
        kept.sendall(b"here")
        return int(os.getsid(0) != os.getpid() or os.read(0, 1) != b"")

    child = Forked(look, keep=(kept.fileno(),))
    assert other.recv(10) == b"here"
    assert child.wait(10) == 0
    mine = {int(number) for number in list_of.read_text().split()}
    assert len(mine - {0, 1, 2, kept.fileno()}) <= 1, "more than the listing's own descriptor"
    for one in (kept, other):
        one.close()
    os.close(lock)


def test_called_returns_raises_and_notices_a_death() -> None:
    assert called(lambda: {"pid": os.getpid()})["pid"] != os.getpid()

    def refuse() -> None:
        message = "no"
        raise DatabaseUnavailable(message, remedy="do this", verdict="V14")

    with pytest.raises(DatabaseUnavailable) as caught:
        called(refuse)
    assert (caught.value.message, caught.value.remedy, caught.value.verdict) == ("no", "do this", "V14")
    with pytest.raises(Unavailable):
        called(lambda: os._exit(3))


def test_a_child_told_to_end_before_it_runs_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under load the supervisor stops before the scheduler has let a new worker begin."""
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: heard.append(number))
    fork = os.fork

    def told_at_once() -> int:
        pid = fork()
        if not pid:
            os.kill(os.getpid(), signal.SIGTERM)
        return pid

    monkeypatch.setattr(os, "fork", told_at_once)
    try:
        assert Forked(lambda: 7).wait(20) == -signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM], "the parent hears its own again"
    finally:
        signal.signal(signal.SIGTERM, before)
