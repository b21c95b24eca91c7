"""Retrieve: instances, metadata, frames, bulk data and pictures go out to those who may see them.

Every answer is located by one statement inside the caller's scope, and its audit event is committed durably before the first byte
leaves. While instances stream, the scope is asked again before each: a revocation lets at most the one under way finish.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from archive.access.permissions import Permission
from archive.access.policy import scope_of
from archive.access.subject import Subject
from archive.dicom import metadata, pixels
from archive.dicom.decode import DECODABLE
from archive.dicom.part10 import Limits, Scanned, inflate
from archive.dicom.transfer import EXPLICIT_LE, IMPLICIT_LE
from archive.errors import ArchiveError, NotFound, Unavailable
from archive.index import search
from archive.ledger.audit import Event, Kind, ObjectRef
from archive.services import datastores, packs
from archive.services.core import Core
from archive.services.packs import MetadataAnswer
from archive.services.records import decode

AS_STORED = frozenset({IMPLICIT_LE, EXPLICIT_LE})
"""Uncompressed little endian: what a retrieve without transfer-syntax may answer unchanged."""


@dataclass(frozen=True, slots=True)
class Found:
    """One instance the caller may see."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    part10_bytes: int
    dataset_offset: int
    sha256: bytes
    etag: str
    number_of_frames: int
    row: search.InstanceRow
    datastore: str
    need: Permission


@dataclass(frozen=True, slots=True)
class FramesAnswer:
    """Frames of one instance; numbers count from 1, as in the request."""

    found: Found
    transfer_syntax_uid: str
    stored: Callable[[int], bytes]
    explicit_le: Callable[[int], bytes]


