"""WADO-RS: frames and bulk data of one instance (PS3.18 10.4.1.1.5 and .6).

A frame is never an internal error: it goes out as stored when the Accept takes that, else decoded, else 406 says why.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from flask import Response, request

from archive.errors import InvalidRequest, NotAcceptable
from archive.services.retrieve import BulkAnswer, FramesAnswer
from archive.web.context import archive, subject
from archive.web.dicomweb import conditional, media, ranges, urls
from archive.web.dicomweb.media import OCTETS, FrameChoice
from archive.web.dicomweb.multipart import Writer
from archive.web.streaming import stream

MAX_FRAMES = 10_000

_BULK_PATH = re.compile(r"[0-9A-Fa-f]{8}(/[0-9]{1,6}/[0-9A-Fa-f]{8}){0,64}")


def frames(datastore: str, study: str, series: str, sop: str, listed: str) -> Response:
    """Answer frames in the order they were asked for; numbers count from 1.

    Raises:
        InvalidRequest, NotAcceptable, NotFound, Unavailable.
    """
    uids = urls.uid(study), urls.uid(series), urls.uid(sop)
    wanted = numbers(listed)
    taken = media.of_request(request)
    found = archive().retrieve.frames(subject(), datastore, *uids, wanted)
    choices = media.frame_choices(taken, found.transfer_syntax_uid, single_allowed=len(wanted) == 1)
    return answer(found, choices, wanted, listed, f"{urls.address(datastore, *uids)}/frames")


def answer(found: FramesAnswer, choices: Iterable[FrameChoice], wanted: list[int], listed: str, where: str) -> Response:
    """Answer frames that were found, in the first of the ways that can be made.

    Raises:
        NotAcceptable, NotFound, Unavailable.
    """
    reason = _not_taken()
    for choice in choices:
        try:
            return _answer(found, choice, wanted, listed, where)
        except NotAcceptable as error:
            reason = error
    raise reason


def _not_taken() -> NotAcceptable:
    message = "the frames are not kept in a form that the request takes"
    return NotAcceptable(message, remedy="accept transfer-syntax=*, which gives frames as they are stored")


def _answer(found: FramesAnswer, choice: FrameChoice, wanted: list[int], listed: str, where: str) -> Response:
    """Answer frames in one way.

    Raises:
        NotAcceptable: it cannot be made; else as `answer`.
    """
    etag = etag_of(found, choice, listed)
    response = conditional.unchanged(etag) or _frames(found, choice, wanted, where, etag)
    response.headers["ETag"] = etag
    response.headers["Vary"] = "Accept"
    return response


def etag_of(found: FramesAnswer, choice: FrameChoice, listed: str) -> str:
    """Return the entity tag of these frames in one form."""
    return '"' + conditional.tag(conditional.bare(found.found.etag), str(choice), listed) + '"'


def value_of(found: FramesAnswer, choice: FrameChoice, number: int) -> bytes:
    """Return one frame in one form.

    Raises:
        NotAcceptable: there is no codec for it; else as `answer`.
    """
    if choice.encoded:
        return found.encoded(number, choice.transfer_syntax_uid)
    return found.stored(number) if choice.stored else found.explicit_le(number)


def content_type_of(choice: FrameChoice) -> str:
    """Return the media type of a frame."""
    return f"{choice.media_type}; transfer-syntax={choice.transfer_syntax_uid}"


def part(value: bytes, choice: FrameChoice, location: str) -> tuple[str, bytes, bytes]:
    """Return Content-Type of a body of one part, and what stands in it before and after the value."""
    writer = Writer(choice.media_type)
    head = writer.part_head(content_type=content_type_of(choice), content_location=location, content_length=str(len(value)))
    return writer.content_type, head, writer.part_tail + writer.end


def bulk(datastore: str, study: str, series: str, sop: str, path: str) -> Response:
    """Answer the value of one element.

    Raises:
        InvalidRequest, NotAcceptable, NotFound, Unavailable.
    """
    uids = urls.uid(study), urls.uid(series), urls.uid(sop)
    if not _BULK_PATH.fullmatch(path):
        message = "the path of the bulk data is malformed"
        raise InvalidRequest(message, remedy="take it from a BulkDataURI of the metadata")
    taken = media.of_request(request)
    answer = archive().retrieve.bulk(subject(), datastore, *uids, path.upper())
    where = urls.address(datastore, *uids)
    if answer.frame is None:
        # A value has no transfer syntax of its own: octets, little endian.
        choices = [one for one in media.frame_choices(taken, media.EXPLICIT_LE, single_allowed=True) if not one.encoded]
        reason = NotAcceptable(f"bulk data is {OCTETS}", remedy=f'accept multipart/related; type="{OCTETS}"')
    else:
        choices = list(media.frame_choices(taken, answer.frame.transfer_syntax_uid, single_allowed=True))
        reason = _not_taken()
    for choice in choices:
        if answer.frame is None or choice.stored:
            return _bulk(answer, choice, f"{where}/bulk/{path.upper()}", path.upper())
        try:
            return _answer(answer.frame, choice, [1], "1", f"{where}/frames")
        except NotAcceptable as error:
            reason = error
    raise reason


def _bulk(answer: BulkAnswer, choice: FrameChoice, location: str, path: str) -> Response:
    """Answer a value as it lies there."""
    part_type, told = (OCTETS, ()) if answer.frame is None else (content_type_of(choice), (choice.media_type,))
    form = "multipart" if choice.multipart else "single"
    etag = '"' + conditional.tag("bulk", form, conditional.bare(answer.found.etag), path, *told) + '"'
    response = conditional.unchanged(etag)
    if response is None:
        response = _bulk_part(answer, choice, part_type, location) if choice.multipart else _bulk_alone(answer, part_type, location, etag)
    response.headers["ETag"] = etag
    response.headers["Vary"] = "Accept"
    return response


def _bulk_alone(answer: BulkAnswer, part_type: str, location: str, etag: str) -> Response:
    part = ranges.asked(answer.length, etag)
    start, length = part or (0, answer.length)
    response = stream(lambda: answer.read(start, length), content_type=part_type, length=length, single=True)
    response.headers["Content-Location"] = location
    return ranges.marked(response, part, answer.length)


def _bulk_part(answer: BulkAnswer, choice: FrameChoice, part_type: str, location: str) -> Response:
    writer = Writer(choice.media_type)
    head = writer.part_head(content_type=part_type, content_location=location, content_length=str(answer.length))
    tail = writer.part_tail + writer.end

    def chunks() -> Iterator[bytes | memoryview]:
        yield head
        yield from answer.read(0, answer.length)
        yield tail

    return stream(chunks, content_type=writer.content_type, length=len(head) + answer.length + len(tail), single=True)


def numbers(listed: str) -> list[int]:
    """Read a list of frame numbers.

    Raises:
        InvalidRequest: not whole numbers from 1 up, or too many.
    """
    parts = listed.split(",")
    if len(parts) > MAX_FRAMES or not all(part.isascii() and part.isdigit() and len(part) < 10 and int(part) > 0 for part in parts):
        message = "the frame list is malformed"
        raise InvalidRequest(message, remedy=f"give at most {MAX_FRAMES} numbers from 1 up, with commas between")
    return [int(part) for part in parts]


def _frames(found: FramesAnswer, choice: FrameChoice, wanted: list[int], where: str, etag: str) -> Response:
    content_type = content_type_of(choice)
    if len(wanted) == 1 and choice.stored and (long := found.long(wanted[0])) is not None:
        location = f"{where}/{wanted[0]}"
        return _bulk_part(long, choice, content_type, location) if choice.multipart else _bulk_alone(long, content_type, location, etag)
    first = value_of(found, choice, wanted[0])
    if len(wanted) == 1 and not choice.multipart:
        return _value(first, content_type, f"{where}/{wanted[0]}", etag)
    if len(wanted) == 1:
        part_type, head, tail = part(first, choice, f"{where}/{wanted[0]}")
        return Response([head, first, tail], content_type=part_type)
    writer = Writer(choice.media_type)

    def chunks() -> Iterator[bytes]:
        for position, number in enumerate(wanted):
            frame = first if position == 0 else value_of(found, choice, number)
            yield writer.part_head(content_type=content_type, content_location=f"{where}/{number}", content_length=str(len(frame)))
            yield frame
            yield writer.part_tail
        yield writer.end

    return stream(chunks, content_type=writer.content_type, length=None)


def _value(value: bytes, content_type: str, location: str, etag: str) -> Response:
    """Return a value as a single part, or the range of it that was asked for."""
    response = ranges.of(value, content_type, etag)
    response.headers["Content-Location"] = location
    return response
