"""What each process of a server holds: memory by kind, descriptors by kind, and what its allocators say; read from /proc."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks import processes

_ARENA_BYTES = 64 << 20  # glibc reserves so much address space for an arena of a thread, at a multiple of it


def of_tree(root: int, status: Path, probed: Path | None = None) -> list[dict[str, Any]]:
    """Return a record for each process; roles come from the status file of the server, allocators from the folder of the probe."""
    roles = _roles(status)
    found = []
    for pid in processes.tree(root):
        with suppress(OSError, ValueError):
            record: dict[str, Any] = {"pid": pid, "role": _role(pid, root, roles), "threads": _threads(pid)}
            record |= {"kb": _memory_kb(pid), "descriptors": descriptors(pid)}
            if probed is not None:
                with suppress(OSError, ValueError):
                    record["probe"] = json.loads((probed / f"{pid}.json").read_text())
            found.append(record)
    return found


def growth(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Say of each process that lived through all samples what it held in their first and second half, and how steeply that rises.

    The slope is that of the least squares, for each 10,000 instances. Calm samples only: bad peers have threads and sockets.
    """
    calm = [one for one in samples if not one["bad"]] or samples
    found = []
    for one in calm[0]["processes"]:
        points = [
            (sample["acknowledged"], process["kb"]["rss"], sum(process["descriptors"].values()))
            for sample in calm for process in sample["processes"] if process["pid"] == one["pid"]
        ]
        if len(points) < max(4, len(calm)):
            continue
        counts, memory, open_files = zip(*points, strict=True)
        half = len(points) // 2
        found.append({
            "role": one["role"], "pid": one["pid"],
            "rss_mb": [round(statistics.median(part) / 1024, 1) for part in (memory[:half], memory[half:])],
            "descriptors": [statistics.median(part) for part in (open_files[:half], open_files[half:])],
            "most_descriptors": max(open_files),
            "rss_percent_each_10_000": round(_slope(counts, memory) * 10_000 / statistics.median(memory) * 100, 2),
        })
    return found


def _slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    return statistics.linear_regression(xs, ys).slope if len(set(xs)) > 1 else 0.0


def _roles(status: Path) -> dict[int, str]:
    try:
        return {one["pid"]: one["role"] for one in json.loads(status.read_text())["processes"]}
    except (OSError, ValueError, KeyError):
        return {}


def _role(pid: int, root: int, roles: dict[int, str]) -> str:
    if pid == root:
        return "supervisor"
    if pid in roles:
        return roles[pid]
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return f"{roles.get(parent, 'other')} worker"


def _threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def _memory_kb(pid: int) -> dict[str, int]:
    """Resident and proportional, and what is private and written: the heap, arenas of threads, other anonymous memory, files."""
    total = dict.fromkeys(("rss", "pss", "anonymous", "heap", "arenas", "mapped", "stacks", "files"), 0)
    kind, arena_end = "", 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        head, _, rest = line.partition(" ")
        if not head.endswith(":"):
            start, end = (int(text, 16) for text in head.split("-"))
            name = rest.split(maxsplit=4)[4] if len(rest.split(maxsplit=4)) > 4 else ""  # fields before the name
            if not name and start % _ARENA_BYTES == 0:
                arena_end = start + _ARENA_BYTES
            kind = _kind(name, in_arena=end <= arena_end)
            continue
        value = int(rest.split()[0]) if rest.endswith("kB") else 0
        if head == "Rss:":
            total["rss"] += value
        elif head == "Pss:":
            total["pss"] += value
        elif head == "Anonymous:":
            total["anonymous"] += value
        elif head == "Private_Dirty:":
            total[kind] += value
    return total


def _kind(name: str, *, in_arena: bool) -> str:
    if name == "[heap]":
        return "heap"
    if name.startswith("[stack"):
        return "stacks"
    if name and not name.startswith("["):
        return "files"
    return "arenas" if in_arena else "mapped"


def descriptors(pid: int) -> dict[str, int]:
    """Return how many descriptors are open, by what they are of."""
    found: dict[str, int] = {}
    for number in os.listdir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            kind = _descriptor(os.readlink(f"/proc/{pid}/fd/{number}"))
            found[kind] = found.get(kind, 0) + 1
    return found


def _descriptor(target: str) -> str:
    for prefix in ("socket:", "pipe:", "anon_inode:"):
        if target.startswith(prefix):
            return prefix.rstrip(":")
    name = target.removesuffix(" (deleted)")
    for suffix, kind in (("-wal", "write-ahead log"), ("-shm", "index of the log"), (".lock", "lock")):
        if name.endswith(suffix):
            return kind
    folder, _, file = name.rpartition("/")
    if name.startswith("/dev/"):
        return "device"
    return f"{folder.rpartition('/')[2]}/*{Path(file).suffix}"
