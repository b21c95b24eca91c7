"""One image at a time, drawn by the server: slice, window, zoom by links and a form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from flask import Response, make_response, render_template, request
from werkzeug.wrappers import Response as BaseResponse

from archive.dicom.attributes import Level
from archive.dicom.recipe import Recipe, Viewport, Window
from archive.errors import NotFound
from archive.services import pictures
from archive.services.query import SearchRequest
from archive.web.context import archive, subject
from archive.web.pages import studies
from archive.web.pages.shown import value

SIZES = (512, 1024, 2048)
DEFAULT_SIZE = 1024
MOST = 10_000
PRESETS = (("As stored", "", ""), ("Soft tissue", "40", "400"), ("Lung", "-600", "1500"), ("Bone", "400", "1800"), ("Brain", "40", "80"))


@dataclass(frozen=True, slots=True)
class InstanceLine:
    """An instance as the viewer pages through it."""

    uid: str
    number: str
    frames: int


def instances(study: str, series: str, datastore: str = studies.DATASTORE) -> list[InstanceLine]:
    """Return the series' visible instances in order."""
    answer = archive().query.find(
        subject(),
        SearchRequest(level=Level.IMAGE, datastore=datastore, keys=(), study_instance_uid=study, series_instance_uid=series, limit=MOST,
                      offset=0),
    )
    return [
        InstanceLine(value(row, "SOPInstanceUID"), value(row, "InstanceNumber"), max(1, _number(value(row, "NumberOfFrames"), 1)))
        for row in answer.rows
    ]


def series(study: str, series: str) -> BaseResponse:
    """Show one image of a series, with what leads to the others."""
    return make_response(render_template("series.html", user=subject().name, **told(study, series, "/studies", studies.DATASTORE)))


def told(study: str, series: str, base: str, datastore: str) -> dict[str, Any]:
    """Return what the page of an image says; its links begin with `base`.

    Raises:
        NotFound.
    """
    line = studies.find_study(study, datastore)
    all_series = studies.series_of(study, datastore)
    shown = next((one for one in all_series if one.uid == series), None)
    listed = instances(study, series, datastore) if shown is not None else []
    if shown is None or not listed:
        message = "there is no such series"
        raise NotFound(message)
    count = sum(one.frames for one in listed)
    at = min(max(_number(request.args.get("image"), 1 if count < 3 else (count + 1) // 2), 1), count)
    centre, width = _window(request.args.get("centre", ""), request.args.get("width", ""))
    keep = {"centre": centre, "width": width} if centre and width else {}

    def picture(position: int) -> str:
        uid, frame = _place(listed, position)
        query = "?" + urlencode(keep) if keep else ""
        return f"{base}/{study}/series/{series}/instances/{uid}/frames/{frame}/picture{query}"

    def page(position: int, **window: str) -> str:
        return f"{base}/{study}/series/{series}?" + urlencode({"image": position, **(window or keep)})

    presets = [(name, page(at, centre=c, width=w) if c else f"{base}/{study}/series/{series}?image={at}", (c, w) == (centre, width))
               for name, c, w in PRESETS if shown.modality == "CT" or (not c and centre)]
    return {
        "study": line, "series": shown, "all_series": all_series, "at": at, "count": count, "picture": picture(at),
        "previous": page(at - 1) if at > 1 else "", "following": page(at + 1) if at < count else "", "first": page(1),
        "last": page(count), "centre": centre, "width": width, "presets": presets,
        "ahead": [picture(position) for position in (at + 1, at - 1) if 1 <= position <= count],
    }


def picture(study: str, series: str, instance: str, frame: int, datastore: str = studies.DATASTORE) -> Response:
    """One frame as PNG, never larger than asked."""
    centre, width = _window(request.args.get("centre", ""), request.args.get("width", ""))
    size = _number(request.args.get("size"), DEFAULT_SIZE)
    size = size if size in SIZES else DEFAULT_SIZE
    window = Window(float(centre), float(width)) if centre and width else None
    recipe = Recipe("png", window, Viewport(size, size))
    drawn = archive().pictures.of_instance(subject(), datastore, study, series, instance, [frame], recipe)[0]
    return Response(drawn.data(), mimetype=drawn.media_type)


def thumbnail(study: str, series: str, datastore: str = studies.DATASTORE) -> Response:
    """The small picture that stands for a series, made before anyone asks."""
    drawn = archive().pictures.standing_for(
        subject(), datastore, study, series, pictures.PREPARED, what=pictures.THUMBNAIL
    )
    return Response(drawn.data(), mimetype=drawn.media_type)


def _place(listed: list[InstanceLine], position: int) -> tuple[str, int]:
    """Return the instance and frame at a position that counts every frame of the series from 1."""
    for one in listed:
        if position <= one.frames:
            return one.uid, position
        position -= one.frames
    raise NotFound


def _number(text: str | None, default: int) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 8 else default


def _window(centre: str, width: str) -> tuple[str, str]:
    """Both as plain numbers, or neither."""
    try:
        c, w = float(centre), float(width)
    except ValueError:
        return "", ""
    if not (abs(c) < 1e6 and 0 < w < 1e6):
        return "", ""
    return f"{c:g}", f"{w:g}"
