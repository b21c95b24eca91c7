"""What a request of storage commitment must be (PS3.4 J.3.2)."""

from __future__ import annotations

from collections.abc import Sequence

from archive.dicom.matching import UID
from archive.errors import Rejected
from archive.services.commitment_check import Reference

MAXIMUM_REFERENCES = 10_000


class Invalid(Rejected):
    """A request that Annex J does not allow."""

    code = "invalid-commitment"


class TooMany(Rejected):
    """More references, or more transactions at once, than are taken."""

    code = "too-many"


def check(transaction_uid: str, references: Sequence[Reference]) -> None:
    """Refuse a request that none can be.

    Raises:
        Invalid, TooMany.
    """
    if not _is_uid(transaction_uid):
        raise Invalid("the Transaction UID is missing or not a UID")
    if not references:
        raise Invalid("no instance is referenced")
    if len(references) > MAXIMUM_REFERENCES:
        raise TooMany("more references than one transaction may have", remedy=f"at most {MAXIMUM_REFERENCES}")
    if not all(_is_uid(one.sop_class_uid) and _is_uid(one.sop_instance_uid) for one in references):
        raise Invalid("a referenced UID is missing or not a UID")
    if len({one.sop_instance_uid for one in references}) != len(references):
        raise Invalid("an instance is referenced twice")


def _is_uid(text: str) -> bool:
    return len(text) <= 64 and UID.fullmatch(text) is not None
