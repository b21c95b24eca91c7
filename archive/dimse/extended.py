"""SOP Class Extended Negotiation of the Query/Retrieve classes: what is asked for and can be given (PS3.4 C.5.1.1, C.5.2.1, C.5.3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from archive.dimse.models import CLASSES, FIND_CLASSES

_RELATIONAL, _FUZZY, _TIMEZONE = 0, 2, 3


@dataclass(frozen=True, slots=True)
class Extended:
    """What was agreed for one SOP class; `information` is the answer's application information."""

    sop_class_uid: str
    information: bytes

    @property
    def relational(self) -> bool:
        """Whether queries or retrieves need not follow the hierarchy."""
        return self._agreed(_RELATIONAL)

    @property
    def fuzzy(self) -> bool:
        """Whether person names are matched word by word."""
        return self.sop_class_uid in FIND_CLASSES and self._agreed(_FUZZY)

    def _agreed(self, at: int) -> bool:
        return self.information[at : at + 1] == b"\1"


def agree(asked: Mapping[str, bytes], accepted: frozenset[str]) -> tuple[Extended, ...]:
    """Return what is agreed: relational queries and retrieves, fuzzy names and times of the asker's clock when asked for, nothing else."""
    agreed = []
    for uid, information in asked.items():
        if uid in CLASSES & accepted:
            given = bytearray(len(information[:8]))
            for at in (_RELATIONAL, _FUZZY, _TIMEZONE) if uid in FIND_CLASSES else (_RELATIONAL,):
                if information[at : at + 1] == b"\1":
                    given[at] = 1
            agreed.append(Extended(uid, bytes(given)))
    return tuple(agreed)
