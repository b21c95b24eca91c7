"""The command sets of DIMSE-C (PS3.7 9.3): read strictly, written without interpreting a value.

The general library checks and may print the values of a command set; a SOP Instance UID of a stored object must reach no log, and a
response has to repeat the UID it was asked about however odd it is.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

C_STORE_RQ = 0x0001
C_STORE_RSP = 0x8001
C_GET_RQ = 0x0010
C_FIND_RQ = 0x0020
C_MOVE_RQ = 0x0021
C_ECHO_RQ = 0x0030
C_CANCEL_RQ = 0x0FFF
RESPONSE = 0x8000
"""What a response's command field has over its request's."""
NO_DATA_SET = 0x0101

MAXIMUM_BYTES = 64 << 10

_AFFECTED_SOP_CLASS_UID = 0x00000002
_COMMAND_FIELD = 0x00000100
_MESSAGE_ID = 0x00000110
_MESSAGE_ID_BEING_RESPONDED_TO = 0x00000120
_MOVE_DESTINATION = 0x00000600
_PRIORITY = 0x00000700
_DATA_SET_TYPE = 0x00000800
_STATUS = 0x00000900
_OFFENDING_ELEMENT = 0x00000901
_ERROR_COMMENT = 0x00000902
_AFFECTED_SOP_INSTANCE_UID = 0x00001000
_REMAINING, _COMPLETED, _FAILED, _WARNING = 0x00001020, 0x00001021, 0x00001022, 0x00001023
_MOVE_ORIGINATOR, _MOVE_ORIGINATOR_MESSAGE_ID = 0x00001030, 0x00001031

_DATA_SET_FOLLOWS = 0x0001


class MalformedCommand(ValueError):
    """A command set that PS3.7 6.3 does not allow; the association is aborted."""


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """A C-STORE-RQ; the UIDs are the bytes sent, without padding."""

    message_id: int
    sop_class: bytes
    sop_instance: bytes
    has_data_set: bool

    @property
    def sop_class_uid(self) -> str:
        """The Affected SOP Class UID as text; what is not ASCII cannot be a UID and is replaced."""
        return self.sop_class.decode("ascii", errors="replace")

    @property
    def sop_instance_uid(self) -> str:
        """The Affected SOP Instance UID as text, likewise."""
        return self.sop_instance.decode("ascii", errors="replace")


@dataclass(frozen=True, slots=True)
class Request:
    """Any request, as far as an answer without a data set needs it."""

    field: int
    message_id: int
    sop_class: bytes


@dataclass(frozen=True, slots=True)
class QueryRequest(Request):
    """A C-FIND-RQ, C-GET-RQ or C-MOVE-RQ; only the last names a destination."""

    move_destination: str


@dataclass(frozen=True, slots=True)
class Counts:
    """How the sub-operations of a retrieve stand; `remaining` is None where a response must not say it."""

    remaining: int | None
    completed: int
    failed: int
    warning: int


def elements(encoded: bytes) -> dict[int, bytes]:
    """Split a command set, Implicit VR Little Endian of group 0000 in ascending order.

    Raises:
        MalformedCommand.
    """
    found: dict[int, bytes] = {}
    offset, last = 0, -1
    while offset < len(encoded):
        if offset + 8 > len(encoded):
            message = "an element's header is cut short"
            raise MalformedCommand(message)
        group, element, length = struct.unpack_from("<HHI", encoded, offset)
        if group != 0 or element <= last:
            message = "an element out of group or out of order"
            raise MalformedCommand(message)
        if offset + 8 + length > len(encoded):
            message = "an element is longer than the command set"
            raise MalformedCommand(message)
        found[element] = encoded[offset + 8 : offset + 8 + length]
        offset += 8 + length
        last = element
    return found


def command_field(found: Mapping[int, bytes]) -> int:
    """Return which command it is.

    Raises:
        MalformedCommand.
    """
    return _us(found, _COMMAND_FIELD)


def store_request(found: Mapping[int, bytes]) -> StoreRequest:
    """Read a C-STORE-RQ.

    Raises:
        MalformedCommand.
    """
    return StoreRequest(
        message_id=_us(found, _MESSAGE_ID),
        sop_class=found.get(_AFFECTED_SOP_CLASS_UID, b"").rstrip(b"\0 "),
        sop_instance=found.get(_AFFECTED_SOP_INSTANCE_UID, b"").rstrip(b"\0 "),
        has_data_set=has_data_set(found),
    )


def request(found: Mapping[int, bytes]) -> Request:
    """Read what every request has.

    Raises:
        MalformedCommand.
    """
    return Request(
        command_field(found), _us(found, _MESSAGE_ID), found.get(_AFFECTED_SOP_CLASS_UID, b"").rstrip(b"\0 "),
    )


def query_request(found: Mapping[int, bytes]) -> QueryRequest:
    """Read a C-FIND-RQ, C-GET-RQ or C-MOVE-RQ.

    Raises:
        MalformedCommand.
    """
    plain = request(found)
    destination = found.get(_MOVE_DESTINATION, b"").strip(b"\0 ").decode("ascii", errors="replace")
    return QueryRequest(plain.field, plain.message_id, plain.sop_class, destination)


def responded_to(found: Mapping[int, bytes]) -> int:
    """Return the message that a response or a C-CANCEL-RQ is about.

    Raises:
        MalformedCommand.
    """
    return _us(found, _MESSAGE_ID_BEING_RESPONDED_TO)


def status(found: Mapping[int, bytes]) -> int:
    """Return the status of a response.

    Raises:
        MalformedCommand.
    """
    return _us(found, _STATUS)


def has_data_set(found: Mapping[int, bytes]) -> bool:
    """Whether a data set follows the command set.

    Raises:
        MalformedCommand.
    """
    return _us(found, _DATA_SET_TYPE) != NO_DATA_SET


def response(request: Request, status: int) -> bytes:
    """Encode a response without a data set."""
    values = [
        (_COMMAND_FIELD, struct.pack("<H", request.field | RESPONSE)),
        (_MESSAGE_ID_BEING_RESPONDED_TO, struct.pack("<H", request.message_id)),
        (_DATA_SET_TYPE, struct.pack("<H", NO_DATA_SET)),
        (_STATUS, struct.pack("<H", status)),
    ]
    if request.sop_class:
        values.insert(0, (_AFFECTED_SOP_CLASS_UID, _even(request.sop_class, b"\0")))
    return _encoded(values)


def store_response(request: StoreRequest, status: int, comment: str = "") -> bytes:
    """Encode the C-STORE-RSP; it repeats both UIDs exactly."""
    values: list[tuple[int, bytes]] = [
        (_AFFECTED_SOP_CLASS_UID, _even(request.sop_class, b"\0")),
        (_COMMAND_FIELD, struct.pack("<H", C_STORE_RSP)),
        (_MESSAGE_ID_BEING_RESPONDED_TO, struct.pack("<H", request.message_id)),
        (_DATA_SET_TYPE, struct.pack("<H", NO_DATA_SET)),
        (_STATUS, struct.pack("<H", status)),
    ]
    if comment:
        values.append((_ERROR_COMMENT, _even(comment.encode("ascii"), b" ")))
    values.append((_AFFECTED_SOP_INSTANCE_UID, _even(request.sop_instance, b"\0")))
    return _encoded(values)


def query_response(
    request: QueryRequest, status: int, comment: str = "", *, offending: int | None = None, counts: Counts | None = None,
    data_set: bool = False,
) -> bytes:
    """Encode a C-FIND-RSP, C-GET-RSP or C-MOVE-RSP."""
    values: list[tuple[int, bytes]] = [
        (_AFFECTED_SOP_CLASS_UID, _even(request.sop_class, b"\0")),
        (_COMMAND_FIELD, struct.pack("<H", request.field | RESPONSE)),
        (_MESSAGE_ID_BEING_RESPONDED_TO, struct.pack("<H", request.message_id)),
        (_DATA_SET_TYPE, struct.pack("<H", _DATA_SET_FOLLOWS if data_set else NO_DATA_SET)),
        (_STATUS, struct.pack("<H", status)),
    ]
    if offending is not None:
        values.append((_OFFENDING_ELEMENT, struct.pack("<HH", offending >> 16, offending & 0xFFFF)))
    if comment:
        values.append((_ERROR_COMMENT, _even(comment.encode("ascii", "replace"), b" ")))
    if counts is not None:
        numbers = ((_REMAINING, counts.remaining), (_COMPLETED, counts.completed), (_FAILED, counts.failed), (_WARNING, counts.warning))
        values += [(element, struct.pack("<H", number)) for element, number in numbers if number is not None]
    return _encoded(values)


def store_command(
    message_id: int, sop_class_uid: str, sop_instance_uid: str, *, originator: tuple[str, int] | None = None
) -> bytes:
    """Encode a C-STORE-RQ; `originator` is whose C-MOVE it serves: AE title and message ID."""
    values: list[tuple[int, bytes]] = [
        (_AFFECTED_SOP_CLASS_UID, _even(sop_class_uid.encode("ascii"), b"\0")),
        (_COMMAND_FIELD, struct.pack("<H", C_STORE_RQ)),
        (_MESSAGE_ID, struct.pack("<H", message_id)),
        (_PRIORITY, struct.pack("<H", 0)),
        (_DATA_SET_TYPE, struct.pack("<H", _DATA_SET_FOLLOWS)),
        (_AFFECTED_SOP_INSTANCE_UID, _even(sop_instance_uid.encode("ascii"), b"\0")),
    ]
    if originator is not None:
        values.append((_MOVE_ORIGINATOR, _even(originator[0].encode("ascii", "replace"), b" ")))
        values.append((_MOVE_ORIGINATOR_MESSAGE_ID, struct.pack("<H", originator[1])))
    return _encoded(values)


def _encoded(values: Sequence[tuple[int, bytes]]) -> bytes:
    body = b"".join(struct.pack("<HHI", 0, element, len(value)) + value for element, value in values)
    return struct.pack("<HHII", 0, 0, 4, len(body)) + body


def _us(found: Mapping[int, bytes], element: int) -> int:
    value = found.get(element, b"")
    if len(value) != 2:
        message = "a required number is absent or not two bytes"
        raise MalformedCommand(message)
    return int.from_bytes(value, "little")


def _even(value: bytes, pad: bytes) -> bytes:
    return value + pad if len(value) % 2 else value
