"""STOW-RS: instances in, one after the other, all durable before the answer names them (PS3.18 10.5).

Instances come as they are, or as metadata with bulk data beside them (stow_metadata). The bytes of a part go straight into the store as
they come. Each part stands for itself: 200 all stored, 202 some failed or were stored with a warning, 409 none stored. What the archive as
a whole cannot do now (space, keys, storage) fails the request while nothing has been stored, else the parts it hits.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress

from flask import Response, g, request
from werkzeug.exceptions import LengthRequired, RequestEntityTooLarge, UnsupportedMediaType

from archive.access.subject import Subject
from archive.dicom.alike import Alike
from archive.dicom.assemble import uid_of
from archive.dicom.part10 import meta
from archive.errors import (
    ArchiveError,
    Forbidden,
    InstanceConflict,
    IntegrityError,
    InvalidInstance,
    NotFound,
    OutOfSpace,
    Unavailable,
    UnsupportedClass,
)
from archive.services.batch import Batch
from archive.services.store import Incoming, Outcome, Source
from archive.web.body import DRAIN_S, REFUSED_DRAIN_S, Body, content_length
from archive.web.context import archive, slots, subject
from archive.web.dicomweb import media, parameters, stow_metadata, urls
from archive.web.dicomweb.head import Head
from archive.web.dicomweb.media import DICOM
from archive.web.dicomweb.multipart import Malformed, Reader
from archive.web.dicomweb.report import Report
from archive.web.dicomweb.room import LATER
from archive.web.dicomweb.stow_metadata import METADATA_TYPES, TURNS

log = logging.getLogger("archive.web")

CONFLICT = 45070
WRONG_STUDY = 43265
BAD_UID = 43264
CANNOT_UNDERSTAND = 49152
NOT_PERMITTED = 292
OUT_OF_SPACE = 42752
UNSUPPORTED_CLASS = 290
PROCESSING_FAILURE = 272

TURN_S = 10.0
MAX_PARTS = 100_000
"""The answer names every part, so it grows with them: empty ones by the million must not fill the memory."""

REASONS = {
    "cannot-understand": CANNOT_UNDERSTAND, "missing-uid": CANNOT_UNDERSTAND,
    "too-large": CANNOT_UNDERSTAND, "too-deep": CANNOT_UNDERSTAND,
    "bad-uid": BAD_UID, "uid-mismatch": BAD_UID, "class-mismatch": BAD_UID, "wrong-study": WRONG_STUDY,
}
"""Why an instance was refused -> Failure Reason (PS3.18 table I.2-2 and PS3.4 table B.2-1)."""


def store(datastore: str, study: str | None = None) -> Response:
    """Take the instances of a request.

    Raises:
        InvalidRequest, NotAcceptable, Forbidden, NotFound, OutOfSpace, Unavailable; werkzeug's 408, 411, 413, 415.
    """
    study = urls.uid(study) if study is not None else None
    media.require_json(request)
    kind, boundary = _boundary()
    length = content_length(request.environ)
    if boundary is None and length is None:
        # A body cut short between two elements would pass for an instance: without a closing boundary only its length can tell.
        raise LengthRequired("a single instance needs Content-Length; send multipart/related for a body of unknown length")
    visit = Visit(subject(), datastore, study)
    with slots().store() as place:
        place.body = body = Body(request.environ["wsgi.input"], content_length=length, max_bytes=archive().config.http.max_request_bytes)
        g.body_taken = True
        try:
            if kind == DICOM or boundary is None:
                visit.take_all(body, boundary)
            else:
                visit.take_metadata(body, boundary, kind)
        except Exception as error:
            visit.keep()
            # Who may not store holds a place no longer than it takes to read why.
            body.drain(for_s=REFUSED_DRAIN_S if isinstance(error, Forbidden) else DRAIN_S)
            raise
        finally:
            body.close()
    return visit.report.response(datastore, study)


def _boundary() -> tuple[str, str | None]:
    """Return the media type of what comes and the boundary of a multipart body, None for a single part.

    Raises:
        UnsupportedMediaType: neither application/dicom nor multipart/related of it.
        Malformed: multipart without a boundary.
    """
    told = parameters.parse(request.headers.get("Content-Type", ""))
    coding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if told is not None and coding in {"", "identity"}:
        if told.name == DICOM:
            return DICOM, None
        kind = told.parameters.get("type", DICOM).strip().lower()
        if told.name == "multipart/related" and (kind == DICOM or kind in METADATA_TYPES):
            boundary = told.parameters.get("boundary", "").strip()
            if boundary:
                return kind, boundary
            message = "the Content-Type names no boundary"
            raise Malformed(message)
    raise UnsupportedMediaType(
        "instances are taken as application/dicom, alone or in multipart/related, or in multipart/related as metadata and bulk data"
    )


def _blocks(body: Body) -> Iterator[memoryview]:
    return (memoryview(block) for block in iter(body.read, b""))


class Visit:
    """One request: its caller, its place, and what became of each part."""

    def __init__(self, asker: Subject, datastore: str, study: str | None) -> None:
        """Start with nothing taken."""
        self._asker = asker
        self._datastore = datastore
        self._study = study
        self._store = archive().store
        self._source = Source(via="stow")
        self._batch: Batch[Head] = self._store.batch(self._told)
        self._alike = Alike()
        self.report = Report()

    def take_all(self, body: Body, boundary: str | None) -> None:
        """Store every part of a body.

        Raises:
            Malformed, RequestEntityTooLarge: more parts than are answered for; and what `take` raises.
        """
        if boundary is None:
            self.take(DICOM, _blocks(body))
            self.flush()
            return
        for part in Reader(body.read, boundary):
            if self.report.parts >= MAX_PARTS:
                raise RequestEntityTooLarge
            self.take(part.headers.get("content-type", DICOM), part.chunks())
        self.flush()
        if not self.report.parts:
            message = "the body holds no part"
            raise Malformed(message)

    def take_metadata(self, body: Body, boundary: str, kind: str) -> None:
        """Store every instance that metadata describe.

        Raises:
            Forbidden, NotFound: before anything is read.
            Malformed, RequestEntityTooLarge, RequestTimeout, Unavailable: too many such requests at once; and what `take` raises.
        """
        base = urls.base(self._datastore) + "/studies"
        # Who may not store is told before the body is read; whether they may is asked again for each instance.
        self._store.open(self._asker, self._datastore, self._source, study_instance_uid=self._study).abort()
        with stow_metadata.received(body, boundary, most=MAX_PARTS, wait_s=TURN_S) as parts:
            if not TURNS.acquire(timeout=TURN_S):
                message = "too many requests of metadata and bulk data at once"
                raise Unavailable(message, remedy=LATER)
            try:
                parcel = stow_metadata.read(parts, kind, base, most=MAX_PARTS)
                for document, made in parcel.instances(base):
                    if isinstance(made, InvalidInstance):
                        self.report.failed(_head_of(document), reason_of(made))
                    else:
                        self.take(DICOM, (memoryview(piece) for piece in made))
                self.flush()
            finally:
                TURNS.release()

    def take(self, content_type: str, chunks: Iterable[memoryview]) -> None:
        """Store one part, or note why not.

        Raises:
            Forbidden, NotFound: the request as a whole.
            OutOfSpace, Unavailable: while nothing has been stored.
            Dropped, RequestTimeout, RequestEntityTooLarge: the body ended; the part leaves nothing behind.
        """
        head = Head()
        try:
            incoming = self._store.open(self._asker, self._datastore, self._source, study_instance_uid=self._study, alike=self._alike)
        except (Forbidden, NotFound):
            self.flush()
            if not self.report.stored:
                raise
            self.report.failed(head, NOT_PERMITTED)
            return
        except ArchiveError as error:
            self._fail(head, error)
            return
        try:
            self._batch.begin(incoming)
            self._feed(incoming, head, content_type, chunks)
            self._batch.add(head, incoming)
        except ArchiveError as error:
            self._fail(head, error)
        finally:
            # Harmless once ended; owed after anything else, a client that went away included.
            incoming.abort()

    def flush(self) -> None:
        """Make durable what came whole, and note what became of it.

        Raises:
            OutOfSpace, Unavailable: and nothing has been stored.
        """
        self._batch.flush()

    def keep(self) -> None:
        """Make durable what came whole before the request failed; what fails of it was promised to nobody."""
        with suppress(ArchiveError):
            self.flush()

    def _feed(self, incoming: Incoming, head: Head, content_type: str, chunks: Iterable[memoryview]) -> None:
        told = parameters.parse(content_type)
        if told is None or told.name != DICOM:
            message = "a part is not application/dicom"
            raise InvalidInstance(message)
        for chunk in chunks:
            for data in head.feed(chunk):
                incoming.write(data)
        for data in head.rest():
            incoming.write(data)

    def _told(self, head: Head, became: Outcome | ArchiveError) -> None:
        if isinstance(became, Outcome):
            self._note(head, became)
        else:
            self._fail(head, became)

    def _note(self, head: Head, outcome: Outcome) -> None:
        if outcome.status == "conflict":
            self.report.failed(head, CONFLICT, outcome)
        elif outcome.status == "quarantined":
            self.report.failed(head, CANNOT_UNDERSTAND, outcome)
        else:
            became = "was decided against before" if outcome.decided else "waits for a decision"
            held = f"it contradicts what is stored, and {became}" if outcome.status == "held" else ""
            wrapped = "preamble and prefix were missing and have been added" if head.wrapped else ""
            self.report.kept(self._datastore, outcome, coerced=[text for text in (held, wrapped) if text])

    def _fail(self, head: Head, error: ArchiveError) -> None:
        if isinstance(error, Unavailable):
            self.flush()
            if not self.report.stored:
                raise error
        if isinstance(error, (Unavailable, IntegrityError)):
            told = {"request_id": g.get("request_id", ""), "error": error.code, "detail": error.message}
            log.error("instance not stored", extra=told)
        self.report.failed(head, reason_of(error))


def _head_of(document: object) -> Head:
    """Return what a failed instance is called by in the answer."""
    head = Head()
    told = document if isinstance(document, dict) else {}
    start = meta(uid_of(told, "00080016"), uid_of(told, "00080018"), media.EXPLICIT_LE)
    for _ in (*head.feed(memoryview(start)), *head.rest()):
        pass
    return head


def reason_of(error: ArchiveError) -> int:
    """Return the Failure Reason of an error that concerns one instance."""
    match error:
        case UnsupportedClass():
            return UNSUPPORTED_CLASS
        case InvalidInstance():
            return REASONS.get(error.reason, CANNOT_UNDERSTAND)
        case InstanceConflict():
            return CONFLICT
        case Forbidden():
            return NOT_PERMITTED
        case OutOfSpace():
            return OUT_OF_SPACE
        case _:
            return PROCESSING_FAILURE
