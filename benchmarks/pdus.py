"""PDUs of a C-STORE client, encoded ahead of the measurement (PS3.7 9.3.1, PS3.8 9.3)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from benchmarks.instances import EXPLICIT_LE, Series

RQ, AC, RJ, DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
CONTEXT = 1
_COMMAND, _LAST = 1, 2
RELEASE = struct.pack(">BBLL", RELEASE_RQ, 0, 4, 0)


def _item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(body)) + body


def associate_rq(sop_class_uid: str, *, calling: str, called: str, maximum: int = 131072) -> bytes:
    """Return an A-ASSOCIATE-RQ that proposes one SOP class in Explicit VR Little Endian."""
    return associate_rq_of(((CONTEXT, sop_class_uid),), calling=calling, called=called, maximum=maximum)


def associate_rq_of(
    contexts: Sequence[tuple[int, str]], *, calling: str, called: str, roles: Sequence[bytes] = (), maximum: int = 131072
) -> bytes:
    """Return an A-ASSOCIATE-RQ that proposes SOP classes, by context, in Explicit VR Little Endian; `roles`: bodies of role items."""
    user = _item(0x51, struct.pack(">L", maximum)) + _item(0x52, b"1.2.826.0.1.3680043.10.1451.9")
    user += b"".join(_item(0x54, role) for role in roles)
    body = struct.pack(">HH", 1, 0) + called.encode().ljust(16) + calling.encode().ljust(16) + bytes(32)
    body += _item(0x10, b"1.2.840.10008.3.1.1.1")
    for number, sop_class_uid in contexts:
        body += _item(0x20, bytes((number, 0, 0, 0)) + _item(0x30, sop_class_uid.encode()) + _item(0x40, EXPLICIT_LE.encode()))
    body += _item(0x50, user)
    return struct.pack(">BBL", RQ, 0, len(body)) + body


def accepted_maximum(body: bytes) -> int:
    """Return the maximum length an A-ASSOCIATE-AC names; 0 when it sets none.

    Raises:
        ValueError: the presentation context was refused.
    """
    at, maximum = 68, 0
    while at + 4 <= len(body):
        kind, length = struct.unpack_from(">BxH", body, at)
        inner = body[at + 4 : at + 4 + length]
        if kind == 0x21 and inner[2] != 0:
            message = "the presentation context was refused"
            raise ValueError(message)
        if kind == 0x50:
            inside = 0
            while inside + 4 <= length:
                sub, size = struct.unpack_from(">BxH", inner, inside)
                if sub == 0x51:
                    (maximum,) = struct.unpack_from(">L", inner, inside + 4)
                inside += 4 + size
        at += 4 + length
    return maximum


def _element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHI", 0, number, len(value)) + value


def _padded(uid: str) -> bytes:
    return uid.encode() + b"\0" * (len(uid) % 2)


def command(elements: Sequence[tuple[int, str | int]]) -> bytes:
    """Return a command set of UIDs and 16-bit numbers, in Implicit VR Little Endian (PS3.7 6.3)."""
    body = b"".join(_element(number, _padded(value) if isinstance(value, str) else struct.pack("<H", value)) for number, value in elements)
    return _element(0, struct.pack("<I", len(body))) + body


def numbers(encoded: bytes) -> dict[int, int]:
    """Return the 16-bit numbers of a command set by element."""
    found, at = {}, 0
    while at + 8 <= len(encoded):
        _group, number, length = struct.unpack_from("<HHI", encoded, at)
        if length == 2:
            (found[number],) = struct.unpack_from("<H", encoded, at + 8)
        at += 8 + length
    return found


def store_command(sop_class_uid: str, sop_instance_uid: str, message_id: int) -> bytes:
    """Return the command set of a C-STORE-RQ."""
    return command(((0x0002, sop_class_uid), (0x0100, 1), (0x0110, message_id), (0x0700, 0), (0x0800, 0), (0x1000, sop_instance_uid)))


def p_data(context: int, control: int, data: bytes) -> bytes:
    """Return a P-DATA-TF of one fragment; `control` is the message control header (PS3.8 E.2)."""
    return struct.pack(">BBLLBB", DATA, 0, len(data) + 6, len(data) + 2, context, control) + data


def _p_data_head(control: int, length: int) -> bytes:
    return struct.pack(">BBLLBB", DATA, 0, length + 6, length + 2, CONTEXT, control)


class Message:
    """The C-STORE-RQs of a series; everything after the first data PDU is encoded once and shared by all of them."""

    def __init__(self, series: Series, maximum: int) -> None:
        """Split for PDUs of at most `maximum` bytes (PS3.8 D.1; 0: no limit)."""
        self.series = series
        size = (maximum or len(series.dataset) + 6) - 6
        self._first_bytes = min(size, len(series.dataset))
        tail = []
        for at in range(size, len(series.dataset), size):
            part = series.dataset[at : at + size]
            tail += [_p_data_head(_LAST if at + size >= len(series.dataset) else 0, len(part)), part]
        self.tail = b"".join(tail)

    def encode(self, sop_instance_uid: str, message_id: int) -> Sequence[bytes]:
        """Return the bytes of one request, to be sent one after the other."""
        command = store_command(self.series.sop_class_uid, sop_instance_uid, message_id)
        head, rest = self.series.patched(sop_instance_uid)
        first = _p_data_head(0 if self.tail else _LAST, self._first_bytes)
        data = rest[: self._first_bytes - len(head)]
        return b"".join((_p_data_head(_COMMAND | _LAST, len(command)), command, first, head, data)), self.tail


def status_of(body: bytes) -> int:
    """Return the status in a P-DATA-TF that holds a whole C-STORE-RSP.

    Raises:
        ValueError: it holds none.
    """
    status = numbers(body[6:]).get(0x0900)
    if status is None:
        message = "no status in the response"
        raise ValueError(message)
    return status
