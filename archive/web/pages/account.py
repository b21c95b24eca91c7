"""Sign in, sign out, change the password."""

from __future__ import annotations

from flask import make_response, redirect, render_template, request
from werkzeug.wrappers import Response

from archive.errors import ArchiveError, Rejected, Unauthenticated
from archive.web import session
from archive.web.context import archive, subject

FIELD_BYTES = 1024


def login() -> Response:
    """Ask for name and password; on success start a session and go where the user was heading."""
    from archive.web.pages.blueprint import local

    target = local(request.values.get("next", "/studies"))
    if request.method == "GET":
        return make_response(render_template("login.html", target=target, name="", refusal=""))
    name, password = request.form.get("name", "")[:FIELD_BYTES], request.form.get("password", "")[:FIELD_BYTES]
    try:
        signed_in = archive().signin.password(
            name, password, address=session.address(), user_agent=request.headers.get("User-Agent", "")[:300]
        )
    except Unauthenticated as error:
        return make_response(render_template("login.html", target=target, name=name, refusal=error.message, remedy=error.remedy), 401)
    response = redirect("/me/password?first=1" if signed_in.must_change else target, code=303)
    session.set_cookie(response, signed_in.token)  # type: ignore[arg-type] # redirect makes a Flask response
    return response


def logout() -> Response:
    """End the session here and in the browser."""
    archive().signin.sign_out(subject())
    response = redirect("/login", code=303)
    session.clear_cookie(response)  # type: ignore[arg-type] # as above
    return response


def password() -> Response:
    """Change one's own password; every other session of the user ends."""
    first = request.values.get("first", "") == "1"
    if request.method == "GET":
        return make_response(render_template("password.html", first=first, refusal="", done=False))
    old, new, again = (request.form.get(field, "")[:FIELD_BYTES] for field in ("old", "new", "again"))
    try:
        if new != again:
            return _again(first=first, refusal="The two new passwords differ.")
        archive().signin.change_password(subject(), old, new)
    except (Rejected, Unauthenticated) as error:
        return _again(first=first, refusal=_sentence(error))
    if first:
        return redirect("/studies", code=303)
    return make_response(render_template("password.html", first=False, refusal="", done=True))


def _again(*, first: bool, refusal: str) -> Response:
    return make_response(render_template("password.html", first=first, refusal=refusal, done=False), 400)


def _sentence(error: ArchiveError) -> str:
    text = f"{error.message}; {error.remedy}" if error.remedy else error.message
    return text[:1].upper() + text[1:] + "."
