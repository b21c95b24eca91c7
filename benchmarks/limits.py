"""The machine's own limits, so that a rate can be read against what is possible here."""

from __future__ import annotations

import hashlib
import mmap
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import dcmtk
from benchmarks.server import Missing

BLOCK = 128 * 4096  # 0.5 MB


def _times(work: Callable[[int], object], count: int) -> float:
    """Return the median of seconds."""
    found = []
    for number in range(count):
        at = time.perf_counter()
        work(number)
        found.append(time.perf_counter() - at)
    return statistics.median(found)


def _synced(folder: Path, count: int, *, direct: bool) -> float:
    path = folder / "limit"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | (os.O_DIRECT if direct else 0), 0o600)
    buffer = mmap.mmap(-1, BLOCK)
    buffer.write(os.urandom(BLOCK))
    try:
        os.posix_fallocate(fd, 0, BLOCK * count)

        def work(number: int) -> None:
            os.pwrite(fd, buffer, number * BLOCK)
            os.fdatasync(fd)

        return _times(work, count)
    finally:
        os.close(fd)
        path.unlink()


def measure(folder: Path, *, quick: bool) -> dict[str, str]:
    """Return what the machine can do, in words; what cannot be measured says why."""
    count = 50 if quick else 200
    data = os.urandom(BLOCK)
    target = bytearray(BLOCK)

    def copy(_number: int) -> None:
        target[:] = data

    def megabytes(seconds: float) -> str:
        return f"{BLOCK / seconds / 1e6:,.0f} MB/s"

    found: dict[str, str] = {}
    try:
        found["write and fdatasync 0.5 MB, O_DIRECT"] = f"{_synced(folder, count, direct=True) * 1000:.2f} ms"
    except OSError as error:
        found["write and fdatasync 0.5 MB, O_DIRECT"] = f"refused here ({error.strerror})"
    found["write and fdatasync 0.5 MB, page cache"] = f"{_synced(folder, count, direct=False) * 1000:.2f} ms"
    found["SHA-256"] = megabytes(_times(lambda _number: hashlib.sha256(data).digest(), count))
    found["memory copy"] = megabytes(_times(copy, count))
    try:
        found["dcmtk storescp --ignore, CT, 1 association"] = f"{dcmtk.storescp(count):,.0f} instances/s"
    except (Missing, OSError) as error:
        found["dcmtk storescp --ignore, CT, 1 association"] = f"skipped: {error}"
    return found
