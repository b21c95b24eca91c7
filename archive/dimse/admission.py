"""Who asks for an association, and on which terms it is granted: one decision, whichever lane serves it afterwards.

`read_request` takes one A-ASSOCIATE-RQ off a socket within bounds of size and time, `opening` says of it who asks, `decide` is a function
of that, the connection and the table of peers. What is proposed is read once it is known who proposes it. Nothing of a stranger is kept
before it has said who it is.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING

from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation, SOPClassExtendedNegotiation, UserIdentityNegotiation

from archive.access.permissions import Permission
from archive.config import Dimse
from archive.dimse import contexts, models, user_identity
from archive.dimse.contexts import Answered, Proposed, Role
from archive.dimse.extended import Extended, agree
from archive.dimse.user_identity import UserIdentity
from archive.errors import ArchiveError, Denied

if TYPE_CHECKING:
    from archive.services.peers import Admission, Peers

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
PROTOCOL_VERSION = 1
MAXIMUM_REQUEST_BYTES = 256 << 10
"""128 contexts with every transfer syntax of the standard fit."""

# The library takes up to a tenth of a millisecond for an item, however small, so their number is looked at first.
_MAXIMUM_CONTEXTS = 128  # a context ID is an odd byte
_MAXIMUM_SYNTAXES = 80  # of one context: the standard has some sixty, retired ones included
_MAXIMUM_USER_ITEMS = 512  # three kinds of negotiation for each class, and a few besides
_MAXIMUM_COMMON_BYTES = 32 << 10  # Common Extended Negotiation, which lists UIDs: 256 for each class
_APPLICATION_CONTEXT, _PRESENTATION_CONTEXT, _USER_INFORMATION, _COMMON_EXTENDED = 0x10, 0x20, 0x50, 0x57
_ITEM = struct.Struct(">BxH")
_FIXED_BYTES, _CONTEXT_BYTES = 74, 4  # before the items of the PDU, and before those of a presentation context

_ASSOCIATE_RQ, _KNOWN_PDU_TYPES = 0x01, range(1, 8)
_HEADER = struct.Struct(">BBL")
_KEPT_REQUEST_BYTES = 32 << 10
_USER_IDENTITY = b"\x58\x00"  # may hold a password, and is not kept; the same two bytes elsewhere only cost time

FUNCTIONS = {models.WORKLIST: Permission.WORKLIST, models.MPPS: Permission.MPPS, models.COMMITMENT: Permission.COMMIT}
"""The classes that are taken from who holds a function permission."""

UNRECOGNISED_PDU, UNEXPECTED_PDU, INVALID_PARAMETER_VALUE = 1, 2, 6
"""A-ABORT reasons of the service provider (PS3.8 Table 9-26)."""


class ProtocolError(Exception):
    """The peer does not speak the protocol; `reason` goes into the A-ABORT."""

    def __init__(self, reason: int) -> None:
        """Keep the reason of PS3.8 Table 9-26."""
        super().__init__(f"A-ABORT reason {reason}")
        self.reason = reason


class Silence(Exception):
    """The peer left, or sent too little within the time allowed."""


@dataclass(frozen=True, slots=True)
class Opening:
    """Who asks whom, and by which protocol; `encoded` is the whole PDU, of which nothing else was read."""

    calling_ae_title: str
    called_ae_title: str
    application_context: str
    protocol_version: int
    encoded: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Proposal(Opening):
    """An A-ASSOCIATE-RQ."""

    contexts: tuple[Proposed, ...]
    roles: dict[str, Role]
    maximum_pdu_bytes: int  # that the requestor takes; 0: no limit
    extended: dict[str, bytes] = field(default_factory=dict)
    """Application information by SOP class (PS3.7 D.3.3.5)."""
    identity: UserIdentity | None = None


@dataclass(frozen=True, slots=True)
class Rejection:
    """An A-ASSOCIATE-RJ (PS3.8 Table 9-21); `why` is for the log."""

    result: int
    source: int
    reason: int
    why: str

    @property
    def encoded(self) -> bytes:
        """The PDU."""
        return _HEADER.pack(0x03, 0, 4) + bytes((0, self.result, self.source, self.reason))


APPLICATION_CONTEXT_NOT_SUPPORTED = Rejection(1, 1, 2, "application context not supported")
CALLING_AE_NOT_RECOGNISED = Rejection(1, 1, 3, "peer not recognised")
CALLED_AE_NOT_RECOGNISED = Rejection(1, 1, 7, "called AE title not recognised")
PROTOCOL_VERSION_NOT_SUPPORTED = Rejection(1, 2, 2, "protocol version not supported")
TEMPORARY_CONGESTION = Rejection(2, 3, 1, "the archive cannot decide now")
USER_NOT_PROVEN = Rejection(2, 2, 1, "the user it speaks for was not proven")
LOCAL_LIMIT_EXCEEDED = Rejection(2, 3, 2, "too many associations")


@dataclass(frozen=True, slots=True)
class Acceptance:
    """The terms of an association: who it is for and what may come on which context."""

    admission: Admission
    proposal: Proposal
    contexts: tuple[Answered, ...]
    roles: tuple[Role, ...]
    extended: tuple[Extended, ...] = ()
    tells_user: bool = False
    """Whether the answer says that the user it speaks for was proven, as it was asked to."""


def abort_pdu(reason: int) -> bytes:
    """Return an A-ABORT of the service provider."""
    return _HEADER.pack(0x07, 0, 4) + bytes((0, 0, 2, reason))


def read_request(connection: socket.socket, *, timeout_s: float) -> bytes:
    """Read the first PDU, which must be an A-ASSOCIATE-RQ, within `timeout_s` altogether.

    Raises:
        ProtocolError: it is another PDU, no PDU, or too long.
        Silence: the peer left, or the time is over.
    """
    deadline = time.monotonic() + timeout_s
    header = _read_exactly(connection, _HEADER.size, deadline)
    pdu_type, _, length = _HEADER.unpack(header)
    if pdu_type != _ASSOCIATE_RQ:
        raise ProtocolError(UNEXPECTED_PDU if pdu_type in _KNOWN_PDU_TYPES else UNRECOGNISED_PDU)
    if length > MAXIMUM_REQUEST_BYTES:
        raise ProtocolError(INVALID_PARAMETER_VALUE)
    return header + _read_exactly(connection, length, deadline)


def _read_exactly(connection: socket.socket, count: int, deadline: float) -> bytes:
    received = bytearray()
    while len(received) < count:
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            raise Silence
        connection.settimeout(remaining_s)
        try:
            piece = connection.recv(min(count - len(received), 65536))
        except OSError as error:
            raise Silence from error
        if not piece:
            raise Silence
        received += piece
    return bytes(received)


def opening(encoded: bytes) -> Opening:
    """Read of an A-ASSOCIATE-RQ who sends it: what a stranger proposes would take up to a third of a second.

    Raises:
        ProtocolError: it is malformed, or holds more than any request needs.
    """
    context_names = _check_items(encoded)
    try:
        pdu = A_ASSOCIATE_RQ()
        pdu.decode(encoded[:_FIXED_BYTES] + context_names)
        return Opening(
            pdu.calling_ae_title.strip(), pdu.called_ae_title.strip(), str(pdu.application_context_name or ""),
            int(pdu.protocol_version), encoded,
        )
    except Exception as error:  # as in _parse
        raise ProtocolError(INVALID_PARAMETER_VALUE) from error


def parse(encoded: bytes) -> Proposal:
    """Read an A-ASSOCIATE-RQ; a device sends the same one every time, and reading one of a hundred contexts takes milliseconds.

    Raises:
        ProtocolError: it is malformed.
    """
    keeps = len(encoded) <= _KEPT_REQUEST_BYTES and _USER_IDENTITY not in encoded
    return _parse(encoded) if keeps else _parse.__wrapped__(encoded)


def _items(encoded: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield type and body of each item; what is cut short, the library refuses."""
    at = 0
    while at + _ITEM.size <= len(encoded):
        kind, length = _ITEM.unpack_from(encoded, at)
        yield kind, encoded[at + _ITEM.size : at + _ITEM.size + length]
        at += _ITEM.size + length


