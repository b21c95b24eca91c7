"""A DICOM client in a hundred lines, written from PS3.7 and PS3.8 alone: it sends whatever bytes it is told to."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterable, Sequence
from typing import Self

VERIFICATION = "1.2.840.10008.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"

RQ, AC, RJ, DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)


def item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(body)) + body


def pdu(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBL", kind, 0, len(body)) + body


def associate_rq(
    contexts: Sequence[tuple[str, Sequence[str]]], *, calling: str = "CT1", called: str = "STRONGROOM", max_pdu: int = 16384,
    version: int = 1, application: str = "1.2.840.10008.3.1.1.1", roles: Iterable[tuple[str, int, int]] = (),
) -> bytes:
    body = struct.pack(">HH", version, 0) + called.encode().ljust(16) + calling.encode().ljust(16) + bytes(32)
    body += item(0x10, application.encode())
    for number, (abstract, transfers) in enumerate(contexts):
        inner = bytes((2 * number + 1, 0, 0, 0)) + item(0x30, abstract.encode())
        inner += b"".join(item(0x40, transfer.encode()) for transfer in transfers)
        body += item(0x20, inner)
    user = item(0x51, struct.pack(">L", max_pdu)) + item(0x52, b"1.2.3.4")
    for uid, scu, scp in roles:
        user += item(0x54, struct.pack(">H", len(uid)) + uid.encode() + bytes((scu, scp)))
    return pdu(RQ, body + item(0x50, user))


def element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHI", 0, number, len(value)) + value


def uid_value(uid: bytes) -> bytes:
    return uid + b"\0" if len(uid) % 2 else uid


def command(*elements: bytes) -> bytes:
    body = b"".join(elements)
    return element(0, struct.pack("<I", len(body))) + body


def store_command(sop_class: bytes, sop_instance: bytes, message_id: int = 1, *, data_set: bool = True) -> bytes:
    return command(
        element(0x0002, uid_value(sop_class)), element(0x0100, b"\x01\x00"), element(0x0110, struct.pack("<H", message_id)),
        element(0x0700, b"\0\0"), element(0x0800, b"\0\0" if data_set else b"\x01\x01"), element(0x1000, uid_value(sop_instance)),
    )


def echo_command(message_id: int = 1) -> bytes:
    return command(
        element(0x0002, uid_value(VERIFICATION.encode())), element(0x0100, b"\x30\x00"), element(0x0110, struct.pack("<H", message_id)),
        element(0x0800, b"\x01\x01"),
    )


def p_data(context_id: int, control: int, data: bytes) -> bytes:
    return pdu(DATA, struct.pack(">LBB", len(data) + 2, context_id, control) + data)


class RawPeer:
    """One association over a connection that is already there."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        connection.settimeout(30)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.results: dict[int, tuple[int, str]] = {}
        self.roles: dict[str, tuple[int, int]] = {}
        self.max_pdu = 16384

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def read(self, count: int) -> bytes:
        received = b""
        while len(received) < count:
            piece = self.connection.recv(count - len(received))
            if not piece:
                raise EOFError
            received += piece
        return received

    def read_pdu(self) -> tuple[int, bytes]:
        kind, _, length = struct.unpack(">BBL", self.read(6))
        return kind, self.read(length)

    def at_end(self) -> bool:
        """Whether the archive has closed the connection, by whatever means."""
        try:
            return self.connection.recv(1) == b""
        except (ConnectionError, EOFError):
            return True

    def associate(self, contexts: Sequence[tuple[str, Sequence[str]]], **options: object) -> int:
        """Send the request; returns the type of the answering PDU."""
        self.send(associate_rq(contexts, **options))  # type: ignore[arg-type]
        kind, body = self.read_pdu()
        self.answer = body
        if kind == AC:
            self._read_accept(body[68:])
        return kind

    def _read_accept(self, data: bytes) -> None:
        for kind, body in _items(data):
            if kind == 0x21:
                transfer = next((b.decode() for k, b in _items(body[4:]) if k == 0x40), "")
                self.results[body[0]] = (body[2], transfer)
            elif kind == 0x50:
                for sub, inner in _items(body):
                    if sub == 0x51:
                        self.max_pdu = struct.unpack(">L", inner)[0]
                    elif sub == 0x54:
                        length = struct.unpack(">H", inner[:2])[0]
                        self.roles[inner[2 : 2 + length].decode()] = (inner[2 + length], inner[3 + length])

    def message(self, context_id: int, encoded: bytes, data_set: bytes | None = None, size: int = 16000) -> None:
        self.send(p_data(context_id, 3, encoded))
        if data_set is not None:
            pieces = [data_set[at : at + size] for at in range(0, len(data_set), size)] or [b""]
            for piece in pieces[:-1]:
                self.send(p_data(context_id, 0, piece))
            self.send(p_data(context_id, 2, pieces[-1]))

    def response(self) -> dict[int, bytes]:
        """Read one response without a data set."""
        encoded = b""
        while True:
            kind, body = self.read_pdu()
            if kind != DATA:
                raise ConnectionAbortedError(kind)
            encoded += body[6:]
            if body[5] & 2:
                break
        found = {}
        at = 0
        while at < len(encoded):
            _, number, length = struct.unpack_from("<HHI", encoded, at)
            found[number] = encoded[at + 8 : at + 8 + length]
            at += 8 + length
        return found

    def trickle(self, data: bytes, pause_s: float) -> None:
        """Send byte by byte until the archive has had enough.

        Raises:
            OSError.
        """
        for byte in data:
            self.send(bytes((byte,)))
            time.sleep(pause_s)

    def flood(self, data: bytes, times: int) -> None:
        """Send the same again and again."""
        for _ in range(times):
            self.send(data)

    def store(self, context_id: int, sop_class: str, sop_instance: str, data_set: bytes, *, message_id: int = 1) -> int:
        self.message(context_id, store_command(sop_class.encode(), sop_instance.encode(), message_id), data_set, self.max_pdu - 6)
        self.last = self.response()
        return int.from_bytes(self.last[0x0900], "little")

    def echo(self, context_id: int = 1) -> int:
        self.message(context_id, echo_command())
        return int.from_bytes(self.response()[0x0900], "little")

    def release(self) -> None:
        self.send(pdu(RELEASE_RQ, bytes(4)))
        assert self.read_pdu()[0] == RELEASE_RP
        self.connection.close()


def _items(data: bytes) -> Iterable[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        kind, _, length = struct.unpack_from(">BBH", data, at)
        yield kind, data[at + 4 : at + 4 + length]
        at += 4 + length
