"""Request bodies: bounded in size, in memory and in patience.

The server's `wsgi.input` blocks without a limit and tells a dropped connection only by ending early. So a body is pulled by a
thread of its own into a queue of a few blocks: reading overlaps with sealing, a sender that stalls gets 408 and costs no worker
thread, and what falls short of Content-Length is a drop, never an end.
"""

from __future__ import annotations

import io
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from werkzeug.exceptions import HTTPException, RequestEntityTooLarge, RequestTimeout, ServiceUnavailable

BLOCK_BYTES = 256 << 10
BLOCKS_AHEAD = 4
PATIENCE_S = 60.0
"""A block must come within this time: no sender may be slower than some 4 KiB/s."""

STORE_SLOWEST = 64 << 10
"""Bytes a second, on the whole, of instances for whose place others wait: a clinic's line that many share is faster."""
STORE_GRACE_S = 8.0
"""So long nobody is slow, and so long nothing may come."""
STORE_WAIT_S = 10.0
_LOOK_S = 0.25

FORM_BYTES = 1 << 20
FORM_PATIENCE_S = 10.0
FORM_WAIT_S = 1.0

DRAIN_S = 30.0
REFUSED_BYTES = 64 << 20
REFUSED_DRAIN_S = 3.0

# A stalled reader cannot be interrupted, only left alone until its peer goes away; this many may wait so in one process.
_readers = threading.BoundedSemaphore(512)


