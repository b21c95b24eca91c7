"""A syslog collector over TLS (RFC 5425) for tests: reads frames to the end of the connection, or misbehaves."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

from tests.ports import free_port

Manner = Literal["takes", "resets", "silent", "refuses", "leaves"]


class Collector:
    """Listens on a port of its own; `got` holds the messages of every connection that ended in order."""

    def __init__(self, certificate: Path, key: Path, *, ask_of: Path | None = None) -> None:
        """`ask_of` names the authority whose certificates clients have to show."""
        self.got: list[bytes] = []
        self.shown: list[str] = []
        self.manner: Manner = "takes"
        self.speak = threading.Event()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        if ask_of is not None:
            self._context.verify_mode = ssl.CERT_REQUIRED
            self._context.load_verify_locations(ask_of)
        self._server = socket.create_server(("127.0.0.1", free_port()))
        self.port = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.close()
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        self._thread.join(5)

    def _run(self) -> None:
        while True:
            try:
                plain, _ = self._server.accept()
            except OSError:
                return
            with plain, suppress(OSError, ssl.SSLError):
                self._serve(plain)

    def _serve(self, plain: socket.socket) -> None:
        plain.settimeout(5)
        if self.manner == "refuses":
            return
        with self._context.wrap_socket(plain, server_side=True) as connection:
            self._read(connection)

    def _read(self, connection: ssl.SSLSocket) -> None:
        self.shown.append(str((connection.getpeercert() or {}).get("subject", "")))
        if self.manner == "resets":
            connection.recv(10)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
            return
        if self.manner == "leaves":
            connection.recv(10)
            time.sleep(0.3)  # by then everything has been sent, and waits to be read
            self._leave(connection)
            return
        data = b""
        while part := connection.recv(65536):
            data += part
        frames = []
        while data:
            length, _, data = data.partition(b" ")
            frames.append(data[: int(length)])
            assert len(frames[-1]) == int(length)
            data = data[int(length):]
        if self.manner == "silent":
            self.speak.wait(30)
            return
        self.got += frames
        connection.unwrap()

    def _leave(self, connection: ssl.SSLSocket) -> None:
        """End the connection in order with most of it unread, as a collector does that is restarted."""
        connection.setblocking(False)
        with suppress(ssl.SSLError):  # our alert is out; what has not been read stands in the way of theirs
            connection.unwrap()
        connection.close()
