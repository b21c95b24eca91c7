"""A soak's bounds: each is told when it is passed, and only then."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import bounds


def _found(**other: Any) -> dict[str, Any]:
    return {
        "memory_mb first and second half": [400.0, 440.0], "descriptors first and second half": [240, 272],
        "latency": {"search": {"count": 100, "p50_ms": 10.0, "p50_ms_bad_peers": 15.0}},
        "failures": 0, "errors in the log": [], "verify ok": True, **other,
    }


def test_what_keeps_to_every_bound_says_nothing() -> None:
    assert bounds.exceeded(_found()) == []


@pytest.mark.parametrize(("other", "told"), [
    ({"memory_mb first and second half": [400.0, 440.1]}, "memory grew"),
    ({"descriptors first and second half": [240, 273]}, "descriptors grew"),
    ({"latency": {"search": {"count": 100, "p50_ms": 10.0, "p50_ms_bad_peers": 15.1}}}, "search: bad peers"),
    ({"failures": 1}, "1 requests failed"),
    ({"errors in the log": ["a line"]}, "errors in the log"),
    ({"verify ok": False}, "verify --full"),
])
def test_each_bound_is_told(other: dict[str, Any], told: str) -> None:
    (said,) = bounds.exceeded(_found(**other))
    assert told in said


def test_few_requests_and_none_in_one_phase_say_nothing() -> None:
    few = {
        "rights": {"count": 99, "p50_ms": 10.0, "p50_ms_bad_peers": 90.0},
        "stow": {"count": 300, "p50_ms": None, "p50_ms_bad_peers": 9.0},
    }
    assert bounds.exceeded(_found(latency=few)) == []
