"""The lane that serves associations on pynetdicom: C-ECHO by the library, C-STORE streamed into the store.

Two threads serve one association: the Upper Layer's reads PDUs and stores what comes by C-STORE, so that a store that waits for its
disk makes the peer wait in turn; the association's own runs everything else. pynetdicom's settings are process-wide: they are made
here, once. Its loggers stay silent, since they print UIDs and data sets.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pydicom.config
import pynetdicom
from pynetdicom import AE, evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.acse import ACSE
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.pdu_primitives import P_DATA, SCP_SCU_RoleSelectionNegotiation, UserIdentityNegotiation
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation

from archive.config import Dimse
from archive.dicom.alike import Alike
from archive.dimse import command, records
from archive.dimse.admission import Acceptance
from archive.dimse.contexts import ACCEPTED, VERIFICATION, Answered
from archive.dimse.pdus import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from archive.dimse.receive import Empties, Endless, Reception
from archive.dimse.records import Tally
from archive.dimse.status import CANNOT_UNDERSTAND, SOP_CLASS_NOT_SUPPORTED, SUCCESS, UNRECOGNISED_OPERATION, Answer
from archive.dimse.upper import PData, Transport, UpperLayer

if TYPE_CHECKING:
    import socket

    from archive.services.store import Source, Store

LOG = logging.getLogger("archive.dimse")

_COMMAND, _LAST = 1, 2  # message control header (PS3.8 E.2)
_MAXIMUM_IDENTIFIER_BYTES = 4 << 20
_MAXIMUM_WAITING_MESSAGES = 16
_DEFAULT_PDU_BYTES = 16384


def configure() -> None:
    """Set pynetdicom's and pydicom's process-wide switches; doing it again changes nothing."""
    pynetdicom._config.LOG_HANDLER_LEVEL = "none"  # noqa: SLF001 # its public name, underscore and all
    pynetdicom._config.STORE_RECV_CHUNKED_DATASET = False  # noqa: SLF001 # would leave plaintext in a temporary file
    pynetdicom._config.LOG_RESPONSE_IDENTIFIERS = False  # noqa: SLF001 # as above
    pynetdicom._config.LOG_REQUEST_IDENTIFIERS = False  # noqa: SLF001 # as above
    for name in ("pynetdicom", "pydicom"):
        library = logging.getLogger(name)
        library.handlers = [logging.NullHandler()]
        library.propagate = False
        library.setLevel(logging.CRITICAL + 1)
    # A value that breaks its VR is warned about with the value in the text.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE


class UnexpectedMessage(Exception):
    """A fragment that cannot follow what came before; the association is aborted."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What an association is served with."""

    acceptance: Acceptance
    store: Store
    source: Source
    config: Dimse


