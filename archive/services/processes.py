"""Names of this machine's processes, under which they hold what the death of one gives back."""

from __future__ import annotations

import os
from pathlib import Path


def this_worker() -> str:
    """Return "<pid>-<start time>" of this process: a process id alone comes back."""
    return f"{os.getpid()}-{_started(os.getpid())}"


def is_alive(worker: str) -> bool:
    """Whether the process of that name still runs."""
    pid, _, started = worker.partition("-")
    if not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return started in ("", _started(int(pid)))


def _started(pid: int) -> str:
    """Return when a process started, in ticks since boot; empty where the system does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
