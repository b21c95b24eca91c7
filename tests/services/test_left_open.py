"""A process that was killed leaves a segment open: while the others serve, what lies in it gets its rows, and it is closed and hashed."""

from __future__ import annotations

import errno
import os
import signal
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.config import Config
from archive.db.tables import segment, statement
from archive.node import Node, open_node
from archive.services import store as stores
from archive.services.adoption import adopt
from archive.services.clock import utc_now
from archive.services.left_open import SEEN
from archive.services.replay import Replay
from archive.services.upkeep import Upkeep
from tests.services import archives, crowd
from tests.services.test_crash import FORK, data_of, killed_while_storing, visible
from tests.services.test_nothing_lost import Gone, gone, left


def minutes(node: Node, at: list[Any], count: int = SEEN + 1) -> None:
    for _ in range(count):
        at[0] += timedelta(seconds=61)
        for _ in range(8):  # hashes one segment each
            node.upkeep.tick()


def states(node: Node) -> list[tuple[str, bool]]:
    return [(row.state, row.sha256 is not None) for row in crowd.every(node, sa.select(segment))]


def no_descriptors(path: Any, flags: int, *more: Any, really: Any = os.open, **named: Any) -> int:
    if str(path).endswith(".seg") and flags & os.O_RDWR:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return int(really(path, flags, *more, **named))


def killed_before_a_commit(config: Config) -> None:
    node = open_node(config, role="dimse")
    archives.store(node, archives.instance(1))
    monkeypatch = pytest.MonkeyPatch()  # for good
    monkeypatch.setattr(stores, "adopt", lambda *_args, **_options: os.kill(os.getpid(), signal.SIGKILL))
    archives.store(node, archives.instance(2))


def test_of_processes_that_were_killed(tmp_path: Path) -> None:
    config, at = archives.made(tmp_path), [utc_now()]
    with archives.opened(config, role="background", clock=lambda: at[0]) as node, archives.opened(config, role="web") as living:
        archives.store(living, archives.instance(1, study="1.2.9"))
        told = [one for round_ in (1, 3) for one in killed_while_storing(config, round_, 0.1, least=3)]
        assert len(told) > 4
        assert states(node).count(("open", False)) >= 3
        minutes(node, at)
        assert states(node).count(("open", False)) == 1, "but for the one that is being written all are closed"
        assert set(states(node)) == {("open", False), ("closed", True)}
        kept = {round_: visible(node, f"1.2.{round_}") for round_ in (1, 3)}
        for status, writer, number in told:
            assert status in {"stored", "duplicate"}
            assert any(data_of(round_, writer, number) in kept[round_] for round_ in kept)
        assert archives.store(living, archives.instance(2, study="1.2.9")).status == "stored"
        minutes(node, at, 1)
        crowd.check_sound(node)


@pytest.mark.parametrize("step", ["_look", "_settle", "_finish", "_hash_segments"])
def test_the_background_worker_dies_at_any_step_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    config, at = archives.made(tmp_path), [utc_now()]
    where: Any = Upkeep if step == "_hash_segments" else Replay
    whole = getattr(where, step)
    process = FORK.Process(target=killed_before_a_commit, args=(config,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL

    def then_gone(*args: Any, **options: Any) -> None:
        whole(*args, **options)
        if where is Replay or at[0] > utc_now() + timedelta(minutes=SEEN):
            gone()

    node = open_node(config, role="background", clock=lambda: at[0])  # as one that is started again: no start of the whole
    with monkeypatch.context() as patched:
        patched.setattr(where, step, then_gone)
        with pytest.raises(Gone):
            minutes(node, at)
    left(node)
    again = open_node(config, role="background", clock=lambda: at[0])
    minutes(again, at)
    assert set(states(again)) == {("closed", True)}
    left(again)
    with archives.opened(config) as node:
        crowd.check_sound(node)
        assert set(crowd.part10(node, "1.2.3")) == {"1.2.3.1.1", "1.2.3.1.2"}


@pytest.mark.parametrize("askable", [True, False])
def test_what_a_living_process_has_yet_to_commit_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, askable: bool) -> None:
    """Taken in here as well it would be a duplicate of itself there, and freed; also where its lock cannot be asked for."""
    config, at = archives.made(tmp_path), [utc_now()]
    sealed, go_on = threading.Event(), threading.Event()

    def late(*args: Any, **options: Any) -> Any:
        sealed.set()
        assert go_on.wait(60)
        return adopt(*args, **options)

    with archives.opened(config, role="background", clock=lambda: at[0]) as node, archives.opened(config, role="dimse") as other:
        monkeypatch.setattr(stores, "adopt", late)
        became: list[str] = []
        storing = threading.Thread(target=lambda: became.append(archives.store(other, archives.instance(1)).status))
        storing.start()
        try:
            assert sealed.wait(60)
            other.core.vault.segments.roll()
            other.core.database.checkpoint(patient=False)
            with monkeypatch.context() as patched:
                if not askable:
                    patched.setattr(os, "open", no_descriptors)
                minutes(node, at, 2 * SEEN)
            assert crowd.every(node, sa.select(segment.c.sha256))[0].sha256 is None
            assert crowd.every(node, sa.select(statement)) == []
        finally:
            go_on.set()
            storing.join()
        assert became == ["stored"]
        minutes(node, at)
        assert states(node) == [("closed", True)]
        crowd.check_sound(node)
        assert set(crowd.part10(node, "1.2.3")) == {"1.2.3.1.1"}
