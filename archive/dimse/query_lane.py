"""The lane for associations that query and retrieve: the Storage lane's own, with C-FIND, C-GET and C-MOVE besides.

A request waits until the message before it is answered; while it is served, what the peer says is heard between two answers: C-CANCEL,
the C-STORE-RSP of a C-GET, release, abort. One thread serves it all, and no more than a page of answers is in memory.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archive.config import Dimse
from archive.dimse import command, commitment, models, move, mpps, normalized, pdus, retrieve, status, worklist
from archive.dimse.admission import Acceptance, ProtocolError
from archive.dimse.command import QueryRequest
from archive.dimse.contexts import ACCEPTED
from archive.dimse.find import Search
from archive.dimse.hearing import OPERATIONS, Asked, HearingAssociation
from archive.dimse.identifiers import Identifier, MalformedIdentifier, read
from archive.dimse.models import DoesNotMatch, Model
from archive.dimse.normalized import NormalAnswer, NormalRequest
from archive.dimse.retrieve import NotSent, Progress
from archive.dimse.tls import TlsFiles
from archive.errors import ArchiveError, InvalidQuery, NotFound
from archive.services.sending import Selected, Selection, TooMany, UniqueKeys

if TYPE_CHECKING:
    from archive.services.commitments import Commitments
    from archive.services.mpps import ProcedureSteps
    from archive.services.query import Query
    from archive.services.sending import Leaving, Sending
    from archive.services.store import Source, Store
    from archive.services.worklist import Worklist

LOG = logging.getLogger("archive.dimse")

_BATCH_BYTES = 32 << 10


@dataclass(frozen=True, slots=True)
class Services:
    """What queries and retrieves are answered with."""

    query: Query
    sending: Sending
    files: TlsFiles
    worklist: Worklist
    steps: ProcedureSteps
    commitments: Commitments


class Refused(Exception):
    """A request ends with a failure."""

    def __init__(self, code: int, comment: str, offending: int | None = None) -> None:
        """Keep status, Error Comment and Offending Element."""
        super().__init__(comment)
        self.code = code
        self.comment = comment[: status.COMMENT_CHARACTERS]
        self.offending = offending


_NAMES = {
    command.C_FIND_RQ: "C-FIND", command.C_GET_RQ: "C-GET", command.C_MOVE_RQ: "C-MOVE", normalized.N_CREATE_RQ: "N-CREATE",
    normalized.N_SET_RQ: "N-SET", normalized.N_ACTION_RQ: "N-ACTION",
}


def serves(acceptance: Acceptance) -> bool:
    """Whether an association was granted a context of more than Verification and Storage."""
    return any(context.result == ACCEPTED and context.abstract_syntax in models.SERVED for context in acceptance.contexts)


class QueryAssociation(HearingAssociation):
    """An association as acceptor, run by the thread that calls `run`."""

    def __init__(
        self, connection: socket.socket, acceptance: Acceptance, store: Store, source: Source, config: Dimse, services: Services, *,
        name: str,
    ) -> None:
        """Take over a connection whose A-ASSOCIATE-RQ was read and accepted."""
        super().__init__(connection, acceptance, store, source, config, name=name)
        self._services = services
        self._message_id = 0
        self._by_kind = {
            (context.abstract_syntax, context.transfer_syntax): context.context_id for context in self._contexts.values()
            if context.storage and self._takes_back(context.abstract_syntax)
        }
        self._extended = {one.sop_class_uid: one for one in acceptance.extended}

    def _takes_back(self, sop_class_uid: str) -> bool:
        role = self._acceptance.proposal.roles.get(sop_class_uid)
        return role is None or role.scp

    # --- serving ------------------------------------------------------------------------------------------------------------------

    def _answer_to(self, asked: Asked) -> None:
        try:
            self._perform(asked)
        except Refused as refusal:
            self._respond_to(asked, refusal.code, refusal.comment, offending=refusal.offending)

    def _perform(self, asked: Asked) -> None:
        uid = asked.context.abstract_syntax
        if isinstance(asked.request, NormalRequest):
            answer, committing = self._normal(asked, asked.request)
            self.tally.add(_NAMES[asked.request.field], answer.status)
            self._send(asked.context.context_id, normalized.response(asked.request, answer))
            if committing is not None:
                self._report(asked, committing)
            return
        if uid not in OPERATIONS[asked.request.field]:
            raise Refused(status.SOP_CLASS_NOT_SUPPORTED, "not an operation of this presentation context")
        identifier = self._identifier(asked)
        agreed = self._extended.get(uid)
        relational = self._acceptance.admission.settings.relational or (agreed is not None and agreed.relational)
        try:
            if uid == models.WORKLIST:
                self._find_worklist(asked, identifier)
            elif asked.request.field == command.C_FIND_RQ:
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

    def _identifier(self, asked: Asked) -> Identifier:
        if asked.identifier is None:
            raise Refused(status.CANNOT_UNDERSTAND, "the identifier is too large")
        try:
            return read(asked.identifier, explicit=asked.explicit, default=self._acceptance.admission.settings.character_set)
        except MalformedIdentifier as error:
            raise Refused(status.CANNOT_UNDERSTAND, str(error)) from error

    def _find(self, asked: Asked, identifier: Identifier, *, relational: bool, fuzzy: bool) -> None:
        admission = self._acceptance.admission
        model = Model.of(asked.context.abstract_syntax)
        search = Search.of(identifier, model, admission.datastore, relational=relational, fuzzy=fuzzy)
        code = status.PENDING_UNSUPPORTED_KEY if search.unsupported else status.PENDING
        pages = search.pages(self._services.query, admission.subject)
        self._answer(asked, code, pages, lambda row: search.answer(row, self._config.ae_title, explicit=asked.explicit))

    def _find_worklist(self, asked: Asked, identifier: Identifier) -> None:
        admission = self._acceptance.admission
        search = worklist.Search.of(identifier, admission.datastore)
        pages = search.pages(self._services.worklist, admission.subject)
        self._answer(asked, status.PENDING, pages, lambda row: search.answer(row, explicit=asked.explicit))

    def _answer(
        self, asked: Asked, code: int, pages: Iterator[list[Mapping[str, Any]]], encode: Callable[[Mapping[str, Any]], bytes]
    ) -> None:
        assert isinstance(asked.request, QueryRequest)
        context_id, limit = asked.context.context_id, self._acceptance.proposal.maximum_pdu_bytes
        pending = pdus.command_pdus(context_id, command.query_response(asked.request, code, data_set=True), limit)
        batch = bytearray()
        try:
            for page in pages:
                for row in page:
                    batch += pending + pdus.data_pdu(context_id, encode(row), limit)
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

    def _normal(self, asked: Asked, request: NormalRequest) -> tuple[NormalAnswer, int | None]:
        """Return the answer, and which commitment is to be reported on this association."""
        admission, syntax = self._acceptance.admission, asked.context.transfer_syntax
        if asked.identifier is None:
            return NormalAnswer(commitment.RESOURCE_LIMITATION, "the data set is too large"), None
        if asked.context.abstract_syntax == models.MPPS:
            return mpps.answer(
                self._services.steps, admission.subject, admission.datastore, request, asked.identifier, transfer_syntax_uid=syntax
            ), None
        same = admission.settings.commitment_same_association
        answer, number = commitment.answer(
            self._services.commitments, admission.subject, admission.datastore, request, asked.identifier, transfer_syntax_uid=syntax,
            calling_ae_title=self._acceptance.proposal.calling_ae_title, same_association=same,
        )
        return answer, number if same else None

    def _report(self, asked: Asked, number: int) -> None:
        """Check and report before anything else is heard here; where that fails, the queue reports later on an association of its own."""
        commitments = self._services.commitments
        try:
            report = commitments.check(number) or commitments.report(number)
            if report is None:
                return
            self._message_id = about = self._message_id % 0xFFFF + 1
            self._responses.pop(about, None)
            data = commitment.data_set(report, explicit=asked.explicit)
            self._stream.send(self._message(asked.context.context_id, commitment.command_of(about, report), data))
            while about not in self._responses:
                self._hear()
            if self._responses.pop(about) == status.SUCCESS:
                commitments.reported(number)
        except ArchiveError as error:
            LOG.warning("a commitment was not reported", extra={"association": self.name, "error": error.code})

    def _retrieve(self, asked: Asked, keys: UniqueKeys) -> None:
        assert isinstance(asked.request, QueryRequest)
        admission, sending = self._acceptance.admission, self._services.sending
        if asked.request.field == command.C_GET_RQ:
            selection = sending.select(admission.subject, admission.datastore, keys, what="C-GET")
            opened = sending.opening(selection)
            self._run(asked, selection, lambda one: self._give(opened, one))
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

    def _run(self, asked: Asked, selection: Selection, deliver: retrieve.Deliver) -> None:
        def pending(progress: Progress) -> None:
            self._respond_to(asked, status.PENDING, counts=progress.counts(final=False))

        progress, code = retrieve.run(selection.instances, deliver, pending=pending, cancelled=self._stopped)
        counts = progress.counts(final=code != status.CANCELLED)
        self._respond_to(asked, code, counts=counts, data_set=progress.failed_list(explicit=asked.explicit))

    def _give(self, opened: Callable[[Selected, str], Leaving], one: Selected) -> int:
        """Send one instance back on this association, and wait for the answer."""
        sending = self._services.sending
        try:
            context_id, syntax = move.choose(self._by_kind, one, convertible=sending.convertible(one))
            leaving = opened(one, syntax)
        except ArchiveError as error:
            LOG.warning("an instance was not sent", extra={"association": self.name, "error": error.code})
            raise NotSent from error
        self._message_id = number = self._message_id % 0xFFFF + 1
        self._responses.pop(number, None)
        limit = self._acceptance.proposal.maximum_pdu_bytes
        asks = pdus.command_pdus(context_id, command.store_command(number, one.sop_class_uid, one.sop_instance_uid), limit)
        try:
            for some in pdus.data_pdus(context_id, leaving.length, leaving.pieces, limit, before=asks):
                self._stream.send(some)
        except ArchiveError as error:  # half of it has left, and nothing else may follow that half
            LOG.error("an instance broke off while it was sent", extra={"association": self.name, "error": error.code})
            raise ProtocolError(0) from error
        while number not in self._responses:
            self._hear()
        return self._responses.pop(number)

    # --- answering ----------------------------------------------------------------------------------------------------------------

    def _respond_to(
        self, asked: Asked, code: int, comment: str = "", *, offending: int | None = None, counts: command.Counts | None = None,
        data_set: bytes = b"",
    ) -> None:
        assert isinstance(asked.request, QueryRequest)
        if code not in (status.PENDING, status.PENDING_UNSUPPORTED_KEY):
            self.tally.add(_NAMES[asked.request.field], code)
        encoded = command.query_response(asked.request, code, comment, offending=offending, counts=counts, data_set=bool(data_set))
        self._stream.send(self._message(asked.context.context_id, encoded, data_set))

    def _message(self, context_id: int, encoded: bytes, data_set: bytes) -> bytes:
        limit = self._acceptance.proposal.maximum_pdu_bytes
        made = pdus.command_pdus(context_id, encoded, limit)
        if not data_set:
            return made
        return made + pdus.data_pdu(context_id, data_set, limit)


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
