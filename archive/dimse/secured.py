"""An accepted connection that speaks TLS: many records are received at once and decrypted from memory.

An SSLSocket asks the system twice for each record of 16 KiB. It also forgets its session when one direction of it is shut down, so a
thread that waits in it could not be interrupted and still have the last word.
"""

from __future__ import annotations

import math
import mmap
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, Self, cast

QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)
"""Linux: acknowledge at once. It is forgotten with every exchange, so it is set before each receive."""

_HANDSHAKE_BYTES = 16 << 10
_RECEIVE_BYTES = 128 << 10


def memory(size: int) -> memoryview:
    """Return a buffer that takes only as much memory as was ever written to."""
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def send_within(send: Callable[[memoryview], int], data: bytes | bytearray, timeout_s: float | None) -> None:
    """Send all of it in that time: a peer that reads a little now and then would keep a blocking `sendall` for ever.

    Raises:
        OSError: TimeoutError among them.
    """
    deadline = time.monotonic() + timeout_s if timeout_s else math.inf
    view, sent = memoryview(data), 0
    while sent < len(view):
        sent += send(view[sent:])
        if sent < len(view) and time.monotonic() > deadline:
            raise TimeoutError


class Secured(socket.socket):
    """A socket whose TLS handshake is done; one thread reads and writes, any may shut it down or close it."""

    def __init__(self, connection: socket.socket, session: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        """Take the connection over."""
        super().__init__(connection.family, connection.type, connection.proto, fileno=connection.detach())
        self._session = session
        self._incoming = incoming
        self._outgoing = outgoing
        self._received: memoryview | None = None
        self._over = False
        self.record_timeout_s: float | None = None
        """How long a record may take to come whole, where the socket's time-out is not Python's."""

    @classmethod
    def handshake(cls, connection: socket.socket, context: ssl.SSLContext, *, deadline: float, server_side: bool = True) -> Self:
        """Do one side of the handshake; the connection stays the caller's when it fails.

        Raises:
            OSError: ssl.SSLError among them, and TimeoutError at the deadline.
        """
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = context.wrap_bio(incoming, outgoing, server_side=server_side)
        try:
            while True:
                try:
                    session.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    _send_all(connection, outgoing, deadline)
                    _limit(connection, deadline)
                    piece = connection.recv(_HANDSHAKE_BYTES)
                    if not piece:
                        raise ConnectionResetError from None
                    incoming.write(piece)
        except ssl.SSLError:
            with suppress(OSError):
                _send_all(connection, outgoing, deadline)  # the alert
            raise
        _send_all(connection, outgoing, deadline)
        connection.settimeout(None)
        return cls(connection, session, incoming, outgoing)

    @property
    def context(self) -> ssl.SSLContext:
        """Whose session it is."""
        return self._session.context

    @property
    def certificate(self) -> bytes | None:
        """The peer's certificate (DER)."""
        return self._session.getpeercert(binary_form=True)

    def pending(self) -> int:
        """How many bytes, encrypted or not, have been received and not been read."""
        return self._session.pending() + self._incoming.pending

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0, /) -> int:
        """Receive as socket.socket does; a record has the time-out once more to come whole.

        Raises:
            OSError: ssl.SSLError among them.
        """
        into = memoryview(buffer)[: nbytes or None]
        deadline = 0.0
        while not (count := self._decrypt(into)) and not self._over:
            if deadline and time.monotonic() > deadline:
                raise TimeoutError
            if not self._receive(flags):
                break
            timeout_s = self.gettimeout() or self.record_timeout_s
            deadline = deadline or (time.monotonic() + timeout_s if timeout_s else 0.0)
        return count

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Receive as socket.socket does.

        Raises:
            OSError: ssl.SSLError among them.
        """
        received = bytearray(bufsize)
        return bytes(memoryview(received)[: self.recv_into(received, 0, flags)])

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """Encrypt and send all of it.

        Raises:
            OSError: ssl.SSLError among them.
        """
        if data:
            self._session.write(data)
        timeout_s = self.gettimeout() or self.record_timeout_s
        send_within(lambda some: super(Secured, self).send(some, flags), self._outgoing.read(), timeout_s)

    def send(self, data: Any, flags: int = 0, /) -> int:
        """Encrypt and send all of it.

        Raises:
            OSError: ssl.SSLError among them.
        """
        self.sendall(data, flags)
        return len(data)

    def _refuse(self, *_args: object, **_options: object) -> NoReturn:
        """Whatever would pass by the session."""
        raise NotImplementedError

    sendmsg = sendto = sendfile = recvmsg = recvmsg_into = recvfrom = recvfrom_into = _refuse

    def _decrypt(self, into: memoryview) -> int:
        """Return how many bytes of what was received could be decrypted."""
        count, whole, session = 0, len(into), self._session
        try:
            while count < whole and not self._over and (self._incoming.pending or session.pending()):
                got = cast("int", session.read(whole - count, into[count:]))  # into a buffer it returns their number
                self._over = not got
                count += got
        except ssl.SSLWantReadError:
            pass  # the rest of a record is to come
        finally:
            if self._outgoing.pending:  # an alert, or the answer to a key update
                super().sendall(self._outgoing.read())
        return count

    def _receive(self, flags: int) -> int:
        if self._received is None:
            self._received = memory(_RECEIVE_BYTES)
        if QUICKACK is not None:
            with suppress(OSError):
                self.setsockopt(socket.IPPROTO_TCP, QUICKACK, 1)
        count = super().recv_into(self._received, 0, flags)
        self._incoming.write(self._received[:count])
        return count


def _limit(connection: socket.socket, deadline: float) -> None:
    remaining_s = deadline - time.monotonic()
    if remaining_s <= 0:
        raise TimeoutError
    connection.settimeout(remaining_s)


def _send_all(connection: socket.socket, outgoing: ssl.MemoryBIO, deadline: float) -> None:
    if outgoing.pending:
        _limit(connection, deadline)
        connection.sendall(outgoing.read())
