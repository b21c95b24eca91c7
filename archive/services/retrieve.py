"""Retrieve: instances, metadata, frames, bulk data and pictures go out to those who may see them.

Every answer is located by one statement inside the caller's scope, and its audit event is committed durably before the first byte
leaves. While instances stream, each leaves only if it may then (services/asking.py): a revocation lets at most the one under way finish.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import cache, partial
from typing import TypeVar

import sqlalchemy as sa

from archive.access.permissions import Permission
from archive.access.policy import scope_of
from archive.access.subject import Subject
from archive.dicom import pixels, transcode
from archive.dicom.bulk import Chunks, Read, Value
from archive.dicom.bulk import find as find_value
from archive.dicom.decode import DECODABLE
from archive.dicom.metadata import PIXEL_PATHS
from archive.dicom.part10 import Limits, Scanned, inflate
from archive.dicom.pieces import Stream
from archive.dicom.transfer import DEFLATED, EXPLICIT_LE, IMPLICIT_LE
from archive.errors import ArchiveError, InvalidInstance, NotFound, Unavailable
from archive.index import locate
from archive.ledger.audit import Event, Kind, ObjectRef
from archive.services import datastores, named, packs
from archive.services.asking import Asking
from archive.services.core import Core
from archive.services.found import BulkAnswer, Found, FramesAnswer
from archive.services.frame_maps import FrameMaps
from archive.services.framing import Framing
from archive.services.meanwhile import Recorder
from archive.services.packs import MetadataAnswer
from archive.services.records import decode

T = TypeVar("T")
LONG_FRAME_BYTES = 16 << 20
"""A frame stored in more is not held where it goes out as it is."""
AS_STORED = frozenset({IMPLICIT_LE, EXPLICIT_LE})
"""Uncompressed little endian: what a retrieve without transfer-syntax may answer unchanged."""


class Retrieve:
    """Bytes out of the vault; safe to share between threads."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core
        self._packs = packs.Packs(core)
        self._maps = FrameMaps()
        self._recorder = Recorder()
        limits = core.config.limits
        self._limits = Limits(inflated_bytes=limits.inflated_bytes, nesting=limits.nesting, elements=limits.elements)

    def instances(
        self, subject: Subject, datastore: str, study: str, series: str | None = None, sop: str | None = None
    ) -> list[Found]:
        """Return the instances of a study, a series, or one, ordered by series and instance number.

        Raises:
            NotFound: none, or none the subject may retrieve.
            Unavailable: the read could not be recorded, so nothing may leave.
        """
        return self._locate(subject, datastore, study, series, sop, need=Permission.ORIGINAL, what="instances")

    def reading(
        self, subject: Subject, datastore: str, study: str, series: str, sop: str, read: Callable[[Found], T]
    ) -> tuple[Found, T]:
        """Return one instance and what `read` made of it while the access was being recorded.

        Raises:
            NotFound, Unavailable: as `instances`; else what `read` raises.
        """
        found, record = self._located(subject, datastore, study, series, sop, need=Permission.ORIGINAL, what="instances")
        with self._recorder.recorded(record, worth=bool(found)):
            return found[0], read(found[0])

    def open(
        self, subject: Subject, found: Found, start: int = 0, length: int | None = None, *, just_found: bool = False
    ) -> Iterator[memoryview]:
        """Return Part 10 bytes [start, start + length); the scope is asked again first, unless `instances` has only just done so.

        Each view is authenticated, and valid until the next one.

        Raises:
            NotFound: the right to it ended meanwhile.
            SealBroken, KeyShredded, VaultUnavailable: also while the views are taken.
        """
        if not just_found:
            self._still(subject, found)
        views = self._core.vault.read(found.row.ref, start, length)
        return named.checked(self._core, found.row, views, from_start=start == 0 and length is None)

    def leaving(self, subject: Subject, found: Sequence[Found]) -> Callable[[int], Iterator[memoryview]]:
        """Return what opens instances that were found, by number from 0, one after the other, each as `open` does.

        The first must be opened at once: it has only just been found.
        """
        core, need = self._core, found[0].need
        rows = {one.row.instance_pk: one.row for one in found}

        def kept(key: int, at: datetime) -> bytes | None:
            return rows[key].ref.object_id if locate.still(core.database, scope_of(subject, need, at), rows[key]) else None

        def between(first: int, last: int, at: datetime) -> dict[int, bytes]:
            return locate.still_between(core.database, scope_of(subject, need, at), first, last)

        asking = Asking(core, list(rows), kept, between)

        def opened(number: int) -> Iterator[memoryview]:
            if number and asking.now(number) != found[number].row.ref.object_id:
                message = "there is no such object"
                raise NotFound(message)
            return self.open(subject, found[number], just_found=True)

        return opened

    def transcoded(self, subject: Subject, found: Found, transfer_syntax_uid: str) -> Iterator[bytes | memoryview]:
        """Yield the instance in a transfer syntax: as stored when it is that, else decoded, and encoded again without loss.

        Raises:
            NotAcceptable: no codec decodes it, or none encodes it and keeps every bit.
            NotFound, SealBroken, KeyShredded, VaultUnavailable.
        """
        if found.transfer_syntax_uid == transfer_syntax_uid:
            yield from self.open(subject, found)
            return
        self._still(subject, found)
        core = self._core
        scanned = self._scanned(found)
        stream = Stream(found.part10_bytes, partial(core.vault.read_range, found.row.ref))
        yield from transcode.to_syntax(stream, scanned, transfer_syntax_uid, self._limits)

    def obtainable(self, found: Found, transfer_syntax_uid: str) -> bool:
        """Whether `transcoded` has the codecs for it, and memory: a data set that inflates beyond the limit goes out as it is stored."""
        if found.transfer_syntax_uid in DEFLATED and self._scanned(found).overfull:
            return False
        if transfer_syntax_uid == EXPLICIT_LE and found.transfer_syntax_uid in AS_STORED:
            return True
        if transfer_syntax_uid not in transcode.OFFERED or found.transfer_syntax_uid not in DECODABLE:
            return False
        scanned = self._scanned(found)
        if scanned.frames is None and scanned.head_bytes != found.part10_bytes:
            return False  # pixel data, and nobody knows where their frames lie
        return pixels.can_decode(scanned) and transcode.can_encode(scanned, transfer_syntax_uid)

    def metadata(
        self, subject: Subject, datastore: str, study: str, series: str | None = None, sop: str | None = None
    ) -> MetadataAnswer:
        """Return the DICOM JSON of a study, series or instance without its bulk values (PS3.18 10.4.1.1.2).

        Raises:
            NotFound, Unavailable.
        """
        if sop is not None:
            found = self._locate(subject, datastore, study, series, sop, need=Permission.METADATA, what="metadata")
            return self._packs.instance(found[0].row, datastore)
        core = self._core
        at = core.clock()
        scope = scope_of(subject, Permission.METADATA, at)
        with core.database.glance() as tx:
            wanted = self._packs.kept(tx, scope, datastores.asked_for(tx, subject, datastore, at), study, series)
        if wanted is None:
            with core.database.read() as tx:
                wanted = self._packs.wanted(tx, scope, datastores.asked_for(tx, subject, datastore, at), study, series)
        self._audit(subject, datastore, study, series, sop, what="metadata", instances=sum(one.series.n_instances for one in wanted))

        def still(one: locate.SeriesRow) -> bool:
            at = core.clock()
            with core.database.glance() as tx:
                place = datastores.asked_for(tx, subject, datastore, at)
                found = locate.series_of(tx, scope_of(subject, Permission.METADATA, at), place.id, study, one.series_instance_uid)
            return any(there.series_pk == one.series_pk for there in found)

        return self._packs.series(wanted, datastore, still)

    def frames(
        self, subject: Subject, datastore: str, study: str, series: str, sop: str, numbers: list[int]
    ) -> FramesAnswer:
        """Return access to frames of one instance, as stored or decoded.

        Raises:
            NotFound: the instance, or one of the frames.
            NotAcceptable: their transfer syntax is not what they are in, or they are not as long as it is said.
            Unavailable.
        """
        found, record = self._located(
            subject, datastore, study, series, sop, need=Permission.PIXELS, what="frames", frames=len(numbers)
        )
        with self._recorder.recorded(record, worth=bool(found)):
            return self._framed(found[0], numbers)

    def _framed(self, found: Found, numbers: list[int]) -> FramesAnswer:
        ref = found.row.ref
        kept = self._maps.find(ref)
        if kept is None:
            scanned = self._scanned(found)
        else:
            scanned = kept.scanned
            named.require_same(found.row, scanned)
        table = scanned.frames
        if table is None or any(not 1 <= number <= table.count for number in numbers):
            message = "there is no such frame"
            raise NotFound(message)
        head, stored = self._frames(found, scanned)
        long = partial(self._long, found, scanned)
        if len(numbers) == 1 and long(numbers[0]) is None:  # read now, while the access is being recorded
            stored = partial(_of_one, stored, numbers[0], stored(numbers[0]))
        whole = (lambda: scanned) if kept is None else partial(self._scanned, found)
        framing = Framing(self._maps, ref, kept, scan=whole, head=head, read=stored)
        framing.require_boundaries()
        return FramesAnswer(found, found.transfer_syntax_uid, framing.stored, framing.explicit_le, framing.encoded, long)

    def _long(self, found: Found, scanned: Scanned, number: int) -> BulkAnswer | None:
        """Return what reads a frame as it is stored piece by piece, None where it is short, or not stored byte by byte."""
        table = scanned.frames
        assert table is not None
        value = Value(table.pieces(number - 1))
        if value.length <= LONG_FRAME_BYTES or scanned.deflated or table.frame_bits % table.word_bits:
            return None
        return BulkAnswer(found, value.length, partial(value.part, partial(self._core.vault.read, found.row.ref)))

    def bulk(self, subject: Subject, datastore: str, study: str, series: str, sop: str, path: str) -> BulkAnswer:
        """Return the value of an instance's element at `path` ("00420011", "60031010/1/60031011"), read as far as it is taken.

        Raises:
            NotFound, Unavailable.
        """
        found = self._locate(subject, datastore, study, series, sop, need=Permission.PIXELS, what="bulkdata")[0]
        scanned = self._scanned(found)
        read, chunks, length = self._stream(found, scanned)
        value = find_value(read, length, scanned, path)
        table = scanned.frames
        frame = None
        if table is not None and table.kind == "encapsulated" and path in PIXEL_PATHS:
            head, stored = self._frames(found, scanned)
            framing = Framing(self._maps, found.row.ref, None, scan=lambda: scanned, head=head, read=stored)
            frame = FramesAnswer(found, found.transfer_syntax_uid, framing.stored, framing.explicit_le, framing.encoded)
        return BulkAnswer(found, value.length, lambda start, count: value.part(chunks, start, count), frame)

    def prepare(self) -> None:
        """Build the statements every retrieve runs, so that nobody's first request waits for it.

        Raises:
            DatabaseUnavailable.
        """
        core = self._core
        at = core.clock()
        nobody = Subject(0, "", "user", "internal")
        with core.database.read() as tx:
            for scope in locate.usual_scopes(nobody, at):
                for uids in (("",), ("", ""), ("", "", "")):
                    locate.locate(tx, scope, 0, *uids)
                locate.series_of(tx, scope, 0, "", "")
                locate.still_between(core.database, scope, 0, 0)
            datastores.asked_for(tx, nobody, datastores.DEFAULT, at)

    # ------------------------------------------------------------------------------------------------------------------------------

    def _locate(
        self, subject: Subject, datastore: str, study: str, series: str | None, sop: str | None, *, need: Permission, what: str,
        frames: int = 0,
    ) -> list[Found]:
        found, record = self._located(subject, datastore, study, series, sop, need=need, what=what, frames=frames)
        record()
        return found

    def _located(
        self, subject: Subject, datastore: str, study: str, series: str | None, sop: str | None, *, need: Permission, what: str,
        frames: int = 0,
    ) -> tuple[list[Found], Callable[[], None]]:
        """Return what is found, and what records that and must have been called before anything of it leaves."""
        core = self._core
        at = core.clock()
        with core.database.glance() as tx:  # one statement decides; the connection that commits the audit still has its pages
            place = datastores.asked_for(tx, subject, datastore, at)
            rows = locate.locate(tx, scope_of(subject, need, at), place.id, study, series, sop)
        record = partial(
            self._audit, subject, datastore, study, series, sop, what=what, instances=len(rows), frames=frames,
            sent_bytes=sum(row.ref.part10_bytes for row in rows) if what == "instances" else 0,
        )
        return [self._found(row, datastore, need) for row in rows], record

    def _audit(
        self, subject: Subject, datastore: str, study: str, series: str | None, sop: str | None, *, what: str, instances: int,
        sent_bytes: int = 0, frames: int = 0,
    ) -> None:
        """Record what was found, or that nothing was, which looks the same as no right to it."""
        objects = [ObjectRef("study", study)] + ([ObjectRef("series", series)] if series else [])
        self._record(Event(
            Kind.READ if instances else Kind.DENIED, outcome=0 if instances else 4, subject=subject, objects=tuple(objects),
            instances=instances, bytes=sent_bytes,
            detail={"what": what, "datastore": datastore, **({"frames": frames} if frames else {}), **({"sop": sop} if sop else {})},
        ))
        if not instances:
            message = "there is no such object"
            raise NotFound(message)

    def _record(self, event: Event) -> None:
        """No audit, no data."""
        core = self._core
        try:
            core.database.group(lambda tx: core.ledger.record(tx, event, at=core.clock()), durable=True)
        except (ArchiveError, sa.exc.SQLAlchemyError) as error:
            message = "the access could not be recorded, so nothing was answered"
            raise Unavailable(message, remedy=getattr(error, "remedy", "") or "run 'archive doctor'") from error

    def _found(self, row: locate.InstanceRow, datastore: str, need: Permission) -> Found:
        etag = self._core.keyring.pseudonym("etag", row.ref.object_id).hex()[:32]
        return Found(
            row.study_instance_uid, row.series_instance_uid, row.sop_instance_uid, row.sop_class_uid, row.transfer_syntax_uid,
            row.ref.part10_bytes, row.dataset_offset, row.sha256, f'"{etag}"', row.number_of_frames or 1, row, datastore, need,
        )

    def _still(self, subject: Subject, found: Found) -> None:
        core = self._core
        if not locate.still(core.database, scope_of(subject, found.need, core.clock()), found.row):
            message = "there is no such object"
            raise NotFound(message)

    def _scanned(self, found: Found) -> Scanned:
        scanned = decode(self._core.vault.sections(found.row.ref).meta).scanned
        named.require_same(found.row, scanned)
        return scanned

    def _stream(self, found: Found, scanned: Scanned) -> tuple[Read, Chunks, int]:
        """Return what reads the Part 10 stream, whole or in pieces, and its length; a deflated data set is inflated."""
        vault, ref = self._core.vault, found.row.ref
        if not scanned.deflated:
            return partial(vault.read_range, ref), partial(vault.read, ref), found.part10_bytes
        whole = memoryview(self._inflated(found, scanned))
        return lambda at, count: bytes(whole[at : at + count]), lambda at, count: iter((whole[at : at + count],)), len(whole)

    def _inflated(self, found: Found, scanned: Scanned) -> bytes:
        """Return the Part 10 stream of a deflated data set, inflated.

        Raises:
            NotFound: it is larger than may be held, as the limit is now.
        """
        try:
            return inflate(self._core.vault.read_range(found.row.ref, 0, found.part10_bytes), scanned, self._limits)
        except InvalidInstance as error:
            message = "the data set is too large to be inflated"
            raise NotFound(message) from error

    def _frames(self, found: Found, scanned: Scanned) -> tuple[Callable[[], bytes], Callable[[int], bytes]]:
        """Return what reads the bytes before the pixel data and a frame (from 1); a deflated data set is inflated once."""
        table = scanned.frames
        assert table is not None
        vault, ref = self._core.vault, found.row.ref
        if scanned.deflated:
            whole = self._inflated(found, scanned)
            return lambda: whole, lambda number: b"".join(whole[offset : offset + length] for offset, length in table.pieces(number - 1))
        head = cache(lambda: packs.head_of(self._core, ref, scanned))
        return head, lambda number: b"".join(vault.read_range(ref, offset, length) for offset, length in table.pieces(number - 1))


def _of_one(stored: Callable[[int], bytes], number: int, frame: bytes, wanted: int) -> bytes:
    return frame if wanted == number else stored(wanted)


__all__ = ["BulkAnswer", "Found", "FramesAnswer", "MetadataAnswer", "Retrieve"]
