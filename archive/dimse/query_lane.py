"""The lane for associations that query and retrieve: the Storage lane's own, with C-FIND, C-GET and C-MOVE besides.

A request waits until the message before it is answered; while it is served, what the peer says is heard between two answers: C-CANCEL,
the C-STORE-RSP of a C-GET, release, abort. One thread serves it all, and no more than a page of answers is in memory.
"""

from __future__ import annotations

import logging
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from archive.config import Dimse
from archive.dimse import command, models, move, pdus, retrieve, status
from archive.dimse.admission import UNEXPECTED_PDU, Acceptance, ProtocolError
from archive.dimse.command import QueryRequest
from archive.dimse.contexts import ACCEPTED, Answered
from archive.dimse.find import Search
from archive.dimse.identifiers import MAXIMUM_BYTES, Identifier, MalformedIdentifier, read
from archive.dimse.models import DoesNotMatch, Model
from archive.dimse.pdus import Closed
from archive.dimse.receive import Endless, Reception
from archive.dimse.retrieve import NotSent, Progress
from archive.dimse.storage_lane import StorageAssociation
from archive.dimse.tls import TlsFiles
from archive.errors import ArchiveError, InvalidQuery, NotFound
from archive.services.sending import Selected, Selection, TooMany, UniqueKeys

if TYPE_CHECKING:
    from archive.services.query import Query
    from archive.services.sending import Sending
    from archive.services.store import Source, Store

LOG = logging.getLogger("archive.dimse")

