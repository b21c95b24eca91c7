"""What a rebuild says of itself: what was made, and in words what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from archive.services.history import Done
from archive.services.survey import Survey


@dataclass(slots=True)
class Rebuilt:
    """What was made, and in words what is missing."""

    lost: bool
    instances: int = 0
    held: int = 0
    changes: int = 0
    adopted: int = 0
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything the ledger names is there."""
        return not self.problems

    def tell(self, done: Done, found: Survey) -> None:
        """Say what the records gave, and which are missing or damaged."""
        self.instances, self.held, self.changes = done.instances, done.held, done.changes
        if done.missing:
            verdicts = ", ".join(sorted({verdict for _, verdict in done.missing}))
            first = ", ".join(str(number) for number, _ in done.missing[:20])
            self.problems.append(f"{len(done.missing)} events name records that are missing or not sound ({verdicts}): {first}; bring "
                                 "their segments back from a backup and rebuild again")
        if done.too_long:
            self.problems.append(f"{len(done.too_long)} events are about values longer than this database's index takes, and what they say "
                                 f"stays sealed where it lies: {shown(done.too_long)}; an embedded index takes them")
        self.problems += [f"segment {name} is damaged at {offset} ({verdict})" for name, offset, verdict in found.damaged[:20]]
        if found.shredded:
            self.notes.append(f"{found.shredded} records are of studies whose key was destroyed on purpose")


def shown(numbers: Sequence[int]) -> str:
    """Return the first of many numbers."""
    return ", ".join(map(str, numbers[:20])) + (", …" if len(numbers) > 20 else "")
