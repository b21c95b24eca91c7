"""The locks that this process holds on files, as the system tells them of each descriptor.

/proc/locks is a list of everybody's, told in pieces: what others take and give back meanwhile makes some of ours appear twice or never.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def held(files: Iterable[Path]) -> list[tuple[str, ...]]:
    """Kind, mode, process, file and extent of each lock on these files."""
    wanted = {str(file.stat().st_ino) for file in files}
    found = []
    for descriptor in Path("/proc/self/fdinfo").iterdir():
        with suppress(FileNotFoundError):
            told = (line.split()[2:] for line in descriptor.read_text(encoding="ascii").splitlines() if line.startswith("lock:"))
            found += [tuple(lock) for lock in told if lock[4].rpartition(":")[2] in wanted]
    return sorted(found)
