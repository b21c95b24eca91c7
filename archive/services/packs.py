"""Series packs: the DICOM JSON of a whole series, compressed and sealed, so that /metadata of 600 slices opens one file.

A pack belongs to one generation of its series; an older one is never served. It can be removed at any time: it is made again from the
Part 10 bytes when next asked for.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import msgspec
import sqlalchemy as sa

from archive.access import policy
from archive.access.policy import Scope
from archive.db.prepared import Prepared
from archive.db.tables import datastore, series, series_pack
from archive.dicom import behind, metadata
from archive.dicom.header import LONGEST_VALUE_BYTES
from archive.dicom.metadata import INLINE_BYTES, METADATA_VERSION
from archive.dicom.part10 import Scanned
from archive.dicom.repeats import Repeats
from archive.dicom.slim import drawn, slim
from archive.errors import ArchiveError, NotFound, Unavailable
from archive.index import locate
from archive.index.locate import InstanceRow, SeriesRow
from archive.services import named
from archive.services.core import Core
from archive.services.datastores import Datastore
from archive.services.records import decode
from archive.vault.vault import RecordRef

SERVED_BLOCK_BYTES = 256 << 10


LONG_HEAD_BYTES = 32 << 20
"""A longer head is read without the long values in it."""


def head_of(core: Core, ref: RecordRef, scanned: Scanned) -> bytes:
    """Return the Part 10 bytes before the pixel data's value; all of them where there is none.

    Of a long head what says nothing of how frames are drawn is left out.

    Raises:
        NotAcceptable: the rest is too long.
    """
    length = scanned.head_bytes or ref.part10_bytes
    if length <= LONG_HEAD_BYTES:
        return core.vault.read_range(ref, 0, length)
    return drawn(partial(core.vault.read_range, ref), length, scanned, LONGEST_VALUE_BYTES)


@dataclass(frozen=True, slots=True)
class MetadataAnswer:
    """One JSON array, gzip-compressed, and its entity tag."""

    etag: str
    gzip: Callable[[], Iterator[bytes | memoryview]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A series whose metadata is asked for; `rows` are its instances where no pack of this generation is kept."""

    series: SeriesRow
    etag: str
    datastore_uid: bytes
    rows: list[InstanceRow] | None = None


