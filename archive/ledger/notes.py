"""Checkpoints as signed notes: written, read and verified; pure.

Source: docs/format.md 7; c2sp.org/signed-note, tlog-checkpoint, tlog-cosignature.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

from archive.errors import LedgerBroken
from archive.keys.entries import PublicKey, Signer
from archive.keys.sealing import decode_base64

ED25519 = 0x01
COSIGNATURE = 0x04
ML_DSA_44 = 0x06
_ED25519_BYTES = 64
_COSIGNATURE_BYTES = 8 + 64
_ML_DSA_BYTES = 8 + 2420
_DASH = "\N{EM DASH} "
_MAX_BYTES = 1 << 20
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class Verifier:
    """A key that may sign checkpoints of the log named `name`."""

    name: str
    kind: int
    public: bytes

    @property
    def key_id(self) -> bytes:
        """The four bytes in front of its signatures."""
        return hashlib.sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.public).digest()[:4]

    def __str__(self) -> str:
        """The verifier key, as c2sp.org/signed-note writes it."""
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(bytes([self.kind]) + self.public).decode()}"

    @property
    def kid(self) -> str:
        """The key's id in the keyring."""
        return hashlib.sha256(self.public).digest()[:16].hex()

    @property
    def fingerprint(self) -> str:
        """What people compare: hex SHA-256 of the verifier key."""
        return hashlib.sha256(str(self).encode()).hexdigest()

    @classmethod
    def parse(cls, text: str, kinds: frozenset[int] = frozenset({ED25519, ML_DSA_44})) -> Verifier:
        """Return the verifier of a verifier key of one of these types.

        Raises:
            LedgerBroken: not one, or of a type that does not sign checkpoints here.
        """
        parts = text.strip().split("+", 2)
        try:
            data = decode_base64(parts[2])
            verifier = cls(parts[0], data[0], data[1:])
        except (IndexError, ValueError):
            raise _broken("this is not a verifier key") from None
        if verifier.kind not in kinds or verifier.key_id.hex() != parts[1] or not verifier.name:
            raise _broken("this is not a verifier key of a checkpoint")
        return verifier


def verifiers(origin: str, public_keys: Iterable[PublicKey]) -> list[Verifier]:
    """Return the verifiers of an archive's log, oldest first."""
    kinds = {"log": ED25519, "log-pq": ML_DSA_44}
    return [Verifier(origin, kinds[key.purpose], key.public) for key in public_keys if key.purpose in kinds]


@dataclass(frozen=True, slots=True)
class Note:
    """A checkpoint whose signatures were verified; `signed_at` is from the ML-DSA-44 signature, to the second."""

    origin: str
    size: int
    root: bytes
    signed_at: datetime


def origin_of(archive_uuid: str) -> str:
    """Return the name of an archive's log."""
    return f"strongroom/{archive_uuid}"


def text_of(origin: str, size: int, root: bytes) -> bytes:
    """Return the text of a checkpoint, which is what is signed."""
    return f"{origin}\n{size}\n{base64.b64encode(root).decode()}\n".encode()


def write(origin: str, size: int, root: bytes, signers: tuple[Signer, Signer], at: datetime) -> bytes:
    """Return a signed checkpoint; the signers are Ed25519 and ML-DSA-44."""
    text = text_of(origin, size, root).decode()
    seconds = int(at.timestamp())
    classic, quantum = signers
    cosigned = seconds.to_bytes(8, "big") + quantum.sign(_cosigned(origin, seconds, size, root))
    signatures = [
        (Verifier(origin, ED25519, classic.public), classic.sign(text.encode())),
        (Verifier(origin, ML_DSA_44, quantum.public), cosigned),
    ]
    lines = [f"{_DASH}{origin} {base64.b64encode(key.key_id + signature).decode()}\n" for key, signature in signatures]
    return (text + "\n" + "".join(lines)).encode()


def read(note: bytes, known: Sequence[Verifier]) -> Note:
    """Return the checkpoint of a note with a valid signature of each type by a known key of its log.

    Raises:
        LedgerBroken: not a checkpoint, a known key's signature is wrong, or one type is missing (V13).
    """
    parsed = parse(note)
    found: dict[int, datetime | None] = {}
    for name, key_id, signature in parsed.signatures:
        for key in known:
            if (key.name, key.key_id) == (name, key_id) and name == parsed.origin:
                found[key.kind] = verify(key, signature, parsed)
    signed_at = found.get(ML_DSA_44)
    if ED25519 not in found or signed_at is None:
        raise _broken("the checkpoint is not signed by both keys of this log")
    return Note(parsed.origin, parsed.size, parsed.root, signed_at)


