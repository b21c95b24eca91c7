"""The reactor never runs while a caller believes it paused, whatever the moment."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from archive.dimse.turns import Turns, settle


def meetings(association: Any, event: threading.Event, times: int) -> int:
    """Ask and pause as the library does it; return how often the reactor was at work meanwhile."""
    at_work, asking, met, ended = [False], [False], [0], [False]

    def reactor() -> None:
        while not ended[0]:
            association._is_paused = True
            event.wait()
            association._is_paused = False
            at_work[0] = True
            met[0] += asking[0]
            at_work[0] = False

    thread = threading.Thread(target=reactor)
    thread.start()
    for _ in range(times):
        event.clear()
        while not association._is_paused:
            pass
        asking[0] = True
        for _ in range(50):
            met[0] += at_work[0]
        asking[0] = False
        event.set()
    ended[0] = True
    thread.join()
    return met[0]


@pytest.fixture
def hasty() -> Any:
    """Threads that change at nearly every step."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty")
def test_the_reactor_is_paused_when_it_seems_so() -> None:
    association: Any = SimpleNamespace(_is_paused=False)
    assert meetings(association, Turns(association), 3000) == 0


def test_a_caller_that_came_between_is_waited_for() -> None:
    """The moment itself: the event is cleared after the reactor has passed it, while the flag still says paused."""
    association: Any = SimpleNamespace(_is_paused=True)
    turns = Turns(association)
    looked = threading.Event.wait
    passed = threading.Event()

    def wait(event: threading.Event, timeout: float | None = None) -> bool:
        there = looked(event, timeout)
        if event is turns and not passed.is_set():
            turns.clear()  # a caller begins to ask just now
            passed.set()
        return there

    through = threading.Event()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(threading.Event, "wait", wait)
        thread = threading.Thread(target=lambda: (turns.wait(), through.set()))
        thread.start()
        assert looked(passed, 5)
        assert not looked(through, 0.2), "the reactor goes on although a caller asks"
        assert association._is_paused
        turns.set()
        assert looked(through, 5)
        thread.join()
    assert not association._is_paused


def test_what_is_not_established_is_left_alone() -> None:
    association: Any = SimpleNamespace(is_established=False, _reactor_checkpoint="as it was")
    settle(association)
    assert association._reactor_checkpoint == "as it was"
