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
from archive.web.pages import (
    account,
    albums,
    alerts,
    asking,
    duties,
    elsewhere,
    identity,
    image,
    ledger,
    reviews,
    shared,
    shares,
    shown,
    studies,
)
from archive.web.permissions import PUBLIC, SIGNED_IN, FactorMissing, PasswordMustChange, Rule, StepUp, declare

RULES = {
    "pages.home": SIGNED_IN,
    "pages.login": PUBLIC,
    "pages.logout": SIGNED_IN,
    "pages.password": SIGNED_IN,
    "pages.second": PUBLIC,
    "pages.oidc": PUBLIC,
    "pages.oidc_back": PUBLIC,
    "pages.confirm_oidc": SIGNED_IN,
    "pages.passkey_options": PUBLIC,
    "pages.passkey": PUBLIC,
    "pages.factors": SIGNED_IN,
    "pages.factor_add": SIGNED_IN,
    "pages.factor_confirm": SIGNED_IN,
    "pages.factor_remove": SIGNED_IN,
    "pages.codes": SIGNED_IN,
    "pages.passkey_add_options": SIGNED_IN,
    "pages.passkey_add": SIGNED_IN,
    "pages.confirm": SIGNED_IN,
    "pages.confirm_passkey_options": SIGNED_IN,
    "pages.confirm_passkey": SIGNED_IN,
    "pages.sessions": SIGNED_IN,
    "pages.session_end": SIGNED_IN,
    "pages.sessions_end": SIGNED_IN,
    "pages.ledger_page": Rule(Permission.AUDIT),
    **duties.RULES,
    "pages.reviews": Rule(Permission.ROLE_MANAGE),
    "pages.review_start": Rule(Permission.ROLE_MANAGE),
    "pages.review": Rule(Permission.ROLE_MANAGE),
    "pages.review_decide": Rule(Permission.ROLE_MANAGE),
    "pages.review_close": Rule(Permission.ROLE_MANAGE),
    "pages.studies": Rule(Permission.SEARCH),
    "pages.study": Rule(Permission.SEARCH),
    "pages.ohif": Rule(Permission.SEARCH),
    "pages.series": Rule(Permission.SEARCH),
    "pages.thumbnail": Rule(Permission.PIXELS),
    "pages.picture": Rule(Permission.PIXELS),
    **albums.RULES,
    **alerts.RULES,
    **shares.RULES,
    **asking.RULES,
    "pages.favicon": PUBLIC,
}


_OWN = (
    *asking.OWN, *alerts.OWN,
    "/studies", "/admin/roles", "/admin/reviews", "/approvals", "/ledger/page", "/shares", "/albums",
    "/me/factors", "/me/sessions", "/dicomweb/studies/", "/datastores/",
)


