"""The contract of a segment store, and a segment's head.

Every implementation passes tests/contracts/test_segment_store.py. A store knows nothing of keys: it keeps opaque records of whole
blocks.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection
from datetime import datetime
from typing import Protocol

from archive.db.types import to_micros
from archive.errors import SealBroken
from archive.vault.disk import BLOCK
from archive.vault.refs import Location, SegmentFile

HEAD_MAGIC = b"\x89SRS\r\n\x1a\n"
_HEAD = struct.Struct(">8sH6x16sQ")


def head_block(segment_id: bytes, at: datetime) -> bytes:
    """Return a segment's first block (docs/format.md 2.1)."""
    head = _HEAD.pack(HEAD_MAGIC, 1, segment_id, to_micros(at))
    return (head + hashlib.sha256(head).digest()).ljust(BLOCK, b"\0")


def check_head(block: bytes, segment_id: bytes) -> None:
    """Refuse a head block that is damaged or another segment's.

    Raises:
        SealBroken: V04.
    """
    head = block[: _HEAD.size]
    if len(block) != BLOCK or hashlib.sha256(head).digest() != block[40:72] or any(block[72:]):
        raise SealBroken("the segment's head is damaged", verdict="V04")
    magic, version, found, _created_at = _HEAD.unpack(head)
    if magic != HEAD_MAGIC or version != 1 or found != segment_id:
        raise SealBroken("the segment's head names another segment or form", verdict="V04")


class LargeRecord(Protocol):
    """A record being written piece by piece; one thread."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write whole blocks at `offset` of the record, never its first block.

        Raises:
            OutOfSpace, VaultUnavailable.
        """

    def finish(self, first_block: memoryview, record_bytes: int) -> Location:
        """Sync, write the first block, sync again, and return where the record lies.

        Raises:
            OutOfSpace, VaultUnavailable.
        """

    def abort(self) -> None:
        """Remove every byte of it; harmless after finish or abort."""


class SegmentStore(Protocol):
    """Sealed records kept in append-only segments; written once, never changed."""

    def append(self, record: memoryview, record_bytes: int, *, at: datetime, essential: bool = False, durable: bool = True) -> Location:
        """Write one record and return where it lies; durable when this returns, gone after an error.

        `record` is whole blocks in page-aligned memory, zero behind `record_bytes`. `essential` ones may use the reserve. Not
        `durable`, a call of `sync` is owed for it before anything relies on it.

        Raises:
            OutOfSpace, VaultUnavailable.
        """

    def sync(self, locations: Collection[Location]) -> None:
        """Return when records appended without being durable are; after an error all of them are gone.

        Raises:
            OutOfSpace, VaultUnavailable.
        """

    def begin_large(self, *, at: datetime) -> LargeRecord:
        """Open a segment of its own for one record that arrives piece by piece.

        Raises:
            OutOfSpace, VaultUnavailable.
        """

    def read_into(self, segment_id: bytes, offset: int, into: memoryview, *, once: bool = False) -> int:
        """Read from a segment until `into` is full or the segment ends; return the number of bytes.

        What is read `once` should leave nothing in the page cache: `into` is whole blocks in page-aligned memory, for a place that is
        one.

        Raises:
            SealBroken: V01, there is no such segment.
            VaultUnavailable.
        """

    def next_data(self, segment_id: bytes, offset: int) -> int | None:
        """Return a block boundary at or after `offset` with nothing but zeros before it, None when only zeros follow."""

    def settle(self, location: Location) -> None:
        """Note that the record's rows are committed, or that it will never have any."""

    def replay_from(self, segment_id: bytes, *, besides: Collection[Location] = ()) -> int | None:
        """Return the offset below which every record appended here is settled or failed; `besides` count as settled.

        None for a segment this store has not written to.
        """

    def replay_due(self, location: Location) -> int | None:
        """Return `replay_from` of the record's segment, the record settled, when its row should be brought up to it; else None.

        Every few MiB and in a closed segment: a position that lies behind only makes the start after a crash read more.
        """

    def remove(self, location: Location) -> None:
        """Turn the record into a hole, or unlink a closed segment that holds nothing else; it also counts as settled.

        Raises:
            VaultUnavailable.
        """

    def erase(self, location: Location) -> None:
        """Remove a record so that what is left of it on the disk cannot be opened: its first block is overwritten and synced before.

        A closed segment of which nothing is left is unlinked.

        Raises:
            VaultUnavailable.
        """

    def open_segment(self) -> SegmentFile | None:
        """Return the segment that small records go to now."""

    def files(self) -> list[SegmentFile]:
        """Return every segment there is, in the order of their names."""

    def in_use(self, segment_id: bytes) -> bool:
        """Whether some process is writing the segment, or has written records of it that it has not settled yet.

        Raises:
            VaultUnavailable: it cannot be told.
        """

    def finish_segment(self, segment_id: bytes, used: int) -> bool:
        """Cut a segment that a dead process left open to `used` bytes; False when it is in use."""

    def require_space(self) -> None:
        """Refuse while the disk's reserve is reached.

        Raises:
            OutOfSpace, VaultUnavailable.
        """

    @property
    def direct(self) -> bool:
        """Whether records are written past the page cache."""

    def digest(self, segment_id: bytes) -> bytes:
        """Return SHA-256 of the whole file, for closed segments."""

    def roll(self) -> None:
        """Close the open segment, if any; the next record opens another."""

    def close(self) -> None:
        """Close everything."""
