"""One JSON line per event on standard error; never a data set's attribute.

Libraries that quote attribute values in messages (pydicom, pynetdicom) are silenced, and an exception is written as its class
and where it rose, without its text, unless it is one of ours, whose text holds no such value.
"""

from __future__ import annotations

import logging
import multiprocessing.util
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

import msgspec

from archive.errors import ArchiveError

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
HELD_S, HELD_LINES = 0.1, 1000
"""How long, and how many, lines of information wait to be written together."""

_SILENCED = ("pydicom", "pynetdicom", "PIL", "alembic", "sqlalchemy", "werkzeug")


class JsonLines(logging.Formatter):
    """A record as one line of JSON."""

    def __init__(self, role: str) -> None:
        """Every line names the process's `role`."""
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(), "logger": record.name, "role": self._role, "pid": record.process,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD and not name.startswith("_")}
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = describe(record.exc_info[1])
        return msgspec.json.encode(line, enc_hook=str).decode()


class Delayed(logging.StreamHandler[TextIO]):
    """Writes lines of information a moment later, from a thread of its own: no answer waits for the disk that the log lies on.

    A line that is more than information goes out at once, after all before it; so does everything at the end of the process.
    """

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`."""
        super().__init__(stream)
        self._held: deque[str] = deque()
        self._writing, self._some = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Hold the line back, or write it."""
        try:
            self._held.append(self.format(record) + "\n")
            if record.levelno > logging.INFO or len(self._held) >= HELD_LINES:
                self.flush()
                return
            if self._thread is None:  # not before: a process that forks its workers has none of these
                self._thread = threading.Thread(target=self._write_on, name="log", daemon=True)
                self._thread.start()
                multiprocessing.util.Finalize(None, self.flush, exitpriority=0)
            if not self._some.is_set():
                self._some.set()
        except Exception:  # noqa: BLE001 # as every handler
            self.handleError(record)

    def flush(self) -> None:
        """Write what is held back."""
        with self._writing:
            lines = [self._held.popleft() for _ in range(len(self._held))]
            if lines:
                self.stream.write("".join(lines))
            self.stream.flush()

    def _write_on(self) -> None:
        while self._some.wait():
            time.sleep(HELD_S)
            self._some.clear()
            try:
                self.flush()
            except (OSError, ValueError):
                return  # nowhere to write to any more


def describe(error: BaseException) -> dict[str, Any]:
    """Return an exception's class and where it rose; its text only when it is ours."""
    frames = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    text = {"message": error.message} if isinstance(error, ArchiveError) else {}
    return {"class": type(error).__qualname__, **text, "frames": frames}


def configure(role: str, level: int = logging.INFO) -> None:
    """Send this process's log to standard error as JSON lines, uncaught exceptions included."""
    handler = Delayed(sys.stderr) if role in {"web", "viewer"} else logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(role))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _SILENCED:
        logger = logging.getLogger(name)
        logger.handlers[:] = [logging.NullHandler()]
        logger.propagate = False
        logger.setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")  # a library's warning may quote a value
    log = logging.getLogger("archive.serve")

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        log.critical("uncaught exception", exc_info=(kind, error, trace))

    def uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            log.critical("uncaught exception in a thread", exc_info=(args.exc_type, args.exc_value, args.exc_traceback))

    sys.excepthook = uncaught
    threading.excepthook = uncaught_in_thread
