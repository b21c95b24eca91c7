"""Sign in, by one step or two, sign out, change the password."""

from __future__ import annotations

from flask import make_response, redirect, render_template, request
from werkzeug.wrappers import Response

from archive.errors import ArchiveError, Rejected, Unauthenticated
from archive.services.signin import WRONG_CODE, SecondAsked, SignedIn
from archive.web import session
from archive.web.context import archive, node, subject

FIELD_BYTES = 1024


def login() -> Response:
    """Ask for name and password; on success start a session, or ask for the second factor of who has one."""
    from archive.web.pages.blueprint import local

    target = local(request.values.get("next", "/studies"))
    if request.method == "GET":
        return make_response(signing_in(target=target))
    name, password = request.form.get("name", "")[:FIELD_BYTES], request.form.get("password", "")[:FIELD_BYTES]
    try:
        begun = archive().signin.password(name, password, address=session.address(), user_agent=_agent(), replaced=session.held())
    except Unauthenticated as error:
        return make_response(signing_in(target=target, name=name, refusal=error.message, remedy=error.remedy), 401)
    if isinstance(begun, SecondAsked):
        return make_response(render_template("second.html", target=target, half=begun.half, kinds=begun.kinds, refusal=""))
    return signed_in(begun, target)


def second() -> Response:
    """Take the code that ends a sign-in."""
    from archive.web.pages.blueprint import local

    target, half = local(request.form.get("next", "/studies")), request.form.get("half", "")
    code = request.form.get("code", "")[:FIELD_BYTES]
    try:
        begun = archive().signin.second(half, code, address=session.address(), user_agent=_agent(), replaced=session.held())
    except Unauthenticated as error:
        if error.message == WRONG_CODE:
            page = render_template("second.html", target=target, half=half, kinds={"totp"}, refusal=sentence(error))
            return make_response(page, 401)
        return make_response(signing_in(target=target, refusal=error.message, remedy=error.remedy), 401)
    return signed_in(begun, target)


def signed_in(begun: SignedIn, target: str) -> Response:
    """Hand out the session and go on."""
    response = redirect("/me/password?first=1" if begun.must_change else target, code=303)
    session.set_cookie(response, begun.token)  # type: ignore[arg-type] # redirect makes a Flask response
    return response


def signing_in(*, target: str, name: str = "", refusal: str = "", remedy: str = "") -> str:
    """Return the page that asks for name and password, or offers another way."""
    works = archive().factors.passkeys_work
    return render_template("login.html", target=target, name=name, refusal=refusal, remedy=remedy, passkeys=works,
                           elsewhere=node().oidc.offered)


def _agent() -> str:
    return request.headers.get("User-Agent", "")[:300]


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
        return _again(first=first, refusal=sentence(error))
    if first:
        return redirect("/studies", code=303)
    return make_response(render_template("password.html", first=False, refusal="", done=True))


def _again(*, first: bool, refusal: str) -> Response:
    return make_response(render_template("password.html", first=first, refusal=refusal, done=False), 400)


def sentence(error: ArchiveError) -> str:
    """Return what went wrong and what to do, for people."""
    text = f"{error.message}; {error.remedy}" if error.remedy else error.message
    return text[:1].upper() + text[1:] + "."
