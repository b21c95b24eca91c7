"""The sub-operations of one C-GET or C-MOVE: counted, reported, cancelled, and what failed named at the end.

Source: PS3.4 C.4.2.3 and C.4.3.3, PS3.7 9.1.3 and 9.1.4.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from archive.dicom import compose
from archive.dicom.attributes import Level
from archive.dimse import status
from archive.dimse.command import Counts
from archive.dimse.identifiers import Identifier
from archive.dimse.models import PATIENT_ID, SERIES_UID, STUDY_UID, Model, single, single_uid
from archive.services.sending import Selected, UniqueKeys

PENDING_S = 0.5
"""How often a retrieve says how far it is."""

_FAILED_SOP_INSTANCE_UID_LIST = 0x00080058


class NotSent(Exception):
    """One sub-operation failed, and the next may succeed."""


Deliver = Callable[[Selected], int]
"""Sends one instance and returns the status of its C-STORE.

Raises:
    NotSent.
"""


def unique_keys(identifier: Identifier, model: Model, *, relational: bool) -> UniqueKeys:
    """Return what a retrieve asks for.

    Raises:
        DoesNotMatch: a key is absent, empty or a pattern: that never means everything.
    """
    level = model.level(identifier)
    if not relational:
        model.require_above(identifier, level)
    own = model.uids(identifier, level)
    issuer = model.issuer(identifier)
    if level is Level.PATIENT:
        return UniqueKeys(patient_id=own[0], issuer=issuer)
    patient = identifier.text(PATIENT_ID)
    patient = patient if Level.PATIENT in model.levels and single(patient) else ""
    study, series = identifier.text(STUDY_UID), identifier.text(SERIES_UID)
    if level is Level.STUDY:
        return UniqueKeys(patient, studies=own, issuer=issuer)
    studies = (study,) if single_uid(study) else ()
    if level is Level.SERIES:
        return UniqueKeys(patient, studies, series=own, issuer=issuer)
    return UniqueKeys(patient, studies, (series,) if single_uid(series) else (), own, issuer)


@dataclass(slots=True)
class Progress:
    """How far one retrieve is."""

    remaining: int
    completed: int = 0
    warning: int = 0
    failed: list[str] = field(default_factory=list)

    def counts(self, *, final: bool) -> Counts:
        """Return what a response says; only one that is not the last, or says that it was cancelled, has the remaining ones."""
        return Counts(None if final else self.remaining, self.completed, len(self.failed), self.warning)

    @property
    def status(self) -> int:
        """The status once all sub-operations were tried."""
        if not self.failed:
            return status.SOME_FAILED if self.warning else status.SUCCESS
        return status.SOME_FAILED if self.completed or self.warning else status.CANNOT_PERFORM

    def failed_list(self, *, explicit: bool) -> bytes:
        """Return the data set that names what failed, empty when nothing did."""
        if not self.failed:
            return b""
        uids = "\\".join(self.failed).encode("ascii", "replace")
        if explicit and len(uids) > 0xFFFE:  # its VR has 16 bits of length here
            uids = uids[: uids.rindex(b"\\", 0, 0xFFFE)]
        return compose.element(_FAILED_SOP_INSTANCE_UID_LIST, "UI", uids, explicit=explicit)


def run(
    instances: tuple[Selected, ...], deliver: Deliver, *, pending: Callable[[Progress], None], cancelled: Callable[[], bool]
) -> tuple[Progress, int]:
    """Send one instance after the other; returns how it went and the final status."""
    progress = Progress(len(instances))
    said = time.monotonic()
    for one in instances:
        if cancelled():
            return progress, status.CANCELLED
        try:
            answer = deliver(one)
        except NotSent:
            answer = status.PROCESSING_FAILURE
        progress.remaining -= 1
        if answer == status.SUCCESS:
            progress.completed += 1
        elif status.is_warning(answer):
            progress.warning += 1
        else:
            progress.failed.append(one.sop_instance_uid)
        now = time.monotonic()
        if progress.remaining and now - said >= PENDING_S:
            said = now
            pending(progress)
    return progress, progress.status


