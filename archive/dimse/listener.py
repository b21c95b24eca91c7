"""The door: accepts connections on sockets it is given, and lets nobody who says nothing stand in anybody's way.

The accepting thread never talks to a peer. A connection waits in the lobby until its first byte is there, then a thread of its own
does the handshake and reads the A-ASSOCIATE-RQ, each with a deadline for the whole of it. The lobby is small: when it is full,
whoever waits longest is sent away, so a thousand silent sockets cost a legitimate peer nothing (fo-dicom #1766 and dcm4che #939 are
that failure). Several processes may accept on the same listening sockets.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from archive.config import Dimse
from archive.dimse import admission, pdus, records, tls
from archive.dimse.admission import Acceptance, Opening, Rejection
from archive.dimse.records import Tally
from archive.dimse.tls import HandshakeFailed, TlsFiles
from archive.errors import ArchiveError, Unavailable

if TYPE_CHECKING:
    from archive.dimse.lanes import Association, Lanes
    from archive.services.association_log import AssociationLog
    from archive.services.peers import Peers

LOG = logging.getLogger("archive.dimse")

LOBBY_CONNECTIONS = 256
"""How many may be unauthenticated at a time, in one process."""

_TICK_S = 0.2
_LINGER_S = 2.0
_REJECTED_AFTER_S = 0.02
"""A rejection that comes at once pynetdicom's requestor reads, closes the connection, and then reports an abort: its other thread looks at
the connection before it looks for an answer. Three in two hundred did."""
_ACCEPT_BATCH = 64
_YIELD_S, _YIELDED = 0.001, 4
"""How long a process that shares its sockets waits for each association it serves, of so many, before it takes one more."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A listening socket and what is spoken there."""

    listening: socket.socket
    tls: bool


@dataclass(eq=False, slots=True)
class Visitor:
    """A connection that has not been admitted yet."""

    connection: socket.socket
    address: str
    tls: bool
    deadline: float
    name: str = field(default_factory=lambda: secrets.token_hex(6))


class Lobby:
    """The visitors of one process, oldest first; safe to share between threads."""

    def __init__(self, capacity: int) -> None:
        """Begin empty."""
        self._capacity = capacity
        self._lock = threading.Lock()
        self._visitors: dict[Visitor, None] = {}

    def __len__(self) -> int:
        """How many wait."""
        return len(self._visitors)

    def enter(self, visitor: Visitor) -> Visitor | None:
        """Let a visitor in; returns the oldest one, sent away to make room, if the lobby was full."""
        with self._lock:
            oldest = next(iter(self._visitors)) if len(self._visitors) >= self._capacity else None
            if oldest is not None:
                del self._visitors[oldest]
            self._visitors[visitor] = None
        if oldest is not None:
            send_away(oldest.connection)
        return oldest

    def leave(self, visitor: Visitor) -> bool:
        """Take a visitor out; False if it was sent away meanwhile."""
        with self._lock:
            return self._visitors.pop(visitor, True) is None

    def clear(self) -> None:
        """Send everybody away."""
        with self._lock:
            visitors, self._visitors = list(self._visitors), {}
        for visitor in visitors:
            send_away(visitor.connection)