class Retrieve:
    """Bytes out of the vault; safe to share between threads."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core
        self._packs = packs.Packs(core)
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

    def open(self, subject: Subject, found: Found, start: int = 0, length: int | None = None) -> Iterator[memoryview]:
        """Yield Part 10 bytes [start, start + length); the scope is asked again first.

        Each view is authenticated, and valid until the next one.

        Raises:
            NotFound: the right to it ended meanwhile.
            SealBroken, KeyShredded, VaultUnavailable.
        """
        self._still(subject, found)
        yield from self._core.vault.read(found.row.ref, start, length)

    def explicit_le(self, subject: Subject, found: Found) -> Iterator[bytes | memoryview]:
        """Yield the instance in Explicit VR Little Endian: as stored when it is that, else decoded or re-encoded.

        Raises:
            NotAcceptable: no codec decodes it.
            NotFound, SealBroken, KeyShredded, VaultUnavailable.
        """
        if found.transfer_syntax_uid == EXPLICIT_LE:
            yield from self.open(subject, found)
            return
        self._still(subject, found)
        core = self._core
        scanned = self._scanned(found)
        part10 = core.vault.read_range(found.row.ref, 0, found.part10_bytes)
        yield pixels.to_explicit_le(part10, scanned)

    def decodable(self, found: Found) -> bool:
        """Whether `explicit_le` has a codec for it."""
        return found.transfer_syntax_uid in AS_STORED | DECODABLE or pixels.can_decode(self._scanned(found))

    def metadata(
        self, subject: Subject, datastore: str, study: str, series: str | None = None, sop: str | None = None
    ) -> MetadataAnswer:
        """Return the DICOM JSON of a study, series or instance without its bulk values (PS3.18 10.4.1.1.2).

        Raises:
            NotFound, Unavailable.
        """
        found = self._locate(subject, datastore, study, series, sop, need=Permission.METADATA, what="metadata")
        if sop is not None:
            return self._packs.instance(found[0].row, datastore)
        rows: dict[int, list[search.InstanceRow]] = {}
        for one in found:
            rows.setdefault(one.row.series_pk, []).append(one.row)
        return self._packs.series(list(rows.values()), datastore)

    def frames(
        self, subject: Subject, datastore: str, study: str, series: str, sop: str, numbers: list[int]
    ) -> FramesAnswer:
        """Return access to frames of one instance, as stored or decoded.

        Raises:
            NotFound: the instance, or one of the frames.
            Unavailable.
        """
        found = self._locate(subject, datastore, study, series, sop, need=Permission.PIXELS, what="frames", frames=len(numbers))[0]
        scanned = self._scanned(found)
        table = scanned.frames
        if table is None or any(not 1 <= number <= table.count for number in numbers):
            message = "there is no such frame"
            raise NotFound(message)

        head, stored = self._frames(found, scanned)

        def explicit_le(number: int) -> bytes:
            return pixels.frame_explicit_le(head, scanned, stored(number), number - 1)

        return FramesAnswer(found, found.transfer_syntax_uid, stored, explicit_le)

    def bulk(self, subject: Subject, datastore: str, study: str, series: str, sop: str, path: str) -> bytes:
        """Return the value of the element at `path` ("00420011", "60031010/1/60031011").

        Raises:
            NotFound, Unavailable.
        """
        found = self._locate(subject, datastore, study, series, sop, need=Permission.PIXELS, what="bulkdata")[0]
        part10 = self._core.vault.read_range(found.row.ref, 0, found.part10_bytes)
        return metadata.bulk_value(part10, self._scanned(found), path)

    def render(
        self, subject: Subject, datastore: str, study: str, series: str, sop: str, frame: int = 1, *,
        window: tuple[float, float] | None = None, max_size: tuple[int, int] | None = None, image_format: str = "png",
    ) -> bytes:
        """Return one frame as a picture a browser shows; `window` is (centre, width).

        Raises:
            NotFound: the instance or the frame, or it has no pixels.
            NotAcceptable: it cannot be decoded; the reason is in the message.
            Unavailable.
        """
        found = self._locate(subject, datastore, study, series, sop, need=Permission.PIXELS, what="rendered")[0]
        scanned = self._scanned(found)
        table = scanned.frames
        if table is None or not 1 <= frame <= table.count:
            message = "there is no such frame"
            raise NotFound(message)
        head, stored = self._frames(found, scanned)
        return pixels.render(
            head, scanned, stored(frame), window=window, max_size=max_size, format="jpeg" if image_format == "jpeg" else "png",
            index=frame - 1,
        )

    # ------------------------------------------------------------------------------------------------------------------------------

    def _locate(
        self, subject: Subject, datastore: str, study: str, series: str | None, sop: str | None, *, need: Permission, what: str,
        frames: int = 0,
    ) -> list[Found]:
        core = self._core
        at = core.clock()
        with core.database.read() as tx:
            place = datastores.asked_for(tx, subject, datastore, at)
            rows = search.locate(tx, scope_of(subject, need, at), place.id, study, series, sop)
        objects = [ObjectRef("study", study)] + ([ObjectRef("series", series)] if series else [])
        event = Event(
            Kind.READ if rows else Kind.DENIED, outcome=0 if rows else 4, subject=subject, objects=tuple(objects), instances=len(rows),
            bytes=sum(row.ref.part10_bytes for row in rows) if what == "instances" else 0,
            detail={"what": what, "datastore": datastore, **({"frames": frames} if frames else {}), **({"sop": sop} if sop else {})},
        )
        self._record(event)
        if not rows:
            message = "there is no such object"
            raise NotFound(message)
        return [self._found(row, datastore, need) for row in rows]

    def _record(self, event: Event) -> None:
        """No audit, no data."""
        core = self._core
        try:
            core.database.group(lambda tx: core.ledger.record(tx, event, at=core.clock()), durable=True)
        except (ArchiveError, sa.exc.SQLAlchemyError) as error:
            message = "the access could not be recorded, so nothing was answered"
            raise Unavailable(message, remedy=getattr(error, "remedy", "") or "run 'archive doctor'") from error

    def _found(self, row: search.InstanceRow, datastore: str, need: Permission) -> Found:
        etag = self._core.keyring.pseudonym("etag", row.ref.object_id).hex()[:32]
        return Found(
            row.study_instance_uid, row.series_instance_uid, row.sop_instance_uid, row.sop_class_uid, row.transfer_syntax_uid,
            row.ref.part10_bytes, row.dataset_offset, row.sha256, f'"{etag}"', row.number_of_frames or 1, row, datastore, need,
        )

    def _still(self, subject: Subject, found: Found) -> None:
        core = self._core
        with core.database.read() as tx:
            scope = scope_of(subject, found.need, core.clock())
            rows = search.locate(
                tx, scope, found.row.datastore_id, found.study_instance_uid, found.series_instance_uid, found.sop_instance_uid
            )
        if not any(row.ref.object_id == found.row.ref.object_id for row in rows):
            message = "there is no such object"
            raise NotFound(message)

    def _scanned(self, found: Found) -> Scanned:
        return decode(self._core.vault.sections(found.row.ref).meta).scanned

    def _frames(self, found: Found, scanned: Scanned) -> tuple[bytes, Callable[[int], bytes]]:
        """Return the bytes before the pixel data and what reads a frame (from 1); a deflated data set is inflated once."""
        table = scanned.frames
        assert table is not None
        vault, ref = self._core.vault, found.row.ref
        if scanned.deflated:
            inflated = inflate(vault.read_range(ref, 0, found.part10_bytes), scanned, self._limits)
            return inflated, lambda number: b"".join(inflated[offset : offset + length] for offset, length in table.pieces(number - 1))
        head = packs.head_of(self._core, ref, scanned)
        return head, lambda number: b"".join(vault.read_range(ref, offset, length) for offset, length in table.pieces(number - 1))


__all__ = ["Found", "FramesAnswer", "MetadataAnswer", "Retrieve"]
