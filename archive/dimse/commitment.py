"""Storage Commitment Push Model as SCP: N-ACTION taken, N-EVENT-REPORT sent (PS3.4 Annex J)."""

from __future__ import annotations

import logging
import struct
from typing import TYPE_CHECKING

from archive.dicom import scheduled
from archive.dicom.transfer import EXPLICIT_LE, IMPLICIT_LE
from archive.dimse import models, normalized, status
from archive.dimse.contexts import Proposed, Role
from archive.dimse.normalized import NormalAnswer, NormalRequest
from archive.dimse.requestor import Requestor, Terms
from archive.errors import ArchiveError, InvalidRequest
from archive.services.commitments import Invalid, Reference, TooMany

if TYPE_CHECKING:
    from archive.access.subject import Subject
    from archive.services.commitments import Commitments, Report

LOG = logging.getLogger("archive.dimse")

SOP_CLASS = models.COMMITMENT
SOP_INSTANCE = "1.2.840.10008.1.20.1.1"
"""The well-known instance; there is no other."""
OPERATIONS = frozenset({normalized.N_ACTION_RQ})
REQUEST_COMMITMENT = 1
SUCCESSFUL, FAILURES_EXIST = 1, 2
"""Event Type ID."""

INVALID_ARGUMENT, NO_SUCH_INSTANCE, NO_SUCH_ACTION, RESOURCE_LIMITATION = 0x0115, 0x0112, 0x0123, 0x0213
_TRANSACTION, _REFERENCED, _CLASS, _INSTANCE = "00081195", "00081199", "00081150", "00081155"


class NotTaken(Exception):
    """The peer was reached and does not take the report; the message says why."""


def answer(
    commitments: Commitments, subject: Subject, datastore: str, request: NormalRequest, data: bytes, *, transfer_syntax_uid: str,
    calling_ae_title: str, same_association: bool,
) -> tuple[NormalAnswer, int | None]:
    """Take a request; return what to answer and the number of the transaction to check, None when there is none."""
    if request.sop_instance_uid != SOP_INSTANCE:
        return NormalAnswer(NO_SUCH_INSTANCE, "not the well-known SOP instance"), None
    if request.action_type != REQUEST_COMMITMENT:
        return NormalAnswer(NO_SUCH_ACTION, "there is no such action"), None
    number = None
    try:
        dataset = scheduled.read(data, transfer_syntax_uid=transfer_syntax_uid)
        references = [
            Reference(scheduled.text(item, _CLASS), scheduled.text(item, _INSTANCE)) for item in scheduled.items(dataset, _REFERENCED)
        ]
        number = commitments.request(
            subject, datastore, scheduled.text(dataset, _TRANSACTION), references, calling_ae_title=calling_ae_title,
            same_association=same_association,
        )
        made = NormalAnswer(status.SUCCESS)
    except Invalid as error:
        made = NormalAnswer(INVALID_ARGUMENT, error.message)
    except TooMany as error:
        made = NormalAnswer(RESOURCE_LIMITATION, error.message)
    except InvalidRequest:
        made = NormalAnswer(status.PROCESSING_FAILURE, "the data set cannot be read")
    except ArchiveError as error:
        LOG.warning("a commitment request was not taken", extra={"error": error.code})
        found = status.of_error(error)
        resources = found.status == status.OUT_OF_RESOURCES  # no status of normalised services (PS3.7 C.5)
        made = NormalAnswer(RESOURCE_LIMITATION if resources else found.status, found.comment)
    return made, number


def event_type(report: Report) -> int:
    """Return the Event Type ID of a report."""
    return FAILURES_EXIST if report.failed else SUCCESSFUL


def command_of(message_id: int, report: Report) -> bytes:
    """Encode the N-EVENT-REPORT-RQ."""
    return normalized.event_report(message_id, SOP_CLASS, SOP_INSTANCE, event_type(report))


def data_set(report: Report, *, explicit: bool) -> bytes:
    """Encode the Event Information (PS3.4 Table J.3-2)."""
    def item(inner: bytes) -> bytes:
        return struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner

    def reference(one: Reference) -> bytes:
        return _ui(0x1150, one.sop_class_uid, explicit) + _ui(0x1155, one.sop_instance_uid, explicit)

    made = _ui(0x1195, report.transaction_uid, explicit)
    if report.failed:
        items = (item(reference(one) + _element(0x1197, b"US", struct.pack("<H", reason), explicit)) for one, reason in report.failed)
        made += _element(0x1198, b"SQ", b"".join(items), explicit)
    if report.committed:
        made += _element(0x1199, b"SQ", b"".join(item(reference(one)) for one in report.committed), explicit)
    return made


def send(terms: Terms, report: Report) -> None:
    """Report on a new association, whose requestor is the SCP of the class.

    Raises:
        Unreachable, Broken. NotTaken.
    """
    proposed = (Proposed(1, SOP_CLASS, (EXPLICIT_LE, IMPLICIT_LE)),)
    association = Requestor(terms, proposed, roles=(Role(SOP_CLASS, scu=False, scp=True),))
    found = next(iter(association.contexts.items()), None)
    if found is None:
        association.release()
        message = "it does not take reports of storage commitment"
        raise NotTaken(message)
    (_, syntax), context_id = found
    code = association.report(context_id, lambda number: command_of(number, report), data_set(report, explicit=syntax == EXPLICIT_LE))
    association.release()
    if code != status.SUCCESS:
        message = f"it answered the report with status {code:04X}"
        raise NotTaken(message)


def _ui(element: int, uid: str, explicit: bool) -> bytes:
    value = uid.encode("ascii")
    return _element(element, b"UI", value + b"\0" * (len(value) % 2), explicit)


def _element(element: int, vr: bytes, value: bytes, explicit: bool) -> bytes:
    if not explicit:
        return struct.pack("<HHI", 0x0008, element, len(value)) + value
    if vr == b"SQ":
        return struct.pack("<HH2sHI", 0x0008, element, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", 0x0008, element, vr, len(value)) + value
