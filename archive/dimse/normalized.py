"""The command sets of normalised services: N-CREATE, N-SET, N-ACTION and their responses (PS3.7 10.1, 10.3)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from archive.dimse import command
from archive.dimse.command import Request

N_SET_RQ, N_ACTION_RQ, N_CREATE_RQ = 0x0120, 0x0130, 0x0140
N_EVENT_REPORT_RQ, N_EVENT_REPORT_RSP = 0x0100, 0x8100
REQUESTS = frozenset({N_SET_RQ, N_ACTION_RQ, N_CREATE_RQ})

_AFFECTED_CLASS, _REQUESTED_CLASS = 0x0002, 0x0003
_COMMAND_FIELD, _RESPONDED_TO, _DATA_SET_TYPE, _STATUS = 0x0100, 0x0120, 0x0800, 0x0900
_COMMENT, _ERROR_ID = 0x0902, 0x0903
_MESSAGE_ID, _EVENT_TYPE = 0x0110, 0x1002
_AFFECTED_INSTANCE, _REQUESTED_INSTANCE, _ATTRIBUTES, _ACTION_TYPE = 0x1000, 0x1001, 0x1005, 0x1008


@dataclass(frozen=True, slots=True)
class NormalRequest(Request):
    """An N-CREATE-RQ, N-SET-RQ or N-ACTION-RQ; of the first the instance may be empty."""

    sop_instance: bytes
    action_type: int = 0

    @property
    def sop_class_uid(self) -> str:
        """The SOP class as text."""
        return self.sop_class.decode("ascii", errors="replace")

    @property
    def sop_instance_uid(self) -> str:
        """The SOP instance as text."""
        return self.sop_instance.decode("ascii", errors="replace")


@dataclass(frozen=True, slots=True)
class NormalAnswer:
    """What a response says; an N-CREATE may name the instance it made, a refusal the attributes at fault."""

    status: int
    comment: str = ""
    sop_instance_uid: str = ""
    error_id: int | None = None
    tags: tuple[int, ...] = ()


def request(found: Mapping[int, bytes]) -> NormalRequest:
    """Read a request.

    Raises:
        MalformedCommand.
    """
    plain = command.request(found)
    created = plain.field == N_CREATE_RQ
    uid_class = found.get(_AFFECTED_CLASS if created else _REQUESTED_CLASS, b"").rstrip(b"\0 ")
    instance = found.get(_AFFECTED_INSTANCE if created else _REQUESTED_INSTANCE, b"").rstrip(b"\0 ")
    action = found.get(_ACTION_TYPE, b"\0\0")
    return NormalRequest(plain.field, plain.message_id, uid_class, instance, int.from_bytes(action[:2], "little"))


def event_report(message_id: int, sop_class_uid: str, sop_instance_uid: str, event_type: int) -> bytes:
    """Encode an N-EVENT-REPORT-RQ that a data set follows (PS3.7 10.3.1)."""
    return _encoded([
        (_AFFECTED_CLASS, _even(sop_class_uid.encode())), (_COMMAND_FIELD, struct.pack("<H", N_EVENT_REPORT_RQ)),
        (_MESSAGE_ID, struct.pack("<H", message_id)), (_DATA_SET_TYPE, struct.pack("<H", 1)),
        (_AFFECTED_INSTANCE, _even(sop_instance_uid.encode())), (_EVENT_TYPE, struct.pack("<H", event_type)),
    ])


def response(request: NormalRequest, answer: NormalAnswer) -> bytes:
    """Encode a response without a data set; it names the class and the instance it is about."""
    instance = answer.sop_instance_uid.encode("ascii", "replace") or request.sop_instance
    values: list[tuple[int, bytes]] = [
        (_AFFECTED_CLASS, _even(request.sop_class)),
        (_COMMAND_FIELD, struct.pack("<H", request.field | command.RESPONSE)),
        (_RESPONDED_TO, struct.pack("<H", request.message_id)),
        (_DATA_SET_TYPE, struct.pack("<H", command.NO_DATA_SET)),
        (_STATUS, struct.pack("<H", answer.status)),
    ]
    if answer.comment:
        values.append((_COMMENT, _even(answer.comment[:64].encode("ascii", "replace"), b" ")))
    if answer.error_id is not None:
        values.append((_ERROR_ID, struct.pack("<H", answer.error_id)))
    if instance:
        values.append((_AFFECTED_INSTANCE, _even(instance)))
    if answer.tags:
        values.append((_ATTRIBUTES, b"".join(struct.pack("<HH", tag >> 16, tag & 0xFFFF) for tag in answer.tags)))
    if request.field == N_ACTION_RQ:
        values.append((_ACTION_TYPE, struct.pack("<H", request.action_type)))
    return _encoded(values)


def _encoded(values: list[tuple[int, bytes]]) -> bytes:
    body = b"".join(struct.pack("<HHI", 0, element, len(value)) + value for element, value in values)
    return struct.pack("<HHII", 0, 0, 4, len(body)) + body


def _even(value: bytes, pad: bytes = b"\0") -> bytes:
    return value + pad if len(value) % 2 else value
