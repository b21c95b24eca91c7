"""Looking through a segment for records, from block to block (docs/format.md 2.4)."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterator
from dataclasses import replace

from archive.errors import KeyShredded, SealBroken
from archive.vault.container import MAGIC, TRAILER_BYTES, Header, Opener, Trailer, parse_header
from archive.vault.disk import BLOCK, padded
from archive.vault.keystore import Keystore
from archive.vault.reading import RecordReader
from archive.vault.refs import Damage, FoundRecord, Location, RecordRef
from archive.vault.segment_store import SegmentStore, check_head

_WINDOW = 1 << 20
_GAP = 16 * BLOCK  # between records that are known lie small ones, and holes
_ZERO_BLOCK = bytes(BLOCK)

Found = FoundRecord | Header | Damage
Judge = Callable[[int, bytes], Found]
"""What lies at an offset whose first block begins with the magic."""


class Walk:
    """One pass over a segment; blocks that follow damage and begin no record belong to it."""

    def __init__(self, segments: SegmentStore, segment_id: bytes, judge: Judge, *, window_bytes: int = _WINDOW) -> None:
        """`judge` is asked about every block that begins with the magic."""
        self._segments, self._segment_id, self._judge, self._window_bytes = segments, segment_id, judge, window_bytes
        self._damage: Damage | None = None

    def run(self, start: int, *, past: Callable[[int], int] = lambda offset: offset) -> Iterator[tuple[int, Found]]:
        """Yield offset and nature of everything at or after `start` that is not zeros.

        `past(offset)` may lead to where what is known already ends, if it lies there.

        Raises:
            SealBroken: V01, there is no such segment.
            VaultUnavailable.
        """
        window = memoryview(bytearray(self._window_bytes))
        if start < BLOCK:
            yield from self._head(window[:BLOCK])
        at = max(BLOCK, padded(start))
        while (base := self._segments.next_data(self._segment_id, at)) is not None:
            gap, at = base > at, past(base)
            if gap or at > base:
                yield from self._ended()
            if at > base:
                continue
            count = self._segments.read_into(self._segment_id, base, window)
            if not count:
                break
            while at < base + count and past(at) == at:
                block = bytes(window[at - base : min(at - base + BLOCK, count)])
                step = BLOCK
                for offset, found in self._block(at, block):
                    yield offset, found
                    step = padded(_record_bytes(found)) if offset == at else BLOCK
                at += step
        yield from self._ended()

    def _head(self, block: memoryview) -> Iterator[tuple[int, Found]]:
        count = self._segments.read_into(self._segment_id, 0, block)
        try:
            check_head(bytes(block[:count]), self._segment_id)
        except SealBroken as error:
            yield 0, Damage(0, BLOCK, "V04", error.message)

    def _block(self, at: int, block: bytes) -> Iterator[tuple[int, Found]]:
        """Yield the damage that ends here, and the record that begins here."""
        if block.startswith(MAGIC):
            yield from self._ended()
            found = self._judge(at, block)
            if isinstance(found, Damage):
                self._damage = found
            else:
                yield at, found
        elif block == _ZERO_BLOCK:
            yield from self._ended()
        elif self._damage is not None:
            self._damage = replace(self._damage, length=at + BLOCK - self._damage.offset)
        else:
            self._damage = Damage(at, BLOCK, "V04", "bytes without a record's header")

    def _ended(self) -> Iterator[tuple[int, Found]]:
        damage, self._damage = self._damage, None
        if damage is not None:
            yield damage.offset, damage


def _record_bytes(found: Found) -> int:
    if isinstance(found, Damage):
        return BLOCK
    return found.record_bytes if isinstance(found, Header) else found.location.record_bytes


class Scanner:
    """Finds the records of one segment that open under the keystore's keys."""

    def __init__(
        self, segments: SegmentStore, keystore: Keystore, reader: RecordReader, segment_id: bytes, *, verify: bool,
    ) -> None:
        """`verify` opens every chunk and hashes the Part 10 bytes; else only header and last chunks."""
        self._segments, self._keystore, self._reader = segments, keystore, reader
        self._segment_id, self._verify = segment_id, verify

    def run(self, start: int) -> Iterator[FoundRecord | Damage]:
        """Yield what lies at or after `start`, in order.

        Raises:
            SealBroken: V01, there is no such segment.
            VaultUnavailable, DatabaseUnavailable.
        """
        for _offset, found in Walk(self._segments, self._segment_id, self._judge).run(start):
            assert not isinstance(found, Header)
            yield found

    def at(self, offset: int) -> FoundRecord | Damage:
        """Return the record at one place, or why there is none.

        Raises:
            VaultUnavailable, DatabaseUnavailable.
        """
        block = memoryview(bytearray(BLOCK))
        try:
            count = self._segments.read_into(self._segment_id, offset, block)
        except SealBroken as error:
            return Damage(offset, BLOCK, error.verdict, error.message)
        return self._judge(offset, bytes(block[:count]))

    def headers(self) -> Iterator[tuple[int, Header | Damage]]:
        """Yield offset and header of every record whose header verifies under its key, and the damage, in order; no chunk is opened.

        Raises:
            SealBroken: V01, there is no such segment.
            VaultUnavailable, DatabaseUnavailable.
        """
        for offset, found in Walk(self._segments, self._segment_id, self._header).run(0):
            assert not isinstance(found, FoundRecord)
            yield offset, found

    def between(self, past: Callable[[int], int]) -> Iterator[tuple[int, Header | Damage]]:
        """Yield what `headers` does of where no known record lies: `past(offset)` is where one that lies there ends, else the offset.

        Raises:
            SealBroken: V01, there is no such segment.
            VaultUnavailable, DatabaseUnavailable.
        """
        for offset, found in Walk(self._segments, self._segment_id, self._header, window_bytes=_GAP).run(BLOCK, past=past):
            assert not isinstance(found, FoundRecord)
            yield offset, found

    def _header(self, offset: int, block: bytes) -> Header | Damage:
        header: Header | None = None
        try:
            header = parse_header(block)
            return Opener(self._keystore.open(header.key_id).key, block).header
        except (SealBroken, KeyShredded) as error:
            return _damage(offset, error, header)

    def _judge(self, offset: int, block: bytes) -> FoundRecord | Damage:
        header: Header | None = None
        try:
            header = parse_header(block)
            return self._contents(offset, Opener(self._keystore.open(header.key_id).key, block))
        except (SealBroken, KeyShredded) as error:
            return _damage(offset, error, header)

    def _contents(self, offset: int, opener: Opener) -> FoundRecord:
        header = opener.header
        if header.length < TRAILER_BYTES:
            raise SealBroken("the record is shorter than a trailer", verdict="V04")
        tail = self._reader.collect(self._segment_id, offset, opener, header.length - TRAILER_BYTES, TRAILER_BYTES)
        trailer = Trailer.parse(tail, header.length)
        if self._verify:
            digest = hashlib.sha256()
            left = trailer.part10_bytes
            for view in self._reader.plaintext(self._segment_id, offset, opener, 0, header.length):
                digest.update(view[: max(0, left)])
                left -= len(view)
            if not hmac.compare_digest(digest.digest(), trailer.sha256):
                raise SealBroken("SHA-256 differs from the record's trailer", verdict="V08")
        location = Location(self._segment_id, offset, header.record_bytes)
        ref = RecordRef(
            location, header.key_id, header.object_id, header.datastore,
            plaintext_bytes=header.length, part10_bytes=trailer.part10_bytes, kind=header.kind,
        )
        return FoundRecord(ref, trailer.sha256)


