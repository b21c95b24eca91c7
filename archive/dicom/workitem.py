"""Unified Procedure Step: what a workitem must hold, which states follow which, and what watchers are told.

Data sets are in the DICOM JSON Model throughout. Nothing here knows who asks.

Source: PS3.4 CC.1.1, CC.2.1, CC.2.4, CC.2.5.1; PS3.18 11.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from enum import StrEnum
from typing import Any

from archive.dicom.dictionary import UID_RULE, vr_of
from archive.errors import InvalidRequest, StateConflict

Element = dict[str, Any]
Dataset = dict[str, Element]

PUSH_SOP_CLASS = "1.2.840.10008.5.1.4.34.6.1"
EVENT_SOP_CLASS = "1.2.840.10008.5.1.4.34.6.4"
GLOBAL = "1.2.840.10008.5.1.4.34.5"
FILTERED = "1.2.840.10008.5.1.4.34.5.1"

SOP_CLASS_UID, SOP_INSTANCE_UID, TRANSACTION_UID = "00080016", "00080018", "00081195"
PATIENT_ID, ISSUER_OF_PATIENT_ID, STUDY_INSTANCE_UID = "00100020", "00100021", "0020000D"
STATE, PROGRESS, PERFORMED = "00741000", "00741002", "00741216"
MODIFIED_AT, INPUT_READINESS, CANCELED_AT = "00404010", "00404041", "00404052"
DISCONTINUATION_REASON, CANCELLATION_REASON = "0074100E", "00741238"
CONTACT_NAME, CONTACT_URI = "0074100C", "0074100A"


class State(StrEnum):
    """Procedure Step State (0074,1000)."""

    SCHEDULED = "SCHEDULED"
    IN_PROGRESS = "IN PROGRESS"
    COMPLETED = "COMPLETED"
    CANCELED = "CANCELED"


FINAL = frozenset({State.COMPLETED, State.CANCELED})

REQUIRED = {
    "00404005": "ScheduledProcedureStepStartDateTime", "00404041": "InputReadinessState", STATE: "ProcedureStepState",
    "00741200": "ScheduledProcedureStepPriority", "00741204": "ProcedureStepLabel",
}
"""Attributes that a new workitem has with a value (type 1 of table CC.2.5-3, N-CREATE)."""

PRESENT = (
    "00080082", "00081080", "00081084", "00100010", "00100020", "00100021", "00100030", "00100040", "00101002", "00380010", "00380014",
    "00404018", "00404021", "00404025", "00404026", "00404027", "0040A370", "00741002", "00741202", "00741210", "00741216",
)
"""Attributes that are there at least without a value (type 2); those a client leaves out are added, with a warning."""

FIXED = frozenset({
    SOP_CLASS_UID, SOP_INSTANCE_UID, "00100010", "00100020", "00100021", "00100030", "00100040", "00101002", "00380010", "00380014",
    "00081080", "00081084", "0040A370", "00741224", STATE, MODIFIED_AT,
})
"""Attributes that no update changes (table CC.2.5-3, N-SET: not allowed)."""

PERFORMED_WITH_VALUE = {
    "00404028": "PerformedStationNameCodeSequence", "00404050": "PerformedProcedureStepStartDateTime",
    "00404019": "PerformedWorkitemCodeSequence", "00404051": "PerformedProcedureStepEndDateTime",
}
OUTPUT = "00404033"
INPUT = "00404021"

WARNINGS = {
    0xB300: "The UPS was created with modifications.",
    0xB301: "Requested Deletion Lock not granted.",
    0xB304: "The UPS is already in the requested state of CANCELED.",
    0xB305: "Coerced invalid values to valid values.",
    0xB306: "The UPS is already in the requested state of COMPLETED.",
    0xC300: "The UPS may no longer be updated.",
    0xC301: "The correct Transaction UID was not provided.",
    0xC302: "The UPS is already IN PROGRESS.",
    0xC303: "The UPS may only become SCHEDULED via N-CREATE, not N-SET or N-ACTION.",
    0xC304: "The UPS has not met final state requirements for the requested state change.",
    0xC309: "The submitted request is inconsistent with the current state of the UPS Instance.",
    0xC310: "The UPS is not yet in the IN PROGRESS state.",
    0xC311: "The UPS is already COMPLETED.",
    0x0111: "The UPS already exists.",
}
"""Status codes of PS3.4 CC.2 and the text that stands for each in a Warning header."""

_UID, _TAG = re.compile(UID_RULE), re.compile(r"[0-9A-F]{8}")
_DEPTH, _ELEMENTS = 16, 20_000


def refusal(code: int, *, remedy: str = "") -> StateConflict:
    """Return the error of one status code."""
    return StateConflict(WARNINGS[code], status=code, remedy=remedy)


def is_uid(text: object) -> bool:
    """Return whether this is a UID."""
    return isinstance(text, str) and len(text) <= 64 and _UID.fullmatch(text) is not None


def text_of(dataset: Dataset, tag: str) -> str:
    """Return an attribute's first value as text without padding, empty when there is none."""
    values = dataset.get(tag, {}).get("Value") or [None]
    return str(values[0]).strip(" \0") if isinstance(values[0], str | int | float) else ""


