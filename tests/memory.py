"""Peak memory of this process; getrusage's would count what the parent was when it forked."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path


def forget_peak() -> None:
    """Let the peak start again from what is resident now, where the kernel allows it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int:
    """Return the largest resident size since the start or `forget_peak` (VmHWM)."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024