def keyless(segments: SegmentStore, segment_id: bytes) -> Iterator[tuple[int, str]]:
    """Yield (offset, verdict) of everything in a segment, by lengths alone; the verdict is empty where the form is right.

    Raises:
        SealBroken: V01.
        VaultUnavailable.
    """

    def judge(offset: int, block: bytes) -> Header | Damage:
        try:
            header = parse_header(block)
            last = header.record_bytes - 1
            if segments.read_into(segment_id, offset + last, memoryview(bytearray(1))) < 1:
                return Damage(offset, BLOCK, "V02", "the segment ends before the record")
        except SealBroken as error:
            return Damage(offset, BLOCK, error.verdict, error.message)
        return header

    for offset, found in Walk(segments, segment_id, judge).run(0):
        yield offset, found.verdict if isinstance(found, Damage) else ""


def used_bytes(segments: SegmentStore, segment_id: bytes) -> int:
    """Return where a segment's last block that is not zeros ends.

    Raises:
        SealBroken: V01.
        VaultUnavailable.
    """
    used = BLOCK
    window = memoryview(bytearray(_WINDOW))
    at = BLOCK
    while (base := segments.next_data(segment_id, at)) is not None:
        count = segments.read_into(segment_id, base, window)
        if not count:
            break
        data = len(bytes(window[:count]).rstrip(b"\0"))
        if data:
            used = base + padded(data)
        at = base + padded(count)
    return used


def _damage(offset: int, error: SealBroken | KeyShredded, header: Header | None) -> Damage:
    key_id, object_id = (None, None) if header is None else (header.key_id, header.object_id)
    return Damage(offset, BLOCK, error.verdict, error.message, key_id, isinstance(error, KeyShredded), object_id)
