"""Signing in, or confirming, with another system: out to it and back."""

from __future__ import annotations

from flask import make_response, redirect, render_template, request
from werkzeug.wrappers import Response

from archive.access.subject import Subject
from archive.errors import ArchiveError, InvalidRequest, Unauthenticated, Unavailable
from archive.services.beginning import SecondAsked, SignedIn
from archive.services.oidc import LASTS
from archive.web import session
from archive.web.context import archive, node, subject
from archive.web.pages.account import signing_in

VALUE_BYTES = 4096


def begin() -> Response:
    """Send the browser to the provider."""
    return _away(None)


def confirm() -> Response:
    """Send the browser to the provider, which asks its user again."""
    return _away(subject())


def _away(confirming: Subject | None) -> Response:
    from archive.web.pages.blueprint import local

    target = local(request.args.get("next", "/studies"))
    try:
        address, kept = node().oidc.begin(target, confirming=confirming)
    except (InvalidRequest, Unavailable) as error:
        return _refused(target, error)
    response = redirect(address, code=303)
    name, secure = _cookie()
    # Lax, unlike the session's: the browser comes back from another site.
    response.set_cookie(
        name, kept, max_age=int(LASTS.total_seconds()), path="/", secure=secure, httponly=True, samesite="Lax",
    )
    return response


def back() -> Response:
    """Take the browser back; it goes on from a page of the archive's own, for only from there it brings its new session along."""
    name, secure = _cookie()
    arrived = {key: value[:VALUE_BYTES + 1] for key, value in request.args.items()}
    try:
        done = node().oidc.end(
            request.cookies.get(name, ""), arrived, address=session.address(), user_agent=request.headers.get("User-Agent", "")[:300],
            replaced=session.held(),
        )
    except (Unauthenticated, Unavailable) as error:
        response = _refused("/studies", error)
    else:
        response = _went_on(done.outcome, done.target)
    response.delete_cookie(name, path="/", secure=secure, httponly=True, samesite="Lax")
    return response


def _went_on(outcome: SignedIn | SecondAsked, target: str) -> Response:
    if isinstance(outcome, SecondAsked):
        return make_response(render_template("second.html", target=target, half=outcome.half, kinds=outcome.kinds, refusal=""))
    response = make_response(render_template("returned.html", target=target))
    session.set_cookie(response, outcome.token)
    return response


def _refused(target: str, error: ArchiveError) -> Response:
    status = 401 if isinstance(error, Unauthenticated) else 503 if isinstance(error, Unavailable) else 400
    return make_response(signing_in(target=target, refusal=error.message, remedy=error.remedy), status)


def _cookie() -> tuple[str, bool]:
    secure = session.cookie_name(archive().config) == session.HOST_COOKIE
    return ("__Host-oidc" if secure else "oidc"), secure
