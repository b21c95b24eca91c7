"""The fast sender: associations side by side that only copy encoded bytes into sockets, so that the client is not the limit."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import pdus
from benchmarks.instances import Series, uid

_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Scp:
    """Where to send."""

    host: str
    port: int
    ae_title: str
    tls: ssl.SSLContext | None = None


class Association:
    """One association for one SOP class."""

    def __init__(self, scp: Scp, series: Series) -> None:
        """Connect and negotiate."""
        plain = socket.create_connection((scp.host, scp.port), timeout=_TIMEOUT_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = scp.tls.wrap_socket(plain, server_hostname="localhost") if scp.tls else plain
        self._socket.sendall(pdus.associate_rq(series.sop_class_uid, calling="BENCH", called=scp.ae_title))
        kind, body = self._read()
        if kind != pdus.AC:
            message = f"the association was answered with PDU type {kind}"
            raise ConnectionError(message)
        self._message = pdus.Message(series, pdus.accepted_maximum(body))
        self._number = 0

    def store(self, sop_instance_uid: str) -> None:
        """Send one instance and wait for its answer.

        Raises:
            ConnectionError: it was not stored.
        """
        self._number = self._number % 65535 + 1
        head, tail = self._message.encode(sop_instance_uid, self._number)
        if not isinstance(self._socket, ssl.SSLSocket):
            sent = self._socket.sendmsg([head, tail])
            if sent < len(head):
                self._socket.sendall(memoryview(head)[sent:])
            tail = memoryview(tail)[max(0, sent - len(head)) :]
        else:
            self._socket.sendall(head)
        if tail:
            self._socket.sendall(tail)
        kind, body = self._read()
        if kind != pdus.DATA or pdus.status_of(body) != 0:
            message = "an instance was not stored"
            raise ConnectionError(message)

    def release(self) -> None:
        """End in order."""
        self._socket.sendall(pdus.RELEASE)
        self._read()
        self._socket.close()

    def _read(self) -> tuple[int, bytes]:
        kind, length = struct.unpack(">BxL", self._exactly(6))
        return kind, self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self._socket.recv(count - len(data))
            if not piece:
                message = "the peer closed the connection"
                raise ConnectionError(message)
            data += piece
        return data


def send(scp: Scp, series: Series, count: int, *, associations: int = 1, tag: object = "") -> list[str]:
    """Store `count` new instances of a series over so many associations at once and return their UIDs."""
    uids = [uid("instance", series.series_instance_uid, tag, number) for number in range(count)]
    failed: list[BaseException] = []

    def work(mine: Sequence[str]) -> None:
        try:
            association = Association(scp, series)
            for one in mine:
                association.store(one)
            association.release()
        except BaseException as error:  # noqa: BLE001 # raised again below, in the thread that asked
            failed.append(error)

    threads = [threading.Thread(target=work, args=(uids[number::associations],)) for number in range(associations)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return uids
