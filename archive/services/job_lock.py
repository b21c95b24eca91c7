"""Who works on a job: a lock that ends with its process, so that a job that was killed is told from one that runs."""

from __future__ import annotations

import os
from pathlib import Path

from archive import locks


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
    path = _path(folder, number)
    descriptor = locks.take(path)
    return None if descriptor is None else JobLock(path, descriptor)


def is_taken(folder: Path, number: int) -> bool:
    """Return whether a process works on a job now."""
    return locks.is_taken(_path(folder, number))


def _path(folder: Path, number: int) -> Path:
    return folder / f"job-{number}.lock"
