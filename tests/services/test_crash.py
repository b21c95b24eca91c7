"""Killed processes and failing disks: what was acknowledged is there, a failure leaves nothing half visible, a start mends the rest.

ARCHIVE_TEST_KILLS makes the killing longer than the suite's.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.config import Config
from archive.db.tables import instance, ledger_leaf, study
from archive.errors import ArchiveError, CommitUncertain, DatabaseUnavailable, NotFound, OutOfSpace, VaultUnavailable
from archive.node import Node, open_node
from archive.services.store import Outcome, Source
from archive.vault.disk import DISK
from tests.services import archives, crowd

KILLS = int(os.environ.get("ARCHIVE_TEST_KILLS", "12"))
STRIDE = 1 if os.environ.get("ARCHIVE_TEST_EVERY_STEP") == "1" else 5
FORK = multiprocessing.get_context("fork")
LARGE = {"rows": 1600}  # 5 MiB of pixels: a segment of its own
DIED = 9


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    return "" if request.param == "sqlite" else str(request.getfixturevalue("postgresql_url"))


@pytest.fixture
def no_faults() -> Iterator[None]:
    before = DISK.before
    yield
    DISK.before = before


def data_of(round_: int, writer: int, number: int) -> bytes:
    """Both writers send the study's first instances; each goes on with its own."""
    uid = f"1.2.{round_}.1.{number}" if number < 3 else f"1.2.{round_}.{writer + 2}.{number}"
    size = LARGE if number % 4 == 3 else {}
    return archives.instance(number, study=f"1.2.{round_}", series=uid.rpartition(".")[0], sop=uid, **size)


def ingest(config: Config, round_: int, out: int) -> None:
    """Store for ever with two threads, one of them in batches, telling of each acknowledged instance."""
    node = open_node(config, role="dimse")

    def run(writer: int) -> None:
        for number in range(10_000):
            status = archives.store(node, data_of(round_, writer, number), pieces=1 << 20).status
            os.write(out, f"{status} {writer} {number}\n".encode())

    def run_together(writer: int) -> None:
        def told(number: int, became: Outcome | ArchiveError) -> None:
            assert isinstance(became, Outcome)
            os.write(out, f"{became.status} {writer} {number}\n".encode())

        batch = node.store.batch(told)
        for number in range(10_000):
            incoming = node.store.open(archives.the_console(node), "clinical", Source("stow"))
            batch.begin(incoming)
            incoming.write(data_of(round_, writer, number))
            batch.add(number, incoming)
            if number % 3 == 2:
                batch.flush()

    os.write(out, b"up\n")
    threads = [threading.Thread(target=run, args=(0,)), threading.Thread(target=run_together, args=(1,))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(out, b"failed\n")


def killed_while_storing(config: Config, round_: int, after_s: float, *, least: int = 0) -> list[tuple[str, int, int]]:
    """Let a process store, kill it, and return what it acknowledged; `least`: not before it has acknowledged so many."""
    into, out = os.pipe()
    process = FORK.Process(target=ingest, args=(config, round_, out))
    process.start()
    os.close(out)
    with os.fdopen(into) as answers:
        assert answers.readline() == "up\n"
        first = "".join(answers.readline() for _ in range(least or round_ % 2))  # a busy machine may need longer than that for one
        time.sleep(after_s)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)
        lines = (first + answers.read()).split("\n")[:-1]
    assert process.exitcode == -signal.SIGKILL
    assert "failed" not in lines
    return [(status, int(writer), int(number)) for status, writer, number in map(str.split, lines)]


