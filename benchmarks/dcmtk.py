"""dcmtk's dcmsend as a modality vendor ships it, and its storescp as a limit."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.instances import series, uid
from benchmarks.sender import Scp, send
from benchmarks.server import Missing, Server, free_port
from benchmarks.stock import Stock


def program(name: str) -> str:
    """Return the path of one of dcmtk's programs.

    Raises:
        Missing.
    """
    found = shutil.which(name)
    if found is None:
        message = f"{name} (Debian's package dcmtk)"
        raise Missing(message)
    return found


def sending(associations: int) -> Callable[[Server, Stock, int, object], None]:
    """Return a case that sends with so many dcmsend at once; writing their files is not measured."""

    def run(server: Server, stock: Stock, count: int, turn: object) -> None:
        dcmsend, scp = program("dcmsend"), server.plain
        environment = {name: value for name, value in os.environ.items() if name != "TCP_NODELAY"}
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            one = series("CT", "dcmsend", associations, turn, server.name)
            folders = [Path(name) / str(number) for number in range(associations)]
            for folder in folders:
                folder.mkdir()
            for number in range(count):
                new = uid("dcmsend", turn, server.name, associations, number)
                (folders[number % associations] / f"{number}.dcm").write_bytes(one.part10(new))
            stock.clock.start()
            running = [
                subprocess.Popen(
                    [dcmsend, "-aet", "DCMSEND", "-aec", scp.ae_title, "+sd", scp.host, str(scp.port), str(folder)],
                    env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )
                for folder in folders
            ]
            codes = [process.wait(600) for process in running]
            stock.clock.stop()
        if any(codes):
            message = "dcmsend did not store everything"
            raise ConnectionError(message)

    return run


def storescp(count: int) -> float:
    """Return how many CT instances a second storescp takes when it throws them away."""
    port = free_port()
    process = subprocess.Popen(
        [program("storescp"), "--fork", "--ignore", "--max-pdu", "131072", str(port)],
        env={**os.environ, "TCP_NODELAY": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(0.5)
        one = series("CT", "storescp")
        at = time.perf_counter()
        send(Scp("127.0.0.1", port, "STORESCP"), one, count)
        return count / (time.perf_counter() - at)
    finally:
        process.terminate()
        process.wait(10)
