"""The fast sender's PDUs, read by pynetdicom's decoder."""

from __future__ import annotations

import io
import struct

import pydicom
import pytest
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom.dimse_messages import C_STORE_RQ, C_STORE_RSP
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import decode
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ, A_RELEASE_RQ, P_DATA_TF
from pynetdicom.pdu_primitives import A_ASSOCIATE

from benchmarks import pdus
from benchmarks.instances import EXPLICIT_LE, MR, Series, series, uid


@pytest.fixture(scope="module")
def small() -> Series:
    return series("MR", "test")


def split(stream: bytes) -> list[bytes]:
    found = []
    while stream:
        length = 6 + struct.unpack_from(">L", stream, 2)[0]
        found.append(stream[:length])
        stream = stream[length:]
    return found


def received(encoded: list[bytes]) -> C_STORE:
    message = C_STORE_RQ()
    for number, one in enumerate(encoded):
        pdu = P_DATA_TF()
        pdu.decode(one)
        ended = message.decode_msg(pdu.to_primitive())
        assert ended is (number == len(encoded) - 1)
    primitive = message.message_to_primitive()
    assert isinstance(primitive, C_STORE)
    return primitive


@pytest.mark.parametrize("maximum", [0, 4096, 16384, 131072])
def test_a_request_is_what_pynetdicom_reads(small: Series, maximum: int) -> None:
    message = pdus.Message(small, maximum)
    for number in (1, 40000):
        one = uid("one", number)
        encoded = split(b"".join(message.encode(one, number)))
        assert all(len(pdu) - 6 <= maximum for pdu in encoded if maximum)
        request = received(encoded)
        assert request.MessageID == number
        assert request.AffectedSOPClassUID == MR
        assert request.AffectedSOPInstanceUID == one
        assert request.DataSet is not None
        assert request.DataSet.getvalue() == b"".join(small.patched(one))


def test_the_file_and_the_request_hold_the_same_data_set(small: Series) -> None:
    one = uid("file")
    read = pydicom.dcmread(io.BytesIO(small.part10(one)))
    sent = decode(io.BytesIO(b"".join(small.patched(one))), False, True)
    assert read.SOPInstanceUID == read.file_meta.MediaStorageSOPInstanceUID == sent.SOPInstanceUID == one
    assert sorted(read.keys()) == sorted(sent.keys())
    assert len(read.PixelData) == 172 * 172 * 2


def test_the_association_request_proposes_one_context() -> None:
    request = A_ASSOCIATE_RQ()
    request.decode(pdus.associate_rq(MR, calling="BENCH", called="STRONGROOM", maximum=131072))
    assert (request.calling_ae_title.strip(), request.called_ae_title.strip()) == ("BENCH", "STRONGROOM")
    context = request.presentation_context[0]
    assert (context.context_id, context.abstract_syntax, context.transfer_syntax) == (pdus.CONTEXT, MR, [EXPLICIT_LE])
    assert request.user_information.maximum_length == 131072


@pytest.mark.parametrize("result", [0, 3])
def test_the_answer_to_it_is_read(result: int) -> None:
    request = A_ASSOCIATE_RQ()
    request.decode(pdus.associate_rq(MR, calling="BENCH", called="STRONGROOM"))
    answer: A_ASSOCIATE = request.to_primitive()
    context = answer.presentation_context_definition_list[0]
    context.result = result
    context.transfer_syntax = [ImplicitVRLittleEndian if result else EXPLICIT_LE]
    answer.presentation_context_definition_results_list = [context]
    answer.result = 0
    answer.user_information[0].maximum_length_received = 28672
    accept = A_ASSOCIATE_AC()
    accept.from_primitive(answer)
    body = accept.encode()[6:]
    if result:
        with pytest.raises(ValueError, match="refused"):
            pdus.accepted_maximum(body)
    else:
        assert pdus.accepted_maximum(body) == 28672


@pytest.mark.parametrize("status", [0, 0xB000, 0xA700])
def test_the_status_of_a_response_is_read(status: int) -> None:
    response = C_STORE()
    response.MessageIDBeingRespondedTo = 0x0900  # bytes that look like the element searched for
    response.AffectedSOPClassUID, response.AffectedSOPInstanceUID, response.Status = MR, uid("status"), status
    message = C_STORE_RSP()
    message.primitive_to_message(response)
    primitive = next(iter(message.encode_msg(pdus.CONTEXT, 16384)))
    pdu = P_DATA_TF()
    pdu.from_primitive(primitive)
    assert pdus.status_of(pdu.encode()[6:]) == status


def test_the_release_request_is_one() -> None:
    A_RELEASE_RQ().decode(pdus.RELEASE)
    assert A_RELEASE_RQ().encode() == pdus.RELEASE