def register(app: Flask) -> None:
    """Add the pages to the application."""
    pages = Blueprint("pages", "archive.web")
    pages.add_url_rule("/", "home", home)
    pages.add_url_rule("/favicon.ico", "favicon", favicon)
    pages.add_url_rule("/login", "login", account.login, methods=["GET", "POST"])
    pages.add_url_rule("/logout", "logout", account.logout, methods=["POST"])
    pages.add_url_rule("/me/password", "password", account.password, methods=["GET", "POST"])
    pages.add_url_rule("/login/second", "second", account.second, methods=["POST"])
    pages.add_url_rule("/login/oidc", "oidc", elsewhere.begin)
    pages.add_url_rule("/login/oidc/callback", "oidc_back", elsewhere.back)
    pages.add_url_rule("/me/confirm/oidc", "confirm_oidc", elsewhere.confirm)
    pages.add_url_rule("/login/passkey/options", "passkey_options", identity.passkey_options, methods=["POST"])
    pages.add_url_rule("/login/passkey", "passkey", identity.passkey, methods=["POST"])
    pages.add_url_rule("/me/factors", "factors", identity.factors)
    pages.add_url_rule("/me/factors/totp", "factor_add", identity.factor_add, methods=["POST"])
    pages.add_url_rule("/me/factors/<int:number>/confirm", "factor_confirm", identity.factor_confirm, methods=["POST"])
    pages.add_url_rule("/me/factors/<int:number>/remove", "factor_remove", identity.factor_remove, methods=["POST"])
    pages.add_url_rule("/me/recovery-codes", "codes", identity.codes, methods=["POST"])
    pages.add_url_rule("/me/passkeys/options", "passkey_add_options", identity.passkey_add_options, methods=["POST"])
    pages.add_url_rule("/me/passkeys", "passkey_add", identity.passkey_add, methods=["POST"])
    pages.add_url_rule("/me/confirm", "confirm", identity.confirm, methods=["GET", "POST"])
    pages.add_url_rule("/me/confirm/passkey/options", "confirm_passkey_options", identity.confirm_passkey_options, methods=["POST"])
    pages.add_url_rule("/me/confirm/passkey", "confirm_passkey", identity.confirm_passkey, methods=["POST"])
    pages.add_url_rule("/me/sessions", "sessions", identity.sessions)
    pages.add_url_rule("/me/sessions/<int:number>/end", "session_end", identity.session_end, methods=["POST"])
    pages.add_url_rule("/me/sessions/end", "sessions_end", identity.sessions_end, methods=["POST"])
    pages.add_url_rule("/ledger/page", "ledger_page", ledger.page)
    pages.add_url_rule("/admin/reviews", "reviews", reviews.reviews)
    pages.add_url_rule("/admin/reviews/start", "review_start", reviews.start, methods=["POST"])
    pages.add_url_rule("/admin/reviews/<int:number>", "review", reviews.review)
    pages.add_url_rule("/admin/reviews/<int:number>/decide", "review_decide", reviews.decide, methods=["POST"])
    pages.add_url_rule("/admin/reviews/<int:number>/close", "review_close", reviews.close, methods=["POST"])
    pages.add_url_rule("/studies", "studies", studies.studies)
    pages.add_url_rule("/studies/<study>", "study", studies.study)
    pages.add_url_rule("/studies/<study>/ohif", "ohif", studies.ohif)
    pages.add_url_rule("/studies/<study>/series/<series>", "series", image.series)
    pages.add_url_rule("/studies/<study>/series/<series>/thumbnail", "thumbnail", image.thumbnail)
    pages.add_url_rule("/studies/<study>/series/<series>/instances/<instance>/frames/<int:frame>/picture", "picture", image.picture)
    for add in (duties.attach, albums.add, alerts.add, shares.add, asking.add):
        add(pages)
    pages.register_error_handler(Unauthenticated, to_login)
    pages.register_error_handler(PasswordMustChange, to_password)
    pages.register_error_handler(FactorMissing, to_factors)
    pages.register_error_handler(ArchiveError, problem)
    pages.register_error_handler(StepUp, to_confirm)
    app.register_error_handler(StepUp, to_confirm)
    pages.context_processor(words)
    declare(RULES)
    app.register_blueprint(pages)
    shared.register(app)
    shown.register(app)


def home() -> BaseResponse:
    """The study list is the first page."""
    return redirect("/studies")


def favicon() -> BaseResponse:
    """Browsers ask for it whatever the page says."""
    return redirect("/static/favicon.svg", code=308)


def to_login(error: Unauthenticated) -> BaseResponse:
    """A page without a session leads to the sign-in and back; a picture just says no."""
    if request.endpoint == "pages.login" or request.mimetype == "application/json":
        return problem(error)
    if request.endpoint in {"pages.picture", "pages.thumbnail"}:
        return Response("", 401)
    target = request.full_path.rstrip("?") if request.method == "GET" else "/studies"
    return redirect(f"/login?next={quote(target, safe='')}")


def to_password(_error: PasswordMustChange) -> BaseResponse:
    """The first thing a handed-out password opens is its own change."""
    return redirect("/me/password?first=1")


def to_factors(_error: FactorMissing) -> BaseResponse:
    """Who must have a second factor sets one up first."""
    return redirect("/me/factors")


def to_confirm(error: StepUp) -> BaseResponse:
    """A page asks again and comes back; a program is told."""
    if request.mimetype == "application/json" or (
        request.blueprint != "pages" and (request.method != "GET" or request.headers.get("Sec-Fetch-Mode") != "navigate")
    ):
        return problems.answer(error)
    known = {**shares.back(), **duties.BACK, **reviews.back(), **asking.back()}
    target = request.full_path.rstrip("?") if request.method == "GET" else known.get(request.endpoint or "", "/me/factors")
    return redirect(f"/me/confirm?next={quote(target, safe='')}", code=303)


def problem(error: ArchiveError) -> Response:
    """Any other refusal, as a page that says what to do; absent and not visible look the same."""
    if request.mimetype == "application/json":
        return problems.answer(error)
    line = problems.line_of(error)
    if line.status >= 500:
        problems.note(error)
    told = line.detail or error.message
    remedy = error.remedy if line.status < 500 else "try again in a moment; the archive's operator finds more with 'archive doctor'"
    absent = line.status == 404
    page = render_template("problem.html", title=line.status.phrase, told=told, remedy="" if absent else remedy, ask=absent)
    return make_response(page, line.status)


def local(target: str) -> str:
    """Return a path of this site to go on to after signing in; anything else becomes the study list."""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc or not target.startswith(_OWN) or not target.isprintable() or "\\" in target:
        return "/studies"
    return target


def words() -> dict[str, object]:
    """What every template may say."""
    return {
        "archive_name": node().config.archive.name, "version": __version__, "request_path": request.path, "emergencies": asking.emergencies,
        "two_person": node().config.policy.two_person, "alerts_waiting": alerts.waiting,
    }
