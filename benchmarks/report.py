"""The table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.rounds import Measured
from benchmarks.server import Server

_MIB = 1 << 20


def as_json(results: Sequence[Measured], servers: Sequence[Server], limits: dict[str, str], facts: dict[str, Any]) -> dict[str, Any]:
    """Return everything that was measured."""
    return {
        "machine": facts, "versions": {server.name: server.version for server in servers}, "limits": limits,
        "cases": [result.to_json() for result in results],
    }


def as_text(results: Sequence[Measured], servers: Sequence[Server], limits: dict[str, str], facts: dict[str, Any]) -> str:
    """Return the table as text."""
    lines = [
        f"{' and '.join(f'{server.name} {server.version}' for server in servers)}; "
        + "; ".join(f"{name} {value}" for name, value in facts.items()),
        "Medians of the rounds. ratio: Strongroom's rate over Orthanc's, lowest to highest round in brackets; aim: to reach first / then.",
        "cpu: the server's processor time per operation, and +after it; peak: sum of its processes; others: processors others kept busy.",
        "",
        (f"{'case':20} {'Strongroom':>11} {'Orthanc':>9}  {'unit':12} {'ratio':>7} {'(spread)':14} {'aim':>9}"
        f" {'cpu ms S':>13} {'cpu ms O':>11} {'peak MB S/O':>12} {'others':>6}"),
    ]
    lines += [row(result) for result in results]
    lines += ["", "limits of this machine"] + [f"  {name:44} {value}" for name, value in limits.items()]
    return "\n".join(lines)


def row(result: Measured) -> str:
    """Return the line of one case."""
    case = result.case
    if result.skipped:
        return f"{case.name:20} skipped: {result.skipped}"
    ours, theirs = (_median(result.rates.get(name, [])) for name in ("Strongroom", "Orthanc"))
    ratios = result.ratios("Strongroom", "Orthanc")
    ratio = f"{statistics.median(ratios):6.2f}x" if ratios else "-"
    spread = f"({min(ratios):.2f}-{max(ratios):.2f})" if ratios else ""
    aim = f"{case.first:g}/{case.then:g}" if case.first else "-"
    peaks = "/".join(f"{result.peak_bytes.get(name, 0) / _MIB:.0f}" for name in ("Strongroom", "Orthanc"))
    return (
        f"{case.name:20} {_number(ours):>11} {_number(theirs):>9}  {case.unit:12} {ratio:>7} {spread:14} {aim:>9}"
        f" {_cpu(result, 'Strongroom'):>13} {_cpu(result, 'Orthanc'):>11} {peaks:>12} {result.others:6.1f}"
    )


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _cpu(result: Measured, name: str) -> str:
    used, after = _median(result.cpu_ms.get(name, [])), _median(result.after_ms.get(name, []))
    return "-" if used is None or after is None else f"{used:.2f} +{after:.2f}"
