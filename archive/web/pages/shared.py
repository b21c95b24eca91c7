"""What a share link opens: the page that takes its code, and behind it the studies that were shared, and nothing else."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from flask import Blueprint, Flask, make_response, redirect, render_template, request
from flask import Response as FlaskResponse
from werkzeug.wrappers import Response

from archive import __version__
from archive.dicom.attributes import Level
from archive.errors import ArchiveError, InvalidRequest, Unauthenticated
from archive.services.query import SearchRequest
from archive.web import problems, session, share_session
from archive.web.api.operation import JSON, Taken
from archive.web.context import archive, node, subject
from archive.web.dicomweb import download
from archive.web.pages import image, studies
from archive.web.pages.shown import StudyLine
from archive.web.permissions import PUBLIC, Rule, declare

SHARE = Rule(share=True)
T = TypeVar("T", bound=Taken)
BASE = "/shared/studies"
MOST = 200
RULES = {
    "shared.open": PUBLIC,  # a file that says the same to everybody: looking at a link opens and counts nothing
    "shared.ask": PUBLIC,
    "shared.enter": PUBLIC,
    "shared.home": SHARE,
    "shared.leave": SHARE,
    "shared.study": SHARE,
    "shared.series": SHARE,
    "shared.thumbnail": SHARE,
    "shared.picture": SHARE,
    "shared.zip": SHARE,
}


class Word(Taken):
    """What stands in a link behind its #."""

    link: str


class WordAndCode(Word):
    """And the code that came another way."""

    code: str


def register(app: Flask) -> None:
    """Add the pages to the application."""
    pages = Blueprint("shared", "archive.web")
    pages.add_url_rule("/s", "open", open_)
    pages.add_url_rule("/s/open", "ask", ask, methods=["POST"])
    pages.add_url_rule("/s/code", "enter", enter, methods=["POST"])
    pages.add_url_rule("/shared", "home", home)
    pages.add_url_rule("/shared/leave", "leave", leave, methods=["POST"])
    pages.add_url_rule(f"{BASE}/<study>", "study", study)
    pages.add_url_rule(f"{BASE}/<study>/series/<series>", "series", series)
    pages.add_url_rule(f"{BASE}/<study>/series/<series>/thumbnail", "thumbnail", thumbnail)
    pages.add_url_rule(f"{BASE}/<study>/series/<series>/instances/<instance>/frames/<int:frame>/picture", "picture", picture)
    pages.add_url_rule(f"{BASE}/<study>/zip", "zip", zip_)
    pages.register_error_handler(ArchiveError, problem)
    pages.context_processor(words)
    declare(RULES)
    app.register_blueprint(pages)


def open_() -> Response:
    """The page a link leads to; what the link says stays in the browser until its reader asks to open it."""
    response = make_response(render_template("share_open.html"))
    response.headers["X-Robots-Tag"] = "noindex, nofollow"
    return response


def ask() -> Response:
    """Take the link, and send its code where codes are mailed."""
    return _json(msgspec.json.encode(node().share_door.ask(_taken(Word).link)))


def enter() -> Response:
    """Take the code, and start a session."""
    given = _taken(WordAndCode)
    word = node().share_door.enter(
        given.link, given.code, address=session.address(), user_agent=request.headers.get("User-Agent", "")
    )
    response = _json(b'{"next":"/shared"}')
    share_session.set_cookie(response, word)
    return response


def home() -> Response:
    """List what was shared; a single study shows itself."""
    visit = share_session.visit()
    asked = SearchRequest(level=Level.STUDY, datastore=visit.datastore, keys=(), limit=MOST, offset=0)
    lines = [StudyLine.of(row) for row in archive().query.find(subject(), asked).rows]
    return make_response(render_template("shared.html", lines=lines))


def leave() -> Response:
    """End the session."""
    node().share_door.leave(subject())
    response = redirect("/s", code=303)
    share_session.clear_cookie(response)  # type: ignore[arg-type] # redirect makes a Flask response
    return response


def study(study: str) -> Response:
    """One study: who, when, and its series with a picture each."""
    datastore = share_session.visit().datastore
    line = studies.find_study(study, datastore)
    return make_response(render_template("shared_study.html", study=line, series=studies.series_of(study, datastore)))


def series(study: str, series: str) -> Response:
    """One image of a series."""
    told = image.told(study, series, BASE, share_session.visit().datastore)
    return make_response(render_template("shared_series.html", **told))


def thumbnail(study: str, series: str) -> Response:
    """The small picture that stands for a series."""
    return image.thumbnail(study, series, share_session.visit().datastore)


def picture(study: str, series: str, instance: str, frame: int) -> Response:
    """One frame."""
    return image.picture(study, series, instance, frame, share_session.visit().datastore)


def zip_(study: str) -> Response:
    """The original files, where they were shared."""
    return download.download(share_session.visit().datastore, study)


def problem(error: ArchiveError) -> Response:
    """A refusal: to a script as a problem, to a reader as a page; a picture just says no."""
    if request.mimetype == JSON:
        return problems.answer(error)
    line = problems.line_of(error)
    if request.endpoint in {"shared.picture", "shared.thumbnail"}:
        return FlaskResponse("", line.status)
    if line.status >= 500:
        problems.note(error)
    closed = isinstance(error, Unauthenticated)
    return make_response(render_template("shared_closed.html", closed=closed, told=line.detail or error.message), line.status)


def words() -> dict[str, object]:
    """What every template may say."""
    from flask import g

    return {"archive_name": node().config.archive.name, "version": __version__, "visit": g.get("visit"), "base": BASE}


def _taken(kind: type[T]) -> T:
    """Return the request's body.

    Raises:
        InvalidRequest: it is not what is taken.
    """
    if request.mimetype != JSON:
        message = "send application/json"
        raise InvalidRequest(message)
    try:
        return msgspec.json.decode(request.get_data(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = "that is not what is taken here"
        raise InvalidRequest(message) from error


def _json(data: bytes) -> FlaskResponse:
    return FlaskResponse(data, content_type=JSON)
