"""Files only their owner may read: written whole or not at all, refused when anyone else could read them.

Source: docs/format.md 5.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import secrets
import stat
from contextlib import suppress
from io import BufferedWriter
from pathlib import Path

from archive.errors import KeysUnavailable


def read(path: Path, *, limit_bytes: int = 1 << 20) -> bytes:
    """Return the content of a file that belongs to this process's user alone.

    Raises:
        KeysUnavailable: absent, unreadable, longer than the limit, another owner, or open to group or others.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        message = f"{path} is missing"
        raise KeysUnavailable(message, remedy="put it back from its backup, or run 'archive init' for a new archive") from None
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            _check(path, os.fstat(descriptor))
            data = file.read(limit_bytes + 1)
    except OSError as error:
        raise _unreadable(path, error) from error
    finally:
        os.close(descriptor)
    if len(data) > limit_bytes:
        message = f"{path} is too long to be what its name says"
        raise KeysUnavailable(message, remedy="put it back from its backup")
    return data


def _unreadable(path: Path, error: OSError) -> KeysUnavailable:
    return KeysUnavailable(f"{path} cannot be read: {error.strerror}", remedy="run as the user the archive belongs to")


def check_directory(path: Path) -> None:
    """Refuse a folder of keys that anyone but its owner may enter.

    Raises:
        KeysUnavailable.
    """
    try:
        found = path.stat()
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}"
        raise KeysUnavailable(message, remedy="run 'archive init' for a new archive, or name its folder in [keys]") from error
    _check(path, found)


def _check(path: Path, found: os.stat_result) -> None:
    folder = stat.S_ISDIR(found.st_mode)
    if not (folder or stat.S_ISREG(found.st_mode)):
        message = f"{path} is not a file"
        raise KeysUnavailable(message, remedy="put the file back from its backup")
    if found.st_uid != os.geteuid():
        message = f"{path} belongs to user id {found.st_uid}, but this process runs as {os.geteuid()}"
        raise KeysUnavailable(message, remedy=f"run as its owner, or hand it over: chown {os.geteuid()} {path}")
    if found.st_mode & 0o077:
        message = f"{path} may be read by group or others (mode {stat.S_IMODE(found.st_mode):04o})"
        raise KeysUnavailable(message, remedy=f"close it: chmod {'0700' if folder else '0600'} {path}")


_NOT_OURS = frozenset({errno.EACCES, errno.EPERM, errno.EINVAL, errno.EROFS})
"""A parent that this user may write to but not open, and file systems that sync no folders."""
_NAMELESS: int = getattr(os, "O_TMPFILE", 0)
"""Opens a folder for a file without a name; where there are none (macOS), opening fails as for any folder."""
_LEFT = re.compile(r"[0-9a-f]{12}")


def make_directory(path: Path, mode: int = 0o700) -> None:
    """Make a folder with that mode when it is not there, its name durable when this returns; one that is there keeps its mode.

    Files that are synced are lost all the same with the name of a folder above them that was not. One that is there and empty may be
    what a run that was cut short has made.

    Raises:
        OSError.
    """
    _make(path, mode)


def _make(path: Path, mode: int) -> None:
    if path.is_dir():
        with suppress(PermissionError):
            if next(path.iterdir(), None) is not None:
                return
    else:
        if path.parent != path:
            _make(path.parent, 0o777)
        path.mkdir(mode=mode, exist_ok=True)
    try:
        sync_directory(path.parent)
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise


def write(path: Path, data: bytes, *, mode: int = 0o600, replace: bool = True) -> None:
    """Put `data` at `path`, durable when this returns; a crash leaves the old file or the new one, never a part.

    A new one (`replace` is False) never has another name either, which a crash would leave beside it. But where files cannot be without a
    name, or have one only, as on a stick with FAT, it is written at its place, and a crash may leave a part of it.

    Raises:
        KeysUnavailable: it cannot be written, or is there already and `replace` is False.
    """
    try:
        if replace:
            _exchange(path, data, mode)
        elif not _linked(path, data, mode):
            _create(path, data, mode)
        sync_directory(path.parent)
    except FileExistsError as error:
        message = f"{path} is there already"
        raise KeysUnavailable(message, remedy="name a file that does not exist yet") from error
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror}"
        raise KeysUnavailable(message, remedy="make room, or give the archive's user the right to write there") from error


def sweep(path: Path) -> None:
    """Remove what writes of this file that were killed left beside it; nobody may write it just now."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        if _LEFT.fullmatch(left.name.removeprefix(f".{path.name}.")):
            with suppress(OSError):
                left.unlink()


def _exchange(path: Path, data: bytes, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        _create(temporary, data, mode)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _linked(path: Path, data: bytes, mode: int) -> bool:
    """Write a file that has no name, then give it its own, unless that is another's; False where that cannot be done."""
    try:
        descriptor = os.open(path.parent, os.O_WRONLY | _NAMELESS | os.O_CLOEXEC, mode)
    except OSError:
        return False
    with os.fdopen(descriptor, "wb") as file:
        _fill(file, data, mode)
        try:
            # With a descriptor it is linkat(2), which follows this to the open file.
            os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor, follow_symlinks=True)
        except FileExistsError:
            raise
        except OSError:
            return False
    return True


def _create(path: Path, data: bytes, mode: int) -> None:
    """Write a file that is not there, or none."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            _fill(file, data, mode)
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


def _fill(file: BufferedWriter, data: bytes, mode: int) -> None:
    os.fchmod(file.fileno(), mode)
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Return when the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
