"""PDUs off a socket, each into one buffer that is used again and again, within bounds of size and time (PS3.8 9.3)."""

from __future__ import annotations

import math
import select
import socket
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

from archive.dimse.admission import INVALID_PARAMETER_VALUE, UNRECOGNISED_PDU, ProtocolError, Silence
from archive.dimse.contexts import Answered, Proposed, Role
from archive.dimse.secured import QUICKACK, Secured, memory, send_within

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA_TF, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
COMMAND, LAST = 1, 2
"""Message control header (PS3.8 E.2)."""

IMPLEMENTATION_CLASS_UID = "2.25.120899155864599425792726156719986481535"
IMPLEMENTATION_VERSION_NAME = "STRONGROOM"

_HEADER = struct.Struct(">BxL")
_PDV = struct.Struct(">LBB")  # item length, presentation context ID, message control header
_SMALL_PDU_BYTES = 64  # A-RELEASE and A-ABORT have four bytes
_BUFFERED_PDUS = 6
_LARGEST_BUFFER = 1 << 20
_LARGEST_SENT = 256 << 10
_TIMEVAL = struct.Struct("ll") if sys.platform == "linux" else None


class Closed(Exception):
    """The peer has closed the connection, or it broke."""


class PduStream:
    """Reads PDUs from a connection, plain or TLS; used by one thread."""

    def __init__(self, connection: socket.socket, *, maximum_pdu_bytes: int, timeout_s: float) -> None:
        """A peer may be silent for `timeout_s`, and take as long from the first byte of a PDU to its last."""
        self._connection = connection
        self._maximum_pdu_bytes = maximum_pdu_bytes
        self._timeout_s = timeout_s
        size = max(maximum_pdu_bytes + _HEADER.size, min(maximum_pdu_bytes * _BUFFERED_PDUS, _LARGEST_BUFFER))
        self._view = memory(size)
        self._start = self._end = 0
        self._over = False
        if isinstance(connection, Secured):
            connection.record_timeout_s = timeout_s
        # A socket with a time-out of Python's asks the system twice for each receive; one of the system's own once.
        if _TIMEVAL is not None:
            limit = _TIMEVAL.pack(int(timeout_s), int(timeout_s % 1 * 1e6))
            connection.settimeout(None)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        else:
            connection.settimeout(timeout_s)

    @property
    def empty(self) -> bool:
        """Whether nothing has come that was not handed out."""
        return self._start == self._end

    @property
    def ready(self) -> bool:
        """Whether `next` has nothing to wait for: a whole PDU has come, or what can be none, or the end of the connection.

        What has come of a PDU is taken in; a peer that sends half of one, or of a TLS record, is not waited for.
        """
        while not self._over and not self._whole():
            if not self._take_in():
                return False
        return True

    def _whole(self) -> bool:
        there = self._end - self._start
        if there < _HEADER.size:
            return False
        pdu_type, length = _HEADER.unpack_from(self._view, self._start)
        longest = self._maximum_pdu_bytes if pdu_type == P_DATA_TF else _SMALL_PDU_BYTES if 0 < pdu_type <= ABORT else -1
        return bool(length > longest or there >= _HEADER.size + length)

    def _take_in(self) -> bool:
        """Receive what has come, without waiting; say whether that was anything, be it the end."""
        connection = self._connection
        try:
            poll = select.poll()
            poll.register(connection, select.POLLIN)
            if not poll.poll(0) and not (isinstance(connection, Secured) and connection.pending()):
                return False
            if self._start:
                self._view[: self._end - self._start] = self._view[self._start : self._end]
                self._start, self._end = 0, self._end - self._start
            count = connection.recv_into(self._view[self._end :], 0, socket.MSG_DONTWAIT)
        except (BlockingIOError, TimeoutError):
            return False
        except (OSError, ValueError):
            count = 0
        self._end += count
        self._over = not count
        return True

    def interrupt(self) -> None:
        """Make the thread that reads come back with Closed; called from another one."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RD)

    def next(self, *, by: float = math.inf) -> tuple[int, memoryview]:
        """Return the type and body of the next PDU; the body is valid until the next call, or until `ready` is asked.

        Raises:
            ProtocolError: no PDU, or one longer than allowed. Silence: nothing came, or not all of it, in time or `by` then. Closed.
        """
        if by < time.monotonic():
            raise Silence
        if self._end - self._start < _HEADER.size:
            self._fill(_HEADER.size, by)
        pdu_type, length = _HEADER.unpack_from(self._view, self._start)
        if pdu_type == P_DATA_TF:
            if length > self._maximum_pdu_bytes:
                raise ProtocolError(INVALID_PARAMETER_VALUE)
        elif not 0 < pdu_type <= ABORT:
            raise ProtocolError(UNRECOGNISED_PDU)
        elif length > _SMALL_PDU_BYTES:
            raise ProtocolError(INVALID_PARAMETER_VALUE)
        whole = _HEADER.size + length
        if self._end - self._start < whole:
            self._fill(whole, by)
        body = self._view[self._start + _HEADER.size : self._start + whole]
        self._start += whole
        return pdu_type, body

    def _fill(self, count: int, by: float) -> None:
        """Receive until `count` bytes lie in the buffer from its start."""
        start, end, view = self._start, self._end, self._view
        if start == end:
            start = end = 0
        elif start + count > len(view):
            view[: end - start] = view[start:end]
            start, end = 0, end - start
        deadline = time.monotonic() + self._timeout_s if end > start else 0.0
        while end - start < count:
            end += self._receive(view[end:])
            if end - start < count:
                now = time.monotonic()
                deadline = deadline or now + self._timeout_s
                if now > min(deadline, by):
                    raise Silence
        self._start, self._end = start, end

    def _receive(self, into: memoryview) -> int:
        # Acknowledged at once: a peer that leaves Nagle's algorithm on holds its last segment back until then (Linux
        # forgets the option with every exchange).
        connection = self._connection
        if self._over:
            raise Closed
        try:
            if QUICKACK is not None:
                connection.setsockopt(socket.IPPROTO_TCP, QUICKACK, 1)
            count = connection.recv_into(into)
        except (BlockingIOError, TimeoutError):
            raise Silence from None
        except OSError:
            raise Closed from None
        if not count:
            raise Closed
        return count

    def send(self, data: bytes | bytearray) -> None:
        """Send all of it; a peer that does not read in time is as good as gone.

        Raises:
            Closed.
        """
        try:
            if isinstance(self._connection, Secured):
                self._connection.sendall(data)
            else:
                send_within(self._connection.send, data, self._timeout_s)
        except OSError:
            raise Closed from None


def fragments(body: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Yield presentation context ID, message control header and bytes of each presentation data value (PS3.8 9.3.5.1).

    Raises:
        ProtocolError: one does not fit the PDU, or there is none.
    """
    offset, end = 0, len(body)
    if not end:
        raise ProtocolError(INVALID_PARAMETER_VALUE)
    while offset < end:
        if offset + _PDV.size > end:
            raise ProtocolError(INVALID_PARAMETER_VALUE)
        length, context_id, control = _PDV.unpack_from(body, offset)
        following = offset + 4 + length
        if length < 2 or following > end:
            raise ProtocolError(INVALID_PARAMETER_VALUE)
        yield context_id, control, body[offset + _PDV.size : following]
        offset = following


