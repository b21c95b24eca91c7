"""Pictures: frames as PNG or JPEG in the size asked for, and thumbnails, to those who may see the pixels.

As in retrieve, the instance is found by one statement inside the caller's scope and the audit event is committed durably before the first
byte leaves, whether the picture is kept already or not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import sqlalchemy as sa

from archive.access import policy
from archive.access.permissions import Permission
from archive.access.policy import scope_of
from archive.access.subject import Subject
from archive.dicom import pixels
from archive.dicom.decode import DECODABLE
from archive.dicom.layout import refused
from archive.dicom.part10 import Limits, Scanned, inflate
from archive.dicom.recipe import Recipe, thumbnail
from archive.errors import ArchiveError, InvalidInstance, NotFound, Unavailable
from archive.index import pictures as index
from archive.index.pictures import PictureRow
from archive.ledger.audit import Event, Kind, ObjectRef
from archive.services import datastores, named, packs
from archive.services.core import Core
from archive.services.picture_cache import PictureCache
from archive.services.records import decode
from archive.services.turns import turn

RENDERED, THUMBNAIL = "rendered", "thumbnail"
"""What the audit calls them."""

MOST_FRAMES = 1 << 31
"""NumberOfFrames is an IS: no instance has more."""

PREPARED = thumbnail()
"""The thumbnail that is made of a series before anyone asks."""

PREPARED_FRAME_BYTES = 64 << 20
"""A frame stored in more bytes waits until somebody asks."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture the caller may see; `frame` counts from 1, and 0 is the one that stands for the instance."""

    row: PictureRow
    frame: int
    etag: str
    media_type: str
    data: Callable[[], bytes]


