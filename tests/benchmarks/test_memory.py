"""What a process holds, and how its growth is judged."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import memory


def sample(number: int, rss_kb: int, *, bad: bool = False) -> dict[str, Any]:
    process = {"pid": 7, "role": "dimse", "kb": {"rss": rss_kb}, "descriptors": {"socket": 3, "segments/*.seg": number % 2}}
    return {"acknowledged": number * 1000, "bad": bad, "processes": [process]}


def test_growth_is_what_calm_samples_rise_by() -> None:
    rising = [sample(number, 100_000 + 100 * number) for number in range(21)]
    [found] = memory.growth([*rising, sample(21, 500_000, bad=True)])
    assert (found["role"], found["most_descriptors"]) == ("dimse", 4)
    assert found["rss_percent_each_10_000"] == pytest.approx(1.0, abs=0.02)
    [flat] = memory.growth([sample(number, 100_000) for number in range(21)])
    assert flat["rss_percent_each_10_000"] == 0


def test_a_process_that_came_later_is_not_judged() -> None:
    samples = [sample(number, 1) for number in range(9)]
    later = {**samples[0]["processes"][0], "pid": 8}
    samples[5]["processes"].append(later)
    assert [one["pid"] for one in memory.growth(samples)] == [7]


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_memory_and_descriptors_of_a_process(tmp_path: Path) -> None:
    before = memory.descriptors(os.getpid())
    held = b"x" * (8 << 20)
    with (tmp_path / "one.seg").open("wb"):
        [here, *_] = memory.of_tree(os.getpid(), tmp_path / "no-status")
    assert here["role"] == "supervisor"
    assert here["descriptors"][f"{tmp_path.name}/*.seg"] == before.get(f"{tmp_path.name}/*.seg", 0) + 1
    kinds = ("heap", "arenas", "mapped", "stacks", "files")
    assert len(held) >> 10 <= sum(here["kb"][kind] for kind in kinds) <= here["kb"]["rss"]
