"""The Query/Retrieve information models and what their levels demand of an identifier.

A request by hierarchy names one entity of every level above its own by its unique key. What is missing is never taken for "all": such an
identifier does not match its SOP class. One departure: where the StudyInstanceUID stands, the PatientID above it may be left out, since
many workstations do and the study has one patient.

Source: PS3.4 C.4.1.2.2, C.4.1.3.2, C.6.
"""

from __future__ import annotations

from dataclasses import dataclass

from archive.dicom.attributes import BY_KEYWORD, Level
from archive.dicom.matching import UID
from archive.dimse.identifiers import Identifier

PATIENT_ROOT, STUDY_ROOT, PATIENT_STUDY_ONLY = "1.2.840.10008.5.1.4.1.2.1", "1.2.840.10008.5.1.4.1.2.2", "1.2.840.10008.5.1.4.1.2.3"
FIND, MOVE, GET = "1", "2", "3"
"""The last component of a SOP class says which operation it is for."""

FIND_CLASSES = frozenset(f"{root}.{FIND}" for root in (PATIENT_ROOT, STUDY_ROOT, PATIENT_STUDY_ONLY))
MOVE_CLASSES = frozenset(f"{root}.{MOVE}" for root in (PATIENT_ROOT, STUDY_ROOT, PATIENT_STUDY_ONLY))
GET_CLASSES = frozenset(f"{root}.{GET}" for root in (PATIENT_ROOT, STUDY_ROOT, PATIENT_STUDY_ONLY))
CLASSES = FIND_CLASSES | MOVE_CLASSES | GET_CLASSES

WORKLIST, MPPS, COMMITMENT = "1.2.840.10008.5.1.4.31", "1.2.840.10008.3.1.2.3.3", "1.2.840.10008.1.20.1"
SERVED = CLASSES | {WORKLIST, MPPS, COMMITMENT}
"""Everything but Verification and Storage."""

PATIENT_ID, ISSUER = BY_KEYWORD["PatientID"].tag, BY_KEYWORD["IssuerOfPatientID"].tag
STUDY_UID = BY_KEYWORD["StudyInstanceUID"].tag
SERIES_UID = BY_KEYWORD["SeriesInstanceUID"].tag
INSTANCE_UID = BY_KEYWORD["SOPInstanceUID"].tag

_UNIQUE = {Level.PATIENT: PATIENT_ID, Level.STUDY: STUDY_UID, Level.SERIES: SERIES_UID, Level.IMAGE: INSTANCE_UID}
_ORDER = (Level.PATIENT, Level.STUDY, Level.SERIES, Level.IMAGE)
_MAXIMUM_UIDS = 10_000


class DoesNotMatch(Exception):
    """The identifier does not match its SOP class (0xA900); `tag` is the attribute at fault, the message names no value."""

    def __init__(self, message: str, tag: int = 0x00080052) -> None:
        """Keep both."""
        super().__init__(message)
        self.message = message
        self.tag = tag


@dataclass(frozen=True, slots=True)
class Model:
    """One information model."""

    levels: tuple[Level, ...]

    @classmethod
    def of(cls, sop_class_uid: str) -> Model:
        """Return the model of a Query/Retrieve SOP class."""
        root = sop_class_uid.rpartition(".")[0]
        if root == PATIENT_ROOT:
            return cls(_ORDER)
        return cls(_ORDER[1:] if root == STUDY_ROOT else _ORDER[:2])

    def level(self, identifier: Identifier) -> Level:
        """Return the level asked for.

        Raises:
            DoesNotMatch: none, or one that the model has not.
        """
        if identifier.level is None or identifier.level not in self.levels:
            message = "no level of this information model"
            raise DoesNotMatch(message)
        return identifier.level

    def require_above(self, identifier: Identifier, level: Level) -> None:
        """Check the unique keys of the levels above, each a single value.

        Raises:
            DoesNotMatch.
        """
        for above in self.levels[: self.levels.index(level)]:
            if above is Level.PATIENT and level is not Level.STUDY and single_uid(identifier.text(STUDY_UID)):
                continue
            tag = _UNIQUE[above]
            text = identifier.text(tag)
            if not (single_uid(text) if above is not Level.PATIENT else single(text)):
                message = f"one unique key of level {above.value} is needed"
                raise DoesNotMatch(message, tag)

    def issuer(self, identifier: Identifier) -> str:
        """Return the issuer of the patient ID where a retrieve names one: two patients may have one ID, and only one was asked for.

        Raises:
            DoesNotMatch: a list or a pattern.
        """
        text = identifier.text(ISSUER) if Level.PATIENT in self.levels else ""
        if not text.strip("*"):
            return ""
        if not single(text):
            message = "one issuer of the patient ID, or none"
            raise DoesNotMatch(message, ISSUER)
        return text

    def uids(self, identifier: Identifier, level: Level) -> tuple[str, ...]:
        """Return the unique keys of a retrieve's own level: a list of UIDs, or one patient ID.

        Raises:
            DoesNotMatch: none at all is never everything.
        """
        tag = _UNIQUE[level]
        text = identifier.text(tag)
        if level is Level.PATIENT:
            if not single(text):
                message = "one patient ID is needed"
                raise DoesNotMatch(message, tag)
            return (text,)
        found = tuple(dict.fromkeys(uid for part in text.split("\\") if (uid := part.strip(" \0"))))
        if not found or len(found) > _MAXIMUM_UIDS or not all(single_uid(uid) for uid in found):
            message = "UIDs are needed, and no wild cards"
            raise DoesNotMatch(message, tag)
        return found


def single(text: str) -> bool:
    """Whether a patient ID is one value and no pattern."""
    return bool(text) and not any(character in text for character in "*?\\") and text != '""'


def single_uid(text: str) -> bool:
    """Whether it is one UID."""
    return len(text) <= 64 and UID.fullmatch(text) is not None
