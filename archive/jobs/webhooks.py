"""Sends what webhooks are due, in a thread of the background worker: a receiver that is slow holds up nothing else."""

from __future__ import annotations

import logging
import threading
from typing import Protocol

from archive.errors import ArchiveError

LOOK_S = 1.0

log = logging.getLogger("archive.jobs")


class Webhooks(Protocol):
    """The part of `services.webhooks.Webhooks` that is used here."""

    def tick(self) -> int:
        """Deliver what is due."""


def start(webhooks: Webhooks, stop: threading.Event, *, look_s: float = LOOK_S) -> threading.Thread:
    """Deliver until `stop` is set."""
    thread = threading.Thread(target=_run, args=(webhooks, stop, look_s), name="webhooks", daemon=True)
    thread.start()
    return thread


def _run(webhooks: Webhooks, stop: threading.Event, look_s: float) -> None:
    while not stop.wait(look_s):
        try:
            while webhooks.tick() and not stop.is_set():
                pass
        except ArchiveError as error:
            log.error("webhooks failed: %s", error.message, extra={"code": error.code, "remedy": error.remedy})
        except Exception:
            log.exception("webhooks failed")