def items_of(dataset: Dataset, tag: str) -> list[Dataset]:
    """Return a sequence's items."""
    return [item for item in dataset.get(tag, {}).get("Value") or [] if isinstance(item, dict)]


def checked(value: object) -> Dataset:
    """Return a data set in the DICOM JSON Model, every element looked at.

    Raises:
        InvalidRequest: it is none; names a tag, never a value.
    """
    count = 0

    def dataset(found: object, depth: int) -> Dataset:
        nonlocal count
        if not isinstance(found, dict) or depth > _DEPTH:
            raise _malformed("the body is not a data set in DICOM JSON")
        for tag, one in found.items():
            count += 1
            if not _TAG.fullmatch(tag) or count > _ELEMENTS:
                raise _malformed("an element is not named by its tag")
            element(tag, one, depth)
        return found

    def element(tag: str, one: object, depth: int) -> None:
        vr, values = _taken_apart(tag, one)
        if vr is None:
            raise _malformed(f"({tag[:4]},{tag[4:]}) is not an element in DICOM JSON")
        for single in values:
            if vr == "SQ":
                dataset(single, depth + 1)
            elif not _fits(vr, single):
                raise _malformed(f"({tag[:4]},{tag[4:]}) does not hold what its VR says")

    return dataset(value, 0)


def _taken_apart(tag: str, one: object) -> tuple[str | None, list[object]]:
    """Return VR and values of an element, no VR when it is none of a workitem."""
    if tag[:4] in {"0000", "0002", "FFFE"} or not isinstance(one, dict) or set(one) - {"vr", "Value", "InlineBinary"}:
        return None, []
    vr, values, known = one.get("vr"), one.get("Value", []), vr_of(int(tag, 16))
    if not (isinstance(vr, str) and len(vr) == 2 and isinstance(values, list)) or (known in {"SQ", "UI"} and vr != known):
        return None, []
    return vr, values


def _fits(vr: str, value: object) -> bool:
    if vr == "PN":
        return value is None or (isinstance(value, dict) and all(isinstance(part, str) for part in value.values()))
    if isinstance(value, dict | list | bool):
        return False
    return vr != "UI" or value in (None, "") or is_uid(value)


def _malformed(message: str) -> InvalidRequest:
    return InvalidRequest(message, remedy="send one data set as application/dicom+json (PS3.18 F)")


def created(dataset: Dataset, uid: str, at: datetime) -> tuple[Dataset, bool]:
    """Return a new workitem as it is kept, and whether anything was added to it.

    Raises:
        InvalidRequest.
    """
    for tag, keyword in REQUIRED.items():
        if not text_of(dataset, tag):
            raise _incomplete(keyword)
    if text_of(dataset, STATE) != State.SCHEDULED:
        raise _wrong("ProcedureStepState of a new workitem is SCHEDULED")
    if text_of(dataset, TRANSACTION_UID):
        raise _wrong("a new workitem has no TransactionUID")
    if text_of(dataset, "00741200") not in {"HIGH", "MEDIUM", "LOW"}:
        raise _wrong("ScheduledProcedureStepPriority is HIGH, MEDIUM or LOW")
    if text_of(dataset, INPUT_READINESS) not in {"INCOMPLETE", "UNAVAILABLE", "READY"}:
        raise _wrong("InputReadinessState is INCOMPLETE, UNAVAILABLE or READY")
    inside = text_of(dataset, SOP_INSTANCE_UID)
    if inside and inside != uid:
        raise _wrong("the SOPInstanceUID of the body is not the one of the address")
    if items_of(dataset, PERFORMED) or items_of(dataset, PROGRESS):
        raise _wrong("a new workitem has made no progress yet")
    kept = {tag: one for tag, one in dataset.items() if tag != TRANSACTION_UID}
    missing = [tag for tag in PRESENT if tag not in kept]
    kept |= {tag: {"vr": vr_of(int(tag, 16))} for tag in missing}
    kept |= {SOP_CLASS_UID: _of("UI", PUSH_SOP_CLASS), SOP_INSTANCE_UID: _of("UI", uid)}
    if not text_of(kept, "00741202"):
        kept["00741202"] = _of("LO", "worklist")
        missing.append("00741202")
    kept[MODIFIED_AT] = _of("DT", timestamp(at))
    return dict(sorted(kept.items())), bool(missing)


