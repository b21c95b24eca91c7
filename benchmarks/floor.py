"""`python -m benchmarks.floor`: how fast C-STORE could be at all here, with these guarantees: `benchmarks/bare.py` beside Orthanc.

Three servers that do ever more (its levels), Orthanc, and Strongroom where it is installed, in turn, some rounds of each case.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from fnmatch import fnmatch
from pathlib import Path

from benchmarks import orthanc, rounds, strongroom
from benchmarks.bare import LEVELS
from benchmarks.cases import all_cases
from benchmarks.sender import Scp
from benchmarks.server import Missing, Server
from benchmarks.stock import Stock

CASES = ("c-store-??-1", "c-store-??-4", "dcmsend-ct-1")


def _bare(folder: Path, level: str, python: str) -> Server:
    folder.mkdir()
    process = subprocess.Popen([python, "-m", "benchmarks.bare", str(folder), level], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = process.stdout.readline()
    if not port:
        message = f"Strongroom's packages for {python}"
        raise Missing(message)
    return Server(level, "", process, Scp("127.0.0.1", int(port), "BARE"), None, "")


def main(argv: list[str]) -> int:
    """Print instances a second of each server, and what Orthanc's rate is multiplied by."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floor", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a quarter of the work")
    parser.add_argument("--only", action="append", metavar="NAME", help="a case of these alone, or a pattern")
    parser.add_argument("--python", default=strongroom.default_python(), metavar="FILE", help="interpreter with Strongroom installed")
    parser.add_argument("--folder", type=Path, help="the disk that is measured")
    args = parser.parse_args(argv)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="strongroom-floor-", dir=args.folder)))
        servers = [_bare(folder / level, level, args.python) for level in LEVELS]
        servers += [strongroom.Archive(folder / "strongroom", args.python).start(), orthanc.start(folder, None)]
        for server in servers:
            stack.callback(server.stop)
        print(f"{'case':16}" + "".join(f"{server.name:>22}" for server in servers) + f"   load {os.getloadavg()[0]:.1f}")
        for case in all_cases():
            if any(fnmatch(case.name, one) for one in CASES) and (not args.only or any(fnmatch(case.name, one) for one in args.only)):
                print(_row(rounds.measure(case, servers, Stock(), rounds=args.rounds, quick=args.quick)), flush=True)
    return 0


def _row(measured: rounds.Measured) -> str:
    if measured.skipped:
        return f"{measured.case.name:16}skipped: {measured.skipped}"
    line = f"{measured.case.name:16}"
    for name, rates in measured.rates.items():
        ratio = statistics.median(measured.ratios(name, "Orthanc"))
        cpu = statistics.median(measured.cpu_ms[name])
        line += f"{statistics.median(rates):>8,.0f}/s {ratio:>5.2f}x {cpu:>4.2f}ms"
    return f"{line}   others {measured.others:.1f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