class Pictures:
    """Draws pictures, or takes them out of the sealed cache; safe to share between threads."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core
        self._cache = PictureCache(core)
        limits = core.config.limits
        self._limits = Limits(inflated_bytes=limits.inflated_bytes, nesting=limits.nesting, elements=limits.elements)

    def of_instance(
        self, subject: Subject, datastore: str, study: str, series: str, sop: str, frames: Sequence[int], recipe: Recipe, *,
        what: str = RENDERED,
    ) -> list[Picture]:
        """Return pictures of frames of one instance, in the order asked for.

        Raises:
            NotFound: the instance, or it is no image. A frame it lacks is told by `Picture.data`.
            Unavailable: the read could not be recorded, so nothing may leave.
        """
        rows = self._located(subject, datastore, study, series, sop, what=what, frames=len(frames))
        if not all(0 <= frame < MOST_FRAMES for frame in frames):
            message = "there is no such frame"
            raise NotFound(message)
        opened = _Opened(self._core, rows[0], self._limits)
        if len(frames) > 1:
            opened.stored_bytes(max(frames))  # all of them or none
        return [self._picture(rows[0], frame, recipe, opened) for frame in frames]

    def standing_for(
        self, subject: Subject, datastore: str, study: str, series: str | None, recipe: Recipe, *, what: str = RENDERED
    ) -> Picture:
        """Return the picture that stands for a series or study: of the middle of its images.

        Raises:
            NotFound: nothing of it is there for the subject, or nothing is an image.
            Unavailable.
        """
        row = self._located(subject, datastore, study, series, None, what=what, one=True)[0]
        return self._picture(row, 0 if what == THUMBNAIL else 1, recipe, _Opened(self._core, row, self._limits))

    def of_each(self, subject: Subject, datastore: str, study: str, series: str | None, recipe: Recipe) -> list[Picture]:
        """Return a picture of the first frame of each image of a series or study.

        Every picture but the first asks the scope again before it is drawn.

        Raises:
            NotFound.
            NotAcceptable: one of them cannot be decoded; a study is never shown in part.
            Unavailable.
        """
        rows = self._located(subject, datastore, study, series, None, what=RENDERED)
        if any(row.transfer_syntax_uid not in DECODABLE for row in rows):
            raise refused("no-codec")
        first, *others = (self._picture(row, 1, recipe, _Opened(self._core, row, self._limits, once=True)) for row in rows)
        return [first, *(
            Picture(one.row, one.frame, one.etag, one.media_type, partial(self._again, subject, datastore, one)) for one in others
        )]

    def prepare(self, series_pk: int) -> None:
        """Make the thumbnail of a series, unless it is there; what cannot be drawn is left to those who ask."""
        core = self._core
        with core.database.read() as tx:
            row = index.representative_of(tx, policy.system("packs"), series_pk)
        if row is None or not row.image or row.transfer_syntax_uid not in DECODABLE:
            return
        opened = _Opened(core, row, self._limits)
        try:
            if opened.stored_bytes(0) <= PREPARED_FRAME_BYTES:
                self._picture(row, 0, PREPARED, opened).data()
        except ArchiveError:
            return

    # ------------------------------------------------------------------------------------------------------------------------------

    def _located(
        self, subject: Subject, datastore: str, study: str, series: str | None, sop: str | None, *, what: str, frames: int = 0,
        one: bool = False,
    ) -> list[PictureRow]:
        core = self._core
        at = core.clock()
        with core.database.glance() as tx:
            place = datastores.asked_for(tx, subject, datastore, at)
            scope = scope_of(subject, Permission.PIXELS, at)
            if one:
                found = index.representative(tx, scope, place.id, study, series)
                rows = [] if found is None else [found]
            else:
                rows = index.every(tx, scope, place.id, study, series, sop)
        images = [row for row in rows if row.image]
        objects = [ObjectRef("study", study)] + ([ObjectRef("series", series)] if series else [])
        event = Event(
            Kind.READ if rows else Kind.DENIED, outcome=0 if rows else 4, subject=subject, objects=tuple(objects), instances=len(images),
            detail={"what": what, "datastore": datastore, **({"frames": frames} if frames else {}), **({"sop": sop} if sop else {})},
        )
        try:  # no audit, no data
            core.database.group(lambda tx: core.ledger.record(tx, event, at=core.clock()), durable=True)
        except (ArchiveError, sa.exc.SQLAlchemyError) as error:
            message = "the access could not be recorded, so nothing was answered"
            raise Unavailable(message, remedy=getattr(error, "remedy", "") or "run 'archive doctor'") from error
        if not images:
            message = "there is no such image"
            raise NotFound(message)
        return images

    def _again(self, subject: Subject, datastore: str, picture: Picture) -> bytes:
        core, row = self._core, picture.row
        at = core.clock()
        with core.database.glance() as tx:
            place = datastores.asked_for(tx, subject, datastore, at)
            uids = row.study_instance_uid, row.series_instance_uid, row.sop_instance_uid
            still = index.every(tx, scope_of(subject, Permission.PIXELS, at), place.id, *uids)
        if not any(one.ref.object_id == row.ref.object_id for one in still):
            message = "there is no such image"
            raise NotFound(message)
        return picture.data()

    def _picture(self, row: PictureRow, frame: int, recipe: Recipe, opened: _Opened) -> Picture:
        name = self._cache.name(row, frame, recipe)

        def data() -> bytes:
            kept = self._cache.find(name, row.ref)
            if kept is None:
                kept = opened.draw(frame, recipe)
                self._cache.keep(name, row.ref, kept)
            return kept

        return Picture(row, frame, name.etag, recipe.media_type, data)


class _Opened:
    """One instance's header and frames, read when the first picture needs them; with `once` not kept for another one."""

    def __init__(self, core: Core, row: PictureRow, limits: Limits, *, once: bool = False) -> None:
        self._core, self._row, self._ref, self._limits, self._once = core, row, row.ref, limits, once
        self._read: tuple[Scanned, bytes] | None = None

    def draw(self, frame: int, recipe: Recipe) -> bytes:
        """Return a picture of a frame, from 1; 0: the middle one.

        Raises:
            NotFound: there is no such frame.
            NotAcceptable: it cannot be decoded; the reason is in the message.
            InvalidRequest: the recipe asks for what the image does not have.
            SealBroken, KeyShredded, VaultUnavailable.
        """
        scanned, head = self._header()
        pieces, index = self._pieces(scanned, frame)
        if scanned.deflated:
            stored = b"".join(head[offset : offset + length] for offset, length in pieces)
        else:
            stored = b"".join(self._core.vault.read_range(self._ref, offset, length) for offset, length in pieces)
        with turn(scanned):
            return pixels.render(head, scanned, stored, recipe, index)

    def stored_bytes(self, frame: int) -> int:
        """Return how many bytes a frame is stored in; raises as `draw`."""
        scanned, _ = self._header()
        return sum(length for _, length in self._pieces(scanned, frame)[0])

    def _pieces(self, scanned: Scanned, frame: int) -> tuple[tuple[tuple[int, int], ...], int]:
        table = scanned.frames
        if table is not None and not table.count:
            raise refused("short")
        if table is None or frame > table.count:
            message = "there is no such frame"
            raise NotFound(message)
        index = frame - 1 if frame else (table.count - 1) // 2
        return table.pieces(index), index

    def _header(self) -> tuple[Scanned, bytes]:
        """Return what was scanned and the bytes before the pixel data; all of them, inflated, of a deflated data set."""
        if self._read is None:
            core, ref = self._core, self._ref
            scanned = decode(core.vault.sections(ref).meta).scanned
            named.require_uids(self._row, scanned)
            if scanned.deflated:
                try:
                    head = inflate(core.vault.read_range(ref, 0, ref.part10_bytes), scanned, self._limits)
                except InvalidInstance as error:
                    raise refused("too-large") from error
            else:
                head = packs.head_of(core, ref, scanned)
            if self._once:
                return scanned, head
            self._read = scanned, head
        return self._read