def updated(present: Dataset, changes: Dataset, at: datetime) -> Dataset:
    """Return a workitem after an update: what it names takes the place of what was there.

    Raises:
        InvalidRequest: it names what no update changes.
    """
    for tag, one in changes.items():
        if tag in FIXED and _plain(one) != _plain(present.get(tag, {})):
            raise _wrong(f"({tag[:4]},{tag[4:]}) of a workitem is never updated")
    kept = {**present, **{tag: one for tag, one in changes.items() if tag not in FIXED and tag != TRANSACTION_UID}}
    for tag, keyword in REQUIRED.items():
        if not text_of(kept, tag):
            raise _incomplete(keyword)
    kept[MODIFIED_AT] = _of("DT", timestamp(at))
    return dict(sorted(kept.items()))


def _plain(one: Element) -> Any:
    return one.get("Value") or None


def require_updatable(state: State, lock: str, sent: str) -> None:
    """Check that an update with the Transaction UID `sent` fits the state.

    Raises:
        InvalidRequest, StateConflict.

    Source: PS3.4 CC.2.6.3.
    """
    if state in FINAL:
        raise refusal(0xC300)
    if state is State.SCHEDULED:
        if sent:
            raise _wrong("a workitem that is SCHEDULED has no TransactionUID yet")
        return
    if sent != lock:
        raise refusal(0xC301, remedy="send the TransactionUID it was claimed with")


def moved(present: Dataset, state: State, target: State, lock: str, sent: str, at: datetime) -> tuple[Dataset, int]:
    """Return a workitem after a change of state, and the status: 0, or the warning that nothing had to change.

    Raises:
        StateConflict.

    Source: PS3.4 table CC.1.1-2, CC.2.1.3.
    """
    if target is State.SCHEDULED:
        raise refusal(0xC303)
    if target is State.IN_PROGRESS:
        if state is State.IN_PROGRESS:
            raise refusal(0xC302)
        if state in FINAL:
            raise refusal(0xC300)
        return _in_state(present, target, at), 0
    if state is State.SCHEDULED:
        raise refusal(0xC310, remedy="claim it first: IN PROGRESS with a TransactionUID of your own; or send a cancelrequest")
    if sent != lock:
        raise refusal(0xC301, remedy="send the TransactionUID it was claimed with")
    if state in FINAL:
        if state is not target:
            raise refusal(0xC300)
        return present, 0xB306 if target is State.COMPLETED else 0xB304
    if target is State.COMPLETED and not completable(present):
        raise refusal(0xC304, remedy="update the UnifiedProcedureStepPerformedProcedureSequence first")
    return _in_state(present, target, at), 0


def completable(present: Dataset) -> bool:
    """Return whether a workitem holds what one that is COMPLETED must hold (table CC.2.5-3, final state P)."""
    performed = items_of(present, PERFORMED)
    return bool(performed) and all(
        OUTPUT in item and all(item.get(tag, {}).get("Value") for tag in PERFORMED_WITH_VALUE) for item in performed
    )


def canceled(present: Dataset, request: Dataset, at: datetime) -> Dataset:
    """Return a workitem that was SCHEDULED after a request to cancel it: nobody performs it, so the archive does it."""
    kept = dict(present)
    progress = dict(next(iter(items_of(kept, PROGRESS)), {}))
    for tag in (DISCONTINUATION_REASON, CANCELLATION_REASON):
        if tag in request:
            progress[tag] = request[tag]
    kept[PROGRESS] = {"vr": "SQ", "Value": [progress]}
    return _in_state(kept, State.CANCELED, at)


