"""Errors and outcomes as DIMSE statuses (PS3.4 Table B.2-1, C.4-1, C.4-2 and C.4-3, PS3.7 Annex C).

An Error Comment says what kind of thing was wrong and never repeats a value: comments end up in the logs of modalities.
"""

from __future__ import annotations

from dataclasses import dataclass

from archive import errors

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
DUPLICATE_SOP_INSTANCE = 0x0111
NO_SUCH_SOP_INSTANCE = 0x0112
SOP_CLASS_NOT_SUPPORTED = 0x0122
NOT_AUTHORISED = 0x0124
UNRECOGNISED_OPERATION = 0x0211
OUT_OF_RESOURCES = 0xA700
DATA_SET_DOES_NOT_MATCH = 0xA900
COERCED = 0xB000
CANNOT_UNDERSTAND = 0xC000

PENDING = 0xFF00
PENDING_UNSUPPORTED_KEY = 0xFF01
CANCELLED = 0xFE00
CANNOT_COUNT = 0xA701
CANNOT_PERFORM = 0xA702
DESTINATION_UNKNOWN = 0xA801
IDENTIFIER_DOES_NOT_MATCH = 0xA900
SOME_FAILED = 0xB000
"""What only queries and retrieves answer."""

COMMENT_CHARACTERS = 64  # Error Comment is LO


@dataclass(frozen=True, slots=True)
class Answer:
    """What a DIMSE response says."""

    status: int
    comment: str = ""


ERRORS: dict[type[errors.ArchiveError], Answer] = {
    errors.ArchiveError: Answer(PROCESSING_FAILURE, "processing failure"),
    errors.Rejected: Answer(CANNOT_UNDERSTAND, "the request cannot be understood"),
    errors.InvalidInstance: Answer(CANNOT_UNDERSTAND, "the data set cannot be kept as an instance"),
    errors.UnsupportedClass: Answer(SOP_CLASS_NOT_SUPPORTED, "SOP class or transfer syntax not supported"),
    errors.InvalidQuery: Answer(DATA_SET_DOES_NOT_MATCH, "the identifier cannot be matched"),
    errors.InvalidRequest: Answer(CANNOT_UNDERSTAND, "the request cannot be understood"),
    errors.NotAcceptable: Answer(PROCESSING_FAILURE, "no such representation can be made"),
    errors.InstanceConflict: Answer(DUPLICATE_SOP_INSTANCE, "stored with other content; this one is in quarantine"),
    errors.StateConflict: Answer(PROCESSING_FAILURE, "does not fit the state the object is in"),
    errors.Denied: Answer(NOT_AUTHORISED, "not authorised"),
    errors.Unauthenticated: Answer(NOT_AUTHORISED, "not authorised"),
    errors.Forbidden: Answer(NOT_AUTHORISED, "not authorised"),
    errors.AwaitsApproval: Answer(NOT_AUTHORISED, "two people decide about it"),
    errors.NotFound: Answer(NO_SUCH_SOP_INSTANCE, "no such object"),
    errors.Unavailable: Answer(OUT_OF_RESOURCES, "the archive cannot store now; try again later"),
    errors.OutOfSpace: Answer(OUT_OF_RESOURCES, "the archive's disk is full"),
    errors.VaultUnavailable: Answer(OUT_OF_RESOURCES, "the archive cannot store now; try again later"),
    errors.DatabaseUnavailable: Answer(OUT_OF_RESOURCES, "the archive cannot store now; try again later"),
    errors.CommitUncertain: Answer(OUT_OF_RESOURCES, "the archive cannot store now; try again later"),
    errors.KeysUnavailable: Answer(OUT_OF_RESOURCES, "the archive cannot store now; try again later"),
    errors.ReadOnly: Answer(OUT_OF_RESOURCES, "the archive is read-only for now"),
    errors.IntegrityError: Answer(PROCESSING_FAILURE, "processing failure"),
    errors.SealBroken: Answer(PROCESSING_FAILURE, "processing failure"),
    errors.KeyShredded: Answer(PROCESSING_FAILURE, "processing failure"),
    errors.DigestMismatch: Answer(PROCESSING_FAILURE, "processing failure"),
    errors.LedgerBroken: Answer(PROCESSING_FAILURE, "processing failure"),
    errors.ConfigurationError: Answer(PROCESSING_FAILURE, "the archive is not set up for this"),
}

REASONS: dict[str, Answer] = {
    "cannot-understand": Answer(CANNOT_UNDERSTAND, "the data set cannot be understood"),
    "no-meta": Answer(CANNOT_UNDERSTAND, "the data set cannot be understood"),
    "bad-uid": Answer(CANNOT_UNDERSTAND, "a UID is not valid"),
    "missing-uid": Answer(CANNOT_UNDERSTAND, "a UID is missing"),
    "too-deep": Answer(CANNOT_UNDERSTAND, "sequences are nested too deeply"),
    "too-large": Answer(OUT_OF_RESOURCES, "the data set is larger than this archive takes"),
    "uid-mismatch": Answer(DATA_SET_DOES_NOT_MATCH, "SOP Instance UID of command and data set differ"),
    "class-mismatch": Answer(DATA_SET_DOES_NOT_MATCH, "SOP Class UID of command and data set differ"),
    "wrong-study": Answer(DATA_SET_DOES_NOT_MATCH, "the instance belongs to another study"),
}
"""InvalidInstance.reason, where it says more than the class."""

OUTCOMES: dict[str, Answer] = {
    "stored": Answer(SUCCESS),
    "duplicate": Answer(SUCCESS),
    "held": Answer(COERCED, "held: contradicts the stored patient or study"),
    "conflict": ERRORS[errors.InstanceConflict],
    "quarantined": Answer(CANNOT_UNDERSTAND, "kept in quarantine: it cannot be indexed"),
}
"""services.store.Outcome.status."""


def of_error(error: Exception) -> Answer:
    """Return the answer for an error; what is not an error of ours is a processing failure."""
    if isinstance(error, errors.InvalidInstance) and not isinstance(error, errors.UnsupportedClass) and error.reason in REASONS:
        return REASONS[error.reason]
    for kind in type(error).__mro__:
        if kind in ERRORS:
            return ERRORS[kind]
    return Answer(PROCESSING_FAILURE, "processing failure")


def of_outcome(status: str) -> Answer:
    """Return the answer for services.store.Outcome.status."""
    return OUTCOMES[status]


def is_warning(status: int) -> bool:
    """Whether a status says that it was done, but something is to be said about it (PS3.7 C.3)."""
    return status >> 12 == 0xB or status in {0x0001, 0x0107, 0x0116}
