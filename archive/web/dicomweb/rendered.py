"""WADO-RS: rendered studies, series, instances and frames, and their thumbnails (PS3.18 10.4.1.1.3, 10.4.1.1.4, 10.4.4).

One picture is a single part, unless the request asks for multipart; several frames are multipart. A study or series as a single part
is the picture of the instance that stands for it, in multipart one picture of each of its images. A multi-frame instance shows its
first frame, its thumbnail the middle one.
"""

from __future__ import annotations

from collections.abc import Iterator

from flask import Response, request

from archive.config import Config
from archive.dicom.recipe import Form
from archive.errors import NotAcceptable
from archive.services import pictures
from archive.services.pictures import Picture
from archive.web.context import archive, subject
from archive.web.dicomweb import conditional, media, picture_parameters, urls
from archive.web.dicomweb.accept import Accept
from archive.web.dicomweb.frames import numbers
from archive.web.dicomweb.multipart import Writer
from archive.web.dicomweb.picture_parameters import Wish
from archive.web.streaming import stream

FORMS: tuple[Form, ...] = ("jpeg", "png")
"""What a caller who takes anything gets comes first."""


def rendered(datastore: str, study: str, series: str | None = None, sop: str | None = None, listed: str | None = None) -> Response:
    """Answer pictures of a study, a series, an instance or frames of one.

    Raises:
        InvalidRequest, NotAcceptable, NotFound, Unavailable.
    """
    uids = urls.uid(study), urls.optional_uid(series), urls.optional_uid(sop)
    wanted = [1] if listed is None else numbers(listed)
    wish = picture_parameters.of_rendered(request.args)
    form, multipart = _chosen(several=len(wanted) > 1)
    recipe, drawn = wish.as_form(form), archive().pictures
    if uids[1] is not None and uids[2] is not None:
        found = drawn.of_instance(subject(), datastore, uids[0], uids[1], uids[2], wanted, recipe)
    elif multipart:
        found = drawn.of_each(subject(), datastore, uids[0], uids[1], recipe)
    else:
        found = [drawn.standing_for(subject(), datastore, uids[0], uids[1], recipe)]
    return answer(datastore, found, wish, multipart=multipart)


def thumbnail(datastore: str, study: str, series: str | None = None, sop: str | None = None, listed: str | None = None) -> Response:
    """Answer one small picture of a study, a series, an instance or a frame.

    Raises:
        InvalidRequest, NotAcceptable, NotFound, Unavailable.
    """
    uids = urls.uid(study), urls.optional_uid(series), urls.optional_uid(sop)
    wanted = [0] if listed is None else numbers(listed)[:1]
    wish = picture_parameters.of_thumbnail(request.args)
    form, multipart = _chosen(several=False)
    recipe, drawn, what = wish.as_form(form), archive().pictures, pictures.THUMBNAIL
    if uids[1] is not None and uids[2] is not None:
        found = drawn.of_instance(subject(), datastore, uids[0], uids[1], uids[2], wanted, recipe, what=what)
    else:
        found = [drawn.standing_for(subject(), datastore, uids[0], uids[1], recipe, what=what)]
    return answer(datastore, found, wish, multipart=multipart)


def _chosen(*, several: bool) -> tuple[Form, bool]:
    """Return the form of the pictures, and whether they are to be in multipart.

    Raises:
        NotAcceptable.
    """
    chosen = choice(media.of_request(request), several=several)
    if chosen is None:
        message = "pictures are image/jpeg or image/png" + (", several of them in multipart/related" if several else "")
        remedy = 'accept multipart/related; type="image/jpeg"' if several else "accept image/jpeg or image/png"
        raise NotAcceptable(message, remedy=remedy)
    return chosen


def choice(taken: Accept, *, several: bool) -> tuple[Form, bool] | None:
    """Return the form of the pictures, and whether they are to be in multipart; None when the request takes neither."""
    for one in taken.ranges:
        for form in FORMS:
            media_type = f"image/{form}"
            anything = one.name == "*/*"
            multipart = one.multipart or (anything and several)
            fits = one.covers_parts(media_type) if multipart else one.covers(media_type) and not several
            if fits and not taken.refuses(media_type, multipart=multipart, under=one):
                return form, multipart
    return None


def answer(datastore: str, found: list[Picture], wish: Wish, *, multipart: bool) -> Response:
    """Answer pictures, or that the caller has them already.

    Raises:
        NotAcceptable, NotFound, Unavailable.
    """
    etag = found[0].etag
    if multipart:
        etag = '"' + conditional.tag("multipart", *(conditional.bare(one.etag) for one in found)) + '"'
    response = conditional.unchanged(etag)
    if response is None:
        response = _multipart(datastore, found) if multipart else _single(datastore, found[0])
    response.headers["ETag"] = etag
    response.headers["Vary"] = "Accept"
    if wish.warning:
        response.headers["Warning"] = wish.warning
    return response


def _single(datastore: str, picture: Picture) -> Response:
    response = Response(picture.data(), content_type=picture.media_type)
    response.headers["Content-Location"] = location_of(datastore, picture)
    return response


def _multipart(datastore: str, found: list[Picture]) -> Response:
    writer = Writer(found[0].media_type)
    heads = [(one.media_type, location_of(datastore, one)) for one in found]

    def chunks() -> Iterator[bytes]:
        for picture, (media_type, location) in zip(found, heads, strict=True):
            data = picture.data()  # what cannot be drawn leaves no head behind
            yield writer.part_head(content_type=media_type, content_location=location, content_length=str(len(data)))
            yield data
            yield writer.part_tail
        yield writer.end

    return stream(chunks, content_type=writer.content_type, length=None)


def location_of(datastore: str, picture: Picture, config: Config | None = None) -> str:
    """Return the address of what is shown."""
    row = picture.row
    instance = urls.address(datastore, row.study_instance_uid, row.series_instance_uid, row.sop_instance_uid, config=config)
    return f"{instance}/frames/{picture.frame}" if picture.frame else instance
