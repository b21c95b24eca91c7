"""Several at the same thing at once, each given the time to look before any acts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

LOOKS_S = 0.2
"""How long whoever looked takes to act, so that the others look meanwhile where they can."""


def at_once(*works: Callable[[], object]) -> list[object]:
    """Run them together, and return what each came to; a refusal is one."""
    gate, came = threading.Barrier(len(works)), [None] * len(works)

    def one(number: int, work: Callable[[], object]) -> None:
        gate.wait()
        try:
            came[number] = work()  # type: ignore[call-overload]
        except Exception as error:  # noqa: BLE001 # told to the test
            came[number] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=one, args=each) for each in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return came  # type: ignore[return-value]


def slowly(monkeypatch: pytest.MonkeyPatch, where: Any, name: str) -> None:
    """Let a look take a while before what follows from it is done."""
    look = getattr(where, name)

    def looked(*arguments: Any, **named: Any) -> Any:
        found = look(*arguments, **named)
        time.sleep(LOOKS_S)
        return found

    monkeypatch.setattr(where, name, looked)