_MAXIMUM_WAITING_REQUESTS = 16
_BATCH_BYTES = 32 << 10
_EXPLICIT = "1.2.840.10008.1.2.1"
_OPERATIONS = {
    command.C_FIND_RQ: models.FIND_CLASSES, command.C_GET_RQ: models.GET_CLASSES, command.C_MOVE_RQ: models.MOVE_CLASSES,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Services:
    """What queries and retrieves are answered with."""

    query: Query
    sending: Sending
    files: TlsFiles


class Refused(Exception):
    """A request ends with a failure."""

    def __init__(self, code: int, comment: str, offending: int | None = None) -> None:
        """Keep status, Error Comment and Offending Element."""
        super().__init__(comment)
        self.code = code
        self.comment = comment[: status.COMMENT_CHARACTERS]
        self.offending = offending


class _Released(Exception):
    """The peer released the association while something was served."""


class _Arriving:
    """The identifier of a request on its way in, in the place of a data set to store."""

    def __init__(self, request: QueryRequest) -> None:
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
class _Asked:
    context: Answered
    request: QueryRequest
    identifier: bytes | None

    @property
    def explicit(self) -> bool:
        return self.context.transfer_syntax == _EXPLICIT


def serves(acceptance: Acceptance) -> bool:
    """Whether an association was granted a query or retrieve context."""
    return any(context.result == ACCEPTED and context.abstract_syntax in models.CLASSES for context in acceptance.contexts)


class QueryAssociation(StorageAssociation):
    """An association as acceptor, run by the thread that calls `run`."""

    def __init__(
        self, connection: socket.socket, acceptance: Acceptance, store: Store, source: Source, config: Dimse, services: Services, *,
        name: str,
    ) -> None:
        """Take over a connection whose A-ASSOCIATE-RQ was read and accepted."""
        super().__init__(connection, acceptance, store, source, config, name=name)
        self._services = services
        self._waiting: deque[_Asked] = deque()
        self._serving: int | None = None
        self._cancelled: set[int] = set()
        self._responses: dict[int, int] = {}
        self._message_id = 0
        self._by_kind = {
            (context.abstract_syntax, context.transfer_syntax): context.context_id for context in self._contexts.values()
            if context.storage and self._takes_back(context.abstract_syntax)
        }
        self._extended = {one.sop_class_uid: one for one in acceptance.extended}

    @property
    def quiet(self) -> bool:
        """Whether no message is under way."""
        return self._serving is None and not self._waiting and super().quiet

    def _takes_back(self, sop_class_uid: str) -> bool:
        role = self._acceptance.proposal.roles.get(sop_class_uid)
        return role is None or role.scp

    # --- hearing ------------------------------------------------------------------------------------------------------------------

    def _one(self) -> bool:
        if not super()._one():
            return False
        try:
            while self._waiting:
                self._serve(self._waiting.popleft())
        except _Released:
            self._part(pdus.release_rp())
            return False
        return True

    def _begin(self, context_id: int, encoded: bytes) -> None:
        found = command.elements(encoded)
        field = command.command_field(found)
        if field in _OPERATIONS:
            request = command.query_request(found)
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
        elif field == command.C_STORE_RSP and not command.has_data_set(found):
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

    def _ask(self, context_id: int, request: QueryRequest, identifier: bytes | None) -> None:
        self._context_id = None
        if len(self._waiting) >= _MAXIMUM_WAITING_REQUESTS:
            raise ProtocolError(UNEXPECTED_PDU)
        self._waiting.append(_Asked(self._contexts[context_id], request, identifier))

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

    # --- serving ------------------------------------------------------------------------------------------------------------------

    def _serve(self, asked: _Asked) -> None:
        self._serving = asked.request.message_id
        try:
            self._perform(asked)
        except Refused as refusal:
            self._respond_to(asked, refusal.code, refusal.comment, offending=refusal.offending)
        finally:
            self._cancelled.discard(self._serving)
            self._serving = None

    def _perform(self, asked: _Asked) -> None:
        uid = asked.context.abstract_syntax
        if uid not in _OPERATIONS[asked.request.field]:
            raise Refused(status.SOP_CLASS_NOT_SUPPORTED, "not an operation of this presentation context")
        identifier = self._identifier(asked)
        agreed = self._extended.get(uid)
        relational = agreed is not None and agreed.relational
        try:
            if asked.request.field == command.C_FIND_RQ:
                fuzzy = agreed is not None and agreed.fuzzy
                self._find(asked, identifier, relational=relational, fuzzy=fuzzy)
            else:
                keys = retrieve.unique_keys(identifier, Model.of(uid), relational=relational)
                self._retrieve(asked, keys)
        except DoesNotMatch as error:
            raise Refused(status.IDENTIFIER_DOES_NOT_MATCH, error.message, error.tag) from error
        except InvalidQuery as error:
            raise Refused(status.IDENTIFIER_DOES_NOT_MATCH, error.message) from error
        except TooMany as error:
            raise Refused(status.CANNOT_PERFORM, error.message) from error
        except ArchiveError as error:
            LOG.warning("a request failed", extra={"association": self.name, "error": error.code})
            code = status.OUT_OF_RESOURCES if asked.request.field == command.C_FIND_RQ else status.CANNOT_COUNT
            raise Refused(code, "the archive cannot answer now; try again later") from error

    def _identifier(self, asked: _Asked) -> Identifier:
        if asked.identifier is None:
            raise Refused(status.CANNOT_UNDERSTAND, "the identifier is too large")
        try:
            return read(asked.identifier, explicit=asked.explicit)
        except MalformedIdentifier as error:
            raise Refused(status.CANNOT_UNDERSTAND, str(error)) from error

    def _find(self, asked: _Asked, identifier: Identifier, *, relational: bool, fuzzy: bool) -> None:
        admission = self._acceptance.admission
        model = Model.of(asked.context.abstract_syntax)
        search = Search.of(identifier, model, admission.datastore, relational=relational, fuzzy=fuzzy)
        code = status.PENDING_UNSUPPORTED_KEY if search.unsupported else status.PENDING
        pending = command.query_response(asked.request, code, data_set=True)
        batch = bytearray()
        try:
            for page in search.pages(self._services.query, admission.subject):
                for row in page:
                    answer = search.answer(row, self._config.ae_title, explicit=asked.explicit)
                    batch += self._message(asked.context.context_id, pending, answer)
                    if len(batch) >= _BATCH_BYTES:
                        self._stream.send(batch)
                        batch.clear()
                        if self._stopped():
                            self._respond_to(asked, status.CANCELLED)
                            return
                if self._stopped():
                    self._respond_to(asked, status.CANCELLED)
                    return
        except NotFound:
            batch.clear()  # a datastore that is not there for the peer has nothing in it
        if batch:
            self._stream.send(batch)
        self._respond_to(asked, status.SUCCESS)

    def _retrieve(self, asked: _Asked, keys: UniqueKeys) -> None:
        admission, sending = self._acceptance.admission, self._services.sending
        if asked.request.field == command.C_GET_RQ:
            selection = sending.select(admission.subject, admission.datastore, keys, what="C-GET")
            self._run(asked, selection, lambda one: self._give(selection, one))
            return
        to = sending.destination(admission.subject, asked.request.move_destination)
        if to is None:
            raise Refused(status.DESTINATION_UNKNOWN, "move destination unknown")
        selection = sending.select(admission.subject, admission.datastore, keys, what="C-MOVE", to=to)
        originator = move.Originator(self._acceptance.proposal.calling_ae_title, asked.request.message_id)
        mover = move.Mover(sending, selection, self._config, self._services.files, originator)
        try:
            self._run(asked, selection, mover.deliver)
        finally:
            mover.close()

    def _run(self, asked: _Asked, selection: Selection, deliver: retrieve.Deliver) -> None:
        def pending(progress: Progress) -> None:
            self._respond_to(asked, status.PENDING, counts=progress.counts(final=False))

        progress, code = retrieve.run(selection.instances, deliver, pending=pending, cancelled=self._stopped)
        counts = progress.counts(final=code != status.CANCELLED)
        self._respond_to(asked, code, counts=counts, data_set=progress.failed_list(explicit=asked.explicit))

    def _give(self, selection: Selection, one: Selected) -> int:
        """Send one instance back on this association, and wait for the answer."""
        sending = self._services.sending
        try:
            context_id, syntax = move.choose(self._by_kind, one, convertible=sending.convertible(one))
            leaving = sending.open(selection, one, syntax)
        except ArchiveError as error:
            LOG.warning("an instance was not sent", extra={"association": self.name, "error": error.code})
            raise NotSent from error
        self._message_id = number = self._message_id % 0xFFFF + 1
        self._responses.pop(number, None)
        limit = self._acceptance.proposal.maximum_pdu_bytes
        self._stream.send(pdus.command_pdus(context_id, command.store_command(number, one.sop_class_uid, one.sop_instance_uid), limit))
        try:
            for some in pdus.data_pdus(context_id, leaving.length, leaving.pieces, limit):
                self._stream.send(some)
        except ArchiveError as error:  # half of it has left, and nothing else may follow that half
            LOG.error("an instance broke off while it was sent", extra={"association": self.name, "error": error.code})
            raise ProtocolError(0) from error
        while number not in self._responses:
            self._hear()
        return self._responses.pop(number)

    # --- answering ----------------------------------------------------------------------------------------------------------------

    def _respond_to(
        self, asked: _Asked, code: int, comment: str = "", *, offending: int | None = None, counts: command.Counts | None = None,
        data_set: bytes = b"",
    ) -> None:
        encoded = command.query_response(asked.request, code, comment, offending=offending, counts=counts, data_set=bool(data_set))
        self._stream.send(self._message(asked.context.context_id, encoded, data_set))

    def _message(self, context_id: int, encoded: bytes, data_set: bytes) -> bytes:
        limit = self._acceptance.proposal.maximum_pdu_bytes
        made = pdus.command_pdus(context_id, encoded, limit)
        if not data_set:
            return made
        return made + b"".join(pdus.data_pdus(context_id, len(data_set), (data_set,), limit))


class QueryLane:
    """Serves admitted connections; safe to share between threads."""

    def __init__(self, store: Store, config: Dimse, services: Services) -> None:
        """Keep what associations are served with."""
        self._store = store
        self._config = config
        self._services = services

    def serve(
        self, connection: socket.socket, acceptance: Acceptance, source: Source, *, name: str,
        begun: Callable[[QueryAssociation], None],
    ) -> None:
        """Serve one association until it ends; `begun` is told of it before its request is answered."""
        association = QueryAssociation(connection, acceptance, self._store, source, self._config, self._services, name=name)
        begun(association)
        association.run()