def send_away(connection: socket.socket) -> None:
    """Wake whoever reads from the connection with its end; closing is left to that thread."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class Listener:
    """Accepts, admits and hands over to a lane until told to stop."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        config: Dimse,
        peers: Peers,
        lane: Lanes,
        files: TlsFiles | None,
        worker: str,
        lobby_connections: int = LOBBY_CONNECTIONS,
        shared: bool = False,
        log: AssociationLog | None = None,
    ) -> None:
        """Prepare; `worker` names this process in the table of association slots, `files` are needed for TLS endpoints.

        Where other processes accept on the same sockets (`shared`), a busy one lets an idle one be first.
        """
        self._endpoints = tuple(endpoints)
        self._config = config
        self._peers = peers
        self._lane = lane
        self._files = files
        self._worker = worker
        self._shared = shared
        self._log = log
        self._selector = selectors.DefaultSelector()
        self._lobby = Lobby(lobby_connections)
        self._parting = Lobby(lobby_connections)  # who was refused, and has not gone yet
        self._lock = threading.Lock()
        self._associations: set[Association] = set()
        self._threads: set[threading.Thread] = set()
        self._places = config.max_associations
        self._mismatches: set[tuple[str, str]] = set()
        self._last_pause = 0.0
        for endpoint in self._endpoints:
            endpoint.listening.setblocking(False)
            self._selector.register(endpoint.listening, selectors.EVENT_READ, endpoint)

    @property
    def associations(self) -> int:
        """How many associations are being served."""
        return len(self._associations)

    @property
    def visitors(self) -> int:
        """How many connections have not been admitted yet."""
        return len(self._lobby)

    def run(self, stopping: Callable[[], bool]) -> None:
        """Accept until `stopping()`; associations go on after that."""
        while not stopping():
            for key, _ in self._selector.select(_TICK_S):
                if isinstance(key.data, Endpoint):
                    self._accept(key.data)
                elif self._forget(key.data):  # else sent away since it spoke, for one who came in the same batch
                    self._receive(key.data)
            self._sweep()
        for endpoint in self._endpoints:
            self._selector.unregister(endpoint.listening)
        for key in list(self._selector.get_map().values()):
            self._selector.unregister(key.fileobj)
            key.data.connection.close()
        self._lobby.clear()
        self._selector.close()

    def drain(self, timeout_s: float) -> bool:
        """Let running associations come to their end, then abort them; returns whether all ended by themselves.

        One between two messages is aborted at once: nothing of it is lost.
        """
        deadline = time.monotonic() + timeout_s
        orderly = True
        while self._associations or self._threads:
            overdue = time.monotonic() >= deadline
            for association in list(self._associations):
                if overdue or association.quiet:
                    orderly = orderly and not overdue
                    association.abort(block=False)
            if overdue and time.monotonic() >= deadline + self._config.idle_timeout_s:
                return False
            time.sleep(0.05)
        return orderly

    def _accept(self, endpoint: Endpoint) -> None:
        if self._shared:
            time.sleep(min(len(self._threads), _YIELDED) * _YIELD_S)
        for _ in range(1 if self._shared else _ACCEPT_BATCH):
            try:
                connection, address = endpoint.listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # out of descriptors: those who wait longest give theirs back
                self._note_shortage(error)
                self._lobby.clear()
                time.sleep(0.05)
                return
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            wait_s = self._config.handshake_timeout_s if endpoint.tls else self._config.request_timeout_s
            visitor = Visitor(connection, str(address[0]), endpoint.tls, time.monotonic() + wait_s)
            oldest = self._lobby.enter(visitor)
            if oldest is not None:
                self._drop_waiting(oldest)
            try:
                self._selector.register(connection, selectors.EVENT_READ, visitor)
            except OSError as error:  # the system watches no more
                self._turn_away(visitor, error)

    def _sweep(self) -> None:
        """Close whoever said nothing in time."""
        now = time.monotonic()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, Visitor) and key.data.deadline <= now:
                self._lobby.leave(key.data)
                self._drop_waiting(key.data)

    def _drop_waiting(self, visitor: Visitor) -> None:
        """Close a visitor that no thread has taken up; one that has a thread is closed by it."""
        if self._forget(visitor):
            visitor.connection.close()

    def _forget(self, visitor: Visitor) -> bool:
        """Watch for a visitor's first byte no longer; False if nobody did."""
        try:
            self._selector.unregister(visitor.connection)
        except (KeyError, ValueError):
            return False
        return True

    def _turn_away(self, visitor: Visitor, error: Exception) -> None:
        """Close a visitor for whom the machine has nothing left; the others stay."""
        self._note_shortage(error)
        self._lobby.leave(visitor)
        visitor.connection.close()

    def _note_shortage(self, error: Exception) -> None:
        if time.monotonic() - self._last_pause > 60:
            self._last_pause = time.monotonic()
            LOG.error("a connection could not be accepted", extra={"error": getattr(error, "strerror", None) or str(error)})

    def _receive(self, visitor: Visitor) -> None:
        thread = threading.Thread(target=self._talk, args=(visitor,), name=f"dimse-{visitor.name}", daemon=True)
        with self._lock:
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError as error:  # no more threads
            with self._lock:
                self._threads.discard(thread)
            self._turn_away(visitor, error)

    def _talk(self, visitor: Visitor) -> None:
        try:
            self._greet(visitor)
        except Exception as error:  # noqa: BLE001 # one peer's fault must end here
            LOG.error("a connection failed", extra={"association": visitor.name, "error": type(error).__name__})
        finally:
            self._lobby.leave(visitor)
            visitor.connection.close()
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _greet(self, visitor: Visitor) -> None:
        config = self._config
        certificate: bytes | None = None
        if visitor.tls:
            assert self._files is not None
            try:
                visitor.connection = secured = tls.handshake(visitor.connection, self._files, timeout_s=config.handshake_timeout_s)
            except HandshakeFailed as failure:
                self._record(visitor, failure.why, failure.certificate)
                return
            certificate = secured.certificate
        try:
            asked = admission.opening(admission.read_request(visitor.connection, timeout_s=config.request_timeout_s))
            decision = admission.decide(
                asked, self._peers, config, address=visitor.address, certificate=certificate, tls=visitor.tls
            )
        except admission.ProtocolError as error:
            self._note_stranger(visitor, "it sent something else than an association request")
            pdus.part(visitor.connection, admission.abort_pdu(error.reason), linger_s=_LINGER_S)
            return
        except admission.Silence:
            return
        if not self._lobby.leave(visitor):
            return
        if isinstance(decision, Rejection):
            self._reject(visitor, decision, asked)
            return
        self._note_called(decision)
        self._serve(visitor, decision, certificate)

    def _serve(self, visitor: Visitor, acceptance: Acceptance, certificate: bytes | None) -> None:
        from archive.services.store import Source

        subject = dataclasses.replace(acceptance.admission.subject, association=visitor.name)
        acceptance = dataclasses.replace(acceptance, admission=dataclasses.replace(acceptance.admission, subject=subject))
        source = Source(
            via="dimse",
            calling_ae_title=acceptance.proposal.calling_ae_title, called_ae_title=acceptance.proposal.called_ae_title,
            certificate_sha256=hashlib.sha256(certificate).hexdigest() if certificate else "",
            issuer=acceptance.admission.issuer,
            character_set=acceptance.admission.settings.character_set,
        )
        assert subject.peer_id is not None
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._place())
                stack.enter_context(self._peers.slot(subject.peer_id, self._worker))
            except Unavailable:
                stack.close()  # who is refused takes nobody's place until it has gone
                self._reject(visitor, admission.LOCAL_LIMIT_EXCEEDED, acceptance.proposal, peer=acceptance.admission.peer_name)
                return
            stack.callback(self._ended, visitor.name)
            tally = Tally()

            def begun(association: Association) -> None:
                nonlocal tally
                tally = association.tally
                with self._lock:
                    self._associations.add(association)

            opened_at = self._log.clock() if self._log is not None else None
            try:
                self._lane.serve(visitor.connection, acceptance, source, name=visitor.name, begun=begun)
            finally:
                if self._log is not None and opened_at is not None:
                    self._log.note(records.of_ended(
                        acceptance, tally, opened_at=opened_at, at=self._log.clock(), address=visitor.address, tls=visitor.tls
                    ))

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """Take one of this process' places before the peer is asked for one of its own, which others do meanwhile."""
        with self._lock:
            if not self._places:
                raise Unavailable
            self._places -= 1
        try:
            yield
        finally:
            with self._lock:
                self._places += 1

    def _ended(self, name: str) -> None:
        with self._lock:
            self._associations = {association for association in self._associations if association.name != name}

    def _note_stranger(self, visitor: Visitor, why: str) -> None:
        if self._log is not None:
            self._log.note(records.of_stranger(why, at=self._log.clock(), address=visitor.address, tls=visitor.tls))

    def _reject(self, visitor: Visitor, rejection: Rejection, asked: Opening, *, peer: str = "") -> None:
        if self._log is not None:
            self._log.note(records.of_refused(
                rejection, asked, at=self._log.clock(), address=visitor.address, tls=visitor.tls, peer=peer
            ))
        LOG.info(
            "an association was rejected",
            extra={"association": visitor.name, "address": visitor.address, "reason": rejection.why},
        )
        self._parting.enter(visitor)
        try:
            time.sleep(_REJECTED_AFTER_S)
            pdus.part(visitor.connection, rejection.encoded, linger_s=_LINGER_S)
        finally:
            self._parting.leave(visitor)

    def _record(self, visitor: Visitor, why: str, certificate: bytes | None) -> None:
        """Leave a trace of a handshake that failed: no request will ever tell who it was."""
        self._note_stranger(visitor, f"the TLS handshake failed: {why}")
        LOG.info("a TLS handshake failed", extra={"association": visitor.name, "address": visitor.address, "reason": why})
        with contextlib.suppress(ArchiveError):
            self._peers.turned_away(address=visitor.address, reason=why, certificate=certificate)

    def _note_called(self, acceptance: Acceptance) -> None:
        """Say once that a peer calls the archive by another name; it is served all the same."""
        called = acceptance.proposal.called_ae_title
        if called in (self._config.ae_title, *self._config.aliases):
            return
        key = (acceptance.admission.peer_name, called)
        if key not in self._mismatches and len(self._mismatches) < 1000:
            self._mismatches.add(key)
            LOG.warning("a peer calls the archive by another AE title", extra={"peer": key[0], "called_ae_title": called})
