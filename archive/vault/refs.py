"""What the index keeps of a record, and what a scan finds."""

from __future__ import annotations

from dataclasses import dataclass

from archive.db.location import Location, RecordRef
from archive.vault.container import Trailer

__all__ = ["Damage", "FoundRecord", "Location", "RecordRef", "Sections", "SegmentFile"]


@dataclass(frozen=True, slots=True)
class Sections:
    """Everything of a record but the Part 10 bytes; `meta` is inflated."""

    meta: bytes
    statement: bytes
    trailer: Trailer

    @property
    def sha256(self) -> bytes:
        """The digest of the Part 10 bytes that was sealed with them."""
        return self.trailer.sha256


@dataclass(frozen=True, slots=True)
class FoundRecord:
    """A record that a scan met and verified."""

    ref: RecordRef
    sha256: bytes

    @property
    def location(self) -> Location:
        """Where it lies."""
        return self.ref.location


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes [offset, offset + length) of a segment that are no sound record; `verdict` as in docs/format.md 2.3.

    `key_id` and `object_id` are set when the header could be read: a record of a shredded key is damage of verdict V05 with `shredded`.
    """

    offset: int
    length: int
    verdict: str
    detail: str
    key_id: bytes | None = None
    shredded: bool = False
    object_id: bytes | None = None


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """A segment as it lies on the disk."""

    segment_id: bytes
    name: str
    file_bytes: int
