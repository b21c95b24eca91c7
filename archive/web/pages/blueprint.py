"""Registers the pages: their rules, their error answers, the words templates may use."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

from flask import Blueprint, Flask, Response, make_response, redirect, render_template, request
from werkzeug.wrappers import Response as BaseResponse

from archive import __version__
from archive.access.permissions import Permission
from archive.errors import ArchiveError, Unauthenticated
from archive.web import problems
from archive.web.context import node
from archive.web.pages import account, image, shown, studies
from archive.web.permissions import PUBLIC, SIGNED_IN, PasswordMustChange, Rule, declare

RULES = {
    "pages.home": SIGNED_IN,
    "pages.login": PUBLIC,
    "pages.logout": SIGNED_IN,
    "pages.password": SIGNED_IN,
    "pages.studies": Rule(Permission.SEARCH),
    "pages.study": Rule(Permission.SEARCH),
    "pages.ohif": Rule(Permission.SEARCH),
    "pages.series": Rule(Permission.SEARCH),
    "pages.thumbnail": Rule(Permission.PIXELS),
    "pages.picture": Rule(Permission.PIXELS),
    "pages.favicon": PUBLIC,
}


def register(app: Flask) -> None:
    """Add the pages to the application."""
    pages = Blueprint("pages", "archive.web")
    pages.add_url_rule("/", "home", home)
    pages.add_url_rule("/favicon.ico", "favicon", favicon)
    pages.add_url_rule("/login", "login", account.login, methods=["GET", "POST"])
    pages.add_url_rule("/logout", "logout", account.logout, methods=["POST"])
    pages.add_url_rule("/me/password", "password", account.password, methods=["GET", "POST"])
    pages.add_url_rule("/studies", "studies", studies.studies)
    pages.add_url_rule("/studies/<study>", "study", studies.study)
    pages.add_url_rule("/studies/<study>/ohif", "ohif", studies.ohif)
    pages.add_url_rule("/studies/<study>/series/<series>", "series", image.series)
    pages.add_url_rule("/studies/<study>/series/<series>/thumbnail", "thumbnail", image.thumbnail)
    pages.add_url_rule("/studies/<study>/series/<series>/instances/<instance>/frames/<int:frame>/picture", "picture", image.picture)
    pages.register_error_handler(Unauthenticated, to_login)
    pages.register_error_handler(PasswordMustChange, to_password)
    pages.register_error_handler(ArchiveError, problem)
    pages.context_processor(words)
    declare(RULES)
    app.register_blueprint(pages)
    shown.register(app)


def home() -> BaseResponse:
    """The study list is the first page."""
    return redirect("/studies")


def favicon() -> BaseResponse:
    """Browsers ask for it whatever the page says."""
    return redirect("/static/favicon.svg", code=308)


def to_login(error: Unauthenticated) -> BaseResponse:
    """A page without a session leads to the sign-in and back; a picture just says no."""
    if request.endpoint == "pages.login":
        return problem(error)
    if request.endpoint in {"pages.picture", "pages.thumbnail"}:
        return Response("", 401)
    target = request.full_path.rstrip("?") if request.method == "GET" else "/studies"
    return redirect(f"/login?next={quote(target, safe='')}")


def to_password(_error: PasswordMustChange) -> BaseResponse:
    """The first thing a handed-out password opens is its own change."""
    return redirect("/me/password?first=1")


def problem(error: ArchiveError) -> Response:
    """Any other refusal, as a page that says what to do; absent and not visible look the same."""
    line = problems.line_of(error)
    if line.status >= 500:
        problems.note(error)
    told = line.detail or error.message
    remedy = error.remedy if line.status < 500 else "try again in a moment; the archive's operator finds more with 'archive doctor'"
    page = render_template("problem.html", title=line.status.phrase, told=told, remedy="" if line.status == 404 else remedy)
    return make_response(page, line.status)


def local(target: str) -> str:
    """Return a path of this site to go on to after signing in; anything else becomes the study list."""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc or not target.startswith("/studies") or not target.isprintable() or "\\" in target:
        return "/studies"
    return target


def words() -> dict[str, object]:
    """What every template may say."""
    return {"archive_name": node().config.archive.name, "version": __version__, "request_path": request.path}
