"""Audit bodies: sealed under the audit key, committed to by the leaf.

Source: docs/format.md 6.2.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from archive.errors import LedgerBroken
from archive.keys.keyring import Keyring

_VERSION = b"\x01"
_KEY_ID_END = 17
_NONCE_END = 29
SALT_BYTES = 32


class Bodies:
    """Seals and opens audit bodies of one archive; keeps the ciphers, which cost more to make than to use."""

    def __init__(self, keyring: Keyring) -> None:
        """Take the keys from an opened keyring."""
        self._keyring = keyring
        self._label = b"strongroom/v1/audit\0" + uuid.UUID(keyring.archive_uuid).bytes
        self._ciphers: dict[bytes, AESGCM] = {}

    def seal(self, n: int, salt: bytes, body: bytes) -> bytes:
        """Return the sealed salt and body of leaf `n`."""
        key = self._keyring.current_audit_key
        nonce = os.urandom(12)
        return _VERSION + key.id + nonce + self._cipher(key.id, key.key).encrypt(nonce, salt + body, self._aad(n))

    def open(self, n: int, sealed: bytes) -> tuple[bytes, bytes] | None:
        """Return the salt and the body of leaf `n`, or None when its audit key was destroyed.

        Raises:
            LedgerBroken: changed, or another event's body.
        """
        key = self._keyring.audit_key(sealed[1:_KEY_ID_END])
        if sealed[:1] == _VERSION and key is None:
            return None
        try:
            if sealed[:1] != _VERSION or key is None:
                raise InvalidTag
            opened = self._cipher(key.id, key.key).decrypt(sealed[_KEY_ID_END:_NONCE_END], sealed[_NONCE_END:], self._aad(n))
            return opened[:SALT_BYTES], opened[SALT_BYTES:]
        except (InvalidTag, ValueError):
            message = f"the sealed body of event {n} was changed"
            raise LedgerBroken(message, remedy="run 'archive ledger verify'", verdict="V12") from None

    def erased(self, sealed: bytes) -> bool:
        """Whether the audit key that sealed a body was destroyed: that alone erases."""
        return self._keyring.audit_key_destroyed(sealed[1:_KEY_ID_END])

    def _cipher(self, key_id: bytes, key: bytes) -> AESGCM:
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            cipher = self._ciphers[key_id] = AESGCM(key)
        return cipher

    def _aad(self, n: int) -> bytes:
        return self._label + n.to_bytes(8, "big")


def commitment(salt: bytes, body: bytes) -> bytes:
    """Return what the leaf says about a body."""
    return hashlib.sha256(salt + body).digest()


def parse(body: bytes) -> dict[str, Any]:
    """Return an opened body as a dict.

    Raises:
        LedgerBroken: not what `body_of` writes.
    """
    try:
        parsed = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, ValueError) as error:
        message = "an audit body is not JSON"
        raise LedgerBroken(message, verdict="V12") from error
    return parsed
