"""Ways to open the keyring: each slot holds the root wrapped for a key file, an offline recovery kit, or a passphrase.

Source: docs/format.md 5.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import secrets
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PrivateKey, MLKEM768X25519PublicKey, Suite

from archive.errors import KeysUnavailable
from archive.keys import private_files
from archive.keys.sealing import KEY_BYTES, WrongKey, canonical, derive, format_instant, seal, unseal

_MLKEM_PUBLIC_BYTES = 1184
_CHECK_BYTES = 3
_KEY_LINE = re.compile(r"^strongroom-key-v1:([0-9a-f]{64})$", re.MULTILINE)
_KIT_LINE = re.compile(r"^\s*kit:\s*SRK1[\s-]*(.*)$", re.MULTILINE | re.IGNORECASE)
_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class Slot(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One way to open the keyring, as it stands in keyring.json."""

    id: str
    kind: Literal["key-file", "recovery", "passphrase"]
    label: str
    created_at: str
    key_id: str = ""
    public: str = ""
    kdf: str = ""
    salt: str = ""
    memory_kib: int = 0
    iterations: int = 0
    lanes: int = 0
    blob: str = ""

    def header(self) -> bytes:
        """Return what the wrapped root is bound to."""
        fields = msgspec.to_builtins(self)
        fields.pop("blob", None)
        return canonical(fields)


def bound(prefix: bytes, archive: bytes, slot: Slot) -> bytes:
    """Return the context a slot's blob is sealed in."""
    return prefix + b"\0" + archive + slot.header()


# --- key file ---------------------------------------------------------------------------------------------------------------------


def write_key_file(path: Path) -> bytes:
    """Make a key file at `path` and return its key; never replaces a file.

    Raises:
        KeysUnavailable.
    """
    key = os.urandom(KEY_BYTES)
    text = (
        "# Strongroom key file: opens the archive's keyring. Keep it secret, keep a copy, keep it off the disk with the data.\n"
        f"strongroom-key-v1:{key.hex()}\n"
    )
    private_files.write(path, text.encode(), replace=False)
    return key


def read_key_file(path: Path) -> bytes:
    """Return the key of a key file.

    Raises:
        KeysUnavailable: absent, open to others, or not a key file.
    """
    match = _KEY_LINE.search(private_files.read(path).decode("ascii", errors="replace"))
    if match is None:
        message = f"{path} is not a key file"
        raise KeysUnavailable(message, remedy="name the right file in keys.key_file, or put it back from its backup")
    return bytes.fromhex(match[1])


def _key_file_id(key: bytes) -> str:
    return derive(key, b"strongroom/v1/key-file-id", 8).hex()


def wrap_for_key_file(root: bytes, archive: bytes, key: bytes, *, label: str, at: datetime) -> Slot:
    """Return a slot that a key file opens."""
    slot = Slot(id=secrets.token_hex(4), kind="key-file", label=label, created_at=format_instant(at), key_id=_key_file_id(key))
    sealed = seal(derive(key, b"strongroom/v1/slot"), root, bound(b"strongroom/v1/slot", archive, slot))
    return msgspec.structs.replace(slot, blob=base64.b64encode(sealed).decode())


def open_with_key_file(slots: list[Slot], archive: bytes, path: Path) -> bytes:
    """Return the root.

    Raises:
        KeysUnavailable: the file opens another keyring, or its slot is damaged.
    """
    key = read_key_file(path)
    key_id = _key_file_id(key)
    for slot in slots:
        if slot.kind == "key-file" and hmac.compare_digest(slot.key_id, key_id):
            try:
                return unseal(derive(key, b"strongroom/v1/slot"), blob_of(slot), bound(b"strongroom/v1/slot", archive, slot))
            except WrongKey:
                raise _damaged(slot) from None
    message = f"wrong key file: {path} opens no slot of this keyring"
    raise KeysUnavailable(message, remedy="name the right file in keys.key_file, or open the keyring with a recovery kit")


# --- recovery kit -----------------------------------------------------------------------------------------------------------------


def _private_key(secret: bytes) -> MLKEM768X25519PrivateKey:
    mlkem = MLKEM768PrivateKey.from_seed_bytes(derive(secret, b"strongroom/v1/recovery/ml-kem-768", 64))
    x25519 = X25519PrivateKey.from_private_bytes(derive(secret, b"strongroom/v1/recovery/x25519"))
    return MLKEM768X25519PrivateKey(mlkem, x25519)


def _public_bytes(secret: bytes) -> bytes:
    mlkem = MLKEM768PrivateKey.from_seed_bytes(derive(secret, b"strongroom/v1/recovery/ml-kem-768", 64)).public_key()
    x25519 = X25519PrivateKey.from_private_bytes(derive(secret, b"strongroom/v1/recovery/x25519")).public_key()
    return mlkem.public_bytes_raw() + x25519.public_bytes_raw()


