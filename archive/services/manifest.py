"""What is in a backup and that nobody changed it: a list of files, signed by the log's keys (docs/format.md 11)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from archive import __version__
from archive.errors import DigestMismatch, InvalidRequest, LedgerBroken, NotFound, VaultUnavailable
from archive.keys import private_files, sealing
from archive.keys.keyring import Keyring
from archive.ledger import notes

FORMAT, VERSION = "strongroom-backup", 1
CURRENT, SETS, SEGMENTS = "current", "sets", "segments"
MANIFEST, NOTE = "manifest.json", "manifest.note"
PIECE = 1 << 20
_REMEDY = "take another copy of the backup, or an earlier one"


class File(msgspec.Struct, frozen=True):
    """One file, its path below the set."""

    path: str
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of manifest.json."""

    archive: str
    made_at: str
    leaves: int
    engine: str
    keys: bool
    files: list[File]
    software: str = __version__
    format: str = FORMAT
    version: int = VERSION

    @property
    def at(self) -> datetime:
        """When the backup was made."""
        return sealing.parse_instant(self.made_at)

    def by_path(self) -> dict[str, File]:
        """Return the files by their paths."""
        return {file.path: file for file in self.files}


@dataclass(frozen=True, slots=True)
class Copied:
    """Size and SHA-256 of what was copied."""

    size: int
    sha256: str


def origin(keyring: Keyring) -> str:
    """Return the name that signs backups of an archive."""
    return f"{notes.origin_of(keyring.archive_uuid)}/backup"


def write(folder: Path, manifest: Manifest, keyring: Keyring, at: datetime) -> str:
    """Write list and signature into a set, and return the list's SHA-256."""
    data = sealing.canonical(msgspec.to_builtins(manifest))
    digest = hashlib.sha256(data).digest()
    private_files.write(folder / MANIFEST, data)
    private_files.write(folder / NOTE, notes.write(origin(keyring), len(manifest.files), digest, keyring.log_signers, at))
    return digest.hex()


def current(folder: Path) -> Path:
    """Return the set of a backup that counts.

    Raises:
        NotFound: there is no whole backup in the folder. InvalidRequest: what names it was changed.
    """
    try:
        name = (folder / CURRENT).read_text(encoding="ascii").strip()
    except FileNotFoundError:
        message = f"there is no backup at {folder}"
        remedy = "name the folder that 'archive backup' was given; a first run that was interrupted leaves none"
        raise NotFound(message, remedy=remedy) from None
    except (OSError, UnicodeDecodeError) as error:
        message = f"the backup at {folder} cannot be read"
        raise VaultUnavailable(message, remedy="give this user the right to read it, or take another copy of it") from error
    if not name.isalnum() or not (folder / SETS / name).is_dir():
        message = f"the backup at {folder} names a set that is not there"
        raise InvalidRequest(message, remedy="take another copy of the backup")
    return folder / SETS / name


def glance(chosen: Path) -> Manifest:
    """Return the list of a set, not yet verified: it says which keys can verify it.

    Raises:
        DigestMismatch: it is not a list.
    """
    try:
        manifest = msgspec.json.decode((chosen / MANIFEST).read_bytes(), type=Manifest)
        sealing.parse_instant(manifest.made_at)
    except (OSError, ValueError, msgspec.DecodeError) as error:
        raise _changed("its list of files is missing or damaged") from error
    if (manifest.format, manifest.version) != (FORMAT, VERSION):
        raise _changed("it is of another version")
    for file in manifest.files:
        _check_path(file.path)
    return manifest


def verified(chosen: Path, keyring: Keyring) -> tuple[Manifest, str]:
    """Return the list of a set and its SHA-256, its signature verified.

    Raises:
        DigestMismatch: it is not the list that was signed.
    """
    manifest = glance(chosen)
    try:
        digest = hashlib.sha256((chosen / MANIFEST).read_bytes()).digest()
        note = notes.read((chosen / NOTE).read_bytes(), notes.verifiers(origin(keyring), keyring.public_keys()))
    except OSError as error:
        raise _changed("its signature is missing") from error
    except LedgerBroken as error:
        raise _changed(f"its signature does not verify: {error.message}") from error
    if (note.origin, note.size, note.root) != (origin(keyring), len(manifest.files), digest) or manifest.archive != keyring.archive_uuid:
        raise _changed("its list of files is not the one that was signed")
    return manifest, digest.hex()


def _check_path(text: str) -> None:
    """Refuse a path that leads out of the backup."""
    inner = text.removeprefix(f"../../{SEGMENTS}/")
    path = PurePosixPath(inner)
    shared = inner != text
    if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in text or "\0" in text or (shared and len(path.parts) != 1):
        raise _changed("a path in its list leads elsewhere")


def _changed(why: str) -> DigestMismatch:
    return DigestMismatch(f"the backup is not what was written: {why}", remedy=_REMEDY, verdict="V13")


def copy(source: Path, target: Path, *, length: int | None = None, step: Callable[[int], None] = lambda _bytes: None) -> Copied:
    """Copy a file, or its first bytes, durably; under its name only once it is whole.

    Raises:
        OSError.
    """
    private_files.make_directory(target.parent)
    half = target.with_name(f".{target.name}.part")
    digest, left, size = hashlib.sha256(), length, 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with source.open("rb", buffering=0) as reading, os.fdopen(os.open(half, flags, 0o600), "wb", buffering=0) as writing:
        view = memoryview(bytearray(PIECE))
        while left is None or left > 0:
            count = reading.readinto(view if left is None else view[: min(PIECE, left)]) or 0
            if not count:
                break
            digest.update(view[:count])
            done = 0
            while done < count:  # a disk that is nearly full takes a part
                done += writing.write(view[done:count])
            size += count
            left = None if left is None else left - count
            step(count)
        os.fsync(writing.fileno())
    half.replace(target)
    return Copied(size, digest.hexdigest())


def hashed(path: Path) -> Copied:
    """Return size and SHA-256 of a file.

    Raises:
        OSError.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Copied(os.fstat(file.fileno()).st_size, digest)


def require(file: File, found: Copied | None) -> None:
    """Refuse a file that is missing or not the one in the list.

    Raises:
        DigestMismatch: V01, V02 or V03.
    """
    if found is not None and (found.size, found.sha256) == (file.size, file.sha256):
        return
    verdict = "V01" if found is None else "V02" if found.size != file.size else "V03"
    said = {"V01": "is missing", "V02": "has another size", "V03": "was changed"}[verdict]
    message = f"the backup's file {file.path} {said}"
    raise DigestMismatch(message, remedy=_REMEDY, verdict=verdict)


def as_dict(manifest: Manifest) -> dict[str, Any]:
    """Return what people are told of a backup."""
    return {
        "made_at": manifest.made_at, "archive": manifest.archive, "software": manifest.software, "events": manifest.leaves,
        "keys": manifest.keys, "files": len(manifest.files), "bytes": sum(file.size for file in manifest.files),
    }
