"""An archive that stores, searches and reads for a while is no larger than before, and what it keeps has bounds."""

from __future__ import annotations

import gc
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from archive.dicom.attributes import BY_KEYWORD, Level
from archive.node import Node
from archive.services.query import SearchRequest
from archive.services.store import Source
from archive.vault.readers import KEPT
from tests.services import archives

WARM_UP, STORED, SPANS = 300, 200, 3
MOST_KB = 4096
"""SQLite's pages are a part of it: the index grows by 6 KB an instance."""


def resident_kb() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def blocks_held() -> int:
    """Python's objects; but of each connection SQLite's driver keeps the weak references to some hundred cursors that are gone."""
    gc.collect()
    gone = sum(1 for one in gc.get_objects() if type(one) is weakref.ref and one() is None)
    return sys.getallocatedblocks() - gone


def segments_open(node: Node) -> int:
    folder, held = str(node.config.segments_dir.resolve()), 0
    for number in os.listdir("/proc/self/fd"):
        try:
            held += os.readlink(f"/proc/self/fd/{number}").startswith(folder)
        except OSError:
            continue
    return held


def working(node: Node) -> Callable[[int], None]:
    """One store with its search and its retrieval, of a study of a hundred."""
    admin = archives.user(node)
    series = "1.2.3.10001.1"
    one = archives.instance(study="1.2.3.10001", series=series, sop=f"{series}.10001")

    def work(number: int) -> None:
        study = f"1.2.3.{10001 + number // 100}"
        uid = f"{study}.1.{10001 + number}"
        data = one.replace(f"{series}.10001".encode(), uid.encode()).replace(b"1.2.3.10001", study.encode())
        incoming = node.store.open(admin, "clinical", Source("stow"))
        incoming.write(data)
        incoming.finish()
        if number % 8 == 0:
            keys = ((BY_KEYWORD["PatientName"], "Canary*"), (BY_KEYWORD["StudyInstanceUID"], study))
            assert len(node.query.find(admin, SearchRequest(Level.STUDY, "clinical", keys, limit=10)).rows) == 1
        if number % 4 == 0:  # always one of the same: what is kept of those that were read has bounds far above this
            uid = f"1.2.3.10001.1.{10001 + number % 100}"
            [found] = node.retrieve.instances(admin, "clinical", "1.2.3.10001", "1.2.3.10001.1", uid)
            assert sum(len(view) for view in node.retrieve.open(admin, found)) == len(data)

    return work


@pytest.fixture(autouse=True)
def _usual_collector() -> Iterator[None]:
    """Garbage is looked for as often as in service."""
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_it_does_not_grow_with_what_it_has_stored(tmp_path: Path) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config) as node:
        work = working(node)
        for number in range(WARM_UP):
            work(number)
        blocks, before_kb, grown = blocks_held(), resident_kb(), []
        for start in range(WARM_UP, WARM_UP + SPANS * STORED, STORED):
            for number in range(start, start + STORED):
                work(number)
            before, blocks = blocks, blocks_held()
            grown.append(blocks - before)
        # Less than one object of Python's for each instance; what is filled once, as caches of the library are, is not in every span.
        assert min(grown) < STORED
        assert resident_kb() - before_kb < MOST_KB
        assert segments_open(node) <= KEPT + 1