def wrap_for_recovery(root: bytes, archive: bytes, secret: bytes, *, label: str, at: datetime) -> Slot:
    """Return a slot that the recovery kit of `secret` opens; the slot holds the public half only."""
    public = _public_bytes(secret)
    shown = base64.b64encode(public).decode()
    slot = Slot(id=secrets.token_hex(4), kind="recovery", label=label, created_at=format_instant(at), public=shown)
    key = MLKEM768X25519PublicKey(
        MLKEM768PublicKey.from_public_bytes(public[:_MLKEM_PUBLIC_BYTES]),
        X25519PublicKey.from_public_bytes(public[_MLKEM_PUBLIC_BYTES:]),
    )
    sealed = _SUITE.encrypt(root, key, bound(b"strongroom/v1/recovery", archive, slot))
    return msgspec.structs.replace(slot, blob=base64.b64encode(sealed).decode())


def open_with_kit(slots: list[Slot], archive: bytes, path: Path) -> bytes:
    """Return the root.

    Raises:
        KeysUnavailable: not a kit, mistyped, or a kit of another keyring.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        message = f"the recovery kit {path} cannot be read: {error.strerror}"
        raise KeysUnavailable(message, remedy="name the file the kit was typed or copied into") from error
    secret = parse_kit(text)
    public = base64.b64encode(_public_bytes(secret)).decode()
    for slot in slots:
        if slot.kind == "recovery" and hmac.compare_digest(slot.public, public):
            try:
                return _SUITE.decrypt(blob_of(slot), _private_key(secret), bound(b"strongroom/v1/recovery", archive, slot))
            except (InvalidTag, ValueError):
                raise _damaged(slot) from None
    message = "wrong recovery kit: it opens no slot of this keyring"
    raise KeysUnavailable(message, remedy="use the kit that names this archive, or the latest one made by 'archive key slot add'")


def kit_line(secret: bytes) -> str:
    """Return the one line of a kit that matters."""
    digits = base64.b32encode(secret + _check(secret)).decode()
    return "kit: SRK1-" + "-".join(digits[i : i + 4] for i in range(0, len(digits), 4))


def parse_kit(text: str) -> bytes:
    """Return the secret of a kit, as printed or typed.

    Raises:
        KeysUnavailable: no kit line, or a typing error.
    """
    match = _KIT_LINE.search(text)
    if match is None:
        message = "this is not a recovery kit: it has no line that starts with 'kit: SRK1-'"
        raise KeysUnavailable(message, remedy="type that line from the paper into a text file")
    digits = re.sub(r"[\s-]", "", match[1]).upper().translate(str.maketrans("018", "OIB"))
    try:
        data = base64.b32decode(digits)
    except ValueError:
        data = b""
    secret = data[:KEY_BYTES]
    if len(data) != KEY_BYTES + _CHECK_BYTES or data[KEY_BYTES:] != _check(secret):
        message = "the recovery kit has a typing error"
        raise KeysUnavailable(message, remedy="compare the line that starts with 'kit: SRK1-' with the paper")
    return secret


def _check(secret: bytes) -> bytes:
    return hashlib.sha256(b"strongroom/v1/kit\0" + secret).digest()[:_CHECK_BYTES]


def write_kit(path: Path, secret: bytes, *, archive_uuid: str, label: str, keyring: Path, at: datetime) -> None:
    """Write the kit with its instructions; never replaces a file.

    Raises:
        KeysUnavailable.
    """
    private_files.write(path, _KIT.format(
        archive=archive_uuid, label=label, at=format_instant(at)[:10], keyring=keyring, line=kit_line(secret)
    ).encode(), replace=False)


_KIT = """\
STRONGROOM RECOVERY KIT

archive: {archive}
label:   {label}
made:    {at}

{line}

What this is
  With this line and the file keyring.json the archive's keys open without the key file. It exists nowhere else: the server
  holds only its public half. Who has this line and the data can read every image.

What to do now
  1. Print this file or copy it to a medium that is kept in a safe, away from the archive.
  2. Delete this file from the server.
  3. Keep a copy of keyring.json with your backups; it is sealed, and without it this kit opens nothing.
     It lies at {keyring}

When the key file is lost
  1. Type the line that starts with 'kit: SRK1-' into a text file, say kit.txt.
     Upper and lower case, spaces and hyphens do not matter.
  2. archive key slot add --with-kit kit.txt --key-file NEW-KEY-FILE
  3. Name NEW-KEY-FILE in the configuration (keys.key_file), start the archive, and remove the lost file's slot:
     archive key slot list; archive key slot remove ID
  4. Delete kit.txt.
"""


def blob_of(slot: Slot) -> bytes:
    """Return the wrapped root of a slot.

    Raises:
        KeysUnavailable: not base64.
    """
    try:
        return base64.b64decode(slot.blob, validate=True)
    except binascii.Error:
        raise _damaged(slot) from None


def _damaged(slot: Slot) -> KeysUnavailable:
    return KeysUnavailable(
        f"slot {slot.id} of the keyring is damaged", remedy="put keyring.json back from its backup, or open it by another slot"
    )
