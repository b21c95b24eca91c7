"""The envelope of what is signed: a payload, its type, and signatures over both.

Source: DSSE v1 (github.com/secure-systems-lab/dsse).
"""

from __future__ import annotations

import msgspec


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One key's, in base64."""

    keyid: str
    sig: str


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is written: the payload in base64."""

    payload: str
    payloadType: str  # noqa: N815 # DSSE's name
    signatures: list[Signature]


def pae(kind: str, payload: bytes) -> bytes:
    """Return what is signed: the pre-authentication encoding."""
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(payload), payload)