def command_pdus(context_id: int, encoded: bytes, maximum_pdu_bytes: int) -> bytes:
    """Return a command set as P-DATA-TF PDUs of at most `maximum_pdu_bytes` each (0: no limit)."""
    size = max(1, maximum_pdu_bytes - _PDV.size) if maximum_pdu_bytes else len(encoded)
    pieces = []
    for at in range(0, len(encoded), size):
        piece = encoded[at : at + size]
        control = COMMAND | (LAST if at + size >= len(encoded) else 0)
        pieces += [_HEADER.pack(P_DATA_TF, len(piece) + 6), _PDV.pack(len(piece) + 2, context_id, control), piece]
    return b"".join(pieces)


def data_pdu(context_id: int, data: bytes, maximum_pdu_bytes: int) -> bytes:
    """Return a data set as P-DATA-TF PDUs of at most `maximum_pdu_bytes` each (0: no limit): in one where it fits, as answers do."""
    if len(data) + _PDV.size > min(maximum_pdu_bytes or _LARGEST_SENT, _LARGEST_SENT):
        return b"".join(data_pdus(context_id, len(data), (data,), maximum_pdu_bytes))
    return b"".join((_HEADER.pack(P_DATA_TF, len(data) + 6), _PDV.pack(len(data) + 2, context_id, LAST), data))


def data_pdus(
    context_id: int, length: int, pieces: Iterable[bytes | memoryview], maximum_pdu_bytes: int, *, before: bytes = b""
) -> Iterator[bytearray]:
    """Yield a data set of `length` bytes as P-DATA-TF PDUs of at most `maximum_pdu_bytes` each (0: no limit), some at a time.

    `before` leaves with the first of them: the PDUs of its command.
    """
    size = max(2, min(maximum_pdu_bytes or _LARGEST_SENT, _LARGEST_SENT) - _PDV.size) & ~1
    out = bytearray(before)
    left, room = length, 0
    for piece in pieces:
        view = memoryview(piece)
        while view:
            if not room:
                room = min(size, left)
                out += _HEADER.pack(P_DATA_TF, room + 6) + _PDV.pack(room + 2, context_id, 0 if room < left else LAST)
            part = view[:room]
            out += part
            view = view[len(part) :]
            room -= len(part)
            left -= len(part)
            if not room and len(out) >= _LARGEST_SENT:
                yield out
                out = bytearray()
    if not length:
        out += _HEADER.pack(P_DATA_TF, 6) + _PDV.pack(2, context_id, LAST)
    yield out