def _check_items(encoded: bytes) -> bytes:
    """Look at the headers alone, and return the item of the application context.

    Raises:
        ProtocolError: there are more items than any request needs.
    """
    left = {_APPLICATION_CONTEXT: 1, _PRESENTATION_CONTEXT: _MAXIMUM_CONTEXTS, _USER_INFORMATION: 1}
    application_context = b""
    for kind, body in _items(memoryview(encoded)[_FIXED_BYTES:]):
        left[kind] = left.get(kind, 0) - 1
        if left[kind] < 0:
            raise ProtocolError(INVALID_PARAMETER_VALUE)
        if kind == _APPLICATION_CONTEXT:
            application_context = _ITEM.pack(kind, len(body)) + body
            continue
        most, start = (_MAXIMUM_SYNTAXES, _CONTEXT_BYTES) if kind == _PRESENTATION_CONTEXT else (_MAXIMUM_USER_ITEMS, 0)
        inner = list(islice(_items(body[start:]), most + 1))
        common_bytes = sum(len(one) for inner_kind, one in inner if inner_kind == _COMMON_EXTENDED)
        if len(inner) > most or common_bytes > _MAXIMUM_COMMON_BYTES:
            raise ProtocolError(INVALID_PARAMETER_VALUE)
    return application_context


