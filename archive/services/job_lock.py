"""Who works on a job: a lock that ends with its process, so that a job that was killed is told from one that runs."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from archive.errors import VaultUnavailable


class JobLock:
    """One job of this process, until `release`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Hold an open file whose lock was taken; use `take`."""
        self._path, self._descriptor = path, descriptor

    def release(self) -> None:
        """Let go, once the job's row says how it ended."""
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def take(folder: Path, number: int) -> JobLock | None:
    """Take a job, or return None while another works on it.

    Raises:
        VaultUnavailable: the lock file cannot be written.
    """
    path = folder / f"job-{number}.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror}"
        raise VaultUnavailable(message, remedy="give the archive's user the right to write there") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return JobLock(path, descriptor)


def is_taken(folder: Path, number: int) -> bool:
    """Return whether a process works on a job now."""
    try:
        descriptor = os.open(folder / f"job-{number}.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