class Slots:
    """How many of a process's threads may wait for request bodies: never so many that reads find none.

    Forms come from strangers too (signing in), so they may hold few threads; stores have proved who they are.
    """

    def __init__(self, threads: int) -> None:
        """`threads` is how many requests the process serves at once."""
        self._forms = threading.BoundedSemaphore(max(1, threads // 4))
        self._stores = _Places(max(1, threads - 2))

    @contextmanager
    def form(self, wait_s: float = FORM_WAIT_S) -> Iterator[None]:
        """Hold a place while a form comes in.

        Raises:
            ServiceUnavailable: all are taken, for longer than a form needs.
        """
        with _held(self._forms, wait_s):
            yield

    @contextmanager
    def store(self, wait_s: float = STORE_WAIT_S) -> Iterator[Place]:
        """Hold a place while instances come in; where there is none, the slowest sender is to give up theirs.

        Raises:
            ServiceUnavailable: all are taken, or somebody waits already: one more would only hold one more thread.
        """
        place = self._stores.take(wait_s)
        try:
            yield place
        finally:
            self._stores.give_back(place)


@contextmanager
def _held(semaphore: threading.BoundedSemaphore, timeout_s: float) -> Iterator[None]:
    if not semaphore.acquire(timeout=timeout_s):
        raise ServiceUnavailable(retry_after=2)
    try:
        yield
    finally:
        semaphore.release()


class Place:
    """What one request holds, and the body that comes in there."""

    body: Body | None = None


class _Places:
    """So many places, and who holds them."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._changed = threading.Condition()
        self._taken: set[Place] = set()
        self._waited_for = False

    def take(self, wait_s: float) -> Place:
        until = time.monotonic() + wait_s
        place = Place()
        with self._changed:
            if self._waited_for:
                self._end_slowest()
                raise ServiceUnavailable(retry_after=2)
            try:
                while not self._free:
                    self._end_slowest()
                    self._waited_for = True
                    if (left_s := until - time.monotonic()) <= 0:
                        raise ServiceUnavailable(retry_after=2)
                    self._changed.wait(min(_LOOK_S, left_s))
            finally:
                self._waited_for = False
            self._free -= 1
            self._taken.add(place)
        return place

    def give_back(self, place: Place) -> None:
        with self._changed:
            self._taken.discard(place)
            self._free += 1
            self._changed.notify_all()

    def _end_slowest(self) -> None:
        """End one; no other before it is gone."""
        bodies = [place.body for place in self._taken if place.body is not None]
        now = time.monotonic()
        slow = [one for one in bodies if one.slow(now, STORE_SLOWEST, STORE_GRACE_S)]
        if slow and not any(one.over for one in bodies):
            min(slow, key=lambda one: one.pace(now)).interrupt()


class Dropped(HTTPException):
    """The client went away before its body was complete; what had begun is undone."""

    code = 400
    description = "the request body ended before it was complete"


class Body:
    """The bytes of one request, in blocks; close it whatever happens."""

    def __init__(
        self, source: IO[bytes], *, content_length: int | None, max_bytes: int,
        patience_s: float = PATIENCE_S, block_bytes: int = BLOCK_BYTES,
    ) -> None:
        """Start reading.

        Raises:
            RequestEntityTooLarge: Content-Length says so.
            ServiceUnavailable: too many senders are stalled already.
        """
        if content_length is not None and content_length > max_bytes:
            raise RequestEntityTooLarge
        if not _readers.acquire(blocking=False):
            raise ServiceUnavailable(retry_after=30)
        self._left = content_length
        self._max_bytes = max_bytes
        self._patience_s = patience_s
        self._seen_bytes = 0
        self._waited_s = 0.0
        self._waiting_since: float | None = None
        self.over = False
        self._ended = False
        self._stopped = threading.Event()
        self._blocks: queue.Queue[bytes | BaseException] = queue.Queue(BLOCKS_AHEAD)
        threading.Thread(target=self._pull, args=(source, block_bytes), name="body", daemon=True).start()

    def read(self) -> bytes:
        """Return the next block, b"" once at the end.

        Raises:
            RequestTimeout: the sender is too slow, on the whole or for others that wait.
            RequestEntityTooLarge: there is more than max_bytes.
            Dropped: fewer bytes came than Content-Length said, or the connection broke.
        """
        if self._ended:
            return b""
        block = self._next()
        if isinstance(block, BaseException):
            self._ended = True
            raise Dropped from block
        self._seen_bytes += len(block)
        if self._seen_bytes > self._max_bytes:
            self.close()
            raise RequestEntityTooLarge
        if not block:
            self._ended = True
            if self._left is not None and self._seen_bytes < self._left:
                raise Dropped
        return block

    def _next(self) -> bytes | BaseException:
        self._waiting_since = begun = time.monotonic()
        try:
            block = b"" if self.over else self._blocks.get(timeout=self._patience_s)
        except queue.Empty:
            block = b""
            self.over = True
        finally:
            self._waiting_since = None
            self._waited_s += time.monotonic() - begun
        if self.over:
            self.close()
            raise RequestTimeout
        return block

    def pace(self, now: float) -> float:
        """Return how many bytes a second came while they were waited for."""
        since = self._waiting_since
        waited_s = self._waited_s + (0.0 if since is None else now - since)
        return self._seen_bytes / max(waited_s, 1e-9)

    def slow(self, now: float, slowest: int, grace_s: float) -> bool:
        """Whether its sender keeps waiting who reads: nothing comes for that long, or fewer bytes a second since; work on them is none."""
        since = self._waiting_since
        if since is None or self.over:
            return False
        return now - since > grace_s or (self._waited_s + now - since > grace_s and self.pace(now) < slowest)

    def interrupt(self) -> None:
        """End it for others: who waits in `read`, or comes to it, is told that the sender is too slow; called from another thread."""
        self.over = True
        with suppress(queue.Full):  # then nobody waits
            self._blocks.put_nowait(b"")

    def drain(self, *, for_s: float) -> None:
        """Throw away what still comes, for a while: over TLS a client that is cut off while it sends never reads why."""
        until_s = time.monotonic() + for_s
        with suppress(HTTPException):
            while (left_s := until_s - time.monotonic()) > 0:
                self._patience_s = left_s
                if not self.read():
                    return

    def close(self) -> None:
        """Read no further."""
        self._ended = True
        self._stopped.set()
        with suppress(queue.Empty):
            while True:
                self._blocks.get_nowait()

    def _pull(self, source: IO[bytes], block_bytes: int) -> None:
        try:
            while not self._stopped.is_set():
                try:
                    block: bytes | BaseException = source.read(block_bytes)
                except Exception as error:  # noqa: BLE001 # whatever the server raises for a broken connection
                    block = error
                self._offer(block)
                if not block or isinstance(block, BaseException):
                    return
        finally:
            _readers.release()

    def _offer(self, block: bytes | BaseException) -> None:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._blocks.put(block, timeout=1.0)
                return


def content_length(environ: dict[str, Any]) -> int | None:
    """Return Content-Length, None when there is none (a chunked body)."""
    text = environ.get("CONTENT_LENGTH") or ""
    return int(text) if text.isascii() and text.isdigit() else None


def has_body(environ: dict[str, Any]) -> bool:
    """Return whether bytes follow the head of the request."""
    length = content_length(environ)
    if length is not None:
        return length > 0
    chunked = "chunked" in environ.get("HTTP_TRANSFER_ENCODING", "").lower()
    return chunked or environ["REQUEST_METHOD"] not in {"GET", "HEAD", "OPTIONS"}


def take_small(environ: dict[str, Any]) -> None:
    """Read a form or JSON body now, bounded, and put it in place of the server's stream.

    Raises:
        RequestTimeout, RequestEntityTooLarge, Dropped, ServiceUnavailable.
    """
    body = Body(
        environ["wsgi.input"], content_length=content_length(environ), max_bytes=FORM_BYTES,
        patience_s=FORM_PATIENCE_S, block_bytes=FORM_BYTES,
    )
    try:
        whole = b"".join(iter(body.read, b""))
    finally:
        body.close()
    environ["wsgi.input"] = io.BytesIO(whole)
    environ["CONTENT_LENGTH"] = str(len(whole))
    environ.pop("HTTP_TRANSFER_ENCODING", None)


def drain_refused(environ: dict[str, Any], slots: Slots) -> None:
    """Throw away a body that was refused before it was read, when it is small enough to wait for and a place is free."""
    length = content_length(environ)
    if not has_body(environ) or (length is not None and length > REFUSED_BYTES):
        return
    with suppress(ServiceUnavailable), slots.form(0.0):
        body = Body(environ["wsgi.input"], content_length=length, max_bytes=REFUSED_BYTES)
        body.drain(for_s=REFUSED_DRAIN_S)
        body.close()
