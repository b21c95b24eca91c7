"""When the processors count as busy."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from archive.jobs import processors
from archive.jobs.processors import Processors


def test_busy_is_when_nothing_is_left_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat, now, own = tmp_path / "stat", 100.0, 5.0
    monkeypatch.setattr(processors.os, "sysconf", lambda _name: 100)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "process_time", lambda: own)

    def says(idle: int, waiting: int = 0) -> None:
        stat.write_text(f"cpu  1 2 3 {idle} {waiting} 6 7 8 9 10\ncpu0 0 0 0 0 0\n")

    says(1000)
    asked = Processors(stat)
    now += 1
    says(1024)  # 0.24 of a second
    assert asked.busy()
    now += 1
    says(1040, 10)  # 0.26, some of it waiting for a disk
    assert not asked.busy()
    now, own = now + 1, own + 0.5  # what this process takes, it could do without
    assert not asked.busy()
    now += 1
    assert asked.busy()


def test_where_nobody_counts_nothing_is_busy(tmp_path: Path) -> None:
    asked = Processors(tmp_path / "none")
    assert not asked.busy()
    (tmp_path / "none").write_text("other\n")
    assert not asked.busy()
