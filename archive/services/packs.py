"""Series packs: the DICOM JSON of a whole series, compressed and sealed, so that /metadata of 600 slices opens one file.

A pack belongs to one generation of its series; an older one is never served. It can be removed at any time: it is made again from the
Part 10 bytes when next asked for.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec
import sqlalchemy as sa

from archive.access import policy
from archive.db.tables import series_pack
from archive.dicom import metadata
from archive.dicom.part10 import Scanned
from archive.errors import ArchiveError
from archive.index import search
from archive.services.core import Core
from archive.services.records import decode
from archive.vault.vault import RecordRef

SERVED_BLOCK_BYTES = 256 << 10


def head_of(core: Core, ref: RecordRef, scanned: Scanned) -> bytes:
    """Return the Part 10 bytes before the pixel data's value; all of them where there is none."""
    return core.vault.read_range(ref, 0, scanned.head_bytes or ref.part10_bytes)


@dataclass(frozen=True, slots=True)
class MetadataAnswer:
    """One JSON array, gzip-compressed, and its entity tag."""

    etag: str
    gzip: Callable[[], Iterator[bytes]]


class Packs:
    """Makes, keeps and serves packs."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core

    def series(self, groups: list[list[search.InstanceRow]], datastore: str) -> MetadataAnswer:
        """Return the metadata of whole series, one after the other as one JSON array."""
        etag = self._etag(datastore, *map(_generation, groups))
        if len(groups) == 1:
            return MetadataAnswer(etag, lambda: _blocks(self._pack(groups[0], datastore)))
        return MetadataAnswer(etag, lambda: self._joined(groups, datastore))

    def instance(self, row: search.InstanceRow, datastore: str) -> MetadataAnswer:
        """Return the metadata of one instance."""
        def body() -> Iterator[bytes]:
            yield gzip.compress(b"[" + self._json(row, datastore) + b"]", 6, mtime=0)

        return MetadataAnswer(self._etag(datastore, row.ref.object_id.hex()), body)

    def build(self, rows: list[search.InstanceRow], datastore: str) -> None:
        """Make the pack of a series now, unless the one of this generation is there."""
        self._pack(rows, datastore)

    def _joined(self, groups: list[list[search.InstanceRow]], datastore: str) -> Iterator[bytes]:
        # One gzip member made afresh: browsers read only the first of several.
        deflate = zlib.compressobj(6, zlib.DEFLATED, 31)
        for number, rows in enumerate(groups):
            array = gzip.decompress(self._pack(rows, datastore))
            yield deflate.compress((b"," if number else b"[") + array[1:-1])
        yield deflate.compress(b"]") + deflate.flush()

    def _pack(self, rows: list[search.InstanceRow], datastore: str) -> bytes:
        core = self._core
        first = rows[0]
        etag = self._etag(datastore, _generation(rows))
        with core.database.read() as tx:
            kept = policy.run_as(tx, policy.system("packs"), _KEPT, {"series": first.series_pk}).first()
        if kept is not None and kept.generation == first.series_generation and kept.etag == etag:
            try:
                opened = bytes(core.vault.open_blob(bytes(kept.object_id), bytes(kept.key_id), first.ref.datastore))
                if opened.startswith(etag.encode()):  # sealed with it: the row alone does not say what a pack holds
                    return opened[len(etag):]
            except ArchiveError:
                pass  # a cache: damaged or swept away, it is made again
        body = b"[" + b",".join(self._json(row, datastore) for row in rows) + b"]"
        packed = gzip.compress(body, 6, mtime=0)
        if not core.read_only:
            self._keep(first, packed, etag, kept.object_id if kept is not None else None)
        return packed

    def _keep(self, first: search.InstanceRow, packed: bytes, etag: str, replaced: bytes | None) -> None:
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
            token = policy.system("packs")
            policy.run_as(tx, token, sa.delete(series_pack).where(series_pack.c.series_pk == first.series_pk))
            policy.run_as(tx, token, sa.insert(series_pack), values)

        core.database.group(work)
        if replaced is not None:
            core.vault.drop_blob(replaced)

    def _json(self, row: search.InstanceRow, datastore: str) -> bytes:
        core = self._core
        scanned = decode(core.vault.sections(row.ref).meta).scanned
        base = instance_url(core.config.archive.public_url, datastore, row)
        document = metadata.to_json(head_of(core, row.ref, scanned), scanned, lambda path: f"{base}/bulk/{path}")
        return msgspec.json.encode(document)

    def _etag(self, datastore: str, *parts: str) -> str:
        text = "\0".join((self._core.config.archive.public_url, datastore, *parts))
        return '"' + self._core.keyring.pseudonym("etag", text).hex()[:32] + '"'


def _generation(rows: list[search.InstanceRow]) -> str:
    """Return what a pack holds: its series, generation and exactly these instances."""
    first = rows[0]
    objects = hashlib.sha256(b"".join(row.ref.object_id for row in rows)).hexdigest()
    return f"{first.series_pk}.{first.series_generation}.{objects}"


def instance_url(public_url: str, datastore: str, row: search.InstanceRow) -> str:
    """Return the absolute address of an instance in DICOMweb (never built from the Host header)."""
    base = "/dicomweb" if datastore == "clinical" else f"/datastores/{datastore}/dicomweb"
    return (
        f"{public_url.rstrip('/')}{base}/studies/{row.study_instance_uid}/series/{row.series_instance_uid}"
        f"/instances/{row.sop_instance_uid}"
    )


_KEPT = sa.select(series_pack).where(series_pack.c.series_pk == sa.bindparam("series"))


def _blocks(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), SERVED_BLOCK_BYTES):
        yield data[start : start + SERVED_BLOCK_BYTES]
