"""The slot that a passphrase opens: Argon2id stands between it and who stole the file.

Source: docs/format.md 5; RFC 9106.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
import unicodedata
from datetime import datetime

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from archive.errors import InvalidRequest, KeysUnavailable
from archive.keys.sealing import KEY_BYTES, WrongKey, derive, format_instant, seal, unseal
from archive.keys.slots import Slot, blob_of, bound

SHORTEST = 15
MEMORY_KIB, ITERATIONS, LANES = 65536, 3, 1
_LEAST_KIB, _LEAST_ITERATIONS = 19456, 2
_MOST_KIB, _MOST_ITERATIONS, _MOST_LANES = 4 << 20, 64, 16
_DISTINCT = 5
_SALT_BYTES = 16
_LABEL = b"strongroom/v1/passphrase"


def require_strong(passphrase: str) -> None:
    """Refuse a passphrase that is soon guessed.

    Raises:
        InvalidRequest.
    """
    text = unicodedata.normalize("NFC", passphrase)
    if len(text) < SHORTEST or len(set(text.casefold())) < _DISTINCT:
        message = f"the passphrase has fewer than {SHORTEST} characters, or repeats a few of them"
        raise InvalidRequest(message, remedy="take five or six words drawn by chance")


def wrap(root: bytes, archive: bytes, passphrase: str, *, label: str, at: datetime) -> Slot:
    """Return a slot that the passphrase opens.

    Raises:
        InvalidRequest: too weak.
    """
    require_strong(passphrase)
    slot = Slot(
        id=secrets.token_hex(4), kind="passphrase", label=label, created_at=format_instant(at), kdf="argon2id",
        salt=base64.b64encode(os.urandom(_SALT_BYTES)).decode(), memory_kib=MEMORY_KIB, iterations=ITERATIONS, lanes=LANES,
    )
    sealed = seal(derive(_stretched(slot, passphrase), b"strongroom/v1/slot"), root, bound(_LABEL, archive, slot))
    return msgspec.structs.replace(slot, blob=base64.b64encode(sealed).decode())


def unwrap(slots: list[Slot], archive: bytes, passphrase: str) -> bytes:
    """Return the root.

    Raises:
        KeysUnavailable: there is no such slot, or it opens none of them.
    """
    mine = [slot for slot in slots if slot.kind == "passphrase"]
    for slot in mine:
        try:
            return unseal(derive(_stretched(slot, passphrase), b"strongroom/v1/slot"), blob_of(slot), bound(_LABEL, archive, slot))
        except WrongKey:
            continue
    if not mine:
        message = "no passphrase opens this keyring"
        raise KeysUnavailable(message, remedy="open it with its key file or a recovery kit; 'archive key slot add --passphrase' adds one")
    message = "wrong passphrase: it opens no slot of this keyring"
    raise KeysUnavailable(message, remedy="try again, or open the keyring with its key file or a recovery kit")


def _stretched(slot: Slot, passphrase: str) -> bytes:
    known = (
        slot.kdf == "argon2id" and _LEAST_KIB <= slot.memory_kib <= _MOST_KIB and 0 < slot.lanes <= _MOST_LANES
        and _LEAST_ITERATIONS <= slot.iterations <= _MOST_ITERATIONS
    )
    message = f"slot {slot.id} of the keyring is damaged"
    try:
        salt = base64.b64decode(slot.salt, validate=True)
        if not known or len(salt) != _SALT_BYTES:
            raise ValueError
    except (binascii.Error, ValueError):
        raise KeysUnavailable(message, remedy="put keyring.json back from its backup, or open it by another slot") from None
    text = unicodedata.normalize("NFC", passphrase).encode()
    try:
        kdf = Argon2id(salt=salt, length=KEY_BYTES, iterations=slot.iterations, lanes=slot.lanes, memory_cost=slot.memory_kib)
        return kdf.derive(text)
    except (MemoryError, UnsupportedAlgorithm) as error:
        message = f"there is not the memory to try a passphrase ({slot.memory_kib >> 10} MiB)"
        raise KeysUnavailable(message, remedy="free memory, or open the keyring with its key file") from error
