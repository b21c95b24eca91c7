"""Syslog over TLS: messages framed and sent, and known to have been read.

Syslog acknowledges nothing. So each batch is a connection of its own that ends as TLS asks: our closing alert goes out behind the last
message, and the batch counts once the collector has answered it or closed its side in order. A reset, silence, or an end that the
collector made before ours, as one does that is restarted, counts for nothing.

Source: RFC 5424 (form), RFC 5425 (TLS, octet counting), PS3.15 A.6 (facility, severity, MSGID of audit messages).
"""

from __future__ import annotations

import fcntl
import os
import socket
import ssl
import struct
import termios
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from archive.keys.sealing import format_instant
from archive.services.outgoing import Undeliverable

TIMEOUT_S = 15.0
PORT = 6514
AUDIT_MSGID = "DICOM+RFC3881"
_LOOK_S = 0.01
_FACILITY = 10  # security and authorization messages
_SEVERITY = {0: 5, 4: 4, 8: 3, 12: 2}  # outcome -> notice, warning, error, critical
_BOM = b"\xef\xbb\xbf"
_PRINTABLE = range(33, 127)


@dataclass(frozen=True, slots=True)
class Collector:
    """Where messages go; by its certificate, never otherwise."""

    host: str
    port: int = PORT
    ca_file: Path | None = None
    """PEM of the authorities its certificate is checked by; None: the system's."""
    certificate_file: Path | None = None
    key_file: Path | None = None
    """What we show, where the collector asks."""


def line(text: bytes, *, at: datetime, host: str, outcome: int = 0, msgid: str = AUDIT_MSGID) -> bytes:
    """Return one syslog message (RFC 5424 6) that carries `text`, which is UTF-8."""
    priority = _FACILITY * 8 + _SEVERITY.get(outcome, 4)
    words = f"<{priority}>1 {format_instant(at)} {_word(host, 255)} strongroom {os.getpid()} {_word(msgid, 32)} - "
    return words.encode() + _BOM + text


def deliver(messages: Sequence[bytes], collector: Collector) -> None:
    """Send messages in their order; returning means that the collector has taken them all.

    Raises:
        Undeliverable: it may have taken none, some or all.
    """
    try:
        context = ssl.create_default_context(cafile=collector.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if collector.certificate_file is not None:
            context.load_cert_chain(collector.certificate_file, collector.key_file)
    except (OSError, ssl.SSLError) as error:
        message = f"the certificates for the syslog collector do not open ({type(error).__name__})"
        raise Undeliverable(message, remedy="check [syslog] ca_file, certificate_file and key_file") from None
    try:
        with (
            socket.create_connection((collector.host, collector.port), TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=collector.host) as connection,
        ):
            for one in messages:
                connection.sendall(b"%d %s" % (len(one), one))
            _close(connection)
    except ssl.SSLCertVerificationError as error:
        message = f"the syslog collector's certificate is not trusted: {error.verify_message}"
        raise Undeliverable(message, remedy="name the authority that signed it in [syslog] ca_file") from None
    except (OSError, ssl.SSLError) as error:
        message = f"the syslog collector did not take the messages ({type(error).__name__})"
        raise Undeliverable(message, remedy="check [syslog] host and port, and the collector; they are sent again") from None


def _close(connection: ssl.SSLSocket) -> None:
    """End the connection in order: the answer to our closing alert says that everything before it was read."""
    if _ended(connection):
        raise ConnectionAbortedError
    try:
        connection.unwrap()
    except ssl.SSLEOFError:
        pass  # it closed without its own alert, yet in order: with anything unread it would have reset the connection
    except ssl.SSLError as error:
        if error.reason not in {"APPLICATION_DATA_AFTER_CLOSE_NOTIFY", "UNEXPECTED_EOF_WHILE_READING"}:
            raise
    _all_taken(connection)


def _ended(connection: ssl.SSLSocket) -> bool:
    """Whether the collector has ended the connection by itself: then it may have left anything unread."""
    connection.setblocking(False)
    try:
        return not connection.recv(1)
    except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
        return False
    finally:
        connection.settimeout(TIMEOUT_S)


def _all_taken(connection: ssl.SSLSocket) -> None:
    """Wait until the collector has closed its side and acknowledged every byte: who leaves something unread answers with a reset.

    Source: tcp(7), SIOCOUTQ, which is TIOCOUTQ by its number.
    """
    end = time.monotonic() + TIMEOUT_S
    connection.shutdown(socket.SHUT_WR)  # from here on it is plain TCP
    while connection.recv(4096) or struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))[0]:
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(_LOOK_S)
    if failed := connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(failed, os.strerror(failed))


def _word(text: str, longest: int) -> str:
    return "".join(one for one in text if ord(one) in _PRINTABLE)[:longest] or "-"
