"""What lies in both archives before anything is retrieved, and the clock of a case."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from benchmarks import processes
from benchmarks.instances import Series, series
from benchmarks.sender import send
from benchmarks.server import Server

STUDIES = 200
SERIES_INSTANCES = 500


class Clock:
    """Times a case as a whole, or the part of it that says so itself."""

    def __init__(self) -> None:
        """Stand still."""
        self.pid = 0
        self.begin(0)

    def begin(self, pid: int) -> None:
        """Get ready for a case on the server with this process."""
        self.pid, self.wall_s, self.cpu_s, self._running = pid, 0.0, 0.0, False

    def start(self) -> None:
        """Run from now."""
        self._cpu = processes.cpu_s(self.pid)
        self._at = time.perf_counter()
        self._running = True

    def stop(self) -> None:
        """Stop, keeping what was counted."""
        if self._running:
            self.wall_s = time.perf_counter() - self._at
            self.cpu_s = processes.cpu_s(self.pid) - self._cpu
            self._running = False

    @property
    def used(self) -> bool:
        """Whether a case has timed itself."""
        return self.wall_s > 0


@dataclass
class Stock:
    """A CT series of 500, an object of 105 MB, two hundred studies; filled when first asked for."""

    clock: Clock = field(default_factory=Clock)
    _kept: dict[tuple[str, str], tuple[Series, list[str]]] = field(default_factory=dict)

    def series_500(self, server: Server) -> tuple[Series, list[str]]:
        """Return the series with its SOP Instance UIDs."""
        return self._once(server, "CT", SERIES_INSTANCES)

    def multiframe(self, server: Server) -> tuple[Series, list[str]]:
        """Return the large object."""
        return self._once(server, "multiframe", 1)

    def _once(self, server: Server, kind: str, count: int) -> tuple[Series, list[str]]:
        key = (server.name, kind)
        if key not in self._kept:
            made = series(kind, "stock")
            self._kept[key] = made, send(server.plain, made, count, tag="stock")
        return self._kept[key]

    def studies(self, server: Server) -> None:
        """Make sure that there are many small studies."""
        key = (server.name, "studies")
        if key not in self._kept:
            for number in range(STUDIES):
                made = series("small", "study", number, name=f"Many^Study{number}")
                send(server.plain, made, 1)
            self._kept[key] = made, []
