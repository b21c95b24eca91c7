"""Where a sealed record lies and what opens it, as the tables hold it (docs/format.md 2)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a segment."""

    segment_id: bytes
    offset: int
    record_bytes: int


@dataclass(frozen=True, slots=True)
class RecordRef:
    """All that is needed to open a record."""

    location: Location
    key_id: bytes
    object_id: bytes
    datastore: bytes
    plaintext_bytes: int
    part10_bytes: int
    kind: int = 1
