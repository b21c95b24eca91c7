"""Instances that leave in another transfer syntax than they are stored in."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from benchmarks.dcmtk import program
from benchmarks.instances import Series, series, uid
from benchmarks.server import Server
from benchmarks.stock import Stock
from benchmarks.web import Request, run

JPEG_LS, EXPLICIT_LE = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.1"
COMPRESSED_INSTANCES = 40
_TYPE = 'multipart/related; type="application/dicom"; boundary=benchmark'
_kept: dict[str, tuple[Series, list[str]]] = {}


def _accept(transfer_syntax_uid: str) -> str:
    return f'multipart/related; type="application/dicom"; transfer-syntax={transfer_syntax_uid}'


def to_jpeg_ls(clients: int) -> Callable[[Server, Stock, int, object], None]:
    """Retrieve instances that are stored uncompressed in JPEG-LS, one by one."""

    def case(server: Server, stock: Stock, count: int, _turn: object) -> None:
        one, uids = stock.series_500(server)
        path = f"/studies/{one.study_instance_uid}/series/{one.series_instance_uid}/instances"
        asked = [Request(f"{path}/{uids[number % len(uids)]}", _accept(JPEG_LS)) for number in range(count)]
        stock.clock.start()
        run(server, asked, clients=clients, least_bytes=len(one.dataset) // 8)
        stock.clock.stop()

    return case


def from_jpeg(server: Server, stock: Stock, count: int, _turn: object) -> None:
    """Retrieve a series of forty that is stored in lossless JPEG in explicit little endian."""
    one, _ = _compressed(server)
    path = f"/studies/{one.study_instance_uid}/series/{one.series_instance_uid}"
    stock.clock.start()
    run(server, [Request(path, _accept(EXPLICIT_LE))] * count, least_bytes=COMPRESSED_INSTANCES * len(one.dataset))
    stock.clock.stop()


def _compressed(server: Server) -> tuple[Series, list[str]]:
    if server.name not in _kept:
        one, encoded, mark = _encoded()
        uids = [uid("jpeg", server.name, number) for number in range(COMPRESSED_INSTANCES)]
        for name in uids:
            part = b"--benchmark\r\nContent-Type: application/dicom\r\n\r\n" + encoded.replace(mark, name.encode())
            run(server, [Request("/studies", "application/dicom+json", "POST", part + b"\r\n--benchmark--\r\n", _TYPE)])
        _kept[server.name] = one, uids
    return _kept[server.name]


@cache
def _encoded() -> tuple[Series, bytes, bytes]:
    """Return the series, one instance of it as dcmtk compresses it, and the SOP Instance UID to be replaced."""
    one, mark = series("CT", "jpeg"), uid("jpeg")
    with tempfile.TemporaryDirectory(prefix="strongroom-benchmarks-") as folder:
        plain, jpeg = Path(folder) / "plain.dcm", Path(folder) / "jpeg.dcm"
        plain.write_bytes(one.part10(mark))
        subprocess.run([program("dcmcjpeg"), "+e1", "+un", str(plain), str(jpeg)], check=True)
        return one, jpeg.read_bytes(), mark.encode()
