"""The keys in the keyring: what each is for, and how one is sealed under the root.

Source: docs/format.md 5.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from archive.errors import KeysUnavailable
from archive.keys.sealing import KEY_BYTES, WrongKey, canonical, derive, format_instant, parse_instant, seal, unseal

Purpose = Literal["kek", "index", "keystore", "audit", "pepper", "instance", "log", "log-pq", "ca"]
State = Literal["active", "retiring", "retired", "coming"]
SigningPurpose = Literal["instance", "log", "log-pq"]
SIGNING: tuple[SigningPurpose, ...] = ("instance", "log", "log-pq")
ALGORITHMS: dict[str, str] = {"instance": "Ed25519", "log": "Ed25519", "log-pq": "ML-DSA-44"}


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One key, opened; `secret` is empty once destroyed (or withheld from workers), `public` is set for key pairs."""

    id: bytes
    purpose: Purpose
    state: State
    created_at: datetime
    datastore: bytes = b""
    not_after: datetime | None = None
    public: bytes = b""
    secret: bytes = b""

    def __repr__(self) -> str:
        """Name the key without showing it."""
        return f"Entry({self.purpose} {self.id.hex()}, {self.state})"

    def fields(self) -> dict[str, str]:
        """Return the fields of keyring.json without `sealed`."""
        return {
            "id": self.id.hex(),
            "purpose": self.purpose,
            "state": self.state,
            "datastore": self.datastore.hex(),
            "created_at": format_instant(self.created_at),
            "not_after": format_instant(self.not_after) if self.not_after else "",
            "public": base64.b64encode(self.public).decode(),
        }


def make(purpose: Purpose, *, at: datetime, datastore: bytes = b"", secret: bytes = b"", state: State = "active") -> Entry:
    """Return a new entry; `secret` only for keys made elsewhere or from a fixed seed."""
    secret = secret or os.urandom(KEY_BYTES)
    public = b""
    if purpose in SIGNING:
        public = _public_of(purpose, secret)
        entry_id = hashlib.sha256(public).digest()[:16]
    elif purpose == "kek":
        entry_id = derive(secret, b"strongroom/kek-id", 16)
    else:
        entry_id = os.urandom(16)
    return Entry(id=entry_id, purpose=purpose, state=state, created_at=at, datastore=datastore, public=public, secret=secret)


def make_ca(private_key: bytes, public: bytes, *, at: datetime) -> Entry:
    """Return an entry for a certificate authority's PKCS#8 key and its SubjectPublicKeyInfo."""
    return Entry(
        id=hashlib.sha256(public).digest()[:16], purpose="ca", state="active", created_at=at, public=public, secret=private_key
    )


def _public_of(purpose: str, secret: bytes) -> bytes:
    if purpose == "log-pq":
        return MLDSA44PrivateKey.from_seed_bytes(secret).public_key().public_bytes_raw()
    return Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def to_json(entry: Entry, root: bytes, archive: bytes) -> dict[str, str]:
    """Return the entry sealed, as it stands in keyring.json."""
    fields = entry.fields()
    sealed = seal(root, entry.secret, _aad(archive, fields)) if entry.secret else b""
    return {**fields, "sealed": base64.b64encode(sealed).decode()}


def from_json(fields: dict[str, str], root: bytes, archive: bytes) -> Entry:
    """Return the entry opened.

    Raises:
        KeysUnavailable: damaged, or put in the place of another.
    """
    try:
        bound = {name: value for name, value in fields.items() if name != "sealed"}
        sealed = base64.b64decode(fields["sealed"], validate=True)
        entry = msgspec.convert(
            {
                "id": bytes.fromhex(fields["id"]),
                "purpose": fields["purpose"],
                "state": fields["state"],
                "datastore": bytes.fromhex(fields["datastore"]),
                "created_at": parse_instant(fields["created_at"]),
                "not_after": parse_instant(fields["not_after"]) if fields["not_after"] else None,
                "public": base64.b64decode(fields["public"], validate=True),
                "secret": unseal(root, sealed, _aad(archive, bound)) if sealed else b"",
            },
            Entry,
        )
    except (WrongKey, KeyError, ValueError, binascii.Error) as error:
        message = f"a key of the keyring is damaged ({fields.get('purpose', 'unknown')!r})"
        raise KeysUnavailable(message, remedy="put keyring.json back from its backup") from error
    return entry


def _aad(archive: bytes, fields: dict[str, str]) -> bytes:
    return b"strongroom/v1/entry\0" + archive + canonical(fields)


@dataclass(frozen=True, slots=True)
class Kek:
    """A key-encryption key of one datastore; only the `active` one wraps."""

    id: bytes
    key: bytes = field(repr=False)
    datastore: bytes
    active: bool


@dataclass(frozen=True, slots=True)
class AuditKey:
    """A key that seals audit bodies."""

    id: bytes
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key of this archive, for ever; `not_after` is set once it signs no more."""

    kid: str
    purpose: SigningPurpose
    algorithm: str
    public: bytes
    not_before: datetime
    not_after: datetime | None = None
    state: State = "active"


class Signer:
    """Signs with one key; the private half stays inside."""

    __slots__ = ("_sign", "algorithm", "key_id", "public")

    def __init__(self, entry: Entry) -> None:
        """Load the key of a signing entry that still has its secret."""
        self.key_id = entry.id.hex()
        self.algorithm = ALGORITHMS[entry.purpose]
        self.public = entry.public
        self._sign: Callable[[bytes], bytes] = (
            MLDSA44PrivateKey.from_seed_bytes(entry.secret).sign
            if entry.purpose == "log-pq"
            else Ed25519PrivateKey.from_private_bytes(entry.secret).sign
        )

    def sign(self, data: bytes) -> bytes:
        """Return the signature of `data`."""
        return self._sign(data)

    def __repr__(self) -> str:
        """Name the key without showing it."""
        return f"Signer({self.key_id}, {self.algorithm})"
