"""The machine's own limits, so that a rate can be read against what is possible here."""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import dcmtk
from benchmarks.sender import Scp
from benchmarks.server import Missing, Server, free_port
from benchmarks.web import Request, run

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
    try:
        found["nginx, a file of 264 MB over HTTP"] = _nginx(folder, 10 if quick else 30)
    except (Missing, OSError) as error:
        found["nginx, a file of 264 MB over HTTP"] = f"skipped: {error}"
    return found


def _nginx(folder: Path, count: int) -> str:
    """Return how fast nginx serves what a series of 500 CT amounts to, as a plain file, to the client of the cases."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        message = "nginx (Debian's package nginx-light)"
        raise Missing(message)
    port, place = free_port(), folder / "nginx"
    place.mkdir()
    place.chmod(0o755)
    length = 264_000_000
    with (place / "series").open("wb") as file:
        for _ in range(length // BLOCK + 1):
            file.write(os.urandom(BLOCK))
    (place / "conf").write_text(
        f"daemon off; worker_processes 1; pid {place}/pid; error_log {place}/error; user root; events {{}} "
        f"http {{ access_log off; sendfile on; server {{ listen 127.0.0.1:{port}; root {place}; }} }}"
    )
    process = subprocess.Popen([program, "-p", str(place), "-c", str(place / "conf")], stderr=subprocess.DEVNULL)
    try:
        server = Server("nginx", "", process, Scp("", 0, ""), None, f"http://127.0.0.1:{port}")
        time.sleep(0.5)
        seconds = _times(lambda _number: run(server, [Request("/series", "*/*")]), count)
        small = _times(lambda _number: run(server, [Request("/conf", "*/*")]), count)
        return f"{length / seconds / 1e6:,.0f} MB/s ({1 / seconds:.1f}/s); a small file {1 / small:,.0f}/s with a connection each"
    finally:
        process.terminate()
        process.wait(10)
