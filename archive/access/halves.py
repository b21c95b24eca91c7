"""A sign-in between password and second factor: nothing is kept of it here, the browser holds it sealed for a few minutes."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from archive.keys import sealing
from archive.keys.keyring import Keyring

LASTS = timedelta(minutes=5)
LONGEST = 2048
_AAD = b"strongroom/v1/half-sign-in"


@dataclass(frozen=True, slots=True)
class Half:
    """Whose password was right, a digest of what is kept of it, the attempt it was counted as, and until when it counts."""

    principal_id: int
    password: str
    attempt: int
    not_after: datetime


def seal(keyring: Keyring, half: Half) -> str:
    """Return what the browser holds."""
    sealed = keyring.seal("signin/half", msgspec.json.encode(half), _AAD)
    return base64.urlsafe_b64encode(sealed).decode()


def opened(keyring: Keyring, text: str, *, at: datetime) -> Half | None:
    """Return what the browser brings back; None when it was not made here, or too long ago."""
    if len(text) > LONGEST:
        return None
    try:
        plain = keyring.unseal("signin/half", base64.urlsafe_b64decode(text.encode("ascii", "replace")), _AAD)
    except (sealing.WrongKey, binascii.Error, ValueError):
        return None
    half = msgspec.json.decode(plain, type=Half)
    return half if at < half.not_after else None
