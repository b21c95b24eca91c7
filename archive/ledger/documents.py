"""What the archive signs for others besides statements: announcements of keys, receipts of what was destroyed.

Source: docs/format.md 8.1; github.com/secure-systems-lab/dsse.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

from archive.errors import LedgerBroken
from archive.keys.entries import Signer
from archive.keys.sealing import canonical, decode_base64
from archive.ledger.dsse import Envelope, pae

What = Literal["announcement", "receipt"]


@dataclass(frozen=True, slots=True)
class Document:
    """A document as it was read; whose signatures they are is for the reader to ask with `require`."""

    what: str
    said: dict[str, Any]
    signatures: tuple[tuple[str, bytes], ...]
    signed: bytes

    def require(self, position: int, kid: str, algorithm: str, public: bytes) -> None:
        """Refuse unless the signature at that position is this key's.

        Raises:
            LedgerBroken: V13.
        """
        try:
            named, signature = self.signatures[position]
            if named != kid:
                raise InvalidSignature
            if algorithm == "ML-DSA-44":
                MLDSA44PublicKey.from_public_bytes(public).verify(signature, self.signed)
            else:
                Ed25519PublicKey.from_public_bytes(public).verify(signature, self.signed)
        except (InvalidSignature, IndexError, ValueError):
            raise refused(f"a signature of the {self.what} is wrong") from None


def sign(what: What, said: dict[str, Any], signers: Sequence[Signer]) -> str:
    """Return the envelope of a document, signed by each in that order."""
    payload = canonical(said)
    signed = pae(_type(what), payload)
    return canonical({
        "payload": base64.b64encode(payload).decode(),
        "payloadType": _type(what),
        "signatures": [{"keyid": one.key_id, "sig": base64.b64encode(one.sign(signed)).decode()} for one in signers],
    }).decode()


def digest(envelope: str) -> bytes:
    """Return what the leaf of the event says about a document."""
    return hashlib.sha256(envelope.encode()).digest()


def read(envelope: str) -> Document:
    """Return a document, its signatures not yet verified.

    Raises:
        LedgerBroken: not one, not in its one form, or of a kind this release does not know (V13).
    """
    try:
        outer = msgspec.json.decode(envelope.encode(), type=Envelope)
        payload = decode_base64(outer.payload)
        signatures = tuple((one.keyid, decode_base64(one.sig)) for one in outer.signatures)
        said = msgspec.json.decode(payload, type=dict[str, Any])
    except (msgspec.DecodeError, ValueError, UnicodeEncodeError, RecursionError) as error:
        raise refused("this is not a signed document") from error
    what = next((what for what in _READERS if _type(what) == outer.payloadType), None)
    if what is None or canonical(outer) != envelope.encode() or canonical(said) != payload or said.get("v") != 1:
        raise refused("this is not a signed document of a kind that is known")
    if not _READERS[what](said):
        raise refused(f"the {what} lacks a field, or has one of another kind")
    return Document(what, said, signatures, pae(outer.payloadType, payload))


def refused(message: str) -> LedgerBroken:
    """Return the error of a document that does not hold."""
    return LedgerBroken(message, remedy="run 'archive ledger verify'", verdict="V13")


def _type(what: What) -> str:
    return f"application/vnd.strongroom.{what}.v1+json"


def _announces(said: dict[str, Any]) -> bool:
    keys = said.get("keys")
    return (
        said.get("type") == "key-announcement" and _texts(said, "archive", "at") and isinstance(said.get("after"), int)
        and isinstance(keys, list) and bool(keys) and all(
            isinstance(one, dict) and one.get("purpose") in ("instance", "log", "log-pq")
            and all(isinstance(one.get(side), dict) and _texts(one[side], "kid", "public") for side in ("old", "new"))
            for one in keys
        )
    )


def _receipts(said: dict[str, Any]) -> bool:
    checkpoint = said.get("checkpoint")
    return (
        said.get("type") == "shred" and _texts(said, "archive", "at", "study", "reason", "objects", "kid")
        and isinstance(said.get("instances"), int) and isinstance(said.get("keys"), list) and isinstance(said.get("purge"), list)
        and isinstance(checkpoint, dict) and isinstance(checkpoint.get("size"), int) and _texts(checkpoint, "root")
    )


def _texts(said: dict[str, Any], *names: str) -> bool:
    return all(isinstance(said.get(name), str) for name in names)


_READERS: dict[What, Callable[[dict[str, Any]], bool]] = {"announcement": _announces, "receipt": _receipts}