def test_killed_again_and_again(tmp_path: Path, url: str) -> None:
    chance = random.Random(20261121)
    config = archives.made(tmp_path, **({"database": {"url": url}} if url else {}))
    kills = KILLS if not url else max(5, KILLS // 4)
    told = round_ = 0
    while round_ < kills or (told <= kills and round_ < 4 * kills):  # a busy machine stores little between two of them
        acknowledged = killed_while_storing(config, round_, chance.uniform(0, 0.35))
        told += len(acknowledged)
        with archives.opened(config) as node:
            kept = visible(node, f"1.2.{round_}")
            for status, writer, number in acknowledged:
                assert status in {"stored", "duplicate"}
                data = data_of(round_, writer, number)
                assert data in kept
            crowd.check_counts(node)
            crowd.check_ledger(node)
            if round_ % 6 == 0 or round_ >= kills - 1:
                crowd.check_sound(node)
            before = crowd.state(node)
            replayed = events(node, b'"replayed"')
        with archives.opened(config) as node:
            assert crowd.state(node) == before
            assert events(node, b'"replayed"') == replayed
        round_ += 1
    assert told > kills, "nothing was stored between the kills"


def visible(node: Node, study_uid: str) -> list[bytes]:
    try:
        return list(crowd.part10(node, study_uid).values())
    except NotFound:
        return []


def events(node: Node, kind: bytes) -> int:
    return crowd.count(node, sa.select(sa.func.count()).select_from(ledger_leaf).where(ledger_leaf.c.data.contains(kind)))


# --- faults by number --------------------------------------------------------------------------------------------------------------


class Fault:
    """Strikes once, at the operation with the number it is given."""

    def __init__(self, number: int, strike: Callable[[], int | None]) -> None:
        self.number = number
        self.strike = strike
        self.seen = -1
        self.struck = ""

    def step(self, name: str) -> int | None:
        self.seen += 1
        if self.seen == self.number and not self.struck:
            self.struck = name
            return self.strike()
        return None

    def on_disk(self) -> None:
        def before(_number: int, name: str) -> int | None:
            return self.step(name)

        DISK.before = before

    def on_commits(self, node: Node) -> None:
        for database in (node.core.database, node.core.keystore._database):
            database.before_commit = lambda _tx: self.step("commit")

    def after_commits(self, node: Node) -> None:
        """The commit happens, and its answer is an error of the disk."""
        import sqlcipher3.dbapi2 as dbapi

        for database in (node.core.database, node.core.keystore._database):
            commit = database.engine.dialect.do_commit

            def lost(connection: Any, commit: Any = commit) -> None:
                commit(connection)
                try:
                    self.step("committed")
                except ArchiveError:
                    message = "disk I/O error"
                    raise dbapi.OperationalError(message) from None

            database.engine.dialect.do_commit = lost  # type: ignore[method-assign]


def refuse(error: BaseException) -> Callable[[], int | None]:
    def strike() -> int | None:
        raise error

    return strike


def die() -> int | None:
    os._exit(DIED)


KINDS: dict[str, tuple[Callable[[], int | None], tuple[type[ArchiveError], ...]]] = {
    "short": (lambda: 4096, ()),  # a write that stops short is gone on with
    "error": (refuse(OSError(errno.EIO, "EIO")), (VaultUnavailable,)),
    "full": (refuse(OSError(errno.ENOSPC, "ENOSPC")), (OutOfSpace,)),
    "unavailable": (refuse(DatabaseUnavailable("x")), (DatabaseUnavailable,)),
    "database full": (refuse(OutOfSpace("x")), (OutOfSpace,)),
    "no answer": (refuse(DatabaseUnavailable("x")), (CommitUncertain, DatabaseUnavailable)),  # the latter at the end of a read
    "death": (die, ()),
}


def arm(fault: Fault, where: str, node: Node) -> None:
    if where == "disk":
        fault.on_disk()
    elif where == "commit":
        fault.on_commits(node)
    else:
        fault.after_commits(node)


def attempt(node: Node, data: bytes) -> ArchiveError | None:
    try:
        assert archives.store(node, data, pieces=1 << 20).status == "stored"
    except ArchiveError as error:
        return error
    return None


def strike_at(config: Config, where: str, kind: str, number: int, data: bytes) -> Fault:
    """Store with a fault at one operation, in a process of its own where it dies of it; a failure is said and leaves nothing."""
    strike, expected = KINDS[kind]
    fault = Fault(number, strike)
    if kind == "death":
        def child() -> None:
            node = open_node(config, role="dimse")
            arm(fault, where, node)
            archives.store(node, data, pieces=1 << 20)
            os._exit(0)

        process = FORK.Process(target=child)
        process.start()
        process.join(60)
        assert process.exitcode in {0, DIED}
        fault.struck = "death" if process.exitcode == DIED else ""
        return fault
    node = open_node(config, role="dimse")
    try:
        arm(fault, where, node)
        failure = attempt(node, data)
        fault.number = -1
        if failure is not None:
            assert fault.struck
            assert isinstance(failure, expected), (fault.struck, failure)
            if where != "answer":
                assert visible(node, f"1.2.{number}") == [], "a refused instance is visible"
            assert archives.store(node, data, pieces=1 << 20).status in {"stored", "duplicate"}
        assert visible(node, f"1.2.{number}") == [data]
    finally:
        DISK.before = lambda _number, _name: None
        node.close()
    return fault


def sound(node: Node) -> dict[str, Any]:
    """Return what another start must find as it is; verify finds nothing."""
    report = node.verify.run(archives.the_console(node), "standard")
    assert report.findings == []
    crowd.check_counts(node)
    state = crowd.state(node)
    return {"instances": state["instances"], "held": state["held"], "replayed": events(node, b'"replayed"')}


@pytest.mark.usefixtures("no_faults")
@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize(("where", "kind"), [
    ("disk", "error"), ("disk", "full"), ("disk", "short"), ("disk", "death"),
    ("commit", "unavailable"), ("commit", "database full"), ("commit", "death"), ("answer", "no answer"), ("answer", "death"),
])
def test_a_fault_at_every_operation_of_one_store(tmp_path: Path, where: str, kind: str, size: str) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config) as node:
        archives.store(node, archives.instance(study="1.3"))
    number = 0
    while True:
        uid = f"1.2.{number}"
        data = archives.instance(study=uid, **(LARGE if size == "large" else {}))
        fault = strike_at(config, where, kind, number, data)
        thoroughly = number % STRIDE == 0 or not fault.struck
        if kind == "death" or thoroughly:  # otherwise nothing has ended, and what is visible was seen
            with archives.opened(config) as node:
                assert visible(node, uid) in ([], [data])
                if kind != "death":
                    assert visible(node, uid) == [data]
                assert archives.store(node, data, pieces=1 << 20).status in {"stored", "duplicate"}
                assert visible(node, uid) == [data]
                before = sound(node) if thoroughly else {}
        if thoroughly:
            with archives.opened(config) as node:
                assert sound(node) == before, (number, fault.struck)
        if not fault.struck:
            break
        number += 1
    assert number >= (2 if where != "disk" else 6)
    with archives.opened(config) as node:
        crowd.check_sound(node)
        crowd.check_ledger(node)
        assert crowd.count(node, sa.select(sa.func.count()).select_from(instance)) == number + 2
        assert crowd.count(node, sa.select(sa.func.count()).select_from(study)) == number + 2
