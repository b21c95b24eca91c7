"""The vault: records sealed while they arrive, opened only as far as asked, every byte authenticated before it leaves."""

from __future__ import annotations

import hashlib
import hmac
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from archive.errors import SealBroken
from archive.vault import scan as scanning
from archive.vault.blobs import Blobs
from archive.vault.buffers import Buffers
from archive.vault.container import CHUNK_LOG2, HEADER_BYTES, TRAILER_BYTES, Header, Kind, Opener, Trailer
from archive.vault.disk import DISK, Disk
from archive.vault.keystore import Keystore, StudyKey
from archive.vault.reading import AT_ONCE_BYTES, RecordReader
from archive.vault.refs import Damage, FoundRecord, Location, RecordRef, Sections
from archive.vault.segment_store import SegmentStore
from archive.vault.writer import BUFFER_BYTES, RecordWriter

_META_LIMIT = 256 << 20
_TAIL_BYTES = 1 << 20  # sections are read together with the trailer up to here

__all__ = ["Damage", "FoundRecord", "Kind", "Location", "RecordRef", "RecordWriter", "Sections", "Vault"]


class Vault:
    """Seals, keeps and opens records; any thread."""

    def __init__(
        self, segments: SegmentStore, keystore: Keystore, cache: Path | None = None, *,
        disk: Disk = DISK, large_from: int = 4 << 20,
    ) -> None:
        """Keep records in `segments`, cached objects below `cache`; records longer than `large_from` get a segment of their own."""
        self.segments = segments
        self.keystore = keystore
        self._blobs = None if cache is None else Blobs(cache, keystore, disk)
        self._large_from = min(large_from, BUFFER_BYTES - (1 << 20))
        self._buffers = Buffers(BUFFER_BYTES)
        self._reader = RecordReader(segments)

    # --- in --------------------------------------------------------------------------------------------------------------------

    def writer(self, key: StudyKey, datastore: bytes, *, kind: int, at: datetime) -> RecordWriter:
        """Start a record."""
        return RecordWriter(self.segments, self._buffers, key, datastore, kind=kind, at=at, large_from=self._large_from)

    def sync(self, refs: Iterable[RecordRef]) -> None:
        """Return when records finished without being durable are, with one sync a segment; after an error all of them are gone.

        Raises:
            OutOfSpace, VaultUnavailable.
        """
        self.segments.sync([ref.location for ref in refs])

    def put_event(self, key: StudyKey, datastore: bytes, payload: bytes, *, at: datetime) -> RecordRef:
        """Keep an event record; durable when this returns, and possible below the disk's reserve.

        Call it before the transaction it belongs to: a new segment is registered in one of its own.

        Raises:
            OutOfSpace, VaultUnavailable.
        """
        writer = RecordWriter(
            self.segments, self._buffers, key, datastore, kind=Kind.EVENT, at=at, large_from=self._large_from, essential=True,
        )
        writer.write(payload)
        return writer.finish(b"", b"")

    def reseal(self, ref: RecordRef, key: StudyKey, *, kind: int, at: datetime) -> RecordRef:
        """Seal a record's contents again under another key or kind, same object id and statement; the old one stays.

        Raises:
            SealBroken, KeyShredded, OutOfSpace, VaultUnavailable.
        """
        sections = self.sections(ref)
        writer = RecordWriter(
            self.segments, self._buffers, key, ref.datastore,
            kind=kind, at=at, large_from=self._large_from, object_id=ref.object_id,
        )
        try:
            for view in self.read(ref):
                writer.write(view)
            if not hmac.compare_digest(writer.sha256, sections.trailer.sha256):
                raise SealBroken("SHA-256 differs from the record's trailer", verdict="V08")
            return writer.finish(sections.meta, sections.statement)
        finally:
            writer.abort()

    def forget(self, refs: Iterable[RecordRef]) -> None:
        """Give the records' space back; their rows must be gone, and again is harmless.

        Raises:
            VaultUnavailable.
        """
        for ref in refs:
            self.segments.remove(ref.location)

    def erase(self, location: Location) -> None:
        """Make a purged record unreadable and give its space back; again is harmless.

        Raises:
            VaultUnavailable.
        """
        self.segments.erase(location)

    # --- state -----------------------------------------------------------------------------------------------------------------

    def require_space(self) -> None:
        """Refuse while the disk's reserve is reached.

        Raises:
            OutOfSpace, VaultUnavailable.
        """
        self.segments.require_space()

    @property
    def direct_io(self) -> bool:
        """Whether records are written past the page cache."""
        return self.segments.direct

    def settle(self, location: Location) -> None:
        """Note that the record's rows are committed, or that it will never have any."""
        self.segments.settle(location)

    def replay_from(self, segment_id: bytes, *, besides: Collection[Location] = ()) -> int | None:
        """Return the offset below which every record of this process is settled; see SegmentStore."""
        return self.segments.replay_from(segment_id, besides=besides)

    def in_use(self, segment_id: bytes) -> bool:
        """Whether some process is writing the segment: replay leaves it alone.

        Raises:
            VaultUnavailable: it cannot be told.
        """
        return self.segments.in_use(segment_id)

    def finish_segment(self, segment_id: bytes) -> int | None:
        """Cut a segment that a dead process left open and return its used length; None when someone is writing it.

        Raises:
            SealBroken: V01.
            VaultUnavailable.
        """
        used = scanning.used_bytes(self.segments, segment_id)
        return used if self.segments.finish_segment(segment_id, used) else None

    # --- out -------------------------------------------------------------------------------------------------------------------

    def read(self, ref: RecordRef, start: int = 0, length: int | None = None) -> Iterator[memoryview]:
        """Yield bytes [start, start + length) of the Part 10 stream; the header is verified before this returns.

        A view is valid until the next one. Up to the end of the stream the trailer is asked whether that is its end.

        Raises:
            SealBroken: also while the views are taken; nothing of a broken chunk is released.
            KeyShredded, VaultUnavailable, DatabaseUnavailable.
        """
        end = ref.part10_bytes if length is None else min(start + length, ref.part10_bytes)
        if start < min(end, 1 << CHUNK_LOG2) and end == ref.part10_bytes and ref.location.record_bytes <= AT_ONCE_BYTES:
            return self._at_once(ref, start)
        opener = self._opener(ref)
        if start < end == ref.part10_bytes:
            return self._to_end(ref, opener, start)
        return self._reader.plaintext(*_place(ref), opener, start, max(0, end - start))

    def _at_once(self, ref: RecordRef, start: int) -> Iterator[memoryview]:
        key = self.keystore.open(ref.key_id)
        buffer, came = self._reader.fetch(*_place(ref), ref.location.record_bytes)
        opener = _verified(ref, key, buffer[: min(came, HEADER_BYTES)])
        # Of chunks before the first that is asked for nothing is opened; and the header is right, whatever the index says.
        if start >= opener.header.chunk_bytes or opener.header.record_bytes != ref.location.record_bytes:
            self._reader.give(buffer)
            return self._to_end(ref, opener, start)
        return self._one_view(ref, opener, self._reader.whole(buffer, came, opener), start)

    def _one_view(self, ref: RecordRef, opener: Opener, whole: Iterator[memoryview], start: int) -> Iterator[memoryview]:
        for view in whole:
            _trailer(ref, view[-TRAILER_BYTES:], opener.header.length)
            yield view[start : ref.part10_bytes]

    def _to_end(self, ref: RecordRef, opener: Opener, start: int) -> Iterator[memoryview]:
        length = opener.header.length
        if (ref.part10_bytes - 1) // opener.header.chunk_bytes < opener.header.chunks - 1:
            _trailer(ref, self._reader.collect(*_place(ref), opener, length - TRAILER_BYTES, TRAILER_BYTES), length)
            yield from self._reader.plaintext(*_place(ref), opener, start, ref.part10_bytes - start)
            return
        left = ref.part10_bytes - start
        for view in self._reader.plaintext(*_place(ref), opener, start, length - start):
            if len(view) >= left:  # the last chunk has both ends: no chunk more is opened than without asking
                _trailer(ref, view[-TRAILER_BYTES:], length)
            yield view[:left]
            left -= len(view)

    def read_range(self, ref: RecordRef, start: int, length: int) -> bytes:
        """Return bytes [start, start + length) of the Part 10 stream, fewer at its end; opens only the chunks they touch.

        Raises:
            As read.
        """
        return b"".join(bytes(view) for view in self.read(ref, start, length))

    def sections(self, ref: RecordRef) -> Sections:
        """Return everything but the Part 10 bytes.

        Raises:
            As read.
        """
        opener = self._opener(ref)
        length = opener.header.length
        start = ref.part10_bytes
        if not TRAILER_BYTES <= length - start <= _TAIL_BYTES:
            start = length - TRAILER_BYTES
        tail = self._reader.collect(*_place(ref), opener, start, length - start)
        trailer = _trailer(ref, tail[-TRAILER_BYTES:], length)
        rest = tail[:-TRAILER_BYTES]
        if start != trailer.part10_bytes:
            rest = self._reader.collect(*_place(ref), opener, trailer.part10_bytes, trailer.meta_bytes + trailer.statement_bytes)
        return _sections(rest, trailer)

    @contextmanager
    def outline(self, ref: RecordRef, *, once: bool = False) -> Iterator[tuple[Sections, Callable[[int], bytes]]]:
        """Give the sections, and a function that returns as many of the first Part 10 bytes as asked for.

        A small record is fetched whole, by whoever goes through whole series `once` past the page cache. Only chunks that are asked
        for have to be sound.

        Raises:
            As read; the function, too.
        """
        if ref.location.record_bytes <= AT_ONCE_BYTES:
            key = self.keystore.open(ref.key_id)
            buffer, came = self._reader.fetch(*_place(ref), ref.location.record_bytes, once=once)
            try:
                record = buffer[:came]
                opener = _verified(ref, key, record[:HEADER_BYTES])
                length = opener.header.length
                if came >= opener.header.record_bytes:  # what the index says of it is not believed
                    tail = self._reader.part(record, opener, ref.part10_bytes, length - ref.part10_bytes)
                    sections = _sections(tail, _trailer(ref, tail[-TRAILER_BYTES:], length))
                    yield sections, lambda count: self._reader.part(record, opener, 0, min(count, ref.part10_bytes))
                    return
            finally:
                self._reader.give(buffer)
        yield self.sections(ref), lambda count: self.read_range(ref, 0, count)

    def check(self, ref: RecordRef) -> Sections:
        """Open every chunk, compare SHA-256 of the Part 10 bytes with the trailer, and return the other sections.

        Raises:
            SealBroken: V08 when only the digest differs; else as read.
        """
        sections = self.sections(ref)
        digest = hashlib.sha256()
        for view in self.read(ref):
            digest.update(view)
        if not hmac.compare_digest(digest.digest(), sections.trailer.sha256):
            raise SealBroken("SHA-256 differs from the record's trailer", verdict="V08")
        return sections

    def scan(self, segment_id: bytes, start: int = 0, *, verify: bool = True) -> Iterator[FoundRecord | Damage]:
        """Yield the records and the damage at or after `start`; `verify` opens every chunk of a record before it counts.

        Raises:
            SealBroken: V01.
            VaultUnavailable, DatabaseUnavailable.
        """
        return scanning.Scanner(self.segments, self.keystore, self._reader, segment_id, verify=verify).run(start)

    def headers(self, segment_id: bytes) -> Iterator[tuple[int, Header | Damage]]:
        """Yield offset and header of every record of a segment, and the damage, without opening a chunk; see Scanner.headers."""
        return scanning.Scanner(self.segments, self.keystore, self._reader, segment_id, verify=False).headers()

    def between(self, segment_id: bytes, past: Callable[[int], int]) -> Iterator[tuple[int, Header | Damage]]:
        """Yield offset and header of records outside those that are known; see Scanner.between."""
        return scanning.Scanner(self.segments, self.keystore, self._reader, segment_id, verify=False).between(past)

    def find(self, segment_id: bytes, offset: int) -> FoundRecord | Damage:
        """Return the record at one place, its header and trailer verified, or why there is none; see Scanner.at."""
        return scanning.Scanner(self.segments, self.keystore, self._reader, segment_id, verify=False).at(offset)

    def used_bytes(self, segment_id: bytes) -> int:
        """Return where the last block of a segment that is not zeros ends, whoever is writing it.

        Raises:
            SealBroken: V01.
            VaultUnavailable.
        """
        return scanning.used_bytes(self.segments, segment_id)

    def walk_keyless(self) -> Iterator[tuple[str, int, str]]:
        """Yield (segment, offset, verdict) of everything in every segment; the verdict is empty where the form is right.

        Raises:
            VaultUnavailable.
        """
        for file in self.segments.files():
            for offset, verdict in scanning.keyless(self.segments, file.segment_id):
                yield file.name, offset, verdict

    def probe(self, ref: RecordRef) -> None:
        """Verify the record's header and that its last byte is there; no chunk is opened.

        Raises:
            As read.
        """
        self._opener(ref)
        last = ref.location.offset + ref.location.record_bytes - 1
        if self.segments.read_into(ref.location.segment_id, last, memoryview(bytearray(1))) < 1:
            raise SealBroken("the segment ends within the record", verdict="V02")

    def _opener(self, ref: RecordRef) -> Opener:
        key = self.keystore.open(ref.key_id)
        head = memoryview(bytearray(HEADER_BYTES))
        return _verified(ref, key, head[: self.segments.read_into(*_place(ref), head)])

    # --- cache -----------------------------------------------------------------------------------------------------------------

    def seal_blob(self, payload: bytes, key: StudyKey, datastore: bytes, *, at: datetime | None = None) -> bytes:  # noqa: ARG002 # all that is kept takes a time
        """Keep a cached object and return its id; see Blobs.seal."""
        return self._cache().seal(payload, key, datastore)

    def open_blob(self, object_id: bytes, key_id: bytes, datastore: bytes) -> bytes:
        """Return a cached object; see Blobs.open."""
        return self._cache().open(object_id, key_id, datastore)

    def drop_blob(self, object_id: bytes) -> None:
        """Remove a cached object; see Blobs.drop."""
        self._cache().drop(object_id)

    def seal_picture(self, picture: bytes, key: StudyKey, datastore: bytes, object_id: bytes) -> None:
        """Keep a cached picture; see Blobs.seal_picture."""
        self._cache().seal_picture(picture, key, datastore, object_id)

    def open_picture(self, object_id: bytes, key_id: bytes, datastore: bytes) -> bytes | None:
        """Return a cached picture, or None; see Blobs.open_picture."""
        return self._cache().open_picture(object_id, key_id, datastore)

    def trim_pictures(self, limit_bytes: int) -> int:
        """Bound what cached pictures take; see Blobs.trim_pictures."""
        return self._cache().trim_pictures(limit_bytes)

    def _cache(self) -> Blobs:
        if self._blobs is None:
            message = "this vault was opened without a cache folder"
            raise ValueError(message)
        return self._blobs

    def close(self) -> None:
        """Close the segments."""
        self.segments.close()


