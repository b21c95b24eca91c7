"""The Upper Layer of one association (PS3.8), on a socket that the listener has accepted and read the A-ASSOCIATE-RQ from.

pynetdicom's state machine stays; around it the reactor waits for events instead of polling every millisecond (an idle association
costs nothing), PDUs are bounded in size and time before they are read, and whatever happens to the thread, the association hears of
it.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import select
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Any

from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import A_P_ABORT
from pynetdicom.transport import AssociationSocket

from archive.dimse import admission
from archive.dimse.secured import Secured

if TYPE_CHECKING:
    from archive.dimse.scp import ServedAssociation

LOG = logging.getLogger("archive.dimse")

_HEADER = struct.Struct(">BBL")
_P_DATA_TF = 0x04
_SMALL_PDU_BYTES = 64  # A-RELEASE and A-ABORT have four bytes
_PDV = struct.Struct(">LBB")  # item length, presentation context ID, message control header
_WAIT_S = 0.5
_READ_BYTES = 256 << 10

Fragment = tuple[int, int, memoryview]
"""Presentation context ID, message control header, bytes (PS3.8 E.2)."""


class MalformedPdu(Exception):
    """A PDU whose items do not fit its length."""


def fragments(body: memoryview) -> list[Fragment]:
    """Split the body of a P-DATA-TF into its presentation data values.

    Raises:
        MalformedPdu: also for a PDU without any.
    """
    found: list[Fragment] = []
    offset = 0
    while offset < len(body):
        if offset + _PDV.size > len(body):
            raise MalformedPdu
        length, context_id, control = _PDV.unpack_from(body, offset)
        end = offset + 4 + length
        if length < 2 or end > len(body):
            raise MalformedPdu
        found.append((context_id, control, body[offset + _PDV.size : end]))
        offset = end
    if not found:
        raise MalformedPdu
    return found


class PData:
    """A received P-DATA-TF, in the place of pynetdicom's own, which copies every fragment several times."""

    __slots__ = ("values",)

    def __init__(self, values: list[Fragment]) -> None:
        """Keep the presentation data values."""
        self.values = values

    def to_primitive(self) -> PData:
        """Return the P-DATA indication: the same values."""
        return self


class Transport(AssociationSocket):
    """An accepted socket, plain or TLS, some bytes of which were already read."""

    def __init__(self, association: ServedAssociation, connection: socket.socket, read_already: bytes, *, timeout_s: float) -> None:
        """Take the connection over; a PDU has `timeout_s` from its first byte to its last."""
        super().__init__(association, client_socket=connection)
        self._read_already = memoryview(read_already)
        self._timeout_s = timeout_s
        self._woken, self._waker = socket.socketpair()
        for end in (self._woken, self._waker):
            end.setblocking(False)

    def wake(self) -> None:
        """End the wait of `ready`: there is something to send."""
        # A full buffer wakes as well as one more byte; a closed one has nobody waiting.
        with contextlib.suppress(OSError):
            self._waker.send(b"\0")

    @property
    def ready(self) -> bool:
        """Whether bytes can be read; waits a little for them unless something is to be sent."""
        if self._read_already:
            return True
        connection = self.socket
        if connection is None or not self._is_connected:
            return False
        if isinstance(connection, Secured) and connection.pending():
            return True
        poll = select.poll()
        try:
            poll.register(connection, select.POLLIN)
            poll.register(self._woken, select.POLLIN)
            events = dict(poll.poll(_WAIT_S * 1000))
            if self._woken.fileno() in events:
                self._woken.recv(4096)
            return connection.fileno() in events
        except (OSError, ValueError):
            self.event_queue.put("Evt17")
            return False

    def recv(self, nr_bytes: int) -> bytearray:
        """Read exactly `nr_bytes`, fewer only when the peer has left.

        Raises:
            OSError: the connection broke, or the bytes did not come in time.
        """
        received = bytearray(nr_bytes)
        view = memoryview(received)
        at = min(nr_bytes, len(self._read_already))
        view[:at] = self._read_already[:at]
        self._read_already = self._read_already[at:]
        deadline = time.monotonic() + self._timeout_s
        while at < nr_bytes:
            remaining_s = deadline - time.monotonic()
            connection = self.socket
            if remaining_s <= 0 or connection is None:
                raise TimeoutError
            connection.settimeout(remaining_s)
            count = connection.recv_into(view[at : at + _READ_BYTES])
            if not count:
                return received[:at]
            at += count
        return received

    def discard(self) -> bool:
        """Throw away what can be read; False once the peer has left."""
        connection = self.socket
        if connection is None:
            return False
        self._read_already = memoryview(b"")
        try:
            connection.settimeout(_WAIT_S)
            return bool(connection.recv(_READ_BYTES))
        except OSError:
            return False

    def send(self, bytestream: bytes) -> None:
        """Send all of it within the time of a PDU; a peer that does not read is as good as gone."""
        connection = self.socket
        if connection is None:
            return
        try:
            connection.settimeout(self._timeout_s)
            connection.sendall(bytestream)
        except OSError:
            self.event_queue.put("Evt17")

    def _shutdown_socket(self) -> None:
        connection = self.socket
        if connection is None:
            return
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            connection.close()

    def dispose(self) -> None:
        """Close every descriptor; called once, when both threads are done with it."""
        self._shutdown_socket()
        self._woken.close()
        self._waker.close()


