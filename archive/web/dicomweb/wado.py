"""WADO-RS: studies, series and instances as stored or decoded, and their metadata (PS3.18 10.4).

Instances leave one after the other, each opened when its turn comes, so memory does not grow with a study; where every part goes
out as stored, the length of the whole is stated first.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Iterator
from itertools import chain

from flask import Response, request

from archive.dicom.xml import each
from archive.errors import NotAcceptable
from archive.services.retrieve import Found, MetadataAnswer
from archive.web.context import archive, subject
from archive.web.dicomweb import conditional, download, media, native, ranges, urls
from archive.web.dicomweb.media import DICOM, DICOM_JSON, EXPLICIT_LE, Container
from archive.web.dicomweb.multipart import Writer
from archive.web.streaming import begun, stream

_NONE = re.compile(r"q\s*=\s*0(\.0*)?")


def instances(datastore: str, study: str, series: str | None = None, sop: str | None = None) -> Response:
    """Answer a study, a series or an instance.

    Raises:
        InvalidRequest, NotAcceptable, NotFound, Unavailable.
    """
    taken = media.of_request(request)
    uids = _uids(study, series, sop)
    ways = list(media.containers(taken, single_allowed=sop is not None))
    if not ways and sop is None and download.taken():
        return download.download(datastore, study, series)
    if not ways:
        message = "instances are application/dicom" + ("" if sop is not None else " in multipart/related")
        raise NotAcceptable(message, remedy='accept multipart/related; type="application/dicom"')
    found = archive().retrieve.instances(subject(), datastore, *uids)
    return answer(datastore, found, ways)


def answer(datastore: str, found: list[Found], ways: list[Container]) -> Response:
    """Answer instances that were found, in the first of the ways that serves them all.

    Raises:
        NotAcceptable, NotFound, Unavailable.
    """
    container, given = _settled(ways, found)
    etag = f'"{etag_of(found, container, given)}"'
    response = conditional.unchanged(etag) or (
        _multipart(datastore, found, given) if container.multipart else _single(datastore, found[0], given[0], etag)
    )
    response.headers["ETag"] = etag
    response.headers["Vary"] = "Accept"
    return response


def metadata(datastore: str, study: str, series: str | None = None, sop: str | None = None) -> Response:
    """Answer the DICOM JSON of a study, a series or an instance, compressed as it is kept when the caller takes gzip.

    Raises:
        InvalidRequest, NotAcceptable, NotFound, Unavailable.
    """
    xml = media.document_form(request) == "xml"
    answer = archive().retrieve.metadata(subject(), datastore, *_uids(study, series, sop))
    etag = document_etag(answer, xml=xml)
    response = conditional.unchanged(etag)
    if response is None and xml:
        response = native.answer(lambda: each(inflated(answer.gzip())))
    return _document(response or _json(answer), etag)


def packed(answer: MetadataAnswer, chunks: Iterator[bytes | memoryview]) -> Response:
    """Answer DICOM JSON in gzip, of which some chunks may have been taken and are in `chunks` again."""
    response = begun(chunks, DICOM_JSON)
    response.headers["Content-Encoding"] = "gzip"
    return _document(response, document_etag(answer, xml=False))


def document_etag(answer: MetadataAnswer, *, xml: bool) -> str:
    """Return the entity tag of metadata in one form; weak: the same for both codings."""
    told = conditional.bare(answer.etag)
    return f'W/"{conditional.tag("xml", told) if xml else told}"'


def _json(answer: MetadataAnswer) -> Response:
    gzip = takes_gzip(request.headers.get("Accept-Encoding"))
    if request.method == "HEAD":
        response = stream(answer.gzip, content_type=DICOM_JSON, length=None)
    else:
        response = begun(answer.gzip() if gzip else inflated(answer.gzip()), DICOM_JSON)
    if gzip:
        response.headers["Content-Encoding"] = "gzip"
    return response


def _document(response: Response, etag: str) -> Response:
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


def _settled(ways: list[Container], found: list[Found]) -> tuple[Container, list[str]]:
    """Return the first way that serves every instance, and the transfer syntax each goes out in.

    Raises:
        NotAcceptable: no way serves them all; a study is never answered in part.
    """
    for container in ways:
        first = {stored: container.for_stored(stored)[0] for stored in {one.transfer_syntax_uid for one in found}}
        as_stored = {stored for stored, syntax in first.items() if is_stored(syntax, stored)}
        choices = [
            one.transfer_syntax_uid if one.transfer_syntax_uid in as_stored else _given(container, one) for one in found
        ]  # fmt: skip
        settled = [choice for choice in choices if choice is not None]
        if len(settled) == len(found):
            return container, settled
    message = "not every instance can be answered in a transfer syntax that the request takes"
    raise NotAcceptable(message, remedy="accept transfer-syntax=*, which gives instances as they are stored")


def _given(container: Container, found: Found) -> str | None:
    """Return the transfer syntax an instance goes out in, its own where none is liked better; None when it cannot be given so."""
    stored = found.transfer_syntax_uid
    for syntax in container.for_stored(stored):
        if is_stored(syntax, stored):
            return stored
        wanted = EXPLICIT_LE if syntax is None else syntax
        if archive().retrieve.obtainable(found, wanted):
            return wanted
    return None


def is_stored(syntax: str | None, stored: str) -> bool:
    """Return whether what was asked for is how an instance is stored; None: nothing was said."""
    return syntax in {"*", stored} or (syntax is None and stored in media.AS_STORED)


def _multipart(datastore: str, found: list[Found], given: list[str]) -> Response:
    writer = Writer(DICOM)
    above = urls.base(datastore)

    def head_of(number: int) -> bytes:  # made anew when its turn comes: of a large study all heads are more than its rows
        return part_head(writer, found[number], given[number], _below(above, found[number]))

    length = None
    if all(syntax == one.transfer_syntax_uid for one, syntax in zip(found, given, strict=True)):
        between = sum(len(head_of(number)) + len(writer.part_tail) for number in range(len(found)))
        length = between + sum(one.part10_bytes for one in found) + len(writer.end)

    # Made here: while the body streams there is no request to ask any more.
    retrieve, asker = archive().retrieve, subject()
    opened = retrieve.leaving(asker, found)

    def chunks() -> Iterator[bytes | memoryview]:
        before = b""
        for number, (one, syntax) in enumerate(zip(found, given, strict=True)):
            stored = syntax == one.transfer_syntax_uid
            views = opened(number) if stored else retrieve.transcoded(asker, one, syntax)
            # What cannot be opened leaves no head behind; and each piece handed over costs, so a part's head goes with its first bytes.
            yield b"".join((before, head_of(number), next(views, b"")))
            yield from views
            before = writer.part_tail
        yield before + writer.end

    return stream(chunks, content_type=writer.content_type, length=length, single=len(found) == 1)


def _single(datastore: str, found: Found, syntax: str, etag: str) -> Response:
    stored = syntax == found.transfer_syntax_uid
    retrieve, asker = archive().retrieve, subject()
    part = ranges.asked(found.part10_bytes, etag) if stored else None
    start, length = part or (0, None)
    response = stream(
        lambda: retrieve.open(asker, found, start, length, just_found=True) if stored else retrieve.transcoded(asker, found, syntax),
        content_type=content_type_of(syntax), length=(length or found.part10_bytes) if stored else None, single=True,
    )
    response.headers["Content-Location"] = _location(datastore, found)
    if stored:
        ranges.marked(response, part, found.part10_bytes)
        response.headers["Repr-Digest"] = digest_of(found)  # of the whole, also beside a part (RFC 9530 3)
    return response


def part_head(writer: Writer, one: Found, syntax: str, location: str) -> bytes:
    """Return what stands before an instance in a multipart answer; as it is stored, its length and digest too."""
    told = {"content_length": str(one.part10_bytes), "repr_digest": digest_of(one)} if syntax == one.transfer_syntax_uid else {}
    return writer.part_head(content_type=content_type_of(syntax), content_location=location, **told)


def content_type_of(transfer_syntax_uid: str) -> str:
    """Return the media type of an instance in a transfer syntax."""
    return f"{DICOM}; transfer-syntax={transfer_syntax_uid}"


def _below(base: str, found: Found) -> str:
    return urls.below(base, found.study_instance_uid, found.series_instance_uid, found.sop_instance_uid)


def _location(datastore: str, found: Found) -> str:
    return urls.address(datastore, found.study_instance_uid, found.series_instance_uid, found.sop_instance_uid)


def digest_of(found: Found) -> str:
    """Return the Repr-Digest of an instance as it is stored (RFC 9530)."""
    return f"sha-256=:{base64.b64encode(found.sha256).decode()}:"


def etag_of(found: list[Found], container: Container, given: list[str]) -> str:
    """Return the bare entity tag of these instances in these transfer syntaxes."""
    if len(found) == 1 and not container.multipart and given[0] == found[0].transfer_syntax_uid:
        return conditional.bare(found[0].etag)
    each = (f"{conditional.bare(one.etag)} {syntax}" for one, syntax in zip(found, given, strict=True))
    return conditional.tag_of(chain(("multipart" if container.multipart else "single",), each))


def _uids(study: str, series: str | None, sop: str | None) -> tuple[str, str | None, str | None]:
    return urls.uid(study), urls.optional_uid(series), urls.optional_uid(sop)


def takes_gzip(header: str | None) -> bool:
    """Return whether Accept-Encoding takes gzip (RFC 9110 12.5.3)."""
    codings: dict[str, bool] = {}
    for member in (header or "").lower().split(","):
        name, *parameters = (part.strip() for part in member.split(";"))
        codings[name] = not any(_NONE.fullmatch(part) for part in parameters)
    return codings.get("gzip", codings.get("x-gzip", codings.get("*", False)))
