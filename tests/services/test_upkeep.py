"""What the background worker does in one step."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.db.tables import segment
from archive.ledger import checkpoints, files, nodes
from archive.ledger.audit import Event, Kind
from archive.services import upkeep
from tests.services import archives, crowd
from tests.services.ward import Clock

GROWTHS = 40


def test_a_checkpoint_ends_while_events_keep_coming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with archives.opened(archives.made(tmp_path)) as node:
        core, publish, made = node.core, files.publish, 0

        def meanwhile(*args: Any, **kwargs: Any) -> None:
            nonlocal made
            publish(*args, **kwargs)
            made += 1
            if made < GROWTHS:
                core.database.group(lambda tx: core.ledger.record(tx, Event(Kind.CONFIGURED), at=core.clock()))

        monkeypatch.setattr(files, "publish", meanwhile)
        assert node.upkeep.checkpoint()
        assert made == 1
        with core.database.read() as tx:
            latest = checkpoints.latest(tx)
            assert latest is not None
            assert nodes.size(tx) == latest.size + 1
        assert node.upkeep.checkpoint()


def test_a_checkpoint_takes_in_more_than_one_step_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "MAX_LEAVES", 3)
    with archives.opened(archives.made(tmp_path)) as node:
        core = node.core
        for _ in range(10):
            core.database.group(lambda tx: core.ledger.record(tx, Event(Kind.CONFIGURED), at=core.clock()))
        assert node.upkeep.checkpoint()
        with core.database.read() as tx:
            latest = checkpoints.latest(tx)
            assert latest is not None
            assert nodes.size(tx) == latest.size
        assert not node.upkeep.checkpoint()


def test_the_log_is_copied_in_time_and_cut_only_where_it_is_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    with archives.opened(archives.made(tmp_path), clock=clock) as node:
        core = node.core
        node.upkeep.tick()

        def later() -> tuple[int, int]:
            core.database.group(lambda tx: core.ledger.record(tx, Event(Kind.CONFIGURED), at=core.clock()))
            clock.at += upkeep.WAL_EVERY
            node.upkeep.tick()
            return core.database.log_bytes(), core.database.log_waiting_bytes()

        length, waiting = later()
        assert length > 0
        assert waiting == 0
        again = [later() for _ in range(5)]
        assert [waiting for _, waiting in again] == [0] * 5
        assert max(length for length, _ in again) < 1.5 * length, "overwritten where it lies; a page that is split makes it a little longer"
        monkeypatch.setattr(upkeep, "WAL_KEPT", length - 1)
        assert later() == (0, 0)


@pytest.mark.parametrize("back", [False, True])
def test_a_closed_segment_is_hashed_at_once_or_a_minute_later_where_others_want_the_processors(tmp_path: Path, *, back: bool) -> None:
    clock, busy = Clock(), [True]
    with archives.opened(archives.made(tmp_path), role="background", clock=clock) as node:
        node.upkeep.busy = lambda: busy[0]

        def hashed() -> int:
            node.upkeep.tick()
            return len(crowd.every(node, sa.select(segment.c.id).where(segment.c.sha256.is_not(None))))

        archives.store(node, archives.instance(1))
        node.core.vault.segments.roll()
        clock.at += timedelta(seconds=1)
        assert hashed() == 0
        clock.at += timedelta(seconds=-10) if back else upkeep.PATIENCE
        assert hashed() == 1, "it has waited long enough, or nobody knows how long"
        archives.store(node, archives.instance(1, study="1.2.9"))
        node.core.vault.segments.roll()
        assert hashed() == 1
        busy[0] = False
        assert hashed() == 2
