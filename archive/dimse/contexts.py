"""Which presentation contexts are taken: the storage SOP classes and transfer syntaxes this archive keeps (docs/conformance.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pynetdicom import AllStoragePresentationContexts

from archive.dicom import registry
from archive.dimse import models

VERIFICATION = "1.2.840.10008.1.1"

ACCEPTED, USER_REJECTION, ABSTRACT_SYNTAX_NOT_SUPPORTED, TRANSFER_SYNTAXES_NOT_SUPPORTED = 0, 1, 3, 4
"""PS3.8 Table 9-18, Result/Reason."""

_COMPOSITE = "1.2.840.10008.5.1.4.1.1."
# Procedure protocols and inventories belong to no patient's study, so they cannot be kept as instances of one.
_NON_PATIENT = (_COMPOSITE + "200.", _COMPOSITE + "201.")
_OTHER_RETIRED = ("1.2.840.10008.5.1.1.29", "1.2.840.10008.5.1.1.30", "1.2.840.10008.5.1.4.34.1")

# Not encodings of a data set: MIME and XML wrappers, Papyrus, real-time video.
_NOT_A_DATA_SET = ("1.2.840.10008.1.2.6.", "1.2.840.10008.1.20", "1.2.840.10008.1.2.7.")


def _dictionary(kind: str) -> dict[str, tuple[str, bool]]:
    return {uid: (entry[0], entry[3] == "Retired") for uid, entry in registry.UIDS.items() if entry[1] == kind}


def _storage_classes() -> frozenset[str]:
    known = {str(context.abstract_syntax) for context in AllStoragePresentationContexts}
    older = {
        uid
        for uid, (name, retired) in _dictionary("SOP Class").items()
        if uid.startswith(_COMPOSITE) and not uid.startswith(_NON_PATIENT) and ("Storage" in name or retired)
    }
    return frozenset(known | older | set(_OTHER_RETIRED))


STORAGE_CLASSES = _storage_classes()
"""Every storage SOP class that belongs to a patient's study, retired ones included: old archives are moved in too."""

TRANSFER_SYNTAXES = frozenset(uid for uid in _dictionary("Transfer Syntax") if not uid.startswith(_NOT_A_DATA_SET))
"""Every encoding of a data set that the standard ever named: bytes are kept as they come, so nothing needs a codec to be stored."""

NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"})
"""What Verification is offered with."""

IDENTIFIERS = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1"})
"""What queries and retrieves are offered with."""


@dataclass(frozen=True, slots=True)
class Proposed:
    """One presentation context of an A-ASSOCIATE-RQ."""

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """Its answer; `transfer_syntax` is significant only when `result` is ACCEPTED."""

    context_id: int
    abstract_syntax: str
    result: int
    transfer_syntax: str

    @property
    def storage(self) -> bool:
        """Whether C-STORE may come on it."""
        return self.result == ACCEPTED and self.abstract_syntax != VERIFICATION and self.abstract_syntax not in models.SERVED


@dataclass(frozen=True, slots=True)
class Role:
    """SCP/SCU role selection of one SOP class, as the requestor sees it (PS3.7 D.3.3.4)."""

    sop_class_uid: str
    scu: bool
    scp: bool


def is_storage(abstract_syntax: str, *, private: bool) -> bool:
    """Whether a SOP class is taken for storage; `private` lets classes in that no edition of the standard names."""
    return abstract_syntax in STORAGE_CLASSES or (private and bool(abstract_syntax) and abstract_syntax not in registry.UIDS)


def answer(
    proposed: Sequence[Proposed], roles: Mapping[str, Role], *, may_store: bool, private: bool, may_query: bool = False,
    functions: frozenset[str] = frozenset(), preferred: tuple[str, ...] = (),
) -> tuple[tuple[Answered, ...], tuple[Role, ...]]:
    """Answer every proposed context; the proposer's first transfer syntax that can be kept is taken.

    A requestor is the SCU of what it proposes: giving that role up for a class gets its contexts rejected. Only where it may retrieve by
    C-GET on the same association can it be the SCP of storage classes, for what comes back to it; some say nothing of roles then.
    `functions` are the classes it may use besides; `preferred` are the only transfer syntaxes taken for instances, in that order.
    """
    retrieves = may_query and any(context.abstract_syntax in models.GET_CLASSES for context in proposed)
    terms = _Terms(may_store, may_query, retrieves, private, functions, preferred)
    answers = tuple(_answer_one(context, roles.get(context.abstract_syntax), terms) for context in proposed)
    accepted = {context.abstract_syntax for context in answers if context.result == ACCEPTED}
    return answers, tuple(_role(role, terms) for uid, role in roles.items() if uid in accepted)


@dataclass(frozen=True, slots=True)
class _Terms:
    may_store: bool
    may_query: bool
    retrieves: bool
    private: bool
    functions: frozenset[str]
    preferred: tuple[str, ...]

    def instances(self, syntaxes: Sequence[str]) -> Sequence[str]:
        """Return what instances may come in, the best first."""
        if self.preferred:
            return [uid for uid in self.preferred if uid in syntaxes and uid in TRANSFER_SYNTAXES]
        return [uid for uid in syntaxes if uid in TRANSFER_SYNTAXES]


def _role(role: Role, terms: _Terms) -> Role:
    if terms.retrieves and is_storage(role.sop_class_uid, private=terms.private):
        return Role(role.sop_class_uid, scu=role.scu and terms.may_store, scp=role.scp)
    return Role(role.sop_class_uid, scu=True, scp=False)


def _answer_one(context: Proposed, role: Role | None, terms: _Terms) -> Answered:
    syntaxes = context.transfer_syntaxes
    first = syntaxes[0] if syntaxes else ""
    kept: Sequence[str]
    comes_back = False
    if context.abstract_syntax == VERIFICATION:
        kept = [uid for uid in syntaxes if uid in NATIVE]
    elif context.abstract_syntax in models.SERVED:
        if not (terms.may_query if context.abstract_syntax in models.CLASSES else context.abstract_syntax in terms.functions):
            return Answered(context.context_id, context.abstract_syntax, USER_REJECTION, first)
        kept = [uid for uid in syntaxes if uid in IDENTIFIERS]
    elif is_storage(context.abstract_syntax, private=terms.private):
        comes_back = terms.retrieves and (role is None or role.scp)
        if not terms.may_store and not comes_back:
            return Answered(context.context_id, context.abstract_syntax, USER_REJECTION, first)
        kept = terms.instances(syntaxes)
    else:
        return Answered(context.context_id, context.abstract_syntax, ABSTRACT_SYNTAX_NOT_SUPPORTED, first)
    if not kept:
        return Answered(context.context_id, context.abstract_syntax, TRANSFER_SYNTAXES_NOT_SUPPORTED, first)
    if role is not None and not role.scu and not comes_back:
        return Answered(context.context_id, context.abstract_syntax, USER_REJECTION, kept[0])
    return Answered(context.context_id, context.abstract_syntax, ACCEPTED, kept[0])
