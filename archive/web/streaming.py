"""Bodies that leave while they are read: an error before the first byte is an answer, one after it cuts the connection short.

The length is stated wherever it is known, so that a body cut short can never pass for a whole one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flask import Response, g, request

from archive.errors import ArchiveError
from archive.web.problems import route

log = logging.getLogger("archive.web")

AT_ONCE_BYTES = 1 << 20
"""An answer known to be no longer is made whole and handed to the server in one piece: each piece costs a change of threads."""


class Stream:
    """An iterator for the server that keeps faults to itself: they are logged by class and end the body early."""

    def __init__(self, chunks: Iterator[bytes | memoryview]) -> None:
        """Produce the first chunk now, so that what it raises becomes an answer of its own."""
        self._chunks = chunks
        self._request_id: str = g.get("request_id", "")
        self._route = route()
        self._first: bytes | memoryview | None = next(chunks, None)
        self.sent_bytes = 0

    def __iter__(self) -> Stream:
        """Return itself."""
        return self

    def __next__(self) -> bytes:
        """Return the next chunk, as bytes of its own: a view ends with the next one, and a server may keep what it was given."""
        chunk, self._first = self._first, None
        if chunk is None:
            try:
                chunk = next(self._chunks)
            except StopIteration:
                raise
            except Exception as error:  # noqa: BLE001 # the status is sent: all that is left is to stop
                code = error.code if isinstance(error, ArchiveError) else "unexpected"
                log.error("answer cut short", extra={  # a traceback would hold the error's own text
                    "request_id": self._request_id, "route": self._route, "error": code, "class": type(error).__qualname__,
                    "sent_bytes": self.sent_bytes,
                })
                raise StopIteration from None
        self.sent_bytes += len(chunk)
        return chunk if isinstance(chunk, bytes) else bytes(chunk)

    def close(self) -> None:
        """Let go of what is being read; the server calls this also when the client went away."""
        close: Callable[[], None] | None = getattr(self._chunks, "close", None)
        if close is not None:
            close()


def stream(
    chunks: Callable[[], Iterator[bytes | memoryview]], *, content_type: str, length: int | None, single: bool = False
) -> Response:
    """Return a streaming answer; for HEAD nothing is read. A short one of a `single` object is read before its head is sent."""
    if request.method == "HEAD":
        response = Response(status=200, content_type=content_type)
        response.automatically_set_content_length = False
    elif single and length is not None and length <= AT_ONCE_BYTES:
        response = Response(whole(chunks(), length), status=200, content_type=content_type)
    else:
        response = Response(Stream(chunks()), status=200, content_type=content_type)
    if length is not None:
        response.headers["Content-Length"] = str(length)
    return response


def whole(chunks: Iterator[bytes | memoryview], length: int) -> list[bytes]:
    """Return all chunks, each as bytes of its own: what they raise is an answer of its own up to the last of them."""
    pieces = [chunk if isinstance(chunk, bytes) else bytes(chunk) for chunk in chunks]
    if sum(map(len, pieces)) != length:
        message = "an answer is not as long as was said"
        raise RuntimeError(message)
    return pieces


def begun(chunks: Iterator[bytes | memoryview], content_type: str) -> Response:
    """Return an answer whose length is not known before: a short one is read before its head is sent, which says how long it is."""
    pieces, rest = short(chunks)
    return Response(pieces if rest is None else Stream(rest), status=200, content_type=content_type)


def short(chunks: Iterator[bytes | memoryview]) -> tuple[list[bytes], Iterator[bytes | memoryview] | None]:
    """Return all chunks of a body that is short; of a longer one all that it yields, those taken so far again."""
    pieces: list[bytes] = []
    length = 0
    for chunk in chunks:
        pieces.append(chunk if isinstance(chunk, bytes) else bytes(chunk))
        length += len(chunk)
        if length > AT_ONCE_BYTES:
            return [], _again(pieces, chunks)
    return pieces, None


def _again(pieces: list[bytes], chunks: Iterator[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    yield from pieces
    yield from chunks


class Answer(Response):
    """A response whose body, when it is all there, goes to the server in one piece with its head."""

    def get_app_iter(self, environ: dict[str, Any]) -> Iterable[bytes]:
        """Return a list when nothing has to be waited for: granian sends that at once."""
        if not self.is_sequence or environ["REQUEST_METHOD"] == "HEAD" or self.status_code in {204, 304}:
            return super().get_app_iter(environ)
        body = list(self.iter_encoded())
        self.close()
        return body
