"""What a soak must keep to: memory and descriptors flat, no failure, and bad peers that cost the others little."""

from __future__ import annotations

from typing import Any

MEMORY = 1.10
"""Of all processes, second half over first, once a quarter of the time has filled caches and pools."""
DESCRIPTORS = 32
"""By how many the second half may hold more: what the pools of two web workers and the background may still fill."""
LATENCY = 1.5
"""The stated factor: medians with slow, silent, resetting and flooding peers about, over those without."""
ENOUGH = 100
"""Medians of fewer requests say nothing."""


def exceeded(found: dict[str, Any]) -> list[str]:
    """Return a sentence for each bound that what a soak found does not keep."""
    said: list[str] = []
    first, second = found["memory_mb first and second half"]
    if second > first * MEMORY:
        said.append(f"memory grew from {first} to {second} MB, more than {MEMORY:.2f} times")
    first, second = found["descriptors first and second half"]
    if second > first + DESCRIPTORS:
        said.append(f"descriptors grew from {first} to {second}, by more than {DESCRIPTORS}")
    for name, one in found["latency"].items():
        calm, bad = one["p50_ms"], one["p50_ms_bad_peers"]
        if one["count"] >= ENOUGH and calm and bad and bad > calm * LATENCY:
            said.append(f"{name}: bad peers took the median from {calm} to {bad} ms, more than {LATENCY} times")
    if found["failures"]:
        said.append(f"{found['failures']} requests failed")
    if found["errors in the log"]:
        said.append("there are errors in the log")
    if not found["verify ok"]:
        said.append("verify --full found something")
    return said
