"""The few primitives every key format is made of.

Source: docs/format.md 1.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

KEY_BYTES = 32
_NONCE_BYTES = 12
_ENCODER = msgspec.json.Encoder(order="sorted")
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


class WrongKey(Exception):
    """Sealed bytes do not open under this key and context."""


class Keyed:
    """HMAC-SHA256 (RFC 2104) under one key, its padded states kept: a quarter of what hmac.digest costs."""

    def __init__(self, key: bytes) -> None:
        """Take a key of at most 64 bytes."""
        block = key.ljust(64, b"\0")
        self._inner, self._outer = (hashlib.sha256(bytes(byte ^ pad for byte in block)) for pad in (0x36, 0x5C))

    def digest(self, message: bytes) -> bytes:
        """Return the 32 bytes."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(message)
        outer.update(inner.digest())
        return outer.digest()


def derive(key: bytes, info: bytes, length: int = KEY_BYTES) -> bytes:
    """Return HKDF-Expand-SHA-256 of a uniformly random key.

    Source: RFC 5869 2.3.
    """
    return HKDFExpand(SHA256(), length, info).derive(key)


def seal(key: bytes, plaintext: bytes, aad: bytes) -> bytes:
    """Return nonce || AES-256-GCM ciphertext and tag."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, aad)


def unseal(key: bytes, sealed: bytes, aad: bytes) -> bytes:
    """Return what `seal` sealed.

    Raises:
        WrongKey: another key, another context, or changed bytes.
    """
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], aad)
    except (InvalidTag, ValueError):
        raise WrongKey from None


def canonical(value: Any) -> bytes:
    """Return canonical JSON; the caller passes strings, integers, booleans, lists and string-keyed dicts only."""
    return _ENCODER.encode(value)


def decode_base64(text: str) -> bytes:
    """Return base64 decoded; no two texts mean the same bytes.

    Raises:
        ValueError: not base64, or not in its one form.
    """
    data = base64.b64decode(text, validate=True)
    if base64.b64encode(data).decode() != text:
        message = "not base64 in its one form"
        raise ValueError(message)
    return data


@lru_cache(maxsize=8)  # leaf, body and statement of one event name the same
def format_instant(at: datetime) -> str:
    """Return `YYYY-MM-DDTHH:MM:SS.ffffffZ` of an aware datetime."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def parse_instant(text: str) -> datetime:
    """Return the datetime that `format_instant` wrote.

    Raises:
        ValueError: any other form.
    """
    if not _INSTANT.fullmatch(text):
        message = "not an instant"
        raise ValueError(message)
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
