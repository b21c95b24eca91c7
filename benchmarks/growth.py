"""`python -m benchmarks.growth`: what a store, a read and a search cost as the archive grows, in one process without network.

Instances of 2 KB fill it, forty to a study in two series, by the store that serves, four threads at once. At each size MR instances are
stored, instances read again and studies searched; processor time is the median of many. What is written lies on the disk until it ends,
or stays in `--folder`: asked again for the same size it is measured alone.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from archive.access.subject import Subject
from archive.dicom.alike import Alike
from archive.dicom.attributes import Level, lookup
from archive.node import Node
from archive.services.query import SearchRequest
from benchmarks.instances import Series, series, uid
from benchmarks.store_path import opened, store

A_STUDY, A_SERIES = 40, 20
THREADS, A_ROUND, WAL_EVERY = 4, 1000, 5000
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)


def series_of(number: int) -> Series:
    """Return the series the instance of that number belongs to; studies differ by patient and name."""
    study = number // A_STUDY
    first = series("small", "growth", study, name=f"Grow{study:06d}^Anna")
    other = uid("growth series", number // A_SERIES)  # UIDs have one length: bytes are put in the place of bytes
    dataset = first.dataset.replace(str(first.series_instance_uid).encode(), other.encode())
    return Series(first.sop_class_uid, str(first.study_instance_uid), other, dataset, first.meta, first.uid_offset)


class Growth:
    """One archive on its way."""

    def __init__(self, node: Node, subject: Subject, note: Path | None) -> None:
        """Go on from what `note` says was stored, a line of JSON for each study, if there is such a file."""
        self._node, self._subject, self._note = node, subject, note
        self._known: list[tuple[str, str, str]] = []
        if note is not None and note.exists():
            self._known = [tuple(json.loads(line)) for line in note.read_text("ascii").splitlines()]
        self._stored = len(self._known) * A_STUDY
        self._chance = random.Random(20261121)
        self._alike = Alike()

    def grow(self, size: int) -> float:
        """Store until there are so many, and return the processor time an instance took, upkeep included, in ms."""
        began, before = self._stored, time.process_time()
        with ThreadPoolExecutor(THREADS) as pool:
            while self._stored < size:
                made = list(pool.map(self._study, range(self._stored // A_STUDY, self._stored // A_STUDY + A_ROUND // A_STUDY)))
                self._known += made
                self._stored += A_ROUND
                if self._note is not None:
                    with self._note.open("a", encoding="ascii") as note:
                        note.writelines(json.dumps(one) + "\n" for one in made)
                self._node.upkeep.checkpoint()
                if self._stored % WAL_EVERY == 0:
                    self._node.core.database.checkpoint(patient=False)
        return (time.process_time() - before) * 1000 / max(1, self._stored - began)

    def _study(self, number: int) -> tuple[str, str, str]:
        """Store a study and return the UIDs of its last instance."""
        name = ""
        for instance in range(number * A_STUDY, (number + 1) * A_STUDY):
            if instance % A_SERIES == 0:
                one = series_of(instance)
            name = uid("grown", instance)
            store(self._node, self._subject, one, name, self._alike)
        return one.study_instance_uid, one.series_instance_uid, name

    def measure(self) -> dict[str, Any]:
        """Return milliseconds of processor time by operation, and what the archive takes."""
        node, subject = self._node, self._subject
        batch = series("MR", "measured", self._stored)
        numbers = iter(range(1 << 30))

        def one_store() -> None:
            store(node, subject, batch, uid("measured", self._stored, next(numbers)), self._alike)

        def one_read() -> None:
            found = node.retrieve.instances(subject, "clinical", *self._chance.choice(self._known))
            for view in node.retrieve.open(subject, found[0], just_found=True):
                len(view)

        def search(**texts: str) -> None:
            keys = []
            for keyword, text in texts.items():
                attribute = lookup(keyword)
                assert attribute is not None
                keys.append((attribute, text))
            node.query.find(subject, SearchRequest(Level.STUDY, "clinical", tuple(keys), limit=50, total=False))

        study = self._chance.choice(self._known)[0]
        asked: dict[str, tuple[Callable[[], object], int]] = {
            "store MR": (one_store, 200), "read an instance": (one_read, 200), "newest 50": (search, 20),
            "name prefix": (lambda: search(PatientName=f"Grow{self._chance.randrange(self._stored // A_STUDY):06d}*"), 20),
            "study by UID": (lambda: search(StudyInstanceUID=study), 20), "checkpoint": (node.upkeep.checkpoint, 1),
        }
        spent = {name: _median(run, count) for name, (run, count) in asked.items()}
        folder = node.core.config.storage_dir
        sizes = {name: sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file())
                 for name, pattern in (("index", "index.db*"), ("segments", "segments/*"), ("ledger", "ledger/**/*"))}
        return {
            "instances": self._stored, **{name: round(ms, 2) for name, ms in spent.items()},
            **{f"{name}, KB an instance": round(size / self._stored / 1000, 2) for name, size in sizes.items()},
            "memory peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        }


def _median(run: Callable[[], object], count: int) -> float:
    spent = []
    for _ in range(count):
        at = time.process_time()
        run()
        spent.append((time.process_time() - at) * 1000)
    return statistics.median(spent)


def main() -> None:
    """Grow and measure."""
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    arguments.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    arguments.add_argument("--database", default="", help="a PostgreSQL URL")
    arguments.add_argument("--folder", type=Path, help="keep the archive here, or go on with the one that is here")
    chosen = arguments.parse_args()
    import archive

    print(json.dumps({"package": str(Path(archive.__file__).parent.parent.name)}), flush=True)
    with opened(chosen.database, chosen.folder) as (node, subject):
        growth = Growth(node, subject, chosen.folder and chosen.folder / "stored.jsonl")
        for size in chosen.sizes:
            took = growth.grow(size)
            print(json.dumps({**growth.measure(), "grown at, ms an instance": round(took, 2)}), flush=True)


if __name__ == "__main__":
    main()