class Packs:
    """Makes, keeps and serves packs."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core

    def wanted(self, tx: sa.Connection, scope: Scope, place: Datastore, study: str, series: str | None) -> list[Wanted]:
        """Return the series inside the scope, in order; the rows of those without a pack are read in the same transaction."""
        found = []
        for one in locate.series_of(tx, scope, place.id, study, series):
            if etag := self._kept_etag(place, one):
                found.append(Wanted(one, etag, place.uid))
            elif rows := locate.of_series(tx, _TOKEN, one.series_pk):
                found.append(Wanted(one, self._pack_etag(place.name, rows), place.uid, rows))
        return found

    def kept(self, tx: sa.Connection, scope: Scope, place: Datastore, study: str, series: str | None) -> list[Wanted] | None:
        """Return the same by one statement, None where the pack of one of them is not kept."""
        found = []
        for one in locate.series_of(tx, scope, place.id, study, series):
            etag = self._kept_etag(place, one)
            if etag is None:
                return None
            found.append(Wanted(one, etag, place.uid))
        return found

    def _kept_etag(self, place: Datastore, one: SeriesRow) -> str | None:
        """Return the entity tag of a series' pack, None where none of its generation is kept."""
        start = self._start(place.name, one.series_instance_uid, one.generation)
        fresh = one.pack_etag is not None and one.pack_generation == one.generation and one.pack_etag.startswith(start)
        return one.pack_etag if fresh else None

    def series(self, wanted: list[Wanted], datastore: str, still: Callable[[SeriesRow], bool]) -> MetadataAnswer:
        """Return the metadata of whole series, one after the other as one JSON array; `still` is asked of each but the first as it leaves.

        Raises:
            NotFound: while it is taken, when a right to one of them ended meanwhile.
        """
        if len(wanted) == 1:
            return MetadataAnswer(wanted[0].etag, lambda: _blocks(self._pack(wanted[0], datastore)))
        etag = self._etag(datastore, *(one.etag for one in wanted))
        return MetadataAnswer(etag, lambda: self._joined(wanted, datastore, still))

    def instance(self, row: InstanceRow, datastore: str) -> MetadataAnswer:
        """Return the metadata of one instance."""
        def body() -> Iterator[bytes]:
            yield gzip.compress(b"[" + self._json(row, datastore) + b"]", 6, mtime=0)

        return MetadataAnswer(self._etag(datastore, row.ref.object_id.hex()), body)

    def build(self, rows: list[InstanceRow], datastore: str) -> None:
        """Make the pack of a series now, unless the one of this generation is there."""
        first, etag = rows[0], self._pack_etag(datastore, rows)
        kept = self._core.database.first(_KEPT, {"series": first.series_pk}, _TOKEN)
        one = SeriesRow(
            first.series_pk, first.series_instance_uid, first.series_generation, len(rows), *(kept or (None, None, None, None)),
        )
        self._pack(Wanted(one, etag, first.ref.datastore, None if one.pack_etag == etag else rows), datastore)

    def misnamed(self, tx: sa.Connection) -> Iterator[str]:
        """Yield the Series Instance UID of each pack that would be served but is not of the instances its series has now."""
        kept = (
            sa.select(series.c.id, datastore.c.name, series.c.series_instance_uid, series.c.generation, series_pack.c.etag)
            .join(series_pack, series_pack.c.series_pk == series.c.id).join(datastore, datastore.c.id == series.c.datastore_id)
            .where(series_pack.c.generation == series.c.generation)
        )
        for row in policy.run_as(tx, _TOKEN, kept).all():
            if not row.etag.startswith(self._start(row.name, row.series_instance_uid, row.generation)):
                continue  # not served
            rows = locate.of_series(tx, _TOKEN, row.id)
            if not rows or self._pack_etag(row.name, rows) != row.etag:
                yield row.series_instance_uid

    def _joined(self, wanted: list[Wanted], datastore: str, still: Callable[[SeriesRow], bool]) -> Iterator[bytes]:
        # One gzip member made afresh: browsers read only the first of several.
        deflate = zlib.compressobj(6, zlib.DEFLATED, 31)
        for number, one in enumerate(wanted):
            if number and not still(one.series):
                message = "there is no such object"
                raise NotFound(message)
            yield deflate.compress(b"," if number else b"[")
            for piece in _inside(self._pack(one, datastore)):
                yield deflate.compress(piece)
        yield deflate.compress(b"]") + deflate.flush()

    def _pack(self, wanted: Wanted, datastore: str) -> memoryview:
        core, series, etag = self._core, wanted.series, wanted.etag
        if wanted.rows is None and series.pack_object_id is not None and series.pack_key_id is not None:
            try:
                opened = memoryview(core.vault.open_blob(series.pack_object_id, series.pack_key_id, wanted.datastore_uid))
                if opened[: len(etag)] == etag.encode():  # sealed with it: the row alone does not say what a pack holds
                    return opened[len(etag) :]
            except ArchiveError:
                pass  # a cache: damaged or swept away, it is made again
        rows = wanted.rows if wanted.rows is not None else self._rows(wanted, datastore)
        repeats = Repeats()
        packed = _compressed(self._json(row, datastore, repeats) for row in rows)
        if not core.read_only:
            self._keep(rows[0], packed, etag, series.pack_object_id)
        return memoryview(packed)

    def _rows(self, wanted: Wanted, datastore: str) -> list[InstanceRow]:
        with self._core.database.read() as tx:
            rows = locate.of_series(tx, _TOKEN, wanted.series.series_pk)
        if not rows or self._pack_etag(datastore, rows) != wanted.etag:
            message = "the series is changing"
            raise Unavailable(message, remedy="ask again")
        return rows

    def _keep(self, first: InstanceRow, packed: bytes, etag: str, replaced: bytes | None) -> None:
        core = self._core
        try:
            key = core.keystore.open(first.ref.key_id)
            object_id = core.vault.seal_blob(etag.encode() + packed, key, first.ref.datastore)
        except ArchiveError:
            return  # a full or read-only disk costs the cache, not the answer
        values = {
            "series_pk": first.series_pk, "generation": first.series_generation, "object_id": object_id, "key_id": key.key_id,
            "length": len(packed), "etag": etag,
        }

        def work(tx: sa.Connection) -> None:
            policy.run_as(tx, _TOKEN, sa.delete(series_pack).where(series_pack.c.series_pk == first.series_pk))
            policy.run_as(tx, _TOKEN, sa.insert(series_pack), values)

        core.database.group(work)
        if replaced is not None:
            core.vault.drop_blob(replaced)

    def _json(self, row: InstanceRow, datastore: str, repeats: Repeats | None = None) -> bytes:
        core = self._core
        with core.vault.outline(row.ref, once=repeats is not None) as (sections, first):
            scanned = decode(sections.meta).scanned
            length = scanned.head_bytes or row.ref.part10_bytes
            long = length > LONG_HEAD_BYTES and not scanned.deflated
            # More than is inline is left of each, so that it has an address still.
            read = partial(core.vault.read_range, row.ref)
            head = slim(read, length, scanned, INLINE_BYTES, INLINE_BYTES + 2) if long else first(length)
        named.require_same(row, scanned)
        base = instance_url(core.config.archive.public_url, datastore, row)
        document = metadata.to_json(head, scanned, lambda path: f"{base}/bulk/{path}", repeats=repeats)
        if scanned.frames is not None and not scanned.deflated:
            tail = behind.tail_of(read, row.ref.part10_bytes, scanned, head, behind.MOST_BYTES)
            document = behind.joined(document, tail, head, scanned) if tail else document
        return msgspec.json.encode(document)

    def _pack_etag(self, datastore: str, rows: list[InstanceRow]) -> str:
        """Return what a pack holds, keyed: its series and generation, then exactly these instances."""
        first = rows[0]
        objects = hashlib.sha256(b"".join(row.ref.object_id for row in rows)).hexdigest()
        return self._start(datastore, first.series_instance_uid, first.series_generation) + self._tag(datastore, objects) + '"'

    def _start(self, datastore: str, series_instance_uid: str, generation: int) -> str:
        return '"' + self._tag(datastore, series_instance_uid, str(generation))

    def _etag(self, datastore: str, *parts: str) -> str:
        return f'"{self._tag(datastore, *parts)}"'

    def _tag(self, datastore: str, *parts: str) -> str:
        text = "\0".join((str(METADATA_VERSION), self._core.config.archive.public_url, datastore, *parts))
        return self._core.keyring.pseudonym("etag", text).hex()[:32]