class _Signalling(queue.Queue[Any]):
    """A queue that sets an event with every put, so that one thread can wait on several."""

    def __init__(self, signal: threading.Event) -> None:
        super().__init__()
        self._signal = signal

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._signal.set()


class UpperLayer(DULServiceProvider):
    """The DUL service provider of a served association."""

    socket: Transport | None

    def __init__(self, association: ServedAssociation, *, maximum_pdu_bytes: int) -> None:
        """Prepare; `start` runs the reactor in a thread of its own."""
        super().__init__(association)
        self._association = association
        self.daemon = True
        self.busy = False
        self.attention = threading.Event()
        self.to_user_queue = _Signalling(self.attention)
        self._maximum_pdu_bytes = maximum_pdu_bytes

    @property
    def finished(self) -> bool:
        """Whether the reactor has ended, or is about to."""
        return self._kill_thread or not self.is_alive()

    def message_queue(self) -> _Signalling:
        """Return a queue for DIMSE messages that wakes the association."""
        return _Signalling(self.attention)

    def idle_timer_expired(self) -> bool:
        """Whether the peer has been silent too long; never while an instance is being stored."""
        return not self.busy and bool(super().idle_timer_expired())

    def listen_again(self) -> None:
        """Say that what had come is dealt with: the peer's silence begins now, however long that took."""
        self._idle_timer.restart()
        self.busy = False

    def send_pdu(self, primitive: Any) -> None:
        """Queue a primitive and wake the reactor."""
        super().send_pdu(primitive)
        if self.socket is not None:
            self.socket.wake()

    def run_reactor(self) -> None:
        """Work until the state machine is back in Sta1; nothing leaves this thread as an exception."""
        self._idle_timer.start()
        self.assoc._dul_ready.set()  # noqa: SLF001 # how pynetdicom says that the reactor runs
        try:
            while not self._kill_thread:
                self._step()
        except Exception as error:  # noqa: BLE001 # the association must end in order whatever the peer sent
            LOG.warning("an association failed", extra={"association": self.assoc.name, "error": type(error).__name__})
            self._break_off()
        finally:
            self._association.exchange.abandon()
            self._kill_thread = True
            self.attention.set()

    def _step(self) -> None:
        try:
            event = self.event_queue.get_nowait()
        except queue.Empty:
            if self.artim_timer.expired:
                self.event_queue.put("Evt18")
            elif not self._process_recv_primitive() and self._is_transport_event():
                self._idle_timer.restart()
            return
        self.state_machine.do_action(event)

    def _is_transport_event(self) -> bool:
        connection = self.socket
        if connection is None:
            return False
        if self.state_machine.current_state == "Sta13":
            # Waiting for the peer to close; reading on lets it receive our last PDU instead of a reset.
            if not (connection.ready and connection.discard()):
                connection.close()
            return True
        if connection.ready:
            self._read_pdu_data()
            return True
        return False

    def _read_pdu_data(self) -> None:
        connection = self.socket
        assert connection is not None
        try:
            header = connection.recv(_HEADER.size)
            if len(header) < _HEADER.size:
                self.event_queue.put("Evt17")
                return
            pdu_type, _, length = _HEADER.unpack(header)
            if length > self._limit(pdu_type):
                self.event_queue.put("Evt19")
                return
            body = connection.recv(length)
        except OSError:
            self.event_queue.put("Evt17")
            return
        if len(body) < length:
            self.event_queue.put("Evt17")
            return
        try:
            if pdu_type == _P_DATA_TF:
                self._recv_pdu.put(PData(fragments(memoryview(body))))  # type: ignore[arg-type] # DT-2 only calls to_primitive
                self.event_queue.put("Evt10")
            else:
                pdu, event = self._decode_pdu(header + body)
                self._recv_pdu.put(pdu)
                self.event_queue.put(event)
        except Exception:  # noqa: BLE001 # the library has no error class of its own for a malformed PDU
            self.event_queue.put("Evt19")

    def _limit(self, pdu_type: int) -> int:
        if pdu_type == _P_DATA_TF:
            return self._maximum_pdu_bytes
        if self.state_machine.current_state == "Sta2":
            return admission.MAXIMUM_REQUEST_BYTES
        return _SMALL_PDU_BYTES if 0 < pdu_type <= 7 else -1

    def _break_off(self) -> None:
        """End an association whose state machine can no longer be trusted."""
        if self.socket is not None:
            self.socket.send(admission.abort_pdu(0))
            self.socket.close()
        lost = A_P_ABORT()
        lost.provider_reason = 0
        self.to_user_queue.put(lost)
        self.assoc.is_aborted = True
        self.assoc.is_established = False
