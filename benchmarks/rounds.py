"""Rounds: A B A B, each server warmed up first and left to come to rest after, so that neither pays for the other."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks import processes
from benchmarks.cases import Case
from benchmarks.server import Missing, Server
from benchmarks.stock import Stock


@dataclass
class Measured:
    """One case on both servers."""

    case: Case
    rates: dict[str, list[float]] = field(default_factory=dict)
    cpu_ms: dict[str, list[float]] = field(default_factory=dict)  # of the server, per operation
    after_ms: dict[str, list[float]] = field(default_factory=dict)  # what it did afterwards because of it
    peak_bytes: dict[str, int] = field(default_factory=dict)
    others: float = 0.0  # processors kept busy by neither server nor client
    skipped: str = ""

    def ratios(self, ours: str, theirs: str) -> list[float]:
        """Return how many times faster we were, round by round."""
        return [mine / other for mine, other in zip(self.rates.get(ours, []), self.rates.get(theirs, []), strict=False)]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        case = {name: value for name, value in asdict(self.case).items() if name != "run"}
        rest = {name: getattr(self, name) for name in ("rates", "cpu_ms", "after_ms", "peak_bytes", "others", "skipped")}
        return {**case, **rest}


def measure(case: Case, servers: Sequence[Server], stock: Stock, *, rounds: int, quick: bool) -> Measured:
    """Run a case; whatever stops it is its answer."""
    result = Measured(case)
    count = case.quick if quick else case.count
    busy: list[float] = []
    try:
        for server in servers:
            _one(case, server, stock, max(1, count // 10), "warm-up")
        for server in servers:
            processes.settle(_pid(case, server), quiet_s=_quiet_s(case))
            processes.forget_peak(_pid(case, server))
        for turn in range(rounds):
            busy += [_measured(result, case, server, stock, count, turn) for server in servers]
        for server in servers:
            result.peak_bytes[server.name] = processes.peak_bytes(_pid(case, server))
    except (Missing, OSError, ValueError) as error:
        result.skipped = str(error) or type(error).__name__
    result.others = statistics.median(busy) if busy else 0.0
    return result


def _one(case: Case, server: Server, stock: Stock, count: int, turn: object) -> None:
    clock = stock.clock
    clock.begin(_pid(case, server))
    if case.name.startswith("c-store"):
        clock.start()
    case.run(server, stock, count, (turn, count))
    clock.stop()


def _quiet_s(case: Case) -> float:
    """Strongroom makes a series' metadata two seconds after its last instance."""
    return 2.75 if case.ingest else 0.5


def _pid(case: Case, server: Server) -> int:
    return server.others[0].pid if "-tls" in case.name and server.others else server.pid


def _measured(result: Measured, case: Case, server: Server, stock: Stock, count: int, turn: int) -> float:
    machine, before = processes.Machine(), processes.cpu_s(os.getpid())
    _one(case, server, stock, count, turn)
    clock = stock.clock
    result.rates.setdefault(server.name, []).append(count / clock.wall_s)
    result.cpu_ms.setdefault(server.name, []).append(clock.cpu_s / count * 1000)
    client = processes.cpu_s(os.getpid()) - before  # its children are the servers and dcmsend
    busy = machine.others(client)
    result.after_ms.setdefault(server.name, []).append(processes.settle(_pid(case, server), quiet_s=_quiet_s(case)) / count * 1000)
    return busy
