"""The command sets of C-STORE, against the library's own encoding and against nonsense."""

from __future__ import annotations

import struct
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom.dimse_messages import C_STORE_RQ, C_STORE_RSP, DIMSEMessage
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import P_DATA

from archive.dimse import command
from archive.dimse.command import MalformedCommand, StoreRequest

uids = st.from_regex(rb"[1-9][0-9]{0,9}(\.[1-9][0-9]{0,9}){1,4}", fullmatch=True)


@given(uids, uids, st.integers(0, 65535))
def test_a_request_encoded_by_the_library(sop_class: bytes, sop_instance: bytes, message_id: int) -> None:
    primitive = C_STORE()
    primitive.MessageID = message_id
    primitive.AffectedSOPClassUID = sop_class
    primitive.AffectedSOPInstanceUID = sop_instance
    primitive.Priority = 1
    primitive.DataSet = BytesIO(b"data")
    message = C_STORE_RQ()
    message.primitive_to_message(primitive)
    encoded = next(iter(message.encode_msg(1, 16384))).presentation_data_value_list[0][1][1:]
    found = command.elements(encoded)
    assert command.command_field(found) == command.C_STORE_RQ
    assert command.store_request(found) == StoreRequest(message_id, sop_class, sop_instance, has_data_set=True)


@given(uids, uids, st.integers(0, 65535), st.sampled_from([0, 0x0111, 0xA700, 0xB000]), st.sampled_from(["", "odd", "even"]))
def test_a_response_decoded_by_the_library(sop_class: bytes, sop_instance: bytes, message_id: int, status: int, comment: str) -> None:
    encoded = command.store_response(StoreRequest(message_id, sop_class, sop_instance, has_data_set=True), status, comment)
    primitive = P_DATA()
    primitive.presentation_data_value_list.append((1, b"\x03" + encoded))
    message = DIMSEMessage()
    assert message.decode_msg(primitive)
    assert isinstance(message, C_STORE_RSP)
    decoded = message.message_to_primitive()
    assert decoded.AffectedSOPClassUID == sop_class.decode()
    assert decoded.AffectedSOPInstanceUID == sop_instance.decode()
    assert decoded.MessageIDBeingRespondedTo == message_id
    assert decoded.Status == status
    assert (decoded.ErrorComment or "") == comment
    length = struct.unpack_from("<I", encoded, 8)[0]
    assert length == len(encoded) - 12


@given(st.binary(max_size=200))
def test_nonsense_is_malformed_or_read(data: bytes) -> None:
    try:
        found = command.elements(data)
        command.command_field(found)
        command.store_request(found)
    except MalformedCommand:
        return
    assert sum(8 + len(value) for value in found.values()) == len(data)


def test_uids_that_are_no_text() -> None:
    request = StoreRequest(1, b"\xff\xfe", b"1.2\xe9", has_data_set=True)
    assert request.sop_class_uid == "\ufffd\ufffd"
    assert request.sop_instance_uid == "1.2\ufffd"
    assert b"1.2\xe9" in command.store_response(request, 0)


def test_a_missing_number_is_malformed() -> None:
    with pytest.raises(MalformedCommand):
        command.command_field({})
