"""Whether the machine's processors have anything to spare, as the kernel counts it."""

from __future__ import annotations

import os
import time
from pathlib import Path

SPARE = 0.25
"""Of one processor: less than this idle means that others want all of them."""

_STAT = Path("/proc/stat")


class Processors:
    """Asked now and then, it tells of the time since it was asked last."""

    def __init__(self, stat: Path = _STAT) -> None:
        """Begin now."""
        self._stat = stat
        self._last = self._now()

    def busy(self) -> bool:
        """Whether what other processes leave over is hardly anything; False where the system does not say.

        Source: proc(5), /proc/stat.
        """
        last, self._last = self._last, self._now()
        elapsed_s = self._last[0] - last[0]
        return self._last[1] >= 0 and elapsed_s > 0 and self._last[1] - last[1] < SPARE * elapsed_s

    def _now(self) -> tuple[float, float]:
        """Return the time, and the seconds that all processors were idle or ours; negative when nobody counts them."""
        try:
            fields = self._stat.read_text(encoding="ascii").partition("\n")[0].split()
            idle_s = (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError):
            return time.monotonic(), -1.0
        return time.monotonic(), idle_s + time.process_time()
