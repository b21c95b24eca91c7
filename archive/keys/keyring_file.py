"""keyring.json: its outer form, its authentication, and who may write it.

Source: docs/format.md 5.
"""

from __future__ import annotations

import fcntl
import hmac
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from archive.errors import KeysUnavailable
from archive.keys import private_files
from archive.keys.sealing import canonical, derive
from archive.keys.slots import Slot

FORMAT = "strongroom-keyring"
VERSION = 1


class KeyringFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file as it stands on disk, still sealed."""

    archive: str
    generation: int
    slots: list[Slot]
    entries: list[dict[str, str]]
    mac: str = ""
    format: str = FORMAT
    version: int = VERSION


@contextmanager
def writers_turn(path: Path) -> Iterator[None]:
    """Let one process at a time read, change and write the keyring.

    Raises:
        KeysUnavailable: the folder cannot be written.
    """
    try:
        descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        message = f"{path.parent} cannot be written: {error.strerror}"
        raise KeysUnavailable(message, remedy="give the archive's user the right to write there") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def load(path: Path) -> KeyringFile:
    """Return the file, not yet authenticated.

    Raises:
        KeysUnavailable: absent, open to others, damaged, or of another version.
    """
    data = private_files.read(path, limit_bytes=16 << 20)
    try:
        file = msgspec.json.decode(data, type=KeyringFile)
        uuid.UUID(file.archive)
    except (msgspec.DecodeError, ValueError) as error:
        message = f"{path} is damaged or of another version"
        raise KeysUnavailable(message, remedy="put keyring.json back from its backup, or install the release it is of") from error
    if (file.format, file.version) != (FORMAT, VERSION):
        message = f"{path} is of another version"
        raise KeysUnavailable(message, remedy="install the release that wrote it")
    return file


def authenticate(file: KeyringFile, root: bytes, path: Path) -> None:
    """Refuse a file that something without the root has changed.

    Raises:
        KeysUnavailable.
    """
    if not hmac.compare_digest(file.mac.encode(), _mac(root, file).encode()):
        message = f"{path} was changed by something other than the archive"
        raise KeysUnavailable(message, remedy="put keyring.json back from its backup")


def store(path: Path, file: KeyringFile, root: bytes, *, first: bool = False) -> None:
    """Authenticate and write the file, durable when this returns; `first` never replaces one.

    Raises:
        KeysUnavailable: it cannot be written, or another process wrote a later generation meanwhile.
    """
    with writers_turn(path):
        if not first and load(path).generation != file.generation - 1:
            message = "the keyring was changed by another process meanwhile"
            raise KeysUnavailable(message, remedy="run the command again")
        private_files.sweep(path)  # of a writer that was killed: it holds keys that may be destroyed since
        private_files.write(path, msgspec.json.format(msgspec.json.encode(sealed(file, root)), indent=1) + b"\n", replace=not first)


def sealed(file: KeyringFile, root: bytes) -> KeyringFile:
    """Return the file with what authenticates it."""
    return msgspec.structs.replace(file, mac=_mac(root, file))


def _mac(root: bytes, file: KeyringFile) -> str:
    fields = msgspec.to_builtins(file)
    del fields["mac"]
    return hmac.digest(derive(root, b"strongroom/v1/keyring-mac"), canonical(fields), "sha256").hex()
