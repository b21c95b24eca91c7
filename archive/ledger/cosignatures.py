"""Cosignatures: what a witness outside says of a checkpoint it has seen, and the key it says it with; pure.

Source: docs/format.md 7.1; c2sp.org/tlog-cosignature.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from archive.ledger import notes
from archive.ledger.notes import COSIGNATURE, ML_DSA_44, Parsed, Verifier

KINDS = frozenset({COSIGNATURE, ML_DSA_44})
_DASH = "\N{EM DASH} "


class Cosigner:
    """The key of a witness: Ed25519, type 04."""

    def __init__(self, name: str, seed: bytes) -> None:
        """Take 32 random bytes."""
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.verifier = Verifier(name, COSIGNATURE, self._key.public_key().public_bytes_raw())

    def line(self, text: bytes, at: datetime) -> str:
        """Return the signature line over a checkpoint's text, with its line feed."""
        seconds = int(at.timestamp())
        signature = seconds.to_bytes(8, "big") + self._key.sign(notes.cosigned_text(text, seconds))
        return f"{_DASH}{self.verifier.name} {base64.b64encode(self.verifier.key_id + signature).decode()}\n"


def parse_key(text: str) -> Verifier:
    """Return a witness's verifier key.

    Raises:
        LedgerBroken: not one.
    """
    return Verifier.parse(text, KINDS)


def found(checkpoint: Parsed, keys: Iterable[Verifier]) -> dict[Verifier, datetime]:
    """Return which of these keys cosigned a checkpoint, and when each says it did; signatures by other keys count for nothing.

    Raises:
        LedgerBroken: a signature by one of the keys does not verify.
    """
    known = {(key.name, key.key_id): key for key in keys if key.kind in KINDS}
    said: dict[Verifier, datetime] = {}
    for name, key_id, signature in checkpoint.signatures:
        key = known.get((name, key_id))
        if key is not None:
            at = notes.verify(key, signature, checkpoint)
            assert at is not None
            said[key] = max(at, said.get(key, at))
    return said


def with_lines(note: bytes, lines: Sequence[str]) -> bytes:
    """Return a checkpoint with further signature lines."""
    return note + "".join(lines).encode()


def own_lines(answer: str, key: Verifier) -> list[str]:
    """Return the lines of a witness's answer that claim to be by its key."""
    begin = f"{_DASH}{key.name} "
    return [f"{line}\n" for line in answer.split("\n") if line.startswith(begin)]
