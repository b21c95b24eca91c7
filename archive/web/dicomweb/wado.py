"""WADO-RS: studies, series and instances as stored or decoded, and their metadata (PS3.18 10.4).

Instances leave one after the other, each opened when its turn comes, so memory does not grow with a study; where every part goes
out as stored, the length of the whole is stated first.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Iterator

from flask import Response, request

from archive.errors import NotAcceptable
from archive.services.retrieve import Found
from archive.web.context import archive, subject
from archive.web.dicomweb import conditional, media, urls
from archive.web.dicomweb.media import DICOM, DICOM_JSON, EXPLICIT_LE, Container
from archive.web.dicomweb.multipart import Writer
from archive.web.streaming import stream

_NONE = re.compile(r"q\s*=\s*0(\.0*)?")


def instances(datastore: str, study: str, series: str | None = None, sop: str | None = None) -> Response:
    """Answer a study, a series or an instance.

    Raises:
        InvalidRequest, NotAcceptable, NotFound, Unavailable.
    """
    taken = media.of_request(request)
    uids = _uids(study, series, sop)
    ways = list(media.containers(taken, single_allowed=sop is not None))
    if not ways:
        message = "instances are application/dicom" + ("" if sop is not None else " in multipart/related")
        raise NotAcceptable(message, remedy='accept multipart/related; type="application/dicom"')
    found = archive().retrieve.instances(subject(), datastore, *uids)
    container, as_stored = _settled(ways, found)
    etag = f'"{_etag(found, container, as_stored)}"'
    response = conditional.unchanged(etag) or (
        _multipart(datastore, found, as_stored) if container.multipart else _single(datastore, found[0], stored=as_stored[0])
    )
    response.headers["ETag"] = etag
    response.headers["Vary"] = "Accept"
    return response


def metadata(datastore: str, study: str, series: str | None = None, sop: str | None = None) -> Response:
    """Answer the DICOM JSON of a study, a series or an instance, compressed as it is kept when the caller takes gzip.

    Raises:
        InvalidRequest, NotAcceptable, NotFound, Unavailable.
    """
    media.require_json(request)
    answer = archive().retrieve.metadata(subject(), datastore, *_uids(study, series, sop))
    etag = f'W/"{conditional.bare(answer.etag)}"'  # weak: the same for both codings
    response = conditional.unchanged(etag)
    if response is None:
        if _takes_gzip(request.headers.get("Accept-Encoding")):
            response = stream(answer.gzip, content_type=DICOM_JSON, length=None)
            response.headers["Content-Encoding"] = "gzip"
        else:
            response = stream(lambda: inflated(answer.gzip()), content_type=DICOM_JSON, length=None)
    response.headers["ETag"] = etag
    response.headers["Vary"] = "Accept, Accept-Encoding"
    return response


def inflated(chunks: Iterator[bytes | memoryview]) -> Iterator[bytes]:
    """Yield the plain bytes of a gzip stream of one or more members, in bounded blocks."""
    inflate = zlib.decompressobj(31)
    for chunk in chunks:
        rest: bytes | memoryview = chunk
        while rest:
            plain = inflate.decompress(rest, 1 << 20)
            if plain:
                yield plain
            rest = inflate.unconsumed_tail
            if inflate.eof:
                rest = inflate.unused_data
                inflate = zlib.decompressobj(31)
    last = inflate.flush()
    if last:
        yield last


def _settled(ways: list[Container], found: list[Found]) -> tuple[Container, list[bool]]:
    """Return the first way that serves every instance, and for each whether it goes out as stored.

    Raises:
        NotAcceptable: no way serves them all; a study is never answered in part.
    """
    for container in ways:
        choices = [_as_stored(container.syntaxes, one) for one in found]
        settled = [choice for choice in choices if choice is not None]
        if len(settled) == len(found):
            return container, settled
    message = "not every instance can be answered in a transfer syntax that the request takes"
    raise NotAcceptable(message, remedy="accept transfer-syntax=*, which gives instances as they are stored")


def _as_stored(syntaxes: tuple[str | None, ...], found: Found) -> bool | None:
    """Return True for as stored, False for decoded, None when this instance cannot be given so."""
    stored = found.transfer_syntax_uid
    for syntax in syntaxes:
        if syntax in {"*", stored} or (syntax is None and stored in media.AS_STORED):
            return True
        if syntax in {None, EXPLICIT_LE} and archive().retrieve.decodable(found):
            return False
    return None


def _multipart(datastore: str, found: list[Found], as_stored: list[bool]) -> Response:
    writer = Writer(DICOM)
    heads = [
        writer.part_head(
            content_type=_content_type(one, stored=stored), content_location=_location(datastore, one),
            **({"content_length": str(one.part10_bytes), "repr_digest": _digest(one)} if stored else {}),
        )
        for one, stored in zip(found, as_stored, strict=True)
    ]
    length = None
    if all(as_stored):
        between = sum(len(head) + len(writer.part_tail) for head in heads)
        length = between + sum(one.part10_bytes for one in found) + len(writer.end)

    # Made here: while the body streams there is no request to ask any more.
    retrieve, asker = archive().retrieve, subject()

    def chunks() -> Iterator[bytes | memoryview]:
        before = b""
        for number, (head, one, stored) in enumerate(zip(heads, found, as_stored, strict=True)):
            views = retrieve.open(asker, one, just_found=not number) if stored else retrieve.explicit_le(asker, one)
            # What cannot be opened leaves no head behind; and each piece handed over costs, so a part's head goes with its first bytes.
            yield b"".join((before, head, next(views, b"")))
            yield from views
            before = writer.part_tail
        yield before + writer.end

    return stream(chunks, content_type=writer.content_type, length=length)


def _single(datastore: str, found: Found, *, stored: bool) -> Response:
    retrieve, asker = archive().retrieve, subject()
    response = stream(
        lambda: retrieve.open(asker, found, just_found=True) if stored else retrieve.explicit_le(asker, found),
        content_type=_content_type(found, stored=stored), length=found.part10_bytes if stored else None,
    )
    response.headers["Content-Location"] = _location(datastore, found)
    if stored:
        response.headers["Repr-Digest"] = _digest(found)
    return response


def _content_type(found: Found, *, stored: bool) -> str:
    return f"{DICOM}; transfer-syntax={found.transfer_syntax_uid if stored else EXPLICIT_LE}"


def _location(datastore: str, found: Found) -> str:
    return urls.address(datastore, found.study_instance_uid, found.series_instance_uid, found.sop_instance_uid)


def _digest(found: Found) -> str:
    return f"sha-256=:{base64.b64encode(found.sha256).decode()}:"


def _etag(found: list[Found], container: Container, as_stored: list[bool]) -> str:
    if len(found) == 1 and not container.multipart and as_stored[0]:
        return conditional.bare(found[0].etag)
    return conditional.tag(
        "multipart" if container.multipart else "single",
        *(f"{conditional.bare(one.etag)}{'s' if stored else 'd'}" for one, stored in zip(found, as_stored, strict=True)),
    )


def _uids(study: str, series: str | None, sop: str | None) -> tuple[str, str | None, str | None]:
    return urls.uid(study), urls.optional_uid(series), urls.optional_uid(sop)


def _takes_gzip(header: str | None) -> bool:
    """Return whether Accept-Encoding takes gzip (RFC 9110 12.5.3)."""
    codings: dict[str, bool] = {}
    for member in (header or "").lower().split(","):
        name, *parameters = (part.strip() for part in member.split(";"))
        codings[name] = not any(_NONE.fullmatch(part) for part in parameters)
    return codings.get("gzip", codings.get("x-gzip", codings.get("*", False)))