def instance_url(public_url: str, datastore: str, row: InstanceRow) -> str:
    """Return the absolute address of an instance in DICOMweb (never built from the Host header)."""
    base = "/dicomweb" if datastore == "clinical" else f"/datastores/{datastore}/dicomweb"
    return (
        f"{public_url.rstrip('/')}{base}/studies/{row.study_instance_uid}/series/{row.series_instance_uid}"
        f"/instances/{row.sop_instance_uid}"
    )


_TOKEN = policy.system("packs")
_KEPT = Prepared(
    sa.select(series_pack.c.generation, series_pack.c.etag, series_pack.c.object_id, series_pack.c.key_id)
    .where(series_pack.c.series_pk == sa.bindparam("series"))
)


def _compressed(documents: Iterable[bytes]) -> bytes:
    """Return a JSON array in gzip; one document is there at a time, not all of a series of many thousands."""
    deflate = zlib.compressobj(6, zlib.DEFLATED, 31)
    packed = bytearray()
    for number, document in enumerate(documents):
        packed += deflate.compress(b"," if number else b"[") + deflate.compress(document)
    return bytes(packed + deflate.compress(b"]") + deflate.flush())


def _inside(packed: memoryview) -> Iterator[bytes]:
    """Yield what a compressed JSON array holds, without its brackets, in bounded blocks."""
    inflate = zlib.decompressobj(31)
    held, opening = b"", True
    for block in _blocks(packed):
        rest: bytes | memoryview = block
        while piece := inflate.decompress(rest, SERVED_BLOCK_BYTES):
            rest = inflate.unconsumed_tail
            yield held
            yield piece[opening:-1]
            held, opening = piece[max(opening, len(piece) - 1) :], False


def _blocks(data: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(data), SERVED_BLOCK_BYTES):
        yield data[start : start + SERVED_BLOCK_BYTES]
