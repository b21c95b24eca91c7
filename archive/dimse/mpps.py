"""Modality Performed Procedure Step as SCP: N-CREATE and N-SET (PS3.4 F.7)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from archive.dicom import scheduled
from archive.dimse import normalized, status
from archive.dimse.normalized import NormalAnswer, NormalRequest
from archive.errors import ArchiveError, InvalidRequest
from archive.services.mpps import Duplicate, Invalid

if TYPE_CHECKING:
    from archive.access.subject import Subject
    from archive.services.mpps import ProcedureSteps

LOG = logging.getLogger("archive.dimse")

SOP_CLASS = "1.2.840.10008.3.1.2.3.3"
OPERATIONS = frozenset({normalized.N_CREATE_RQ, normalized.N_SET_RQ})

ATTRIBUTE_LIST_ERROR = 0x0107
"""A warning: something was left as it is."""


def answer(
    steps: ProcedureSteps, subject: Subject, datastore: str, request: NormalRequest, data: bytes, *, transfer_syntax_uid: str
) -> NormalAnswer:
    """Do what is asked and say what became of it; nothing leaves as an exception of the archive's."""
    try:
        dataset = scheduled.read(data, transfer_syntax_uid=transfer_syntax_uid)
        do = steps.create if request.field == normalized.N_CREATE_RQ else steps.set
        kept = do(subject, datastore, request.sop_instance_uid, dataset)
    except Invalid as error:
        return NormalAnswer(error.status, error.message, error_id=error.error_id, tags=(error.tag,) if error.tag is not None else ())
    except Duplicate:
        return NormalAnswer(status.DUPLICATE_SOP_INSTANCE, "that SOP Instance UID is there already")
    except InvalidRequest:
        return NormalAnswer(status.PROCESSING_FAILURE, "the data set cannot be kept as a procedure step")
    except ArchiveError as error:
        LOG.warning("a procedure step was not kept", extra={"error": error.code})
        found = status.of_error(error)
        resources = found.status == status.OUT_OF_RESOURCES  # no status of normalised services (PS3.7 C.5)
        return NormalAnswer(0x0213 if resources else found.status, found.comment)
    return NormalAnswer(ATTRIBUTE_LIST_ERROR if kept.ignored else status.SUCCESS, sop_instance_uid=kept.sop_instance_uid)