@lru_cache(maxsize=64)
def _parse(encoded: bytes) -> Proposal:
    _check_items(encoded)
    try:
        pdu = A_ASSOCIATE_RQ()
        pdu.decode(encoded)
        primitive = pdu.to_primitive()
        proposed = tuple(
            Proposed(int(context.context_id or 0), str(context.abstract_syntax or ""), tuple(map(str, context.transfer_syntax)))
            for context in primitive.presentation_context_definition_list
        )
        roles = {
            str(item.sop_class_uid): Role(str(item.sop_class_uid), scu=bool(item.scu_role), scp=bool(item.scp_role))
            for item in primitive.user_information
            if isinstance(item, SCP_SCU_RoleSelectionNegotiation)
        }
        extended = {
            str(item.sop_class_uid): bytes(item.service_class_application_information or b"")
            for item in primitive.user_information
            if isinstance(item, SOPClassExtendedNegotiation)
        }
        proposal = Proposal(
            calling_ae_title=primitive.calling_ae_title.strip(),
            called_ae_title=primitive.called_ae_title.strip(),
            application_context=str(primitive.application_context_name or ""),
            protocol_version=int(pdu.protocol_version),
            contexts=proposed,
            roles=roles,
            maximum_pdu_bytes=int(primitive.maximum_length_received or 0),
            encoded=encoded,
            extended=extended,
            identity=next(
                (user_identity.of(item) for item in primitive.user_information if isinstance(item, UserIdentityNegotiation)), None
            ),
        )
    except Exception as error:  # the library has no error class of its own for a malformed PDU
        raise ProtocolError(INVALID_PARAMETER_VALUE) from error
    if len({context.context_id for context in proposed}) != len(proposed):
        raise ProtocolError(INVALID_PARAMETER_VALUE)
    return proposal


def takes_private(admission: Admission, config: Dimse) -> bool:
    """Whether a peer may store instances of classes that no edition of the standard names."""
    own = admission.settings.private_sop_classes
    return config.private_sop_classes if own is None else own


def decide(
    asked: Opening, peers: Peers, config: Dimse, *, address: str, certificate: bytes | None, tls: bool
) -> Acceptance | Rejection:
    """Grant or refuse an association.

    An unknown calling AE title and a certificate that is not bound to it get the same answer, before anything else is looked at.

    Raises:
        ProtocolError: what a known peer proposes is malformed.
    """
    if asked.protocol_version != PROTOCOL_VERSION:
        return PROTOCOL_VERSION_NOT_SUPPORTED
    if asked.application_context != APPLICATION_CONTEXT:
        return APPLICATION_CONTEXT_NOT_SUPPORTED
    known = _admitted(asked, peers, config, address=address, certificate=certificate, tls=tls)
    if isinstance(known, Rejection):
        return known
    proposal = parse(asked.encoded)
    try:
        admission, proven = user_identity.narrowed(known, proposal.identity, peers, tls=tls)
    except Denied:
        return USER_NOT_PROVEN
    except ArchiveError:
        return TEMPORARY_CONGESTION
    settings = admission.settings
    answered, roles = contexts.answer(
        proposal.contexts, proposal.roles, may_store=admission.may_store, may_query=admission.may_query,
        private=takes_private(admission, config), preferred=settings.transfer_syntaxes,
        functions=frozenset(uid for uid, need in FUNCTIONS.items() if admission.functions & need),
    )
    accepted = frozenset(context.abstract_syntax for context in answered if context.result == contexts.ACCEPTED)
    tells = proven and proposal.identity is not None and proposal.identity.wants_response
    return Acceptance(admission, proposal, answered, roles, agree(proposal.extended, accepted), tells)


def _admitted(
    asked: Opening, peers: Peers, config: Dimse, *, address: str, certificate: bytes | None, tls: bool
) -> Admission | Rejection:
    """Return who calls."""
    try:
        admission = peers.admit(
            calling_ae_title=asked.calling_ae_title,
            called_ae_title=asked.called_ae_title,
            address=address,
            certificate=certificate,
            tls=tls,
        )
    except Denied:
        return CALLING_AE_NOT_RECOGNISED
    except ArchiveError:
        return TEMPORARY_CONGESTION
    own = admission.settings.called_ae_strict
    strict = config.called_ae_strict if own is None else own
    if strict and asked.called_ae_title not in (config.ae_title, *config.aliases):
        return CALLED_AE_NOT_RECOGNISED
    return admission
