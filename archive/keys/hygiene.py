"""Keep keys in memory out of reach: no core dumps, no debugger of the same user."""

from __future__ import annotations

import ctypes
import resource
import sys

_PR_SET_DUMPABLE = 4  # prctl(2)


def harden_process() -> bool:
    """Forbid core dumps and tracing of this process; return whether everything took effect.

    Without PR_SET_DUMPABLE another process of the same user could read the keys through /proc/PID/mem.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return False
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        return bool(libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False
