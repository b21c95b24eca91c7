"""Work in threads beside the background worker: webhooks, alerts, audit messages, whose receivers may be slow and hold nothing up."""

from __future__ import annotations

import logging
import threading
from typing import Protocol

from archive.errors import ArchiveError

log = logging.getLogger("archive.jobs")


class Ticking(Protocol):
    """What has something to do now and then."""

    def tick(self) -> int:
        """Do what is due and return how much that was."""


def start(name: str, work: Ticking, stop: threading.Event, *, look_s: float) -> threading.Thread:
    """Look each `look_s` seconds until `stop` is set, and again at once while there was something to do."""
    thread = threading.Thread(target=_run, args=(name, work, stop, look_s), name=name, daemon=True)
    thread.start()
    return thread


def _run(name: str, work: Ticking, stop: threading.Event, look_s: float) -> None:
    while not stop.wait(look_s):
        try:
            while work.tick() and not stop.is_set():
                pass
        except ArchiveError as error:
            log.error("%s failed: %s", name, error.message, extra={"code": error.code, "remedy": error.remedy})
        except Exception:
            log.exception("%s failed", name)
