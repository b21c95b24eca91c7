"""What is measured: each case does some operations on one server; how long they take is measured around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import dcmtk, retrieve, stow, transcoded
from benchmarks.instances import series
from benchmarks.sender import send
from benchmarks.server import Missing, Server
from benchmarks.stock import Stock


@dataclass(frozen=True, slots=True)
class Case:
    """`run(server, stock, count, round)` does `count` operations; `first` and `then` are the ratios to reach."""

    name: str
    unit: str
    count: int
    quick: int
    run: Callable[[Server, Stock, int, object], None]
    first: float
    then: float
    ingest: bool = False
    settings: str = ""  # lines of Strongroom's configuration: a server of its own runs with them


BUFFERED, OTHER_RECEIVER = "[storage]\ndirect_io = false\n", '[dimse]\nreceiver = "pynetdicom"\n'
"""Written through the page cache; received by pynetdicom."""


def _c_store(kind: str, associations: int, *, secure: bool = False) -> Callable[[Server, Stock, int, object], None]:
    def run(server: Server, _stock: Stock, count: int, turn: object) -> None:
        scp = server.secure if secure else server.plain
        if scp is None:
            message = f"{server.name} over TLS"
            raise Missing(message)
        send(scp, series(kind, "c-store", associations, secure, turn, server.name), count, associations=associations)

    return run


def all_cases() -> list[Case]:
    """Return every case, in the order they run."""
    found = []
    for kind, count, first, then in (("CT", 400, 1.8, 3.5), ("MR", 800, 2.5, 5.0)):
        for associations in (1, 4, 8):
            name, run = f"c-store-{kind.lower()}-{associations}", _c_store(kind, associations)
            found.append(Case(name, "instances/s", count, count // 4, run, first, then if associations > 1 or kind == "MR" else 3.0, True))
    for associations, first in ((1, 1.5), (4, 1.4)):
        run = _c_store("CT", associations, secure=True)
        found.append(Case(f"c-store-ct-tls-{associations}", "instances/s", 300, 80, run, first, 2.5, True))
    for kind, count, first in (("CT", 300, 1.0), ("MR", 600, 2.0)):
        for associations in (1, 4):
            name, run = f"c-store-{kind.lower()}-{associations}", _c_store(kind, associations)
            found.append(Case(f"{name}-buffered", "instances/s", count, count // 4, run, first, 0, True, BUFFERED))
            found.append(Case(f"{name}-pynetdicom", "instances/s", count // 2, count // 8, run, 0, 0, True, OTHER_RECEIVER))
    found += [
        Case("dcmsend-ct-1", "instances/s", 100, 30, dcmtk.sending(1), 6, 7.5, True),
        Case("dcmsend-ct-4", "instances/s", 200, 60, dcmtk.sending(4), 0, 0, True),
        Case("stow-ct", "instances/s", 200, 50, stow.run, 2, 3, True),
        Case("wado-series-500-ct", "series/s", 4, 2, retrieve.whole_series, 2, 3),
        Case("wado-instance-1", "instances/s", 400, 100, retrieve.instances(1), 1.3, 2.5),
        Case("wado-instance-4", "instances/s", 800, 200, retrieve.instances(4), 1.3, 2.5),
        Case("wado-jpeg-ls-4", "instances/s", 80, 20, transcoded.to_jpeg_ls(4), 0, 0),
        Case("wado-series-40-of-jpeg", "series/s", 3, 1, transcoded.from_jpeg, 0, 0),
        Case("frame-of-105-mb", "frames/s", 20, 6, retrieve.frame, 100, 150),
        Case("metadata-500", "series/s", 20, 6, retrieve.metadata, 40, 50),
        Case("rendered-4", "pictures/s", 120, 40, retrieve.rendered(4), 2, 3),
        Case("thumbnail-4", "pictures/s", 400, 80, retrieve.rendered(4, thumbnail=True), 2, 3),
        Case("qido-studies", "requests/s", 100, 30, retrieve.studies, 0, 0),
        Case("c-find-studies", "requests/s", 40, 10, retrieve.find, 0, 0),
        Case("c-get-series-500-ct", "series/s", 4, 2, retrieve.get_series, 0, 0),
    ]
    return found
