"""What every DIMSE operation needs: one table, walked by a test; data alone, since services ask for it themselves.

The context of an operation is refused to who lacks the right when an association is asked for; who loses it while associated gets what
`denied` says. Which objects open is decided by services, inside the statement that reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from archive.access.permissions import Permission
from archive.dimse import command, models, normalized, status
from archive.dimse.contexts import STORAGE_CLASSES, VERIFICATION

P = Permission


@dataclass(frozen=True, slots=True)
class Operation:
    """One row: a command on the SOP classes that it is answered on."""

    name: str
    command: int
    sop_classes: frozenset[str]
    need: Permission = P.NONE
    """What the service asks for; of several any one is enough. NONE: to be a peer."""
    context: Literal["every peer", "who may", "over TLS or with a grant"] = "who may"
    """Whose presentation context is taken; everybody else's is rejected by result 1, user rejection (PS3.8 Table 9-18)."""
    denied: int = status.NOT_AUTHORISED
    """What it answers without the permission."""
    denied_objects: int | None = None
    """What it answers for an object that is hidden, exactly as for one that is not there; None when it names none that is there."""
    recorded: tuple[str, ...] = ()
    """The kinds of events of which it leaves one (archive/ledger/audit.py) when it is done."""
    refused: tuple[str, ...] = ()
    """The kinds of which it leaves one when it is denied, or finds nothing that may be had."""
    to_itself: Permission = P.NONE
    """What is asked for instead when the destination is the one who asks."""
    of_destination: Permission = P.NONE
    """What the destination needs besides."""
    of_objects: Permission = P.NONE
    """What is asked for of each object that is named, unless the peer stored it itself."""
    private: bool = False
    """Whether classes that no edition of the standard names are served too where the settings let them in."""


OPERATIONS: tuple[Operation, ...] = (
    Operation("C-ECHO", command.C_ECHO_RQ, frozenset({VERIFICATION}), context="every peer", denied=status.SUCCESS),
    Operation(
        "C-STORE", command.C_STORE_RQ, STORAGE_CLASSES, P.STORE | P.STORE_DERIVED, private=True, refused=("denied",),
        recorded=("stored", "duplicate", "held", "conflict", "quarantined"),
    ),
    Operation(
        "C-FIND", command.C_FIND_RQ, models.FIND_CLASSES, P.SEARCH, "over TLS or with a grant", status.SUCCESS, status.SUCCESS,
        recorded=("searched",), refused=("searched",),
    ),
    Operation(
        "C-MOVE", command.C_MOVE_RQ, models.MOVE_CLASSES, P.SEND, "over TLS or with a grant", status.SUCCESS, status.SUCCESS,
        recorded=("sent",), refused=("denied",), to_itself=P.ORIGINAL, of_destination=P.RECEIVE,
    ),
    Operation(
        "C-GET", command.C_GET_RQ, models.GET_CLASSES, P.ORIGINAL, "over TLS or with a grant", status.SUCCESS, status.SUCCESS,
        recorded=("read",), refused=("denied",),
    ),
    Operation(
        "C-FIND", command.C_FIND_RQ, frozenset({models.WORKLIST}), P.WORKLIST, denied=status.SUCCESS, denied_objects=status.SUCCESS,
        recorded=("searched",), refused=("denied", "searched"),
    ),
    Operation("N-CREATE", normalized.N_CREATE_RQ, frozenset({models.MPPS}), P.MPPS, recorded=("procedure-step",), refused=("denied",)),
    Operation(
        "N-SET", normalized.N_SET_RQ, frozenset({models.MPPS}), P.MPPS, denied_objects=status.NO_SUCH_SOP_INSTANCE,
        recorded=("procedure-step",), refused=("denied",),
    ),
    Operation(
        "N-ACTION", normalized.N_ACTION_RQ, frozenset({models.COMMITMENT}), P.COMMIT, denied_objects=status.SUCCESS,
        recorded=("committed",), refused=("denied", "committed"), of_objects=P.METADATA,
    ),
)
"""Every operation that is answered; the rest is 0x0211, unrecognised operation, or 0x0122, SOP class not supported."""


def of(sop_class_uid: str) -> Iterator[Operation]:
    """Yield the operations of a SOP class the standard names."""
    return (row for row in OPERATIONS if sop_class_uid in row.sop_classes)
