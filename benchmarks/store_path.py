"""`python -m benchmarks.store_path`: processor time of a store in one process, without network: what sealing, rows and ledger cost.

Prints milliseconds of processor time an instance, the median of batches, and where in the path it goes with one thread.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

from archive.access import principals
from archive.access.subject import Subject
from archive.config import parse
from archive.dicom.alike import Alike
from archive.node import Node, open_node
from archive.services import setup
from archive.services.store import Source
from benchmarks.instances import EXPLICIT_LE, Series, series, uid

PIECE = 131072 - 12
SOURCE = Source("dimse", "SCANNER", "STRONGROOM")


@contextmanager
def opened(database: str = "", kept: Path | None = None) -> Iterator[tuple[Node, Subject]]:
    """A new archive in a temporary folder, or one in a folder that is kept and used again; and its owner."""
    with ExitStack() as stack:
        folder = kept or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="store-path-")))
        raw: dict[str, object] = {"archive": {"storage": "storage"}, "http": {"port": 0}, "dimse": {"tls": {"port": 0}}}
        if database:
            raw["database"] = {"url": database}
        folder.mkdir(exist_ok=True)
        config = parse(raw, folder / "config.toml")
        if not config.storage_dir.exists():
            setup.initialise(config, admin="admin", password="violet-otter-94-lantern")  # it holds what was made up
        node = open_node(config)
        try:
            node.start()
            with node.core.database.read() as tx:
                row = principals.find(tx, "admin")
            yield node, Subject(row["id"], row["name"], "user", "token")
        finally:
            node.close()


def store(
    node: Node, subject: Subject, made: Series, sop_instance_uid: str, alike: Alike, spent: list[float] | None = None
) -> None:
    """Put one instance in, as an association does; `spent` takes the processor time of opening, writing and finishing."""
    view = memoryview(b"".join(made.patched(sop_instance_uid)))
    at = [time.thread_time()]
    incoming = node.store.open_dataset(
        subject, "clinical", SOURCE, sop_class_uid=made.sop_class_uid, sop_instance_uid=sop_instance_uid, transfer_syntax_uid=EXPLICIT_LE,
        alike=alike,
    )
    at.append(time.thread_time())
    for start in range(0, len(view), PIECE):
        incoming.write(view[start : start + PIECE])
    at.append(time.thread_time())
    incoming.finish()
    at.append(time.thread_time())
    if spent is not None:
        spent += [(b - a) * 1000 for a, b in pairwise(at)]


def alone(node: Node, subject: Subject, kind: str, count: int, batches: int) -> str:
    """Return what one thread needs."""
    parts: list[list[float]] = []
    for batch in range(batches + 1):
        made, alike = series(kind, "alone", batch), Alike()
        for number in range(count):
            spent: list[float] = []
            store(node, subject, made, uid("alone", kind, batch, number), alike, spent)
            if batch and number:
                parts.append(spent)
    medians = [statistics.median(column) for column in zip(*parts, strict=True)]
    whole = sorted(map(sum, parts))
    split = f"open {medians[0]:.3f}, write {medians[1]:.3f}, finish {medians[2]:.3f}"
    return f"{kind:>3} 1 thread : {statistics.median(whole):.3f} ms  ({split}; the best tenth {whole[len(whole) // 10]:.3f})"


def together(node: Node, subject: Subject, kind: str, threads: int, count: int, batches: int) -> str:
    """Return what several threads need for each instance, one series a thread."""
    costs, rates = [], []
    for batch in range(batches):
        gate = threading.Barrier(threads + 1)

        def run(thread: int, batch: int = batch, gate: threading.Barrier = gate) -> None:
            made, alike = series(kind, "together", batch, thread), Alike()
            store(node, subject, made, uid("first", kind, threads, batch, thread), alike)
            gate.wait()
            for number in range(count):
                store(node, subject, made, uid("together", kind, threads, batch, thread, number), alike)

        with ThreadPoolExecutor(threads) as pool:
            waiting = [pool.submit(run, thread) for thread in range(threads)]
            gate.wait()
            cpu, wall = time.process_time(), time.perf_counter()
            for one in waiting:
                one.result()
            costs.append((time.process_time() - cpu) * 1000 / (threads * count))
            rates.append(threads * count / (time.perf_counter() - wall))
    return f"{kind:>3} {threads} threads: {statistics.median(costs):.3f} ms  ({statistics.median(rates):.0f}/s)"


def main() -> None:
    """Run it."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--kind", action="append", choices=["MR", "CT", "small"])
    arguments.add_argument("--threads", type=int, action="append")
    arguments.add_argument("--count", type=int, default=200)
    arguments.add_argument("--batches", type=int, default=3)
    arguments.add_argument("--database", default="", help="a PostgreSQL URL")
    arguments.add_argument("--profile", type=int, default=0, metavar="LINES")
    chosen = arguments.parse_args()
    for kind in chosen.kind or ["MR", "CT"]:
        with opened(chosen.database) as (node, subject):
            if chosen.profile:
                profile = cProfile.Profile(time.process_time)
                made, alike = series(kind, "profile"), Alike()
                store(node, subject, made, uid("profile", kind), alike)
                profile.enable()
                for number in range(chosen.count):
                    store(node, subject, made, uid("profile", kind, number), alike)
                profile.disable()
                pstats.Stats(profile).sort_stats("tottime").print_stats(chosen.profile).sort_stats("cumtime").print_stats(chosen.profile)
                continue
            print(alone(node, subject, kind, chosen.count, chosen.batches), flush=True)
            for threads in chosen.threads or [4, 8]:
                print(together(node, subject, kind, threads, chosen.count // 4, chosen.batches), flush=True)


if __name__ == "__main__":
    main()
