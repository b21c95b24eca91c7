"""Run Strongroom and Orthanc side by side and print the table of ratios."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from fnmatch import fnmatch
from pathlib import Path

from benchmarks import limits, orthanc, report, rounds, strongroom
from benchmarks.cases import Case, all_cases
from benchmarks.server import Missing, Server
from benchmarks.stock import Stock


def main(argv: list[str]) -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Strongroom beside Orthanc, on this machine, now. Installs nothing."
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="a case, or a pattern (c-store-*); may be given several times")
    parser.add_argument("--rounds", type=int, help="rounds of A B (default 5; 2 when quick)")
    parser.add_argument("--quick", action="store_true", help="a quarter of the work: to see whether it runs")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--python", default=strongroom.default_python(), metavar="FILE", help="interpreter with Strongroom installed")
    parser.add_argument("--folder", type=Path, help="the disk that is measured: both archives lie here while they run")
    parser.add_argument("--settings", default="", metavar="TOML", help="further lines for Strongroom: '[storage]\\ndirect_io = false'")
    parser.add_argument("--list", action="store_true", help="name the cases")
    args = parser.parse_args(argv)
    cases = [case for case in all_cases() if not args.only or any(fnmatch(case.name, pattern) for pattern in args.only)]
    if args.list:
        print("\n".join(case.name for case in cases))
        return 0
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))  # so that both servers end too
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="strongroom-benchmarks-", dir=args.folder)))
        servers = _start(stack, folder, args.python, args.settings.replace("\\n", "\n"))
        facts = {"processors": os.cpu_count(), "load before": round(os.getloadavg()[0], 1)}
        found = limits.measure(folder, quick=args.quick)
        stock, results = Stock(), []
        turns = args.rounds or (2 if args.quick else 5)
        variants = _Variants(stack, folder, args.python)
        for case in cases:
            results.append(rounds.measure(case, variants.of(case, servers), stock, rounds=turns, quick=args.quick))
            if not args.json:
                print(report.row(results[-1]), file=sys.stderr, flush=True)
        facts["load after"] = round(os.getloadavg()[0], 1)
        if args.json:
            print(json.dumps(report.as_json(results, servers, found, facts), indent=1))
        else:
            print(report.as_text(results, servers, found, facts))
    return 0 if servers else 1


def _start(stack: ExitStack, folder: Path, python: str, settings: str) -> list[Server]:
    """Start what there is; what is missing is named."""
    servers = []
    try:
        servers.append(strongroom.Archive(folder / "strongroom", python, settings).start())
        stack.callback(servers[-1].stop)
    except Missing as error:
        print(f"skipped: {error}", file=sys.stderr)
    certificates = folder / "strongroom" / "peer"
    try:
        servers.append(orthanc.start(folder, certificates if certificates.exists() else None))
        stack.callback(servers[-1].stop)
    except Missing as error:
        print(f"skipped: {error}", file=sys.stderr)
    return servers


class _Variants:
    """Strongrooms with other settings, each started when a case first asks for it."""

    def __init__(self, stack: ExitStack, folder: Path, python: str) -> None:
        self._stack, self._folder, self._python = stack, folder, python
        self._started: dict[str, Server] = {}

    def of(self, case: Case, servers: list[Server]) -> list[Server]:
        """Return the servers a case runs on."""
        if not case.settings or not any(server.name == "Strongroom" for server in servers):
            return servers
        if case.settings not in self._started:
            folder = self._folder / f"variant-{len(self._started)}"
            self._started[case.settings] = strongroom.Archive(folder, self._python, case.settings).start()
            self._stack.callback(self._started[case.settings].stop)
        return [self._started[case.settings] if server.name == "Strongroom" else server for server in servers]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