def _in_state(present: Dataset, target: State, at: datetime) -> Dataset:
    kept = {**present, STATE: _of("CS", target.value), MODIFIED_AT: _of("DT", timestamp(at))}
    if target is State.CANCELED:
        progress = dict(next(iter(items_of(kept, PROGRESS)), {}))
        progress.setdefault(CANCELED_AT, _of("DT", timestamp(at)))
        progress.setdefault(DISCONTINUATION_REASON, {"vr": "SQ"})
        kept[PROGRESS] = {"vr": "SQ", "Value": [progress]}
    return dict(sorted(kept.items()))


def studies_of(dataset: Dataset) -> list[str]:
    """Return every Study Instance UID it names, at any depth, in order."""

    def walk(found: Dataset) -> Iterator[str]:
        for tag, one in found.items():
            if tag == STUDY_INSTANCE_UID:
                yield from (uid for uid in one.get("Value") or [] if is_uid(uid))
            elif one.get("vr") == "SQ":
                for item in one.get("Value") or []:
                    yield from walk(item)

    return list(dict.fromkeys(walk(dataset)))


def inputs_of(dataset: Dataset) -> list[str]:
    """Return the Study Instance UIDs of the images it takes in, in order."""
    return studies_of({INPUT: dataset[INPUT]}) if INPUT in dataset else []


# --- events ---


def state_report(dataset: Dataset) -> Dataset:
    """Return the event that tells a workitem's state (CC.2.4.3.1.2.1)."""
    told = {tag: dataset[tag] for tag in (STATE, INPUT_READINESS) if tag in dataset}
    progress = next(iter(items_of(dataset, PROGRESS)), {})
    told |= {tag: progress[tag] for tag in (DISCONTINUATION_REASON, CANCELLATION_REASON) if progress.get(tag, {}).get("Value")}
    return _event(1, dataset, told)


def cancel_requested(dataset: Dataset, request: Dataset, requested_by: str) -> Dataset:
    """Return the event that tells its performer that somebody asks to cancel it (CC.2.4.3.1.2.2)."""
    tags = (DISCONTINUATION_REASON, CANCELLATION_REASON, CONTACT_NAME, CONTACT_URI)
    told = {tag: request[tag] for tag in tags if tag in request}
    return _event(2, dataset, {**told, "00741236": _of("AE", requested_by)})


def progress_report(dataset: Dataset) -> Dataset:
    """Return the event that tells its progress (CC.2.4.3.1.2.3)."""
    return _event(3, dataset, {PROGRESS: dataset.get(PROGRESS, {"vr": "SQ"})})


def assigned(dataset: Dataset) -> Dataset:
    """Return the event that tells who shall perform it (CC.2.4.3.1.2.5)."""
    return _event(5, dataset, {tag: dataset[tag] for tag in ("00404025", "00404034", "00404037") if tag in dataset})


def events_between(before: Dataset, after: Dataset) -> list[Dataset]:
    """Return what watchers are told of an update."""
    told = []
    if before.get(INPUT_READINESS) != after.get(INPUT_READINESS):
        told.append(state_report(after))
    if before.get(PROGRESS) != after.get(PROGRESS):
        told.append(progress_report(after))
    if any(before.get(tag) != after.get(tag) for tag in ("00404025", "00404034")):
        told.append(assigned(after))
    return told


def _event(kind: int, dataset: Dataset, told: Dataset) -> Dataset:
    head = {
        "00000002": _of("UI", EVENT_SOP_CLASS), "00001000": dataset[SOP_INSTANCE_UID], "00001002": _of("US", kind),
    }
    return dict(sorted({**head, **told}.items()))


def _of(vr: str, value: object) -> Element:
    return {"vr": vr, "Value": [value]}


def timestamp(at: datetime) -> str:
    """Return an instant as DT."""
    return at.strftime("%Y%m%d%H%M%S.%f%z")


def _incomplete(keyword: str) -> InvalidRequest:
    return InvalidRequest(f"a workitem has a {keyword}", remedy="send it with a value (PS3.4 table CC.2.5-3)")


def _wrong(message: str) -> InvalidRequest:
    return InvalidRequest(message, remedy="see PS3.4 table CC.2.5-3")
