"""An association as requestor that stores or reports: one thread, one message at a time, every wait with an end.

Over TLS the other side is who holds the certificate bound to the destination, and nobody else, whoever signed theirs.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from archive.dimse import command, pdus, tls
from archive.dimse.admission import MAXIMUM_REQUEST_BYTES, ProtocolError, Silence, abort_pdu
from archive.dimse.contexts import Proposed, Role
from archive.dimse.normalized import N_EVENT_REPORT_RSP
from archive.dimse.pdus import Closed, PduStream
from archive.dimse.secured import Secured
from archive.dimse.tls import TlsFiles

if TYPE_CHECKING:
    from archive.services.sending import Leaving

MAXIMUM_CONTEXTS = 128
LINGER_S = 2.0
_HEADER = struct.Struct(">BxL")
_ITEM = struct.Struct(">BxH")
_CONTEXT_AC, _TRANSFER_SYNTAX, _USER_INFORMATION, _MAXIMUM_LENGTH = 0x21, 0x40, 0x50, 0x51
_FIXED_FIELDS = 68
_MAXIMUM_MESSAGE_ID = 0xFFFF


class Unreachable(Exception):
    """No association could be had; the message says why in words of our own."""


class Declined(Unreachable):
    """Somebody is there and gives no association, perhaps not to these titles."""


class Broken(Exception):
    """The association ended before the answer came."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How to reach somebody; `files` for TLS, then only to who holds the certificate with that digest."""

    host: str
    port: int
    calling_ae_title: str
    called_ae_title: str
    files: TlsFiles | None
    certificate_sha256: bytes | None
    connect_timeout_s: float
    answer_timeout_s: float
    maximum_pdu_bytes: int


class Requestor:
    """An open association; used by one thread, ended by `release` or `abort`."""

    def __init__(self, terms: Terms, proposed: Sequence[Proposed], *, roles: Sequence[Role] = ()) -> None:
        """Connect and associate.

        Raises:
            Unreachable.
        """
        self._connection = _connected(terms)
        self._message_id = 0
        try:
            self._connection.sendall(pdus.associate_rq(
                calling_ae_title=terms.calling_ae_title, called_ae_title=terms.called_ae_title, contexts=proposed,
                maximum_pdu_bytes=terms.maximum_pdu_bytes, roles=roles,
            ))
            body = _accepted(self._connection, time.monotonic() + terms.connect_timeout_s)
            self._maximum_pdu_bytes, taken = _read_ac(body)
        except (OSError, struct.error, IndexError) as error:
            self._connection.close()
            message = "the association request was not answered"
            raise Declined(message) from error
        except Unreachable:
            self._connection.close()
            raise
        by_id = {context.context_id: context for context in proposed}
        self.contexts: dict[tuple[str, str], int] = {
            (by_id[number].abstract_syntax, syntax): number for number, syntax in taken.items()
            if number in by_id and syntax in by_id[number].transfer_syntaxes
        }
        """Presentation context IDs by SOP class and transfer syntax."""
        self._answer_timeout_s = terms.answer_timeout_s
        self._stream = PduStream(self._connection, maximum_pdu_bytes=terms.maximum_pdu_bytes, timeout_s=terms.answer_timeout_s)

    def store(
        self, context_id: int, sop_class_uid: str, sop_instance_uid: str, leaving: Leaving, *, originator: tuple[str, int] | None,
        between: Callable[[], None] = lambda: None,
    ) -> int:
        """Send one instance and return the status of the answer; `between` is called before each piece of it.

        Raises:
            Broken: the association is over. What `leaving` raises comes through, and then it must be aborted.
        """
        self._message_id = self._message_id % _MAXIMUM_MESSAGE_ID + 1
        encoded = command.store_command(self._message_id, sop_class_uid, sop_instance_uid, originator=originator)
        try:
            self._stream.send(pdus.command_pdus(context_id, encoded, self._maximum_pdu_bytes))
            for some in pdus.data_pdus(context_id, leaving.length, leaving.pieces, self._maximum_pdu_bytes):
                between()
                self._stream.send(some)
            return self._answered()
        except (Closed, Silence, ProtocolError, command.MalformedCommand) as error:
            self.abort()
            raise Broken from error

    def report(self, context_id: int, encode: Callable[[int], bytes], data_set: bytes) -> int:
        """Send an N-EVENT-REPORT, whose command `encode` makes for a message ID, and return the status of the answer.

        Raises:
            Broken: the association is over.
        """
        self._message_id = self._message_id % _MAXIMUM_MESSAGE_ID + 1
        try:
            self._stream.send(pdus.command_pdus(context_id, encode(self._message_id), self._maximum_pdu_bytes))
            for some in pdus.data_pdus(context_id, len(data_set), (data_set,), self._maximum_pdu_bytes):
                self._stream.send(some)
            return self._answered(N_EVENT_REPORT_RSP)
        except (Closed, Silence, ProtocolError, command.MalformedCommand) as error:
            self.abort()
            raise Broken from error

    def release(self) -> None:
        """End it in order, as far as the other side lets us."""
        with suppress(OSError, Closed, Silence, ProtocolError):
            self._connection.settimeout(LINGER_S)
            self._connection.sendall(pdus.release_rq())
            by = time.monotonic() + LINGER_S
            while self._stream.next(by=by)[0] not in (pdus.RELEASE_RP, pdus.ABORT):
                pass
        self._connection.close()

    def abort(self) -> None:
        """End it at once."""
        with suppress(OSError):
            self._connection.sendall(abort_pdu(0))
        self._connection.close()

    def _answered(self, expected: int = command.C_STORE_RSP) -> int:
        received = bytearray()
        by = time.monotonic() + self._answer_timeout_s  # whatever else comes until then
        while True:
            pdu_type, body = self._stream.next(by=by)
            if pdu_type != pdus.P_DATA_TF:
                raise Closed
            for _, control, data in pdus.fragments(body):
                if not control & pdus.COMMAND:
                    continue  # what an answer carries besides its status nobody would read
                received += data
                if len(received) > command.MAXIMUM_BYTES:
                    raise Closed
                if control & pdus.LAST:
                    found = command.elements(bytes(received))
                    received.clear()
                    if command.command_field(found) == expected and command.responded_to(found) == self._message_id:
                        return command.status(found)


