"""Lock files: what one process at a time may do (flock(2)). A lock ends with the process that holds it, however that ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from archive.errors import VaultUnavailable


def take(path: Path, *, shared: bool = False) -> int | None:
    """Return a descriptor that holds the lock until it is closed, or None while another has it; several may have it `shared`.

    Raises:
        VaultUnavailable: the lock file cannot be written.
    """
    descriptor = _opened(path)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def is_taken(path: Path) -> bool:
    """Return whether a process holds the lock now; nobody holds one that was never taken."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock; whoever else wants it waits.

    Raises:
        VaultUnavailable: the lock file cannot be written.
    """
    descriptor = _opened(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def alone_if_free(path: Path) -> Iterator[bool]:
    """Whether nobody held the lock; then nobody else gets it while this lasts.

    Raises:
        VaultUnavailable: the lock file cannot be written.
    """
    descriptor = take(path)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror}"
        raise VaultUnavailable(message, remedy="give the archive's user the right to write there") from error
