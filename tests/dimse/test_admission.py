"""What an A-ASSOCIATE-RQ may cost before anybody knows whose it is."""

from __future__ import annotations

import struct

import pytest
from pydicom.uid import UID_dictionary

from archive.dimse import admission
from tests.dimse.rawpeer import IMPLICIT, RQ, associate_rq, item, pdu

START = associate_rq([])[6:74] + item(0x10, b"1.2.840.10008.3.1.1.1")


def filled(piece: bytes, size: int) -> bytes:
    return piece * (size // len(piece))


def context(number: int, *syntaxes: bytes) -> bytes:
    return item(0x20, bytes((number, 0, 0, 0)) + b"".join(syntaxes))


def user(*items: bytes) -> bytes:
    return item(0x50, item(0x51, bytes(4)) + b"".join(items))


def common(*related: bytes) -> bytes:
    """A SOP Class Common Extended Negotiation item (PS3.7 D.3.3.6)."""
    named = b"".join(struct.pack(">H", len(uid)) + uid for uid in related)
    return item(0x57, b"\0\x031.2" + b"\0\x031.3" + struct.pack(">H", len(named)) + named)


@pytest.mark.parametrize("items", [
    filled(item(0x10, b""), 250_000),
    filled(context(1), 250_000),
    b"".join(context(2 * n + 1, item(0x30, b"1.2"), item(0x40, IMPLICIT.encode())) for n in range(128)) + context(1) * 2,
    context(1, item(0x30, b"1.2"), filled(item(0x40, b"1"), 65_000)) + context(3, item(0x30, b"1.2"), filled(item(0x40, b"1"), 65_000)),
    filled(user(filled(item(0x51, bytes(4)), 65_000)), 250_000),
    user(filled(item(0x53, b"\0\1\0\1"), 65_000)),
    user(filled(item(0x54, b"\0\x031.2\0\1"), 65_000)),
    user(filled(item(0x56, b"\0\x031.2\0"), 65_000)),
    user(filled(item(0x58, b"\1\0\0\1a\0\0"), 65_000)),
    user(common(*[b"1"] * 19_000)),
    user(*[common(*[b"1.2"] * 40) for _ in range(250)]),
], ids=["application contexts", "contexts", "129 contexts", "syntaxes", "users", "windows", "roles", "extended", "identities", "related",
        "common"])
def test_more_items_than_anybody_has_are_refused_by_their_headers(items: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    monkeypatch.setattr(admission.A_ASSOCIATE_RQ, "decode", lambda _, encoded: read.append(encoded))
    with pytest.raises(admission.ProtocolError) as refused:
        admission.parse(pdu(RQ, START + items))
    assert not read
    assert refused.value.reason == admission.INVALID_PARAMETER_VALUE


def test_the_largest_request_of_a_device_is_read() -> None:
    """Every context there may be, with every transfer syntax of the standard and every negotiation of its class."""
    syntaxes = [uid.encode() for uid, row in UID_dictionary.items() if row[1] == "Transfer Syntax"]
    classes = [f"1.2.840.10008.5.1.4.1.1.{n}".encode() for n in range(1, 129)]
    contexts = [context(2 * n + 1, item(0x30, uid), *(item(0x40, one) for one in syntaxes)) for n, uid in enumerate(classes)]
    named = [struct.pack(">H", len(uid)) + uid for uid in classes]
    negotiations = user(
        item(0x52, b"1.2.3"), item(0x55, b"TEST"), item(0x53, b"\0\1\0\1"),
        *(item(0x54, uid + b"\1\0") for uid in named),
        *(item(0x56, uid + b"\1\1\1\1\1") for uid in named),
        *(item(0x57, uid + named[0] + struct.pack(">H", 2 * len(named[0])) + named[0] * 2) for uid in named),
        item(0x58, b"\2\0\0\3mia\0\2pw"),
    )
    proposal = admission.parse(pdu(RQ, START + b"".join(contexts) + negotiations))
    assert len(syntaxes) > 40
    assert [len(one.transfer_syntaxes) for one in proposal.contexts] == [len(syntaxes)] * 128
    assert len(proposal.roles) == len(proposal.extended) == 128
    assert proposal.identity is not None
