"""The allocators of long-lived workers: few arenas, free memory given back soon, and none carried into a fork.

Left alone glibc gives a process up to eight arenas a processor, and a thread an arena: workers whose threads come and go with associations
and requests each keep a little of every thread that ever ran. Python's threads seldom allocate at once, so two arenas lose nothing.
granian brings jemalloc along, four arenas a processor, each of which keeps what it had for a burst of large answers.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from contextlib import suppress
from typing import Any

ARENAS = 2
EVERY_S = 60.0
_M_ARENA_MAX = -8  # mallopt(3)
_GRANIAN = "_RJEM_MALLOC_CONF"
_DECAY_MS = 1000


def limit_arenas() -> bool:
    """Keep this process and what it forks to a few arenas; False where the system's allocator knows no such limit."""
    libc = _libc()
    return bool(libc is not None and hasattr(libc, "mallopt") and libc.mallopt(_M_ARENA_MAX, ARENAS) == 1)


def limit_granian() -> None:
    """The same for granian, which reads this when it is imported."""
    os.environ.setdefault(_GRANIAN, f"narenas:{ARENAS},dirty_decay_ms:{_DECAY_MS},muzzy_decay_ms:0")


def give_back() -> None:
    """Return free memory to the system, where that is possible."""
    libc = _libc()
    if libc is not None and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def keep_giving_back(every_s: float = EVERY_S) -> None:
    """Do that again and again for as long as the process lives: between them, long-lived pieces pin what bursts have left."""

    def run() -> None:
        while True:
            time.sleep(every_s)
            give_back()

    threading.Thread(target=run, name="memory", daemon=True).start()


def _libc() -> Any:
    with suppress(OSError):
        return ctypes.CDLL(None)
    return None
