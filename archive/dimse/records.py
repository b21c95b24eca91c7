"""What is told of an association when it is over: its negotiation by name, its operations by number, its end in plain words."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Any

from archive.dicom import registry
from archive.dimse import contexts, status
from archive.dimse.admission import Acceptance, Opening, Rejection
from archive.dimse.contexts import Answered
from archive.services.association_log import AssociationRecord

NAMED_CONTEXTS = 40
"""How many contexts of each kind a record names; the rest is counted."""

RELEASED, ABORTED, LOST, TIMED_OUT, FAILED, STOPPED = "released", "aborted", "lost", "timed-out", "failed", "stopped"
WORDS = {
    RELEASED: "the peer released it", ABORTED: "the peer aborted it", LOST: "the connection broke",
    TIMED_OUT: "nothing came for too long", FAILED: "what came was not the protocol, or the archive failed; it was aborted",
    STOPPED: "the archive stopped",
}
_WHY = {
    contexts.USER_REJECTION: "not granted to this peer", contexts.ABSTRACT_SYNTAX_NOT_SUPPORTED: "not offered here",
    contexts.TRANSFER_SYNTAXES_NOT_SUPPORTED: "none of its transfer syntaxes is taken",
}


class Tally:
    """How many operations of each kind were served, and how many of those failed; belongs to one association's thread."""

    __slots__ = ("counts", "ended")

    def __init__(self) -> None:
        """Nothing was served yet; an association that says nothing of its end was lost."""
        self.counts: dict[str, list[int]] = {}
        self.ended = LOST

    def add(self, operation: str, code: int) -> None:
        """Count one."""
        found = self.counts.get(operation)
        if found is None:
            found = self.counts[operation] = [0, 0]
        found[0] += 1
        if code and not status.is_warning(code) and code != status.CANCELLED:
            found[1] += 1

    def shown(self) -> dict[str, dict[str, int]]:
        """Return the numbers by operation."""
        return {name: {"done": done, "failed": failed} for name, (done, failed) in self.counts.items()}


def of_ended(
    acceptance: Acceptance, tally: Tally, *, opened_at: datetime, at: datetime, address: str, tls: bool
) -> AssociationRecord:
    """Return the record of an association that was served."""
    admission, proposal = acceptance.admission, acceptance.proposal
    failed = tally.ended not in (RELEASED, STOPPED) or any(one[1] for one in tally.counts.values())
    return AssociationRecord(
        opened_at, at, tally.ended, WORDS[tally.ended], failed, proposal.calling_ae_title, proposal.called_ae_title, address, tls,
        admission.subject.peer_id, admission.peer_name, admission.subject.association, negotiated(acceptance.contexts), tally.shown(),
    )


def of_refused(rejection: Rejection, asked: Opening, *, at: datetime, address: str, tls: bool, peer: str = "") -> AssociationRecord:
    """Return the record of an association that was refused."""
    return AssociationRecord(
        at, at, "refused", rejection.why, True, asked.calling_ae_title, asked.called_ae_title, address, tls, peer=peer
    )


def of_stranger(why: str, *, at: datetime, address: str, tls: bool) -> AssociationRecord:
    """Return the record of a connection that never asked for an association in the protocol's way."""
    return AssociationRecord(at, at, "refused", why, True, address=address, tls=tls)


@lru_cache(maxsize=64)
def negotiated(answered: tuple[Answered, ...]) -> dict[str, Any]:
    """Return what was proposed and what was taken, by the standard's names."""
    taken: dict[str, list[str]] = {}
    refused: dict[str, str] = {}
    for context in answered:
        name = _name(context.abstract_syntax)
        if context.result == contexts.ACCEPTED:
            taken.setdefault(name, []).append(_name(context.transfer_syntax))
        else:
            refused[name] = _WHY.get(context.result, "refused")
    return {
        "proposed": len(answered), "accepted": sum(map(len, taken.values())),
        "taken": dict(list(taken.items())[:NAMED_CONTEXTS]), "refused": dict(list(refused.items())[:NAMED_CONTEXTS]),
    }


def _name(uid: str) -> str:
    entry = registry.UIDS.get(uid)
    return entry[0] if entry is not None else f"private class {uid[:64]}"
