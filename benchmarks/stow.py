"""STOW-RS: requests of ten CT instances each."""

from __future__ import annotations

from benchmarks.instances import series, uid
from benchmarks.server import Server
from benchmarks.stock import Stock
from benchmarks.web import Request
from benchmarks.web import run as send

EACH = 10
_TYPE = 'multipart/related; type="application/dicom"; boundary=benchmark'


def run(server: Server, stock: Stock, count: int, turn: object) -> None:
    """Store `count` instances; encoding the requests is not measured."""
    one = series("CT", "stow", turn, server.name)
    requests = []
    for first in range(0, count, EACH):
        parts = [
            b"--benchmark\r\nContent-Type: application/dicom\r\n\r\n" + one.part10(uid("stow", turn, server.name, number)) + b"\r\n"
            for number in range(first, min(count, first + EACH))
        ]
        requests.append(Request("/studies", "application/dicom+json", "POST", b"".join((*parts, b"--benchmark--\r\n")), _TYPE))
    stock.clock.start()
    send(server, requests)
    stock.clock.stop()
