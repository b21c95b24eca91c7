"""HTTP clients side by side; each keeps its connection and reads into one buffer."""

from __future__ import annotations

import http.client
import threading
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.server import Server

_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Request:
    """What to ask for below a server's DICOMweb base."""

    path: str
    accept: str
    method: str = "GET"
    body: bytes = b""
    content_type: str = ""
    coding: str = "identity"


def run(server: Server, requests: Sequence[Request], *, clients: int = 1, least_bytes: int = 1) -> int:
    """Send all requests over so many connections and return how many bytes came back.

    Raises:
        ConnectionError: an answer was not a success, or shorter than `least_bytes`.
    """
    totals = [0] * clients
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            totals[number] = _all(server, requests[number::clients], least_bytes)
        except BaseException as error:  # noqa: BLE001 # raised again below, in the thread that asked
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return sum(totals)


def _all(server: Server, requests: Sequence[Request], least_bytes: int) -> int:
    base = urllib.parse.urlsplit(server.base)
    connection = http.client.HTTPConnection(base.netloc, timeout=300)
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    total = 0
    for request in requests:
        headers = {"Accept": request.accept, "Accept-Encoding": request.coding, **server.headers}
        if request.content_type:
            headers["Content-Type"] = request.content_type
        connection.request(request.method, base.path + request.path, body=request.body or None, headers=headers)
        answer = connection.getresponse()
        came = 0
        while count := answer.readinto(buffer):
            came += count
        if answer.status != 200 or came < least_bytes:
            message = f"{server.name} answered {request.method} {request.path.split('?')[0][:24]}… with {answer.status} and {came} bytes"
            raise ConnectionError(message)
        total += came
    connection.close()
    return total