def _connected(terms: Terms) -> socket.socket:
    deadline = time.monotonic() + terms.connect_timeout_s
    try:
        connection = socket.create_connection((terms.host, terms.port), timeout=terms.connect_timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except (OSError, UnicodeError) as error:  # of the second kind: what can be no host name
        message = "nothing accepts connections there"
        raise Unreachable(message) from error
    if terms.files is None:
        return connection
    context = tls.client_context(terms.files, terms.certificate_sha256)
    try:
        secured = Secured.handshake(connection, context, deadline=deadline, server_side=False)
    except (OSError, ssl.SSLError) as error:
        connection.close()
        message = "no TLS handshake"
        raise Unreachable(message) from error
    finally:
        tls.forget_callback(context)
    if terms.certificate_sha256 is None or hashlib.sha256(secured.certificate or b"").digest() != terms.certificate_sha256:
        secured.close()
        message = "another certificate than the one bound to this peer"
        raise Unreachable(message)
    secured.settimeout(terms.connect_timeout_s)
    return secured


def _accepted(connection: socket.socket, deadline: float) -> bytes:
    pdu_type, length = _HEADER.unpack(_exactly(connection, _HEADER.size, deadline))
    if length > MAXIMUM_REQUEST_BYTES:
        message = "not a DICOM peer"
        raise Declined(message)
    body = _exactly(connection, length, deadline)
    if pdu_type != pdus.ASSOCIATE_AC:
        message = "the association was rejected" if pdu_type == pdus.ASSOCIATE_RJ else "the association was aborted"
        raise Declined(message)
    return body


def _exactly(connection: socket.socket, count: int, deadline: float) -> bytes:
    received = bytearray()
    while len(received) < count:
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            raise TimeoutError
        connection.settimeout(remaining_s)
        piece = connection.recv(count - len(received))
        if not piece:
            raise ConnectionResetError
        received += piece
    return bytes(received)


def _read_ac(body: bytes) -> tuple[int, dict[int, str]]:
    """Return the maximum length and the transfer syntax of each accepted context of an A-ASSOCIATE-AC (PS3.8 9.3.3)."""
    maximum, taken = 0, {}
    for kind, value in _items(body, _FIXED_FIELDS):
        if kind == _CONTEXT_AC and value[2] == 0:
            syntaxes = [inner for sub, inner in _items(value, 4) if sub == _TRANSFER_SYNTAX]
            taken[value[0]] = syntaxes[0].rstrip(b"\0 ").decode("ascii", "replace") if syntaxes else ""
        elif kind == _USER_INFORMATION:
            for sub, inner in _items(value, 0):
                if sub == _MAXIMUM_LENGTH:
                    maximum = struct.unpack(">L", inner)[0]
    return maximum, taken


def _items(body: bytes, at: int) -> Iterable[tuple[int, bytes]]:
    while at < len(body):
        kind, length = _ITEM.unpack_from(body, at)
        at += _ITEM.size
        yield kind, body[at : at + length]
        at += length
