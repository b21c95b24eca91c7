"""STOW-RS of metadata and bulk data: the instances are put together here, and stored like any other (PS3.18 10.5.1).

The metadata (DICOM JSON or XML) come in one or more parts, bulk data in parts named by Content-Location or Content-ID. They may come
in any order, so they are held in memory until the last is there: what one request may hold is limited, and what all of them do. Only
then they are read, a few requests at a time: who sends slowly keeps nobody waiting, nor holds for long what others ask for (room.py).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urljoin

import msgspec
from werkzeug.exceptions import RequestEntityTooLarge

from archive.dicom import assemble, native_model
from archive.dicom.assemble import Bulk
from archive.dicom.transfer import TRANSFER_SYNTAXES, UNCOMPRESSED
from archive.errors import InvalidInstance
from archive.web.body import Body
from archive.web.dicomweb import media, parameters
from archive.web.dicomweb.media import DICOM_JSON
from archive.web.dicomweb.multipart import Malformed, Reader
from archive.web.dicomweb.room import Held, Room

DICOM_XML = "application/dicom+xml"
METADATA_TYPES = frozenset({DICOM_JSON, DICOM_XML})
HELD_BYTES = 128 << 20
"""What the parts of one request may come to; larger instances are sent as application/dicom, which streams."""
MADE_BYTES = 16 * HELD_BYTES
"""What the instances of one request may come to where several name the same bulk data."""
MOST_BRACKETS = 4_000_000
"""Of the metadata of one request, those that open something: it takes some two hundred bytes of memory, where two can write it."""
AT_ONCE = 2
TURNS = threading.BoundedSemaphore(AT_ONCE)
_PART_BYTES = 500  # what a part takes in memory besides its bytes
_KEPT_HEADERS = ("content-type", "content-location", "content-id")

_JSON, _XML = {DICOM_JSON, "application/json"}, {DICOM_XML, "application/xml", "text/xml"}
_DEFAULTS = {
    "image/jpeg": "1.2.840.10008.1.2.4.70", "image/dicom-rle": "1.2.840.10008.1.2.5", "image/x-dicom-rle": "1.2.840.10008.1.2.5",
    "image/jls": "1.2.840.10008.1.2.4.80", "image/jp2": "1.2.840.10008.1.2.4.90", "image/jpx": "1.2.840.10008.1.2.4.92",
    "image/jphc": "1.2.840.10008.1.2.4.201",
}
"""What frames without a transfer-syntax parameter are in, by their media type (PS3.18 table 8.7.3-2)."""


Received = tuple[dict[str, str], bytes]
"""The headers of a part, those that matter, and its bytes."""


ROOM = Room(AT_ONCE * HELD_BYTES)


@contextmanager
def received(body: Body, boundary: str, *, most: int, wait_s: float) -> Iterator[list[Received]]:
    """Take in every part, and hold them as long as the context lasts.

    Raises:
        RequestEntityTooLarge; Dropped. RequestTimeout: the sender is slow, and others wait for the room.
        Unavailable: the other requests hold too much, for longer than `wait_s`.
    """
    room = ROOM
    held = Held(room, body, most=HELD_BYTES, wait_s=wait_s)
    room.enter(held)
    try:
        yield _parts(Reader(body.read, boundary), held, most)
    finally:
        room.leave(held)


def _parts(reader: Reader, held: Held, most: int) -> list[Received]:
    parts: list[Received] = []
    try:
        for part in reader:
            if len(parts) >= most:
                raise RequestEntityTooLarge
            headers = {name: part.headers[name] for name in _KEPT_HEADERS if name in part.headers}
            held.add(_PART_BYTES + sum(map(len, headers.values())))
            data = bytearray()
            for chunk in part.chunks():
                held.add(len(chunk))
                data += chunk
            parts.append((headers, bytes(data)))
    except OverflowError:
        raise RequestEntityTooLarge from None
    return parts


@dataclass(slots=True)
class Parcel:
    """What a request brought: data sets, and bulk data by the names they may be called."""

    documents: list[object] = field(default_factory=list)
    bulk: dict[str, Bulk] = field(default_factory=dict)

    def instances(self, base: str) -> Iterator[tuple[object, Iterator[bytes] | InvalidInstance]]:
        """Yield each data set, and its Part 10 file in pieces or why it has none."""
        taken, before = 0, 0

        def lookup(uri: str) -> Bulk | None:
            nonlocal taken
            found = self.bulk.get(uri) or self.bulk.get(urljoin(base, uri))
            taken += sum(_PART_BYTES + len(piece) for piece in found.pieces) if found is not None else 0
            if taken - before > HELD_BYTES or taken > MADE_BYTES:
                message = "the same bulk data are named so often that they come to more than one request may hold"
                raise InvalidInstance(message, reason="too-large")
            return found

        for document in self.documents:
            before = taken
            try:
                yield document, assemble.part10(document, lookup)
            except InvalidInstance as error:
                yield document, error


def read(parts: Sequence[Received], default: str, base: str, *, most: int) -> Parcel:
    """Read what came; `default` is the type of metadata that say none, `base` what relative locations are relative to.

    Raises:
        Malformed: the metadata cannot be read, or there are none.
        RequestEntityTooLarge.
    """
    parcel, brackets = Parcel(), 0
    for headers, data in parts:
        told = parameters.parse(headers.get("content-type", ""))
        where = headers.get("content-location", "").strip()
        name = told.name if told is not None else "" if where else default
        if len(parcel.documents) + len(parcel.bulk) >= most:
            raise RequestEntityTooLarge
        if name in _JSON | _XML and "content-id" not in headers:
            brackets += sum(map(data.count, (b"<",) if name in _XML else (b"{", b"[")))
            if brackets > MOST_BRACKETS:
                raise RequestEntityTooLarge
            parcel.documents += _documents(data, xml=name in _XML)
            if len(parcel.documents) > most:
                raise RequestEntityTooLarge
            continue
        called = [where, urljoin(base, where)] if where else []
        content_id = headers.get("content-id", "").strip().strip("<>")
        called += [f"cid:{content_id}", content_id] if content_id else []
        if not called:
            message = "a part of bulk data has neither Content-Location nor Content-ID"
            raise Malformed(message)
        _keep(parcel, called, name, told.parameters.get("transfer-syntax", "").strip() if told is not None else "", data)
    if not parcel.documents:
        message = "the body holds no metadata"
        raise Malformed(message)
    return parcel


def _documents(data: bytes, *, xml: bool) -> list[object]:
    message = "the metadata cannot be read"
    try:
        if xml:
            return list(native_model.to_json(data))
        found = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, InvalidInstance) as error:
        raise Malformed(message) from error
    return list(found) if isinstance(found, list) else [found]


def _keep(parcel: Parcel, called: list[str], name: str, syntax: str, data: bytes) -> None:
    """Note bulk data; more of the same location are the frames that follow."""
    compressed = name in media.FRAME_TYPES.values() or name in _DEFAULTS or (syntax in TRANSFER_SYNTAXES and syntax not in UNCOMPRESSED)
    known = parcel.bulk.get(called[0])
    if known is not None:
        known.pieces.append(data)
        return
    bulk = Bulk([data], compressed, syntax or _DEFAULTS.get(name, ""))
    for one in called:
        parcel.bulk.setdefault(one, bulk)
