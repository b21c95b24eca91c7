"""The folder of a backup: whose it may be, one writer at a time, and what its files are called (docs/format.md 11)."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from archive.errors import IntegrityError, InvalidRequest, NotFound, Unavailable
from archive.services import drill_folder, manifest
from archive.services.core import Core
from archive.services.manifest import CURRENT, SEGMENTS, SETS, File


def refuse_foreign(core: Core, folder: Path) -> None:
    """Refuse a folder that is the archive's own or holds something else: what a backup does not need is removed from its folder.

    Raises:
        InvalidRequest.
    """
    storage, keys = core.config.storage_dir, core.config.keys_dir
    if folder.is_relative_to(storage) or storage.is_relative_to(folder) or folder.is_relative_to(keys) or keys.is_relative_to(folder):
        message = "a backup in the archive's own folder is lost with it"
        raise InvalidRequest(message, remedy="name a folder on another disk")
    there = {path.name for path in folder.iterdir() if not path.name.startswith(drill_folder.PREFIX)} if folder.is_dir() else set()
    strange = there - {SETS, SEGMENTS, CURRENT, ".lock", "lost+found"} if SETS in there else there - {".lock", "lost+found"}
    if strange:
        message = f"{folder} holds something that is not a backup"
        raise InvalidRequest(message, remedy="name an empty folder, or one that 'archive backup' has made")
    whose = core.keyring.archive_uuid
    with suppress(NotFound, IntegrityError, InvalidRequest):  # one that is damaged is made anew
        whose = manifest.glance(manifest.current(folder)).archive
    if whose != core.keyring.archive_uuid:
        message = f"{folder} holds a backup of another archive"
        raise InvalidRequest(message, remedy="name a folder of its own for each archive")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one backup at a time write to a folder.

    Raises:
        Unavailable: another does.
    """
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"another backup is being written to {folder}"
            raise Unavailable(message, remedy="wait for it to end") from None
        yield
    finally:
        os.close(descriptor)


def shared_name(name: str, sha256: str) -> tuple[str, str]:
    """Return the name of a closed segment in a backup, and its path below a set."""
    shared = f"{Path(name).stem}.{sha256[:16]}.seg"
    return shared, f"../../{SEGMENTS}/{shared}"


def segment_of(file: File) -> str:
    """Return which segment a file of a backup is a copy of, or nothing."""
    return Path(file.path).name.split(".")[0] if file.path.endswith(".seg") else ""