def signed_by(note: bytes, known: Sequence[Verifier]) -> list[Verifier]:
    """Return the known keys that a note names as its signers; whether they signed it is for `read` to say.

    Raises:
        LedgerBroken: not a checkpoint (V13).
    """
    parsed = parse(note)
    named = {(name, key_id) for name, key_id, _ in parsed.signatures}
    return [key for key in known if (key.name, key.key_id) in named]


def claims(note: bytes) -> tuple[int, bytes]:
    """Return the size and root a note claims, unverified.

    Raises:
        LedgerBroken: not a checkpoint (V13).
    """
    parsed = parse(note)
    return parsed.size, parsed.root


@dataclass(frozen=True, slots=True)
class Parsed:
    """A checkpoint's text and signature lines (key name, key id, signature), nothing of them verified."""

    origin: str
    size: int
    root: bytes
    text: bytes
    signatures: list[tuple[str, bytes, bytes]]


def verify(key: Verifier, signature: bytes, parsed: Parsed) -> datetime | None:
    """Check a signature by this key, and return the time it says; types that say none, None.

    Raises:
        LedgerBroken: it does not verify (V13).
    """
    try:
        if key.kind == ED25519 and len(signature) == _ED25519_BYTES:
            Ed25519PublicKey.from_public_bytes(key.public).verify(signature, parsed.text)
            return None
        if key.kind == ML_DSA_44 and len(signature) == _ML_DSA_BYTES:
            seconds = int.from_bytes(signature[:8], "big")
            message = _cosigned(parsed.origin, seconds, parsed.size, parsed.root, key.name)
            MLDSA44PublicKey.from_public_bytes(key.public).verify(signature[8:], message)
            return datetime.fromtimestamp(seconds, UTC)
        if key.kind == COSIGNATURE and len(signature) == _COSIGNATURE_BYTES:
            seconds = int.from_bytes(signature[:8], "big")
            Ed25519PublicKey.from_public_bytes(key.public).verify(signature[8:], cosigned_text(parsed.text, seconds))
            return datetime.fromtimestamp(seconds, UTC)
    except (InvalidSignature, ValueError, OverflowError, OSError):
        pass
    raise _broken("a signature of the checkpoint is wrong")


def cosigned_text(text: bytes, seconds: int) -> bytes:
    """Return what a cosignature of type 04 signs of a checkpoint's text."""
    return b"cosignature/v1\ntime %d\n" % seconds + text


def _cosigned(origin: str, seconds: int, size: int, root: bytes, cosigner: str = "") -> bytes:
    named = [bytes([len(name)]) + name for name in ((cosigner or origin).encode(), origin.encode())]
    return b"subtree/v1\n\0" + named[0] + seconds.to_bytes(8, "big") + named[1] + bytes(8) + size.to_bytes(8, "big") + root


def parse(note: bytes, *, extensions: bool = False) -> Parsed:
    """Return the parts of a checkpoint, unverified; one of another log may have `extensions`: lines behind the root.

    Raises:
        LedgerBroken: not a checkpoint (V13).
    """
    try:
        whole = note.decode() if len(note) <= _MAX_BYTES else ""
    except UnicodeDecodeError:
        whole = ""
    text, blank, signatures = whole.rpartition("\n\n")
    lines = text.split("\n")
    usual = len(lines) == 3 or (extensions and len(lines) > 3 and all(lines[3:]))
    if not blank or not usual or not lines[0] or not _SIZE.fullmatch(lines[1]) or not signatures.endswith("\n"):
        raise _broken("this is not a checkpoint")
    if _CONTROL.search(whole):
        raise _broken("this is not a checkpoint")
    root = _decode(lines[2])
    if len(root) != 32:
        raise _broken("this is not a checkpoint")
    parsed = [_signature(line) for line in signatures[:-1].split("\n")]
    return Parsed(lines[0], int(lines[1]), root, (text + "\n").encode(), parsed)


def _signature(line: str) -> tuple[str, bytes, bytes]:
    name, _, encoded = line.removeprefix(_DASH).partition(" ")
    signature = _decode(encoded)
    if not line.startswith(_DASH) or not name or "+" in name or len(signature) < 5:
        raise _broken("this is not a checkpoint")
    return name, signature[:4], signature[4:]


def _decode(text: str) -> bytes:
    try:
        return decode_base64(text)
    except ValueError:
        raise _broken("this is not a checkpoint") from None


def _broken(message: str) -> LedgerBroken:
    return LedgerBroken(message, remedy="run 'archive ledger verify'", verdict="V13")
