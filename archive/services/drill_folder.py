"""The folder of a drill: what it holds is removed when the drill ends, and by the next drill or backup when it was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = ".drill-"
STORAGE = "storage"
_LOCK = ".lock"


@contextmanager
def made(parent: Path | None) -> Iterator[Path]:
    """Make a folder that only this user may enter, below `parent` or where temporary files are, and remove it at the end."""
    while True:
        place = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        descriptor = _held(place)
        if descriptor is not None:
            break
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        os.close(descriptor)


def _held(place: Path) -> int | None:
    """Lock a new folder; None when it was taken for one that was left, and is gone."""
    with suppress(FileNotFoundError):
        descriptor = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), (place / _LOCK).stat()):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)
    return None


def sweep(parent: Path | None) -> None:
    """Remove what killed drills have left below a folder, or where temporary files are: copies of keys, and links that keep space."""
    for place in (Path(tempfile.gettempdir()) if parent is None else parent).glob(f"{PREFIX}*"):
        with suppress(OSError):  # another user's, or gone
            if place.is_symlink() or place.stat().st_uid != os.geteuid() or {one.name for one in place.iterdir()} - {STORAGE, _LOCK}:
                continue
            descriptor = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(place, ignore_errors=True)
            finally:
                os.close(descriptor)
