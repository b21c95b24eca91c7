"""What the conformance statement says of worklist, performed procedure steps, storage commitment and forwarding.

Source: PS3.4 annexes F, J and K; the tables are those the code works by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword

from archive.config import Config
from archive.dimse import commitment, forward, requestor, status
from archive.dimse import mpps as mpps_door
from archive.services import commitment_check, commitments, deliveries, mpps, worklist

Row = dict[str, Any]

_NO_RIGHT, _NOT_READ, _LATER = "not authorised", "the data set cannot be read", "the archive cannot take it now; try again later"
_ANSWERED = (
    "ScheduledStationAETitle", "ScheduledProcedureStepStartDate", "ScheduledProcedureStepStartTime", "Modality", "PatientName", "PatientID",
    "AccessionNumber", "StudyInstanceUID", "RequestedProcedureID", "ScheduledProcedureStepID", "ScheduledProcedureStepStatus",
)
_OF_STEP = frozenset({
    "ScheduledStationAETitle", "ScheduledProcedureStepStartDate", "ScheduledProcedureStepStartTime", "Modality", "ScheduledProcedureStepID",
    "ScheduledProcedureStepStatus",
})
_MADE = frozenset({"StudyInstanceUID", "RequestedProcedureID", "ScheduledProcedureStepID", "ScheduledProcedureStepStartTime"})
_NARROWED = frozenset({"PatientID", "AccessionNumber", "ScheduledProcedureStepStartDate"})


def of(config: Config) -> Row:
    """Return this part of the statement as plain values."""
    return {
        "worklist": {"attributes": _entries(), "states": list(worklist.OPEN)},
        "procedure_steps": {"attributes": _steps(), "statuses": _codes(_STEP_CODES)},
        "commitment": {
            "attributes": _commitment(), "statuses": _codes(_COMMIT_CODES), "failure_reasons": _codes(_REASONS),
            "limits": {
                "references of one transaction": commitments.MAXIMUM_REFERENCES,
                "transactions of one peer that wait": commitments.MAXIMUM_WAITING,
                "attempts of a report": deliveries.MAXIMUM_ATTEMPTS,
                "longest pause between attempts in minutes": int(deliveries.LONGEST_WAIT.total_seconds()) // 60,
            },
        },
        "forwarding": {"statuses": [{"status": code, "meaning": text} for code, text in _FORWARDED], "limits": {
            "associations at a time": forward.SENDERS, "instances of one association": forward.BATCH,
            "attempts of one instance": deliveries.MAXIMUM_ATTEMPTS, "called by": config.dimse.ae_title,
            "presentation contexts of one association": requestor.MAXIMUM_CONTEXTS,
        }},
    }


def _tag(keyword: str) -> str:
    tag = f"{tag_for_keyword(keyword) or 0:08X}"
    return f"({tag[:4]},{tag[4:]})"


def _attribute(keyword: str, **more: str) -> Row:
    return {"keyword": keyword, "tag": _tag(keyword), "vr": dictionary_VR(keyword), **more}


def _names(tags: Iterable[str]) -> list[str]:
    return [keyword_for_tag(int(tag, 16)) or tag for tag in tags]


def _entries() -> list[Row]:
    needed = {*worklist.NEEDED.values(), *worklist.NEEDED_OF_STEP.values()}
    return [
        _attribute(
            keyword, of="step" if keyword in _OF_STEP else "",
            entry="needed" if keyword in needed else "made when absent" if keyword in _MADE else "kept",
            narrowed="yes" if keyword in _NARROWED else "",
        )
        for keyword in _ANSWERED
    ]


def _steps() -> list[Row]:
    fixed, needed = set(_names(mpps.FIXED)), set(mpps.NEEDED.values())
    also = ("PerformedSeriesSequence", "PerformedProcedureStepEndDate", "PerformedProcedureStepEndTime",
            "PerformedProcedureStepDiscontinuationReasonCodeSequence")
    named = sorted(fixed | needed | set(also), key=lambda keyword: tag_for_keyword(keyword) or 0)
    return [
        _attribute(
            keyword, create="needed" if keyword in needed else "kept",
            set="left as it is" if keyword in fixed else "needed for COMPLETED" if keyword == also[0] else "kept",
        )
        for keyword in named
    ]


def _commitment() -> list[Row]:
    asked, told = "N-ACTION", "N-EVENT-REPORT"
    return [
        _attribute("TransactionUID", of="", message=f"{asked}, {told}"),
        _attribute("ReferencedSOPSequence", of="", message=f"{asked}, {told}: what is committed"),
        _attribute("FailedSOPSequence", of="", message=f"{told}: what is not"),
        _attribute("ReferencedSOPClassUID", of="item", message=f"{asked}, {told}"),
        _attribute("ReferencedSOPInstanceUID", of="item", message=f"{asked}, {told}"),
        _attribute("FailureReason", of="item of FailedSOPSequence", message=told),
    ]


def _codes(table: Mapping[int, str]) -> list[Row]:
    return [{"status": f"0x{code:04X}", "meaning": text} for code, text in sorted(table.items())]


_STEP_CODES = {
    status.SUCCESS: "kept, durably; also the same request again", mpps_door.ATTRIBUTE_LIST_ERROR: "kept; attributes an N-SET may not "
    "change were left as they are", mpps.MISSING_ATTRIBUTE: "a needed attribute is absent (Attribute Identifier List names it)",
    mpps.MISSING_VALUE: "a needed attribute has no value", mpps.INVALID_VALUE: "no status such a step can have",
    mpps.ENDED: f"the step is over (Error ID 0x{mpps.NO_LONGER_UPDATED:04X}); without Error ID: {_NOT_READ}",
    status.DUPLICATE_SOP_INSTANCE: "N-CREATE: that SOP Instance UID is there already", 0x0117: "the SOP Instance UID is not valid",
    status.NO_SUCH_SOP_INSTANCE: "N-SET: no such step of this device", status.NOT_AUTHORISED: _NO_RIGHT, 0x0213: _LATER,
}
_COMMIT_CODES = {
    status.SUCCESS: "taken, durably; the result follows by N-EVENT-REPORT", commitment.INVALID_ARGUMENT: "a UID is missing, not valid or "
    "given twice, or there is no reference", commitment.NO_SUCH_INSTANCE: "not the well-known SOP instance",
    commitment.NO_SUCH_ACTION: "an action other than 1", commitment.RESOURCE_LIMITATION: f"more than the limits below; or {_LATER}",
    status.PROCESSING_FAILURE: _NOT_READ, status.NOT_AUTHORISED: _NO_RIGHT,
}
_REASONS = {
    commitment_check.PROCESSING_FAILURE: "its bytes are not those that were signed, or others are kept under that UID",
    commitment_check.NO_SUCH_INSTANCE: "not there for this peer", commitment_check.CLASS_INSTANCE_CONFLICT: "kept under another SOP class",
    commitment_check.DUPLICATE_TRANSACTION: "the Transaction UID was used for other references",
    commitment_check.RESOURCES: "it could not be read for a long time",
}
_FORWARDED = (
    ("0x0000, 0xBxxx, 0x0001, 0x0107, 0x0116", "taken"),
    (f"0x{status.DUPLICATE_SOP_INSTANCE:04X}", "taken: the destination has it"),
    (f"0x{status.OUT_OF_RESOURCES:04X} to 0x{status.OUT_OF_RESOURCES | 0xFF:04X}", "tried again, later each time"),
    ("any other", "failed for good; 'archive forward retry' tries it again"),
    ("no association", "the destination waits, later each time; nothing has failed"),
)