def _verified(ref: RecordRef, key: StudyKey, head: memoryview) -> Opener:
    """Verify a header that was read, and that it is the one of the record that the index names."""
    if len(head) < HEADER_BYTES:
        raise SealBroken("the segment ends before the record", verdict="V02")
    opener = Opener(key.key, head)
    header = opener.header
    found = (header.key_id, header.object_id, header.datastore, header.kind, header.length)
    named = (ref.key_id, ref.object_id, ref.datastore, ref.kind, ref.plaintext_bytes)
    if found != named or header.length < TRAILER_BYTES + ref.part10_bytes:
        raise SealBroken("the record is not the one the index names", verdict="V04")
    return opener


def _trailer(ref: RecordRef, data: bytes | memoryview, length: int) -> Trailer:
    """Return the trailer of `length` plaintext bytes, which says what the index says."""
    trailer = Trailer.parse(data, length)
    if trailer.part10_bytes != ref.part10_bytes:
        raise SealBroken("the index names another length than the record's trailer", verdict="V04")
    return trailer


def _sections(rest: bytes | memoryview, trailer: Trailer) -> Sections:
    """Return what lies behind the Part 10 bytes."""
    end = trailer.meta_bytes + trailer.statement_bytes
    return Sections(_inflated(bytes(rest[: trailer.meta_bytes])), bytes(rest[trailer.meta_bytes : end]), trailer)


def _inflated(meta: bytes) -> bytes:
    if not meta:
        return b""
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(meta, _META_LIMIT)
    except zlib.error:
        raise SealBroken("the record's META section does not inflate", verdict="V08") from None
    if not inflater.eof or inflater.unused_data:
        raise SealBroken("the record's META section does not inflate", verdict="V08")
    return data


def _place(ref: RecordRef) -> tuple[bytes, int]:
    return ref.location.segment_id, ref.location.offset
