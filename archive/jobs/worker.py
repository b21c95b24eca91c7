"""The background worker: calls the upkeep in short steps until it is told to stop."""

from __future__ import annotations

import logging
import threading
from typing import Protocol

from archive.errors import ArchiveError

TICK_S = 0.25
LONGEST_PAUSE_S = 30.0

log = logging.getLogger("archive.jobs")


class Upkeep(Protocol):
    """The part of `services.upkeep.Upkeep` that is used here."""

    def tick(self) -> object:
        """Do what is due: checkpoint, packs, segment hashes, WAL checkpoint, sweeping."""


def run(upkeep: Upkeep, stop: threading.Event, *, tick_s: float = TICK_S) -> None:
    """Tick until `stop` is set, then once more, so that the last checkpoint covers everything.

    A step that fails is logged and tried again, later each time: upkeep may wait, stores and reads do not depend on it.
    """
    failures = 0
    while not stop.wait(min(tick_s * 2**failures, LONGEST_PAUSE_S)):
        failures = 0 if _step(upkeep) else min(failures + 1, 10)
    _step(upkeep)


def _step(upkeep: Upkeep) -> bool:
    try:
        upkeep.tick()
    except ArchiveError as error:
        log.error("upkeep failed: %s", error.message, extra={"code": error.code, "remedy": error.remedy})
        return False
    except Exception:
        log.exception("upkeep failed")
        return False
    return True
