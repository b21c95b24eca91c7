"""The signed statement of an instance: what the archive vouches for when it takes it.

Source: docs/format.md 8; github.com/secure-systems-lab/dsse.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from archive.errors import LedgerBroken
from archive.keys.entries import PublicKey, Signer
from archive.keys.sealing import canonical, decode_base64, format_instant, parse_instant
from archive.ledger.dsse import Envelope, pae

PAYLOAD_TYPE = "application/vnd.strongroom.statement.v1+json"
_REQUIRED: dict[str, type] = {
    "v": int, "type": str, "ds": str, "obj": str, "ver": int, "prev": str, "sop": str, "cls": str, "study": str, "series": str,
    "ts": str, "size": int, "sha256": str, "ds_off": int, "coerced": list, "recv": str, "src": dict, "sw": str, "kid": str,
}


@dataclass(frozen=True, slots=True)
class Origin:
    """How an instance came in; what is not known stays empty and out of the statement."""

    via: str
    peer_id: int | None = None
    principal_id: int | None = None
    certificate_sha256: str = ""
    calling_ae_title: str = ""
    called_ae_title: str = ""

    def fields(self) -> dict[str, Any]:
        """Return `src` of the statement."""
        known: dict[str, Any] = {
            "peer": self.peer_id, "user": self.principal_id, "aet": self.calling_ae_title, "called": self.called_ae_title,
            "cert": f"sha256:{self.certificate_sha256}" if self.certificate_sha256 else "",
        }
        return {"via": self.via, **{name: value for name, value in known.items() if value not in {None, ""}}}


def statement(
    *, datastore: bytes, object_id: bytes, sop_instance_uid: str, sop_class_uid: str, study_instance_uid: str,
    series_instance_uid: str, transfer_syntax_uid: str, part10_bytes: int, sha256: bytes, dataset_offset: int,
    received_at: datetime, origin: Origin, software: str, original: tuple[bytes, int] | None = None, coerced: Sequence[str] = (),
    version: int = 1, previous: bytes = b"",
) -> dict[str, Any]:
    """Return the statement without its key id; `original` is SHA-256 and size of what came, when it was changed on the way in."""
    made: dict[str, Any] = {
        "v": 1, "type": "instance", "ds": datastore.hex(), "obj": object_id.hex(), "ver": version, "prev": previous.hex(),
        "sop": sop_instance_uid, "cls": sop_class_uid, "study": study_instance_uid, "series": series_instance_uid,
        "ts": transfer_syntax_uid, "size": part10_bytes, "sha256": sha256.hex(), "ds_off": dataset_offset, "coerced": list(coerced),
        "recv": format_instant(received_at), "src": origin.fields(), "sw": software,
    }
    if original is not None:
        made["orig"] = {"sha256": original[0].hex(), "size": original[1]}
    return made


def sign(signer: Signer, statement: dict[str, Any]) -> bytes:
    """Return the DSSE envelope; the signer's id becomes the statement's `kid`."""
    payload = canonical({**statement, "kid": signer.key_id})
    return canonical({
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": signer.key_id, "sig": base64.b64encode(signer.sign(pae(PAYLOAD_TYPE, payload))).decode()}],
    })


def is_envelope(kept: bytes) -> bool:
    """Whether what is kept under a leaf is a signed statement, and not the payload of an event record."""
    return kept.startswith(b'{"payload":')


def digest(envelope: bytes) -> bytes:
    """Return what the ledger's leaf says about an envelope."""
    return hashlib.sha256(envelope).digest()


def verify(envelope: bytes, public_keys: Iterable[PublicKey]) -> dict[str, Any]:
    """Return the statement that a key of this archive signed while it was valid.

    Raises:
        LedgerBroken: not an envelope, not canonical, an unknown key, a wrong signature, or signed outside the key's time (V09).
    """
    try:
        outer = msgspec.json.decode(envelope, type=Envelope)
        payload = decode_base64(outer.payload)
        signature = decode_base64(outer.signatures[0].sig)
    except (msgspec.DecodeError, ValueError, IndexError) as error:
        raise _refused("it is not a signed statement") from error
    if outer.payloadType != PAYLOAD_TYPE or len(outer.signatures) != 1 or canonical(outer) != envelope:
        raise _refused("it is not a signed statement of this kind")
    kid = outer.signatures[0].keyid
    key = next((key for key in public_keys if key.kid == kid and key.purpose == "instance"), None)
    if key is None:
        raise _refused("it is signed by a key this archive never had")
    try:
        Ed25519PublicKey.from_public_bytes(key.public).verify(signature, pae(PAYLOAD_TYPE, payload))
        said = msgspec.json.decode(payload, type=dict[str, Any])
    except InvalidSignature:
        raise _refused("its signature is wrong") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise _refused("it is not JSON") from error
    return _checked(said, payload, key)


def _checked(said: dict[str, Any], payload: bytes, key: PublicKey) -> dict[str, Any]:
    if any(not isinstance(said.get(name), kind) for name, kind in _REQUIRED.items()) or not _plain(said):
        raise _refused("a field is missing or of another kind")
    if canonical(said) != payload or said["v"] != 1 or said["type"] != "instance" or said["kid"] != key.kid:
        raise _refused("it is not in the one form a statement has")
    try:
        received_at = parse_instant(said["recv"])
    except ValueError:
        raise _refused("its time is not an instant") from None
    if received_at < key.not_before or (key.not_after is not None and received_at > key.not_after):
        raise _refused("its key was not valid at that time")
    return said


def _plain(value: Any) -> bool:
    """Whether a value holds only what canonical JSON may hold."""
    if isinstance(value, dict):
        return all(_plain(inner) for inner in value.values())
    if isinstance(value, list):
        return all(_plain(inner) for inner in value)
    return isinstance(value, str | int)


def _refused(why: str) -> LedgerBroken:
    message = f"the statement does not verify: {why}"
    return LedgerBroken(message, remedy="treat the instance as untrusted and restore it", verdict="V09")
