"""The writers' turn: of all threads and processes that share a lock file one writes at a time."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from archive.db.failures import translated


class Turns:
    """One database's; without a lock file nobody waits, and only a thread inside its own turn is told apart."""

    def __init__(self, path: Path | None) -> None:
        """Open the file when it is first wanted."""
        self.file: int | None = None
        """The lock file of who has the turn."""
        self._path = path
        self._one = threading.Lock()
        self._here = threading.local()

    def require_outside(self) -> None:
        """Raise RuntimeError inside a turn of this thread, which would wait for itself."""
        if getattr(self._here, "writing", False):
            message = "this thread has a write transaction open already"
            raise RuntimeError(message)

    @contextmanager
    def take(self) -> Iterator[None]:
        """Wait for the turn and have it.

        Raises:
            DatabaseUnavailable: the file cannot be locked.
        """
        self.require_outside()
        self._here.writing = True
        try:
            with self._locked():
                yield
        finally:
            self._here.writing = False

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._path is None:
            yield
            return
        with self._one:
            with translated():
                if self.file is None:
                    self.file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(self.file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self.file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file, once whoever has the turn is through."""
        with self._one:
            file, self.file = self.file, None
        if file is not None:
            os.close(file)
