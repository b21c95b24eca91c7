"""Record an access while what was asked for is being read: nothing is handed on before the record is durable.

To somebody who asks alone the sync of the audit is the longest part of a request, and a thread of its own waits for it meanwhile. Those who
ask at the same time share a commit instead, which costs less than changes of threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from queue import SimpleQueue


class Recorder:
    """Counts who reads; any thread."""

    def __init__(self) -> None:
        """Nobody reads."""
        self._reading = 0
        self._lock = threading.Lock()

    @contextmanager
    def recorded(self, record: Callable[[], None], *, worth: bool = True) -> Iterator[None]:
        """Run the block after `record`, or while it runs where that is `worth` it; it is left, also by an error, when both are done.

        Raises:
            What `record` raises, whatever the block did: what it has read must go nowhere.
        """
        with self._lock:
            alone = not self._reading
            self._reading += 1
        try:
            if not alone or not worth:
                record()
                yield
                return
            begun = _begin(record)
            try:
                yield
            finally:
                begun.get()
        finally:
            with self._lock:
                self._reading -= 1


class _Begun:
    """A call in the other thread."""

    __slots__ = ("_call", "_done", "_error")

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._error: BaseException | None = None
        self._done = threading.Lock()
        self._done.acquire()

    def run(self) -> None:
        try:
            self._call()
        except BaseException as error:  # noqa: BLE001 # raised again in the thread that waits
            self._error = error
        finally:
            self._done.release()

    def get(self) -> None:
        """Return once the call has returned, or raise what it raised."""
        self._done.acquire()
        if self._error is not None:
            raise self._error


class _Thread:
    """The thread of a process, for all its archives; a fork leaves it behind."""

    def __init__(self) -> None:
        self.calls: SimpleQueue[_Begun] = SimpleQueue()
        threading.Thread(target=self._run, name="recorder", daemon=True).start()

    def _run(self) -> None:
        while True:
            self.calls.get().run()


@lru_cache(maxsize=1)
def _thread(_pid: int) -> _Thread:
    return _Thread()


def _begin(call: Callable[[], None]) -> _Begun:
    begun = _Begun(call)
    try:
        calls = _thread(os.getpid()).calls
    except RuntimeError:  # the system gives no more threads
        begun.run()
    else:
        calls.put(begun)
    return begun
