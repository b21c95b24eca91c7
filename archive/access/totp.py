"""One-time codes of an authenticator app: six digits, a new one every thirty seconds.

Source: RFC 6238 (HMAC-SHA-1, 30 s), RFC 4226 5.3; the address of a QR code is the one authenticator apps read.
"""

from __future__ import annotations

import base64
import hmac
import os
from datetime import datetime
from urllib.parse import quote, urlencode

SECRET_BYTES = 20
STEP_S = 30
DIGITS = 6
WINDOW = 1
"""How many steps a clock may be off, either way."""


def new_secret() -> bytes:
    """Return a new shared secret (RFC 4226 4, R6)."""
    return os.urandom(SECRET_BYTES)


def step_of(at: datetime) -> int:
    """Return the number of the step an instant lies in."""
    return int(at.timestamp()) // STEP_S


def code(secret: bytes, step: int) -> str:
    """Return the code of a step."""
    mac = hmac.digest(secret, step.to_bytes(8, "big"), "sha1")
    start = mac[-1] & 0x0F
    number = int.from_bytes(mac[start:start + 4], "big") & 0x7FFFFFFF
    return f"{number % 10**DIGITS:0{DIGITS}d}"


def matching(secret: bytes, typed: str, *, at: datetime, after: int) -> int | None:
    """Return the step a code is of, if it lies within the window and after step `after`, the last that was taken."""
    now, found = step_of(at), None
    for step in range(max(now - WINDOW, 0), now + WINDOW + 1):
        if hmac.compare_digest(code(secret, step).encode(), typed.encode("utf-8", "replace")) and step > after:
            found = step
    return found


def typed_secret(secret: bytes) -> str:
    """Return a secret as people type it: base32 in groups of four."""
    text = base64.b32encode(secret).decode().rstrip("=")
    return " ".join(text[i:i + 4] for i in range(0, len(text), 4))


def address(secret: bytes, *, account: str, issuer: str) -> str:
    """Return the otpauth address that goes into a QR code."""
    label = quote(f"{issuer}:{account}", safe="")
    values = {"secret": base64.b32encode(secret).decode().rstrip("="), "issuer": issuer, "digits": DIGITS, "period": STEP_S}
    return f"otpauth://totp/{label}?{urlencode(values, quote_via=quote)}"
