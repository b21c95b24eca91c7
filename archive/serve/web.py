"""The web workers: granian under our supervision, each worker with a node of its own."""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from archive.config import Config
from archive.serve import allocator, logs, start
from archive.serve.handover import Handover, Link
from archive.serve.supervisor import DRAIN_S

_LOGGING: dict[str, Any] = {
    "version": 1, "disable_existing_loggers": False, "formatters": {}, "handlers": {},
    "loggers": {"_granian": {"level": "WARNING", "propagate": True}, "granian.access": {"level": "CRITICAL", "propagate": False}},
}


def run(link: Link, socket_path: Path, *, viewer: bool = False) -> None:
    """Serve the archive, or a viewer's origin, until SIGTERM; granian's own process forks workers and starts one again that dies."""
    allocator.limit_granian()
    from granian import Granian
    from granian.constants import HTTPModes, Interfaces
    from granian.log import LogLevels

    config = link.handover.config
    certificate, key = start.web_certificate(config)
    link.watch()
    granian = Granian(
        "archive.web", address=_address(config), port=config.viewer.port if viewer else config.http.port, interface=Interfaces.WSGI,
        workers=1 if viewer else config.http.workers or os.cpu_count() or 1, blocking_threads=config.http.threads, websockets=False,
        http=HTTPModes.http1,  # measured here: HTTP/2 halves the speed of large answers
        ssl_cert=certificate, ssl_key=key, respawn_failed_workers=True, workers_kill_timeout=int(DRAIN_S) - 5,
        log_level=LogLevels.error, log_dictconfig=_LOGGING, log_access=False,
    )
    granian.serve(target_loader=partial(load, str(socket_path), viewer=viewer), wrap_loader=False)


def run_events(link: Link, socket_path: Path) -> None:
    """Serve the notification connections until SIGTERM: one worker, for each connection costs no thread."""
    allocator.limit_granian()
    from granian import Granian
    from granian.constants import HTTPModes, Interfaces
    from granian.log import LogLevels

    config = link.handover.config
    certificate, key = start.web_certificate(config)
    link.watch()
    granian = Granian(
        "archive.web", address=_address(config), port=config.events.port, interface=Interfaces.ASGINL, workers=1, websockets=True,
        http=HTTPModes.http1, ssl_cert=certificate, ssl_key=key, respawn_failed_workers=True, workers_kill_timeout=5,
        log_level=LogLevels.error, log_dictconfig=_LOGGING, log_access=False,
    )
    granian.serve(target_loader=partial(load, str(socket_path), role="events"), wrap_loader=False)


def load(socket_path: str, *, viewer: bool = False, role: str = "") -> Any:
    """Open this worker's node and return the application granian calls; runs in each web worker."""
    role = role or ("viewer" if viewer else "web")
    allocator.limit_arenas()
    logs.configure(role)
    _end_with_parent()
    try:
        link = Link(Path(socket_path))
        app = _APPLICATIONS[role](link.handover)
    except Exception:
        logging.getLogger("archive.serve").critical("the web worker cannot start", exc_info=True)
        raise SystemExit(1) from None
    link.watch()
    link.ready()
    allocator.keep_giving_back()
    return app


_APPLICATIONS: dict[str, Callable[[Handover], Any]] = {
    "web": start.web_application, "viewer": start.viewer_application, "events": start.events_application,
}


def _address(config: Config) -> str:
    """Granian binds addresses, not names."""
    import socket

    found = socket.getaddrinfo(config.http.host, config.http.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return str(found[0][4][0])


def _end_with_parent() -> None:
    """A worker whose granian process was killed must not go on accepting."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()
