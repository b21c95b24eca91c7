"""What is asked for: WADO-RS, QIDO-RS, C-FIND, C-GET."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import asker
from benchmarks.asker import Asker
from benchmarks.instances import Series
from benchmarks.server import Server
from benchmarks.stock import SERIES_INSTANCES, Stock
from benchmarks.web import Request, run

_DICOM = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_JSON = "application/dicom+json"


def _path(one: Series) -> str:
    return f"/studies/{one.study_instance_uid}/series/{one.series_instance_uid}"


def whole_series(server: Server, stock: Stock, count: int, _turn: object) -> None:
    """Retrieve the series."""
    one, _uids = stock.series_500(server)
    stock.clock.start()
    run(server, [Request(_path(one), _DICOM)] * count, least_bytes=SERIES_INSTANCES * len(one.dataset))
    stock.clock.stop()


def instances(clients: int) -> Callable[[Server, Stock, int, object], None]:
    """Retrieve instances one by one."""

    def case(server: Server, stock: Stock, count: int, _turn: object) -> None:
        one, uids = stock.series_500(server)
        asked = [Request(f"{_path(one)}/instances/{uids[number % len(uids)]}", _DICOM) for number in range(count)]
        stock.clock.start()
        run(server, asked, clients=clients, least_bytes=len(one.dataset))
        stock.clock.stop()

    return case


def frame(server: Server, stock: Stock, count: int, _turn: object) -> None:
    """Retrieve a frame in the middle of the large object."""
    one, uids = stock.multiframe(server)
    accept = 'multipart/related; type="application/octet-stream"'
    asked = [Request(f"{_path(one)}/instances/{uids[0]}/frames/{100 + number}", accept) for number in range(count)]
    stock.clock.start()
    run(server, asked, least_bytes=512 * 512 * 2)
    stock.clock.stop()


def metadata(server: Server, stock: Stock, count: int, _turn: object) -> None:
    """Retrieve the series' metadata, compressed where the server does that."""
    one, _uids = stock.series_500(server)
    stock.clock.start()
    run(server, [Request(f"{_path(one)}/metadata", _JSON, coding="gzip")] * count, least_bytes=1000)
    stock.clock.stop()


def rendered(clients: int, *, thumbnail: bool = False) -> Callable[[Server, Stock, int, object], None]:
    """Retrieve pictures, each instance once a round; a thumbnail of a server without that route is one rendered at its size."""

    def case(server: Server, stock: Stock, count: int, _turn: object) -> None:
        one, uids = stock.series_500(server)
        tail = "rendered?viewport=128,128" if thumbnail and server.name == "Orthanc" else "thumbnail" if thumbnail else "rendered"
        asked = [Request(f"{_path(one)}/instances/{uids[number % len(uids)]}/{tail}", "image/jpeg") for number in range(count)]
        stock.clock.start()
        run(server, asked, clients=clients, least_bytes=500)
        stock.clock.stop()

    return case


def studies(server: Server, stock: Stock, count: int, _turn: object) -> None:
    """List fifty studies of a day."""
    stock.studies(server)
    stock.clock.start()
    run(server, [Request("/studies?StudyDate=20260131&PatientName=Many*&limit=50", _JSON)] * count, least_bytes=1000)
    stock.clock.stop()


def find(server: Server, stock: Stock, count: int, _turn: object) -> None:
    """List the studies of a name by C-FIND, on one association."""
    stock.studies(server)
    keys = {
        asker.LEVEL: "STUDY", asker.PATIENT_NAME: "Many^Study1*", asker.STUDY_DATE: "20260131", asker.PATIENT_ID: "", asker.STUDY: "",
        asker.STUDY_DESCRIPTION: "",
    }
    client = Asker(server.plain)
    stock.clock.start()
    answers = [client.find(keys) for _ in range(count)]
    stock.clock.stop()
    client.release()
    _expect(server, "C-FIND", set(answers), {111})  # 1, 10 to 19, 100 to 199


def get_series(server: Server, stock: Stock, count: int, _turn: object) -> None:
    """Retrieve the series by C-GET."""
    one, _uids = stock.series_500(server)
    client = Asker(server.plain)
    stock.clock.start()
    keys = {asker.LEVEL: "SERIES", asker.STUDY: one.study_instance_uid, asker.SERIES: one.series_instance_uid}
    came = [client.get(keys) for _ in range(count)]
    stock.clock.stop()
    client.release()
    _expect(server, "C-GET", set(came), {SERIES_INSTANCES})


def _expect(server: Server, what: str, came: set[int], right: set[int]) -> None:
    if came != right:
        message = f"{server.name} answered {what} with {sorted(came)} instead of {sorted(right)}"
        raise ConnectionError(message)
