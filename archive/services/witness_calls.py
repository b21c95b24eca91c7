"""Calls to the witnesses that the configuration names: nowhere else, no redirect followed, no long wait, no long answer."""

from __future__ import annotations

import hashlib
import http.client
import socket
import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from archive.services.outgoing import Undeliverable

MAX_ANSWER_BYTES = 1 << 17


@dataclass(frozen=True, slots=True)
class Said:
    """An answer; `proven` tells whether TLS shows that it is the witness's."""

    status: int
    content_type: str
    body: bytes
    proven: bool


@dataclass(frozen=True, slots=True)
class Line:
    """How to reach a witness."""

    url: str
    ca_file: str = ""
    timeout_s: float = 10.0

    def add_checkpoint(self, body: bytes) -> Said:
        """Send a checkpoint (c2sp.org/tlog-witness).

        Raises:
            Undeliverable.
        """
        return self._call("POST", "/add-checkpoint", body)

    def newest(self, origin: str) -> bytes | None:
        """Return the checkpoint it remembers of a log, unverified; None from one that does not tell.

        Raises:
            Undeliverable.
        """
        said = self._call("GET", f"/checkpoint/{hashlib.sha256(origin.encode()).hexdigest()}", None)
        return said.body if said.status == 200 else None

    def _call(self, method: str, path: str, body: bytes | None) -> Said:
        parts = urlsplit(self.url)
        secure, host = parts.scheme == "https", parts.hostname or ""
        try:
            sock = socket.create_connection((host, parts.port or (443 if secure else 80)), self.timeout_s)
        except (OSError, UnicodeError) as error:
            raise _failed(f"no connection: {getattr(error, 'strerror', None) or type(error).__name__}") from None
        late = threading.Event()
        watchdog = threading.Timer(2 * self.timeout_s, _cut, [sock, late])  # one that answers byte by byte is not waited for
        watchdog.daemon = True
        watchdog.start()
        try:
            said = self._exchange(sock, method, parts.path.rstrip("/") + path, body)
        except ssl.SSLError as error:
            raise _failed(f"TLS: {error.reason or type(error).__name__}") from None
        except (OSError, http.client.HTTPException) as error:
            raise _failed(f"no answer: {type(error).__name__}") from None
        finally:
            watchdog.cancel()
            sock.close()
        if late.is_set():
            raise _failed("the answer takes too long")
        return said

    def _exchange(self, sock: socket.socket, method: str, path: str, body: bytes | None) -> Said:
        parts = urlsplit(self.url)
        secure = parts.scheme == "https"
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port or (443 if secure else 80), timeout=self.timeout_s)
        connection.sock = sock
        if secure:
            context = ssl.create_default_context(cafile=self.ca_file or None)
            connection.sock = context.wrap_socket(sock, server_hostname=parts.hostname)
        try:
            connection.request(method, path, body, {"Connection": "close", "Content-Type": "text/plain; charset=utf-8"})
            answer = connection.getresponse()
            data = answer.read(MAX_ANSWER_BYTES + 1)
            whole = not answer.length
        finally:
            connection.close()
        if len(data) > MAX_ANSWER_BYTES:
            raise _failed("the answer is too long")
        if not whole:
            raise _failed("the answer was cut short")
        return Said(answer.status, answer.headers.get_content_type(), data, secure)


def _cut(sock: socket.socket, late: threading.Event) -> None:
    late.set()
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _failed(why: str) -> Undeliverable:
    return Undeliverable(why, remedy="look at the witness and the network; it is asked again")
