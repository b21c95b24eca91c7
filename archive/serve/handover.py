"""How a worker gets the opened keyring: over storage/run/node.sock, from the one process that opened it.

The socket is 0600 and answers only processes of the same user (SO_PEERCRED). No key stands in an argument, the environment or a
file. The connection stays open as a lifeline: its end tells the worker that the supervisor is gone, and the supervisor that a
worker is.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from archive.config import Config
from archive.errors import ConfigurationError, Unavailable

MAX_BYTES = 1 << 20
LONGEST_NAME = 100  # sockaddr_un holds 108 bytes on Linux, 104 on macOS
READY = b"ready\n"


class Handover(msgspec.Struct, frozen=True):
    """What a worker needs to open its node: the keyring, the configuration with real ports, why only reading is allowed."""

    keyring: bytes
    config: Config
    read_only: str = ""
    generation: int = 0


class Door:
    """The supervisor's end: listens, checks who asks, hands over."""

    def __init__(self, path: Path, handover: Handover) -> None:
        """Listen at `path`; an earlier socket of a process that is gone is replaced."""
        self.path = path
        self.offer(handover)
        path.unlink(missing_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            with _address(path) as address:
                self.socket.bind(address)
        finally:
            os.umask(before)
        self.socket.listen(64)

    def offer(self, handover: Handover) -> None:
        """Hand this over from now on."""
        body = msgspec.msgpack.encode(handover)
        self._message = struct.pack(">I", len(body)) + body

    def accept(self) -> tuple[socket.socket, int] | None:
        """Return the connection of a worker that got its handover and its process id; None when it may not have one."""
        connection, _ = self.socket.accept()
        try:
            uid, pid = peer_of(connection)
            if uid != os.geteuid():
                connection.close()
                return None
            connection.settimeout(5)
            connection.sendall(self._message)
            connection.setblocking(False)
        except OSError:
            connection.close()
            return None
        return connection, pid

    def close(self) -> None:
        """Stop answering and remove the socket."""
        self.socket.close()
        self.path.unlink(missing_ok=True)


class Link:
    """A worker's end: the handover, and the lifeline to the supervisor."""

    def __init__(self, path: Path) -> None:
        """Connect and receive.

        Raises:
            Unavailable: no supervisor answers there.
        """
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(10)
        try:
            with _address(path) as address:
                self._socket.connect(address)
            (length,) = struct.unpack(">I", self._receive(4))
            if length > MAX_BYTES:
                message = "the supervisor's answer is too long"
                raise Unavailable(message)
            self.handover = msgspec.msgpack.decode(self._receive(length), type=Handover)
        except OSError as error:
            self._socket.close()
            message = f"the supervisor does not answer at {path}"
            raise Unavailable(message, remedy="start workers with 'archive serve'") from error
        self._socket.settimeout(None)

    def _receive(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            piece = self._socket.recv(length - len(data))
            if not piece:
                raise ConnectionResetError
            data += piece
        return bytes(data)

    def ready(self) -> None:
        """Tell the supervisor that this worker accepts work."""
        self._socket.sendall(READY)

    def close(self) -> None:
        """Let go of the supervisor."""
        self._socket.close()

    def watch(self) -> None:
        """End this process by SIGTERM when the supervisor is gone."""

        def wait() -> None:
            with suppress(OSError):
                while self._socket.recv(64):
                    pass
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=wait, name="lifeline", daemon=True).start()


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Return the user id and process id of the process at the other end (0 where the system does not tell the latter)."""
    if hasattr(socket, "SO_PEERCRED"):
        pid, uid, _gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return uid, pid
    _version, uid = struct.unpack("2I", connection.getsockopt(0, 1, 8))  # LOCAL_PEERCRED of macOS: xucred
    return uid, 0


@contextmanager
def _address(path: Path) -> Iterator[str]:
    """Yield a name for `path` short enough for a socket address."""
    if len(os.fsencode(path)) <= LONGEST_NAME:
        yield str(path)
        return
    if not hasattr(os, "O_PATH"):
        message = "the storage folder's path is too long for a local socket"
        raise ConfigurationError(message, remedy="set archive.storage to a shorter path")
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
