"""Signed statements: what is signed comes back, and nothing else does."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from archive.errors import LedgerBroken
from archive.keys.keyring import Keyring
from archive.keys.sealing import canonical
from archive.ledger import dsse, statements
from archive.ledger.statements import Origin
from tests.ledger.conftest import fixed_keyring


def made(at: datetime, **other: Any) -> dict[str, Any]:
    return statements.statement(**{
        "datastore": b"d" * 16, "object_id": b"o" * 16, "sop_instance_uid": "1.2.3.4", "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
        "study_instance_uid": "1.2", "series_instance_uid": "1.2.3", "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "part10_bytes": 526_000, "sha256": b"h" * 32, "dataset_offset": 372, "received_at": at,
        "origin": Origin("dimse", peer_id=3, principal_id=7, certificate_sha256="ab" * 32, calling_ae_title="CT1", called_ae_title="SR"),
        "software": "0.1.0", **other,
    })


def resigned(keyring: Keyring, statement: Any) -> bytes:
    """An envelope whose signature is right, whatever it says."""
    payload = statement if isinstance(statement, bytes) else canonical(statement)
    signature = keyring.instance_signer.sign(dsse.pae(statements.PAYLOAD_TYPE, payload))
    return canonical({
        "payload": base64.b64encode(payload).decode(), "payloadType": statements.PAYLOAD_TYPE,
        "signatures": [{"keyid": keyring.instance_signer.key_id, "sig": base64.b64encode(signature).decode()}],
    })


def refused(envelope: bytes, keyring: Keyring) -> None:
    with pytest.raises(LedgerBroken) as caught:
        statements.verify(envelope, keyring.public_keys())
    assert caught.value.verdict == "V09"


def test_what_is_signed_comes_back(keyring: Keyring, now: datetime) -> None:
    statement = made(now, original=(b"x" * 32, 526_001), coerced=["preamble"])
    envelope = statements.sign(keyring.instance_signer, statement)
    said = statements.verify(envelope, keyring.public_keys())
    assert said == {**statement, "kid": keyring.instance_signer.key_id}
    assert said["recv"] == "2026-01-02T03:04:05.678901Z"
    assert said["orig"] == {"sha256": "78" * 32, "size": 526_001}
    assert said["src"] == {"via": "dimse", "peer": 3, "user": 7, "cert": "sha256:" + "ab" * 32, "aet": "CT1", "called": "SR"}
    assert statements.sign(keyring.instance_signer, statement) == envelope
    assert "orig" not in made(now)
    assert made(now, origin=Origin("import"))["src"] == {"via": "import"}


def test_the_envelope_is_dsse(keyring: Keyring, now: datetime) -> None:
    """Any DSSE tool computes this encoding: checked here from the standard's words alone."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    envelope = json.loads(statements.sign(keyring.instance_signer, made(now)))
    payload = base64.standard_b64decode(envelope["payload"])
    kind = envelope["payloadType"]
    encoding = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    Ed25519PublicKey.from_public_bytes(keyring.instance_signer.public).verify(
        base64.standard_b64decode(envelope["signatures"][0]["sig"]), encoding
    )


def test_every_flipped_byte_is_refused(keyring: Keyring, now: datetime) -> None:
    envelope = statements.sign(keyring.instance_signer, made(now))
    for position in range(len(envelope)):
        refused(envelope[:position] + bytes([envelope[position] ^ 1]) + envelope[position + 1:], keyring)
    for length in range(0, len(envelope), 7):
        refused(envelope[:length], keyring)


def test_keys_of_others_or_of_another_use(keyring: Keyring, now: datetime) -> None:
    other = fixed_keyring(now, "another")
    refused(statements.sign(other.instance_signer, made(now)), keyring)
    refused(statements.sign(keyring.log_signers[0], made(now)), keyring)


@pytest.mark.parametrize("change", [
    {"v": 2}, {"type": "note"}, {"size": "526000"}, {"size": 1.5}, {"recv": "yesterday"}, {"recv": "2026-01-02T03:04:05Z"}, {"src": []},
    {"src": {"via": None}}, {"extra": 1.5}, {"kid": "0" * 32}, {"sop": None},
])
def test_signed_but_not_a_statement(keyring: Keyring, now: datetime, change: dict[str, Any]) -> None:
    refused(resigned(keyring, {**made(now), "kid": keyring.instance_signer.key_id, **change}), keyring)


def test_signed_but_not_canonical(keyring: Keyring, now: datetime) -> None:
    statement = {**made(now), "kid": keyring.instance_signer.key_id}
    statements.verify(resigned(keyring, statement), keyring.public_keys())
    sound = canonical(statement)
    doubled = sound[:-1] + b',"v":1}'
    for payload in (json.dumps(statement).encode(), json.dumps(statement, sort_keys=True).encode(), doubled, sound + b" ", b"[]", b"1"):
        refused(resigned(keyring, payload), keyring)
    for name in statement:
        refused(resigned(keyring, {key: value for key, value in statement.items() if key != name}), keyring)


def test_signed_outside_the_keys_time(keyring: Keyring, now: datetime) -> None:
    keys = keyring.public_keys()
    early = statements.sign(keyring.instance_signer, made(now - timedelta(microseconds=1)))
    refused(early, keyring)
    late = statements.sign(keyring.instance_signer, made(now + timedelta(days=1)))
    ended = [replace(key, not_after=now + timedelta(days=1)) for key in keys]
    statements.verify(late, ended)
    ended = [replace(key, not_after=now + timedelta(days=1) - timedelta(microseconds=1)) for key in keys]
    with pytest.raises(LedgerBroken, match="not valid at that time"):
        statements.verify(late, ended)


@pytest.mark.parametrize("envelope", [b"", b"{}", b"null", b"\xff", b'{"payload":"","payloadType":"","signatures":[]}',
                                      b'{"payload":"*","payloadType":"","signatures":[{"keyid":"","sig":""}]}'])
def test_garbage(keyring: Keyring, envelope: bytes) -> None:
    refused(envelope, keyring)
