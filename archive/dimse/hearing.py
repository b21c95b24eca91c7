"""Hearing while serving: requests wait in order, and what the peer says meanwhile (C-CANCEL, responses, release, abort) is heard.

The Storage lane's own association takes one message after the other; here a message may be a request that takes long, and between two
of its answers the peer is listened to. One thread does all of it.
"""

from __future__ import annotations

import socket
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from archive.config import Dimse
from archive.dimse import command, commitment, models, mpps, normalized, pdus, records
from archive.dimse.admission import UNEXPECTED_PDU, Acceptance, ProtocolError
from archive.dimse.command import QueryRequest
from archive.dimse.contexts import Answered
from archive.dimse.identifiers import MAXIMUM_BYTES
from archive.dimse.normalized import NormalRequest
from archive.dimse.pdus import Closed
from archive.dimse.receive import Endless, Reception
from archive.dimse.storage_lane import StorageAssociation

if TYPE_CHECKING:
    from archive.services.store import Source, Store

_MAXIMUM_WAITING_REQUESTS = 16
_EXPLICIT = "1.2.840.10008.1.2.1"
OPERATIONS = {
    command.C_FIND_RQ: models.FIND_CLASSES | {models.WORKLIST}, command.C_GET_RQ: models.GET_CLASSES,
    command.C_MOVE_RQ: models.MOVE_CLASSES,
}  # fmt: skip
"""The SOP classes of each composite request but C-STORE and C-ECHO."""
_NORMAL = {models.MPPS: mpps.OPERATIONS, models.COMMITMENT: commitment.OPERATIONS}


class _Released(Exception):
    """The peer released the association while something was served."""


class _Arriving:
    """The identifier of a request on its way in, in the place of a data set to store."""

    def __init__(self, request: QueryRequest | NormalRequest) -> None:
        self.request = request
        self.data = bytearray()
        self.received_bytes = 0

    def write(self, fragment: memoryview) -> None:
        """Keep it up to what an identifier may have; the rest is read and thrown away."""
        self.received_bytes += len(fragment)
        if self.received_bytes > 4 * MAXIMUM_BYTES:
            raise Endless
        if self.received_bytes <= MAXIMUM_BYTES:
            self.data += fragment

    def abort(self) -> None:
        """Nothing is kept."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that waits, with its data set; None when that was too large."""

    context: Answered
    request: QueryRequest | NormalRequest
    identifier: bytes | None

    @property
    def explicit(self) -> bool:
        """Whether its data set is in explicit VR."""
        return self.context.transfer_syntax == _EXPLICIT


class HearingAssociation(StorageAssociation):
    """An association as acceptor that can be asked while it answers; what a request is answered with is a subclass's."""

    def __init__(
        self, connection: socket.socket, acceptance: Acceptance, store: Store, source: Source, config: Dimse, *, name: str,
    ) -> None:
        """Take over a connection whose A-ASSOCIATE-RQ was read and accepted."""
        super().__init__(connection, acceptance, store, source, config, name=name)
        self._waiting: deque[Asked] = deque()
        self._serving: int | None = None
        self._cancelled: set[int] = set()
        self._responses: dict[int, int] = {}

    @property
    def quiet(self) -> bool:
        """Whether no message is under way."""
        return self._serving is None and not self._waiting and super().quiet

    def _answer_to(self, asked: Asked) -> None:
        """Serve one request to its end."""
        raise NotImplementedError

    def _one(self) -> bool:
        if not super()._one():
            return False
        try:
            while self._waiting:
                self._serve(self._waiting.popleft())
        except _Released:
            self.tally.ended = records.RELEASED
            self._part(pdus.release_rp())
            return False
        return True

    def _begin(self, context_id: int, encoded: bytes) -> None:
        found = command.elements(encoded)
        field = command.command_field(found)
        if field in OPERATIONS or field in _NORMAL.get(self._contexts[context_id].abstract_syntax, ()):
            request = command.query_request(found) if field in OPERATIONS else normalized.request(found)
            self._cancelled.discard(request.message_id)
            if command.has_data_set(found):
                self._reception = cast("Reception", _Arriving(request))
            else:
                self._ask(context_id, request, b"")
        elif field == command.C_CANCEL_RQ and not command.has_data_set(found):
            self._context_id = None
            about = command.responded_to(found)
            if about == self._serving or any(asked.request.message_id == about for asked in self._waiting):
                self._cancelled.add(about)
        elif field in (command.C_STORE_RSP, normalized.N_EVENT_REPORT_RSP) and not command.has_data_set(found):
            self._context_id = None
            if len(self._responses) > _MAXIMUM_WAITING_REQUESTS:
                raise ProtocolError(UNEXPECTED_PDU)
            self._responses[command.responded_to(found)] = command.status(found)
        else:
            super()._begin(context_id, encoded)

    def _finish(self, context_id: int, reception: Reception | _Arriving) -> None:
        if isinstance(reception, Reception):
            super()._finish(context_id, reception)
            return
        self._reception = None
        whole = reception.received_bytes <= MAXIMUM_BYTES
        self._ask(context_id, reception.request, bytes(reception.data) if whole else None)

    def _ask(self, context_id: int, request: QueryRequest | NormalRequest, identifier: bytes | None) -> None:
        self._context_id = None
        if len(self._waiting) >= _MAXIMUM_WAITING_REQUESTS:
            raise ProtocolError(UNEXPECTED_PDU)
        self._waiting.append(Asked(self._contexts[context_id], request, identifier))

    def _hear(self) -> None:
        """Take one PDU while a request is served."""
        if self._aborting:
            raise Closed
        pdu_type, body = self._stream.next()
        if pdu_type == pdus.P_DATA_TF:
            for context_id, control, data in pdus.fragments(body):
                self._take(context_id, control, data)
        elif pdu_type == pdus.RELEASE_RQ:
            raise _Released
        elif pdu_type == pdus.ABORT:
            raise Closed
        else:
            raise ProtocolError(UNEXPECTED_PDU)

    def _stopped(self) -> bool:
        """Whether the request that is served was cancelled; hears what has come meanwhile."""
        while self._stream.ready:
            self._hear()
        if self._aborting:
            raise Closed
        return self._serving in self._cancelled

    def _serve(self, asked: Asked) -> None:
        self._serving = asked.request.message_id
        try:
            self._answer_to(asked)
        finally:
            self._cancelled.discard(self._serving)
            self._serving = None
