"""Children made by fork: what they answer, how they end, what they take along."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.access.subject import Subject
from archive.db import connect
from archive.errors import DatabaseUnavailable, Unavailable
from archive.index import locate
from archive.serve.forked import FORKS, Forked, called

pytestmark = [
    pytest.mark.skipif(not FORKS, reason="workers are forked on Linux alone"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # pytest has threads of its own
]


def test_it_ends_with_its_result() -> None:
    child = Forked(lambda: 7)
    assert child.wait(60) == 7
    assert child.poll() == 7


def test_a_signal_ends_it() -> None:
    child = Forked(lambda: time.sleep(60) or 0)
    assert child.poll() is None
    time.sleep(0.1)
    child.terminate()
    assert child.wait(60) == -signal.SIGTERM
    child.terminate()


def test_an_exception_is_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise RuntimeError("x")

    assert Forked(fail).wait(60) == 1
    assert Forked(lambda: sys.exit(5)).wait(60) == 5
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
    assert child.wait(60) == 0
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
        assert Forked(lambda: 7).wait(60) == -signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM], "the parent hears its own again"
    finally:
        signal.signal(signal.SIGTERM, before)


PRELOADED = """
import json, sys
from archive.serve.forked import preload
preload()
from archive.db import prepared
names = [name for name in ("gdcm", "requests", "pynetdicom", "flask") if name in sys.modules]
compiled = sum("sqlite" in one._compiled for one in prepared._MADE)
import importlib.util
print(json.dumps([names, compiled, len(prepared._MADE), importlib.util.find_spec("gdcm") is not None]))
"""


def test_what_workers_share_is_what_they_use() -> None:
    done = subprocess.run([sys.executable, "-c", PRELOADED], capture_output=True, text=True, check=True)
    names, compiled, made, findable = json.loads(done.stdout)
    assert names == ["pynetdicom", "flask"], "no decoder that aborts a process, and nothing that downloads"
    assert compiled == made > 40
    assert findable


def test_statements_compiled_ahead_are_those_an_engine_runs(tmp_path: Path) -> None:
    dialect, engine = connect.sqlite_dialect(), connect.sqlite(sa.URL.create("sqlite", database=str(tmp_path / "index.db")), bytes(32))
    nobody = Subject(0, "", "user", "internal")
    for scope in locate.usual_scopes(nobody, datetime.now(UTC)):
        locate.build(scope.shape)
        ahead, then = (locate._instances(scope.shape, with_series=True, with_sop=True)._statement.compile(dialect=one)
                       for one in (dialect, engine.dialect))
        assert str(ahead) == str(then)
        assert ahead.positiontup == then.positiontup
    with engine.begin() as tx:  # what an engine finds out when it connects changes nothing of it
        assert tx.dialect.insert_returning == dialect.insert_returning
    value = {"a": ["\u00e9"]}
    kind = sa.JSON()
    written = [kind.dialect_impl(one).bind_processor(one)(value) for one in (dialect, engine.dialect)]  # type: ignore[misc]
    assert written[0] == written[1]
    engine.dispose()