class MessageExchange(DIMSEServiceProvider):
    """The DIMSE service provider: C-STORE-RQ is taken here, C-ECHO-RQ goes the library's way, which would call every request a success."""

    def __init__(self, association: ServedAssociation, terms: Terms) -> None:
        """Begin without a message."""
        super().__init__(association)
        self._upper = association.upper
        self._tally = association.tally
        self.msg_queue = self._upper.message_queue()
        self._terms = terms
        self._contexts = {context.context_id: context for context in terms.acceptance.contexts if context.result == ACCEPTED}
        self._alike = Alike()
        self._command = bytearray()
        self._context_id: int | None = None
        self._empties = Empties()
        self._reception: Reception | None = None
        self._identifier_bytes = -1  # not negative while a data set of another message is expected
        self._unknown: tuple[command.Request, int] | None = None  # the request whose data set that is, and what it is answered

    @property
    def receiving(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._context_id is not None

    def receive_primitive(self, primitive: PData) -> None:  # type: ignore[override] # UpperLayer hands over nothing else
        """Take the presentation data values of one P-DATA indication; malformed ones abort the association."""
        self._upper.busy = True
        try:
            for context_id, control, data in primitive.values:
                self._take(context_id, control, data)
        except (UnexpectedMessage, command.MalformedCommand, Endless):
            self.abandon()
            self._upper.event_queue.put("Evt19")
        finally:
            self._upper.listen_again()

    def abandon(self) -> None:
        """Give up the message that was being received."""
        reception, self._reception = self._reception, None
        self._context_id = None
        if reception is not None:
            reception.abort()

    def _take(self, context_id: int, control: int, data: memoryview) -> None:
        context = self._contexts.get(context_id)
        if context is None or self._context_id not in (None, context_id):
            raise UnexpectedMessage
        self._empties.note(data, first=self._context_id is None)
        self._context_id = context_id
        expects_data = self._reception is not None or self._identifier_bytes >= 0
        if bool(control & _COMMAND) == expects_data:
            raise UnexpectedMessage
        if control & _COMMAND:
            self._command += data
            if len(self._command) > command.MAXIMUM_BYTES:
                raise UnexpectedMessage
            if control & _LAST:
                encoded = bytes(self._command)
                self._command.clear()
                self._begin(context, encoded)
        elif self._reception is not None:
            self._reception.write(data)
            if control & _LAST:
                reception, self._reception = self._reception, None
                self._context_id = None
                self._answer(context_id, reception.request, reception.finish())
        else:
            self._take_identifier(context_id, control, data)

    def _take_identifier(self, context_id: int, control: int, data: memoryview) -> None:
        """Take a data set that is not stored: the library's, or nobody's."""
        self._identifier_bytes += len(data)
        if self._identifier_bytes > _MAXIMUM_IDENTIFIER_BYTES:
            raise UnexpectedMessage
        if self._unknown is None:
            self._pass_on(context_id, control, bytes(data))
        if control & _LAST:
            self._identifier_bytes = -1
            self._context_id = None
            self._refuse(context_id)

    def _begin(self, context: Answered, encoded: bytes) -> None:
        found = command.elements(encoded)
        field = command.command_field(found)
        if field != command.C_STORE_RQ:
            verifies = field == command.C_ECHO_RQ and context.abstract_syntax == VERIFICATION
            if not (verifies or field == command.C_CANCEL_RQ or field & command.RESPONSE):
                code = SOP_CLASS_NOT_SUPPORTED if field == command.C_ECHO_RQ else UNRECOGNISED_OPERATION
                self._unknown = command.request(found), code
                if command.has_data_set(found):
                    self._identifier_bytes = 0
                else:
                    self._context_id = None
                    self._refuse(context.context_id)
                return
            if self.msg_queue.qsize() >= _MAXIMUM_WAITING_MESSAGES:
                raise UnexpectedMessage
            if verifies:
                self._tally.add("C-ECHO", SUCCESS)
            self._pass_on(context.context_id, _COMMAND | _LAST, encoded)
            if self.message is None:
                self._context_id = None
            else:
                self._identifier_bytes = 0
            return
        request = command.store_request(found)
        if not request.has_data_set:
            self._context_id = None
            self._answer(context.context_id, request, Answer(CANNOT_UNDERSTAND, "a C-STORE without a data set"))
            return
        admission = self._terms.acceptance.admission
        self._reception = Reception(
            self._terms.store,
            admission.subject,
            admission.datastore,
            self._terms.source,
            context=context,
            request=request,
            maximum_bytes=self._terms.config.max_dataset_bytes,
            alike=self._alike,
        )

    def _pass_on(self, context_id: int, control: int, data: bytes) -> None:
        primitive = P_DATA()
        primitive.presentation_data_value_list.append((context_id, bytes((control,)) + data))
        try:
            super().receive_primitive(primitive)
        except Exception as error:  # the library has no error class of its own for a malformed message
            raise UnexpectedMessage from error

    def _answer(self, context_id: int, request: command.StoreRequest, answer: Answer) -> None:
        self._tally.add("C-STORE", answer.status)
        self._send(context_id, command.store_response(request, answer.status, answer.comment))

    def _refuse(self, context_id: int) -> None:
        """Answer the request that is not served here, once all of it has come."""
        unknown, self._unknown = self._unknown, None
        if unknown is not None:
            request, code = unknown
            self._tally.add("C-ECHO" if request.field == command.C_ECHO_RQ else "unknown", code)
            self._send(context_id, command.response(request, code))

    def _send(self, context_id: int, encoded: bytes) -> None:
        limit = self.maximum_pdu_size
        size = (limit if limit > 6 else _DEFAULT_PDU_BYTES) - 6
        for at in range(0, len(encoded), size):
            last = _LAST if at + size >= len(encoded) else 0
            primitive = P_DATA()
            primitive.presentation_data_value_list.append((context_id, bytes((_COMMAND | last,)) + encoded[at : at + size]))
            self._upper.send_pdu(primitive)


class Negotiation(ACSE):
    """Answers the A-ASSOCIATE-RQ as admission has decided; the library's own negotiation prefers the acceptor's order."""

    def __init__(self, association: ServedAssociation, acceptance: Acceptance) -> None:
        """Keep what to answer."""
        super().__init__(association)
        self._association = association
        self._acceptance = acceptance

    def _negotiate_as_acceptor(self) -> None:
        association = self._association
        self.requestor.ae_title = self._acceptance.proposal.calling_ae_title
        answered = [_presentation_context(context) for context in self._acceptance.contexts]
        association.settle(answered)
        for role in self._acceptance.roles:
            item = SCP_SCU_RoleSelectionNegotiation()
            item.sop_class_uid = role.sop_class_uid
            item.scu_role, item.scp_role = role.scu, role.scp
            self.acceptor.add_negotiation_item(item)
        if self._acceptance.tells_user:
            told = UserIdentityNegotiation()
            told.server_response = b""
            self.acceptor.add_negotiation_item(told)
        self.send_accept()
        evt.trigger(association, evt.EVT_ACCEPTED, {})
        association.is_established = True
        evt.trigger(association, evt.EVT_ESTABLISHED, {})


def _presentation_context(context: Answered) -> PresentationContext:
    made = PresentationContext()
    made.context_id = context.context_id
    made.abstract_syntax = context.abstract_syntax
    made.transfer_syntax = [context.transfer_syntax or "1.2.840.10008.1.2"]
    made.result = context.result
    made._as_scu, made._as_scp = False, True  # noqa: SLF001 # what its own negotiation sets
    return made


class ServedAssociation(Association):
    """An association as acceptor, run by the thread that calls `run_reactor`."""

    def __init__(self, ae: AE, terms: Terms, *, name: str) -> None:
        """Build it; `attach` gives it the connection."""
        super().__init__(ae, MODE_ACCEPTOR)
        config = terms.config
        self.name = name
        self.tally = Tally()
        self.dul = self.upper = UpperLayer(self, maximum_pdu_bytes=config.max_pdu_bytes)
        self.dimse = self.exchange = MessageExchange(self, terms)
        self.acse = Negotiation(self, terms.acceptance)
        self.acse_timeout = config.request_timeout_s
        self.network_timeout = config.idle_timeout_s
        self.dimse_timeout = config.idle_timeout_s
        self.acceptor.maximum_length = config.max_pdu_bytes
        self.acceptor.ae_title = config.ae_title
        self.acceptor.implementation_class_uid = ae.implementation_class_uid
        self.acceptor.implementation_version_name = ae.implementation_version_name

    def attach(self, connection: socket.socket, request: bytes, *, timeout_s: float) -> None:
        """Serve on this connection, whose A-ASSOCIATE-RQ was read already."""
        self.acceptor.address_info = AddressInformation.from_tuple(connection.getsockname())
        self.requestor.address_info = AddressInformation.from_tuple(connection.getpeername())
        self._transport = Transport(self, connection, request, timeout_s=timeout_s)
        self.set_socket(self._transport)

    def dispose(self) -> None:
        """Give every descriptor back, once it is over."""
        self._transport.dispose()

    def settle(self, answered: list[PresentationContext]) -> None:
        """Take the negotiated presentation contexts."""
        self._accepted_cx = {context.context_id or 0: context for context in answered if context.result == ACCEPTED}
        self._rejected_cx = [context for context in answered if context.result != ACCEPTED]

    @property
    def quiet(self) -> bool:
        """Whether no message is under way."""
        return not (self.upper.busy or self.exchange.receiving or self.exchange.msg_queue.qsize())

    def _run_reactor(self) -> None:
        """Serve messages, release, abort and idle time-out; waits for events where the library polls."""
        while not self._kill:
            self._is_paused = True
            self.upper.attention.wait(1.0)
            self.upper.attention.clear()
            self._reactor_checkpoint.wait()
            self._is_paused = False
            self._serve_waiting()
            if self.is_established and self.acse.is_release_requested():
                self.acse.send_release(is_response=True)
                self.is_released, self.is_established = True, False
                self.tally.ended = records.RELEASED
                evt.trigger(self, evt.EVT_RELEASED, {})
                self.kill()
            elif self.acse.is_aborted():
                self.upper.receive_pdu(wait=False)
                self.is_aborted, self.is_established = True, False
                self.tally.ended = records.ABORTED
                evt.trigger(self, evt.EVT_ABORTED, {})
                self.kill()
            elif self.upper.finished:
                self.kill()
            elif self.upper.idle_timer_expired():
                LOG.info("an idle association was ended", extra={"association": self.name})
                self.tally.ended = records.TIMED_OUT
                self.abort()

    def _serve_waiting(self) -> None:
        while self.is_established:
            context_id, message = self.dimse.get_msg(block=False)
            if message is None or context_id is None:
                return
            self._serve_request(message, context_id)


class Lane:
    """Serves admitted connections on pynetdicom; safe to share between threads."""

    def __init__(self, store: Store, config: Dimse) -> None:
        """Build the application entity of this process."""
        configure()
        self._store = store
        self._config = config
        self._ae = AE(ae_title=config.ae_title)
        self._ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        self._ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        self._ae.maximum_pdu_size = config.max_pdu_bytes

    def serve(
        self,
        connection: socket.socket,
        acceptance: Acceptance,
        source: Source,
        *,
        name: str,
        begun: Callable[[ServedAssociation], None],
    ) -> None:
        """Serve one association until it ends; `begun` is told of it before its first PDU is answered."""
        terms = Terms(acceptance, self._store, source, self._config)
        association = ServedAssociation(self._ae, terms, name=name)
        association.attach(connection, acceptance.proposal.encoded, timeout_s=self._config.idle_timeout_s)
        try:
            begun(association)
            association.run_reactor()
            association.upper.join(self._config.idle_timeout_s)
        finally:
            association.dispose()
