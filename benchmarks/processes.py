"""What a server and its child processes cost: processor time and memory, read from /proc."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def tree(root: int) -> list[int]:
    """Return a process and all below it."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                parents.setdefault(int(fields[1]), []).append(int(entry))
    found = [root]
    for pid in found:
        found += parents.get(pid, [])
    return found


def cpu_s(root: int) -> float:
    """Return the processor time the tree has used, children that ended included."""
    ticks = 0
    for pid in tree(root):
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks * _TICK_S


def forget_peak(root: int) -> None:
    """Start measuring the peak anew."""
    for pid in tree(root):
        with suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_bytes(root: int) -> int:
    """Return the sum of the processes' peaks of resident memory, what they share now counted once."""
    total = 0
    for pid in tree(root):
        with suppress(OSError):
            peak = _kilobytes(Path(f"/proc/{pid}/status"), "VmHWM")
            rollup = Path(f"/proc/{pid}/smaps_rollup")
            total += peak - _kilobytes(rollup, "Rss") + _kilobytes(rollup, "Pss")
    return total * 1024


def now_bytes(root: int) -> int:
    """Return the tree's resident memory, what its processes share counted once."""
    total = 0
    for pid in tree(root):
        with suppress(OSError):
            total += _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss")
    return total * 1024


def descriptors(root: int) -> int:
    """Return how many file descriptors the tree has open."""
    total = 0
    for pid in tree(root):
        with suppress(OSError):
            total += len(os.listdir(f"/proc/{pid}/fd"))
    return total


def _kilobytes(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0


def settle(root: int, *, quiet_s: float, most_s: float = 30.0) -> float:
    """Wait until the tree has been idle so long and return the processor time it used meanwhile."""
    first = before = cpu_s(root)
    end = time.monotonic() + most_s
    quiet = 0.0
    while quiet < quiet_s and time.monotonic() < end:
        time.sleep(0.25)
        now = cpu_s(root)
        quiet = quiet + 0.25 if now - before <= 0.03 else 0.0
        before = now
    return before - first


class Machine:
    """How busy the processors were between two moments, and with whom."""

    def __init__(self) -> None:
        """Begin."""
        self._busy = self._read()
        self._at = time.monotonic()

    @staticmethod
    def _read() -> float:
        fields = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return (sum(fields) - fields[3] - fields[4]) * _TICK_S  # all but idle and waiting

    def others(self, ours_s: float) -> float:
        """Return how many processors others kept busy, when servers and client took `ours_s`."""
        return max(0.0, self._read() - self._busy - ours_s) / max(0.001, time.monotonic() - self._at)
