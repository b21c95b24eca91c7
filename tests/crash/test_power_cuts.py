"""The power goes at any moment: what the disk may then hold is a whole archive, with everything that was promised.

ARCHIVE_TEST_POWER_CUTS makes this longer than the suite's.
"""

from __future__ import annotations

import os
import random
import shutil
import threading
from pathlib import Path

import pytest

from archive.node import Node, open_node
from archive.vault.disk import DISK
from tests.crash.power import LOSSES, Loss, Power, log_frames
from tests.crash.promises import Promises, Workload
from tests.services import archives, crowd

CUTS = int(os.environ.get("ARCHIVE_TEST_POWER_CUTS", "24"))


def recovered(folder: Path, promises: Promises, *, thorough: bool) -> None:
    """Start what the cut left: every promise is kept, and a second start changes nothing."""
    config = archives.configured(folder)
    with archives.opened(config) as node:
        promises.check(node)
        if thorough:
            crowd.check_sound(node)
        before = crowd.state(node)
    with archives.opened(config) as node:
        assert crowd.state(node) == before
        promises.check(node)
    shutil.rmtree(folder)


class Cutter:
    """Takes images at chosen moments of a workload; they are judged when it is over."""

    def __init__(self, folder: Path, chance: random.Random, every: float) -> None:
        self.folder, self.chance, self.every = folder, chance, every
        self.images: list[tuple[Path, Promises, str]] = []
        self.seen: dict[str, int] = {}
        self.promises = Promises()
        self.power: Power | None = None
        self.most = 1 << 30

    def moment(self, name: str) -> None:
        self.seen[name] = self.seen.get(name, 0) + 1
        if self.power is not None and len(self.images) < self.most and self.chance.random() < self.every:
            loss: Loss = LOSSES[len(self.images) % len(LOSSES)]
            target = self.folder / f"cut-{len(self.images)}"
            self.power.cut(target, loss, self.chance)
            self.images.append((target, self.promises.copy(), f"{loss} at {name}"))


def run(node: Node, promises: Promises, threads: int, steps: int) -> None:
    failed: list[BaseException] = []

    def one(thread: int) -> None:
        work = Workload(node, promises, thread)
        try:
            for number in range(steps):
                work.step(number)
                if number % 5 == 4:
                    node.upkeep.checkpoint()
        except BaseException as error:  # noqa: BLE001 # raised below
            failed.append(error)

    running = [threading.Thread(target=one, args=(thread,)) for thread in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if failed:
        raise failed[0]


@pytest.mark.parametrize("threads", [1, 3])
def test_the_power_goes_at_any_moment(tmp_path: Path, threads: int) -> None:
    chance = random.Random(threads)
    archives.made(tmp_path / "archive")
    config = archives.configured(tmp_path / "archive")
    with archives.opened(config) as node:
        archives.store(node, archives.instance(study="1.3"))
    wanted, done, round_ = max(4, CUTS // 3), 0, 0
    while done < wanted:
        folder = tmp_path / f"run-{round_}"
        shutil.copytree(tmp_path / "archive", folder)
        cutter = Cutter(tmp_path, chance, every=min(1.0, wanted / 300))
        cutter.most = min(16, wanted - done)  # as many as may lie on the disk at a time
        node = open_node(archives.configured(folder), role="dimse")
        assert node.start() == ""
        cutter.power = Power(folder, cutter.moment)
        with cutter.power.watching(node):
            run(node, cutter.promises, threads, steps=34 // threads)
        node.close()
        for number, (image, promises, what) in enumerate(cutter.images):
            try:
                recovered(image, promises, thorough=number % 5 == 0)
            except BaseException as error:
                error.add_note(f"{what}, seed {threads}, round {round_}, cut {number}")
                raise
        assert {"pwrite", "fdatasync", "before commit", "committed"} <= set(cutter.seen)
        done += len(cutter.images)
        round_ += 1
        shutil.rmtree(folder)


def test_the_log_ends_at_any_frame(tmp_path: Path) -> None:
    """Every prefix of what a write-ahead log may keep, whole frames and torn ones, with every record of the vault in place or lost."""
    chance = random.Random(7)
    config = archives.made(tmp_path / "archive")
    promises = Promises()
    with archives.opened(config) as node:
        archives.store(node, archives.instance(study="1.3"))
        power = Power(tmp_path / "archive")
        with power.watching(node):
            work = Workload(node, promises, 0, large=False)
            for number in (0, 1, 2, 5):
                work.step(number)
            spans: list[tuple[int, int]] = []
            power.cut(tmp_path / "whole", "nothing", chance, log_bytes=lambda durable, used: spans.append((durable, used)) or used)
            logs = [log.path for log in power._logs]
            durable, used = spans[0]
            ends = [end for end in log_frames(logs[0]) if end >= durable]
            assert used == ends[-1]
            assert len(ends) > 20, "three instances wrote hardly anything"
            chosen = ends if CUTS > 100 else sorted(chance.sample(ends, max(4, CUTS // 4)))
            for end in [durable, *chosen, used - 17]:
                for loss in ("nothing", "everything"):
                    image = tmp_path / f"cut-{end}-{loss}"
                    limits = iter([end])
                    power.cut(image, loss, chance, log_bytes=lambda _durable, written, limits=limits: next(limits, written))
                    recovered(image, promises.copy(), thorough=end == durable)


def test_a_promise_not_kept_is_noticed(tmp_path: Path) -> None:
    """The account is not blind: an archive whose last record was never synced has lost what it promised."""
    config = archives.made(tmp_path / "archive")
    promises = Promises()
    with archives.opened(config) as node:
        archives.store(node, archives.instance(study="1.3"))
        power = Power(tmp_path / "archive")
        with power.watching(node):
            DISK.fdatasync = lambda fd: None  # type: ignore[method-assign]
            Workload(node, promises, 0).step(0)
            power.cut(tmp_path / "cut", "everything", random.Random(1))
    with pytest.raises((AssertionError, KeyError)):
        recovered(tmp_path / "cut", promises, thorough=True)
