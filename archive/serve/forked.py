"""Worker processes made by fork: they share what their parent has imported, some seventy megabytes that each would have to itself.

Only the supervisor forks, while it has one thread and no database open. A child starts from a clean table of file
descriptors: none but what it is handed, so that locks and lines of the supervisor end with the supervisor.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

from archive.errors import ArchiveError, Unavailable
from archive.serve import allocator

FORKS = sys.platform == "linux"
"""Elsewhere system libraries do not survive a fork, and workers are started anew."""

_STANDARD_ERROR = 2
_NEVER_USED = ("gdcm", "requests")
"""What pydicom imports where it is there, for decoders and downloads that nobody asks it for: 14 MB. GDCM has a process of its own."""
COLLECTIONS = (700, 10, 10)
"""The interpreter's own thresholds, for processes that live long: the command line has others while it imports."""
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Held back while forking: a child that is told to end before it has left its parent's handlers behind would not."""
_PR_SET_PDEATHSIG = 1  # prctl(2): who is killed while it waits does not leave a child at work


class Forked:
    """A child process, with what is used of subprocess.Popen."""

    def __init__(self, run: Callable[[], int], *, keep: Collection[int] = ()) -> None:
        """Fork a child that runs `run` and exits with its result; `keep` are the descriptors it takes along."""
        self._code: int | None = None
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        try:
            self.pid = os.fork()
            if not self.pid:
                _become(run, keep, before)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs; a signal's is negative."""
        return self._wait(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit status.

        Raises:
            TimeoutError.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self._wait(os.WNOHANG if deadline else 0)) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.02)
        return code

    def terminate(self) -> None:
        """Send SIGTERM."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def _wait(self, options: int) -> int | None:
        if self._code is None:
            try:
                pid, status = os.waitpid(self.pid, options)
            except ChildProcessError:
                self._code = -1
            else:
                self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code


def preload(*, postgresql: bool = False) -> None:
    """Import what every worker needs and set it aside from the garbage collector, whose marks would copy the pages."""
    with _absent(*_NEVER_USED):
        import archive.dimse.worker
        import archive.jobs.worker
        import archive.node
        import archive.web.wsgi

    assert all((archive.dimse.worker, archive.jobs.worker, archive.web.wsgi))
    archive.node.load()
    if postgresql:
        import_module("sqlalchemy.dialects.postgresql")
    else:
        archive.node.compile_statements()
    gc.set_threshold(*COLLECTIONS)
    gc.collect()
    allocator.limit_arenas()
    allocator.give_back()
    gc.freeze()


@contextmanager
def _absent(*names: str) -> Iterator[None]:
    """Have modules look absent to those imported meanwhile."""
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment] # which is how the interpreter is told
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def called(work: Callable[[], Any]) -> Any:
    """Return what `work` returns in a child process: the memory it needs is given back.

    Raises:
        ArchiveError: what it raised. Unavailable: it ended without a word.
    """
    into, out = os.pipe()

    def run() -> int:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            answer: Any = (True, work())
        except ArchiveError as error:
            answer = (False, error)
        with os.fdopen(out, "wb") as pipe:
            pipe.write(pickle.dumps(answer))
        return 0

    child = Forked(run, keep=(out,))
    os.close(out)
    try:
        with os.fdopen(into, "rb") as pipe:
            said = pipe.read()
    except BaseException:
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
        raise
    finally:
        child.wait()
    if not said:
        message = "a process of the start or the stop did not come to its end"
        raise Unavailable(message, remedy="the log lines above say why; 'archive doctor' checks the rest")
    well, answer = pickle.loads(said)  # noqa: S301 # our own child's
    if not well:
        raise answer
    return answer


def _become(run: Callable[[], int], keep: Collection[int], signals: Collection[int]) -> None:
    """Be the child: nothing of the parent's goes on, and this never returns."""
    code = 1
    try:
        for number in _ENDING:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        os.setsid()  # Ctrl-C reaches the supervisor alone, which drains in order
        _close_others(keep)
        code = run()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException as error:  # noqa: BLE001 # the end of the process
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _close_others(keep: Collection[int]) -> None:
    """Close every descriptor but the standard ones and those to keep; standard input becomes empty."""
    wanted = sorted({fd for fd in keep if fd > _STANDARD_ERROR})
    first = _STANDARD_ERROR + 1
    for fd in wanted:
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, max(first, min(1 << 16, os.sysconf("SC_OPEN_MAX"))))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    if null:
        os.close(null)
