"""The background worker's loop."""

from __future__ import annotations

import logging
import threading

import pytest

from archive.errors import DatabaseUnavailable
from archive.jobs import worker


class Steps:
    def __init__(self, stop: threading.Event, outcomes: list[Exception | None]) -> None:
        self.stop, self.outcomes, self.calls = stop, outcomes, 0

    def tick(self) -> None:
        outcome = self.outcomes[self.calls] if self.calls < len(self.outcomes) else None
        self.calls += 1
        if self.calls == len(self.outcomes):
            self.stop.set()
        if outcome is not None:
            raise outcome


def test_ticks_until_told_and_once_more() -> None:
    stop = threading.Event()
    steps = Steps(stop, [None, None, None])
    worker.run(steps, stop, tick_s=0.001)
    assert steps.calls == 4


def test_a_failing_step_is_logged_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    stop = threading.Event()
    steps = Steps(stop, [DatabaseUnavailable("busy"), RuntimeError("CANARY"), None])
    with caplog.at_level(logging.ERROR, "archive.jobs"):
        worker.run(steps, stop, tick_s=0.001)
    assert steps.calls == 4
    assert [record.getMessage() for record in caplog.records] == ["upkeep failed: busy", "upkeep failed"]


def test_failures_are_spaced_out(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0)
            return len(waits) > 12

    stop = Stop()
    steps = Steps(stop, [RuntimeError("x")] * 20)
    worker.run(steps, stop, tick_s=1.0)
    assert waits[:5] == [1, 2, 4, 8, 16]
    assert max(waits) == worker.LONGEST_PAUSE_S
