"""The lane for associations that propose nothing but Storage and Verification: one thread an association, one buffer, no state machine.

What a modality does all day takes the shortest way: a PDU is received into a buffer that is used again, its fragments go into the store
from there, one send carries the answer. Admission, presentation contexts, `Reception` and statuses are those of the other lane (scp.py),
which serves everything else; tests feed both the same streams.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from archive.config import Dimse
from archive.dicom.alike import Alike
from archive.dimse import command, pdus, records
from archive.dimse.admission import UNEXPECTED_PDU, Acceptance, ProtocolError, Silence, abort_pdu
from archive.dimse.contexts import ACCEPTED, VERIFICATION, is_storage
from archive.dimse.pdus import Closed, PduStream
from archive.dimse.receive import Empties, Endless, Reception
from archive.dimse.records import Tally
from archive.dimse.status import CANNOT_UNDERSTAND, SOP_CLASS_NOT_SUPPORTED, SUCCESS, UNRECOGNISED_OPERATION, Answer

if TYPE_CHECKING:
    from archive.services.store import Source, Store

LOG = logging.getLogger("archive.dimse")

LINGER_S = 2.0
_MAXIMUM_IDENTIFIER_BYTES = 4 << 20


def serves(acceptance: Acceptance, *, private: bool) -> bool:
    """Whether an association proposes only what this lane serves."""
    proposed = {context.abstract_syntax for context in acceptance.proposal.contexts}
    return bool(proposed) and all(uid == VERIFICATION or is_storage(uid, private=private) for uid in proposed)


class StorageAssociation:
    """An association as acceptor, run by the thread that calls `run`."""

    def __init__(
        self, connection: socket.socket, acceptance: Acceptance, store: Store, source: Source, config: Dimse, *, name: str
    ) -> None:
        """Take over a connection whose A-ASSOCIATE-RQ was read and accepted."""
        self.name = name
        self.tally = Tally()
        self._connection = connection
        self._acceptance = acceptance
        self._store = store
        self._source = source
        self._config = config
        self._stream = PduStream(connection, maximum_pdu_bytes=config.max_pdu_bytes, timeout_s=config.idle_timeout_s)
        self._contexts = {context.context_id: context for context in acceptance.contexts if context.result == ACCEPTED}
        self._alike = Alike()
        self._command = bytearray()
        self._context_id: int | None = None  # of the message that is under way
        self._empties = Empties()
        self._reception: Reception | None = None
        self._unread: tuple[command.Request | None, int] | None = None  # whose data set nobody wants, and its bytes so far
        self._aborting = False
        self._busy = False

    @property
    def quiet(self) -> bool:
        """Whether no message is under way."""
        return self._context_id is None and not self._busy and self._stream.empty

    def abort(self, *, block: bool = True) -> None:  # noqa: ARG002 # as the other lane's
        """End the association from another thread: its own says so to the peer."""
        self._aborting = True
        self._stream.interrupt()

    def run(self) -> None:
        """Accept, then serve messages until the association ends; nothing leaves as an exception."""
        acceptance = self._acceptance
        try:
            self._stream.send(pdus.associate_ac(
                acceptance.proposal.encoded, acceptance.contexts, acceptance.roles, maximum_pdu_bytes=self._config.max_pdu_bytes,
                extended=[(one.sop_class_uid, one.information) for one in acceptance.extended], tells_user=acceptance.tells_user,
            ))
            while self._one():
                pass
        except Closed:
            if self._aborting:
                self.tally.ended = records.STOPPED
                self._part(abort_pdu(0))
        except Silence:
            self.tally.ended = records.TIMED_OUT
            if self._context_id is None and self._stream.empty:
                LOG.info("an idle association was ended", extra={"association": self.name})
            self._part(abort_pdu(0))
        except ProtocolError as error:
            self.tally.ended = records.FAILED
            self._part(abort_pdu(error.reason))
        except (command.MalformedCommand, Endless):
            self.tally.ended = records.FAILED
            self._part(abort_pdu(0))
        except Exception as error:  # noqa: BLE001 # the association must end in order whatever the peer sent
            self.tally.ended = records.FAILED
            LOG.warning("an association failed", extra={"association": self.name, "error": type(error).__name__})
            self._part(abort_pdu(0))
        finally:
            self._abandon()

    def _one(self) -> bool:
        """Serve one PDU; False when the association is over."""
        if self._aborting:
            raise Closed
        pdu_type, body = self._stream.next()
        if pdu_type == pdus.P_DATA_TF:
            self._busy = True
            for context_id, control, data in pdus.fragments(body):
                self._take(context_id, control, data)
            self._busy = False
            return True
        if pdu_type == pdus.RELEASE_RQ:
            self.tally.ended = records.RELEASED
            self._abandon()
            self._part(pdus.release_rp())
            return False
        if pdu_type == pdus.ABORT:
            self.tally.ended = records.ABORTED
            return False
        raise ProtocolError(UNEXPECTED_PDU)

    def _take(self, context_id: int, control: int, data: memoryview) -> None:
        if context_id not in self._contexts or self._context_id not in (None, context_id):
            raise ProtocolError(UNEXPECTED_PDU)
        self._empties.note(data, first=self._context_id is None)
        self._context_id = context_id
        if bool(control & pdus.COMMAND) == (self._reception is not None or self._unread is not None):
            raise ProtocolError(UNEXPECTED_PDU)
        last = bool(control & pdus.LAST)
        if self._reception is not None:
            self._reception.write(data)
            if last:
                self._finish(context_id, self._reception)
        elif self._unread is not None:
            self._pass_over(context_id, *self._unread, len(data), last=last)
        else:
            self._command += data
            if len(self._command) > command.MAXIMUM_BYTES:
                raise ProtocolError(UNEXPECTED_PDU)
            if last:
                encoded = bytes(self._command)
                self._command.clear()
                self._begin(context_id, encoded)

    def _finish(self, context_id: int, reception: Reception) -> None:
        self._reception = None
        answer = reception.finish()
        self.tally.add("C-STORE", answer.status)
        self._context_id = None
        self._send(context_id, command.store_response(reception.request, answer.status, answer.comment))

    def _pass_over(self, context_id: int, request: command.Request | None, so_far: int, more: int, *, last: bool) -> None:
        """Read a data set nobody wants to its end, then answer."""
        if so_far + more > _MAXIMUM_IDENTIFIER_BYTES:
            raise ProtocolError(UNEXPECTED_PDU)
        self._unread = None if last else (request, so_far + more)
        if last:
            self._respond(context_id, request)

    def _begin(self, context_id: int, encoded: bytes) -> None:
        found = command.elements(encoded)
        field = command.command_field(found)
        if field != command.C_STORE_RQ:
            # Nothing is under way that could be cancelled, and nothing was asked of the peer.
            request = None if field == command.C_CANCEL_RQ or field & command.RESPONSE else command.request(found)
            if command.has_data_set(found):
                self._unread = request, 0
            else:
                self._respond(context_id, request)
            return
        store_request = command.store_request(found)
        if not store_request.has_data_set:
            answer = Answer(CANNOT_UNDERSTAND, "a C-STORE without a data set")
            self._context_id = None
            self._send(context_id, command.store_response(store_request, answer.status, answer.comment))
            return
        admission = self._acceptance.admission
        self._reception = Reception(
            self._store, admission.subject, admission.datastore, self._source,
            context=self._contexts[context_id], request=store_request, maximum_bytes=self._config.max_dataset_bytes, alike=self._alike,
        )

    def _respond(self, context_id: int, request: command.Request | None) -> None:
        """Answer any request but a C-STORE: C-ECHO by success, the rest as unknown here."""
        self._context_id = None
        if request is None:
            return
        if request.field != command.C_ECHO_RQ:
            status = UNRECOGNISED_OPERATION
        else:
            status = SUCCESS if self._contexts[context_id].abstract_syntax == VERIFICATION else SOP_CLASS_NOT_SUPPORTED
        self.tally.add("C-ECHO" if request.field == command.C_ECHO_RQ else "unknown", status)
        self._send(context_id, command.response(request, status))

    def _send(self, context_id: int, encoded: bytes) -> None:
        self._stream.send(pdus.command_pdus(context_id, encoded, self._acceptance.proposal.maximum_pdu_bytes))

    def _part(self, last_words: bytes) -> None:
        self._abandon()
        pdus.part(self._connection, last_words, linger_s=LINGER_S)

    def _abandon(self) -> None:
        """Give up the message that was being received."""
        reception, self._reception = self._reception, None
        self._context_id = self._unread = None
        self._busy = False
        if reception is not None:
            reception.abort()


class StorageLane:
    """Serves admitted connections; safe to share between threads."""

    def __init__(self, store: Store, config: Dimse) -> None:
        """Keep what associations are served with."""
        self._store = store
        self._config = config

    def serve(
        self, connection: socket.socket, acceptance: Acceptance, source: Source, *, name: str,
        begun: Callable[[StorageAssociation], None],
    ) -> None:
        """Serve one association until it ends; `begun` is told of it before its request is answered."""
        association = StorageAssociation(connection, acceptance, self._store, source, self._config, name=name)
        begun(association)
        association.run()
