"""What a keyring holds, said without a secret: the ids of its keys and slots, to be compared with what the ledger knows of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from archive.keys.entries import SIGNING, Entry
from archive.keys.slots import Slot

Held = dict[str, list[str]]
"""`keys`: the ids of those that count, or that something still opens with; `slots`: the ids of slots; each in order."""

Tell = Callable[[str, Held], None]
"""Called before a change is written, with the id of the key or slot it is about and what the keyring will hold; raises to prevent it."""


def held(entries: Sequence[Entry], slots: Sequence[Slot]) -> Held:
    """Return what there is; a key that is to come counts not yet, one that only waits for its end no more."""
    return {"keys": sorted(entry.id.hex() for entry in entries if _counts(entry)), "slots": sorted(slot.id for slot in slots)}


def _counts(entry: Entry) -> bool:
    return entry.state == "active" or (entry.state == "retiring" and entry.purpose not in (*SIGNING, "index"))


def nobody(_name: str, _held: Held) -> None:
    """Tell nobody: of what is recorded otherwise, or later."""