def associate_ac(
    request: bytes, contexts: Iterable[Answered], roles: Iterable[Role], *, maximum_pdu_bytes: int,
    extended: Iterable[tuple[str, bytes]] = (), tells_user: bool = False,
) -> bytes:
    """Return the A-ASSOCIATE-AC for an A-ASSOCIATE-RQ (PS3.8 9.3.3); AE titles and reserved fields are sent back as they came."""
    items = [_item(0x10, b"1.2.840.10008.3.1.1.1")]
    for context in contexts:
        syntax = _item(0x40, (context.transfer_syntax or "1.2.840.10008.1.2").encode("ascii", "replace"))
        items.append(_item(0x21, bytes((context.context_id, 0, context.result, 0)) + syntax))
    user = [_item(0x51, struct.pack(">L", maximum_pdu_bytes)), _item(0x52, IMPLEMENTATION_CLASS_UID.encode())]
    for role in roles:
        uid = role.sop_class_uid.encode("ascii", "replace")
        user.append(_item(0x54, struct.pack(">H", len(uid)) + uid + bytes((role.scu, role.scp))))
    user.append(_item(0x55, IMPLEMENTATION_VERSION_NAME.encode()))
    for sop_class_uid, information in extended:
        uid = sop_class_uid.encode("ascii", "replace")
        user.append(_item(0x56, struct.pack(">H", len(uid)) + uid + information))
    if tells_user:
        user.append(_item(0x59, struct.pack(">H", 0)))  # PS3.7 D.3.3.7.2: of these forms it is empty
    body = struct.pack(">HH", 1, 0) + request[10:74] + b"".join(items) + _item(0x50, b"".join(user))
    return _HEADER.pack(ASSOCIATE_AC, len(body)) + body


def associate_rq(
    *, calling_ae_title: str, called_ae_title: str, contexts: Iterable[Proposed], maximum_pdu_bytes: int, roles: Iterable[Role] = ()
) -> bytes:
    """Return an A-ASSOCIATE-RQ (PS3.8 9.3.2)."""
    items = [_item(0x10, b"1.2.840.10008.3.1.1.1")]
    for context in contexts:
        syntaxes = b"".join(_item(0x40, uid.encode("ascii")) for uid in context.transfer_syntaxes)
        abstract = _item(0x30, context.abstract_syntax.encode("ascii"))
        items.append(_item(0x20, bytes((context.context_id, 0, 0, 0)) + abstract + syntaxes))
    user = [_item(0x51, struct.pack(">L", maximum_pdu_bytes)), _item(0x52, IMPLEMENTATION_CLASS_UID.encode())]
    for role in roles:
        uid = role.sop_class_uid.encode("ascii")
        user.append(_item(0x54, struct.pack(">H", len(uid)) + uid + bytes((role.scu, role.scp))))
    user.append(_item(0x55, IMPLEMENTATION_VERSION_NAME.encode()))
    titles = called_ae_title.encode("ascii", "replace").ljust(16)[:16] + calling_ae_title.encode("ascii", "replace").ljust(16)[:16]
    body = struct.pack(">HH", 1, 0) + titles + bytes(32) + b"".join(items) + _item(0x50, b"".join(user))
    return _HEADER.pack(ASSOCIATE_RQ, len(body)) + body


def release_rq() -> bytes:
    """Return an A-RELEASE-RQ."""
    return _HEADER.pack(RELEASE_RQ, 4) + bytes(4)


def release_rp() -> bytes:
    """Return an A-RELEASE-RP."""
    return _HEADER.pack(RELEASE_RP, 4) + bytes(4)


def _item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(body)) + body


def part(connection: socket.socket, last_words: bytes, *, linger_s: float) -> None:
    """Send a last PDU and wait for the peer to close: closing with its bytes unread would reset the connection."""
    deadline = time.monotonic() + linger_s
    with suppress(OSError):
        connection.settimeout(linger_s)
        connection.sendall(last_words)
        if not isinstance(connection, Secured):
            connection.shutdown(socket.SHUT_WR)
        while (remaining_s := deadline - time.monotonic()) > 0:
            connection.settimeout(remaining_s)
            if not connection.recv(65536):
                return
