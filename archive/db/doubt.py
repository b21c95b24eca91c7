"""Whether SQLite's log may have a gap on the disk: told by whoever saw it to every process that writes.

A sync that fails loses what was to be written, is told of once, and the next one succeeds: later commits would lie behind a gap. So before
the next commit, whichever process makes it, the log is written into the database and cut. The doubt stands in the first byte of the
writers' lock file, read and written by who has the turn; where there is no such file, the process that saw it is the only one.
"""

from __future__ import annotations

import os

_MARK = b"!"


class Doubt:
    """One database's; not safe to share between threads that do not take turns."""

    def __init__(self) -> None:
        """Begin without."""
        self._here = False

    def stands(self, file: int | None) -> bool:
        """Whether anybody doubts."""
        return self._here or (file is not None and os.pread(file, 1, 0) == _MARK)

    def begin(self, file: int | None) -> None:
        """Doubt, until the log has been cut."""
        self._here = True
        if file is not None:
            os.pwrite(file, _MARK, 0)

    def end(self, file: int | None) -> None:
        """Doubt no more."""
        if file is not None:
            os.ftruncate(file, 0)
        self._here = False
