"""One's own ways to show who one is: second factors, recovery codes, passkeys, sessions, and being asked again."""

from __future__ import annotations

import base64

import msgspec
from flask import Response as FlaskResponse
from flask import make_response, redirect, render_template, request
from werkzeug.wrappers import Response

from archive.errors import ArchiveError, InvalidRequest, Unauthenticated
from archive.services.signin import SignedIn
from archive.web import session
from archive.web.context import archive, node, subject
from archive.web.pages.account import FIELD_BYTES, sentence

CODE_BYTES = 64


def factors() -> Response:
    """List what there is, and offer more."""
    return _page()


def factor_add() -> Response:
    """Begin an authenticator: its QR code, its secret to type, and a field for the first code."""
    begun = archive().factors.begin_totp(subject(), request.form.get("label", "")[:FIELD_BYTES])
    picture = "data:image/svg+xml;base64," + base64.b64encode(begun.picture.encode()).decode()
    return make_response(render_template("totp.html", begun=begun, picture=picture, user=subject().name, refusal=""))


def factor_confirm(number: int) -> Response:
    """Take the first code; the recovery codes are shown this once."""
    try:
        codes = archive().factors.confirm_totp(subject(), number, request.form.get("code", "")[:CODE_BYTES])
    except Unauthenticated as error:
        # The secret is not shown again: whoever looks over a shoulder later must not find it.
        return make_response(render_template("totp.html", begun=None, number=number, user=subject().name, refusal=sentence(error)), 400)
    return _page(codes=codes, done="The authenticator app is set up. It is asked for at each sign-in from now on.")


def factor_remove(number: int) -> Response:
    """Take a factor away."""
    try:
        gone = archive().factors.remove(subject(), number)
    except ArchiveError as error:
        return _page(refusal=sentence(error))
    return _page(done=f"{gone['label']} is removed.")


def codes() -> Response:
    """Draw new recovery codes."""
    try:
        return _page(codes=archive().factors.renew_codes(subject()), done="The earlier recovery codes count no more.")
    except InvalidRequest as error:
        return _page(refusal=sentence(error))


def _page(*, codes: list[str] | None = None, done: str = "", refusal: str = "") -> Response:
    held = archive().factors.listed(subject())
    page = render_template("factors.html", user=subject().name, codes=codes or [], done=done, refusal=refusal, **held)
    return make_response(page, 400 if refusal else 200)


# --- passkeys: script talks to these ---


def passkey_add_options() -> Response:
    """Say what the browser needs to make a passkey."""
    return _json(archive().factors.begin_passkey(subject()))


def passkey_add() -> Response:
    """Keep the passkey the browser made; the recovery codes are told this once."""
    label = request.args.get("label", "")[:FIELD_BYTES]
    made = archive().factors.add_passkey(subject(), request.get_data(as_text=True), label)
    return _json(msgspec.json.encode({"recovery_codes": made}).decode())


def passkey_options() -> Response:
    """Say what the browser needs to sign in with a passkey."""
    return _json(archive().factors.ask_passkey(None))


def passkey() -> Response:
    """Start a session with a passkey."""
    agent = request.headers.get("User-Agent", "")[:300]
    begun = archive().signin.passkey(request.get_data(as_text=True), address=session.address(), user_agent=agent, replaced=session.held())
    return _with_cookie(_json("{}"), begun)


def confirm() -> Response:
    """Ask again who it is, and go back to where that was needed."""
    from archive.web.pages.blueprint import local

    target = local(request.values.get("next", "/studies"))
    has = bool(archive().factors.listed(subject())["factors"])
    told = {"target": target, "user": subject().name, "by_code": has, "passkeys": archive().factors.passkeys_work}
    told["elsewhere"] = node().oidc.offered
    if request.method == "GET":
        return make_response(render_template("confirm.html", refusal="", **told))
    try:
        begun = archive().signin.confirm(
            subject(), password=request.form.get("password", "")[:FIELD_BYTES], code=request.form.get("code", "")[:CODE_BYTES]
        )
    except Unauthenticated as error:
        return make_response(render_template("confirm.html", refusal=sentence(error), **told), 401)
    return _with_cookie(redirect(target, code=303), begun)


def confirm_passkey_options() -> Response:
    """Say what the browser needs to show a passkey of one's own."""
    return _json(archive().factors.ask_passkey(subject()))


def confirm_passkey() -> Response:
    """Take a passkey as the answer."""
    return _with_cookie(_json("{}"), archive().signin.confirm_passkey(subject(), request.get_data(as_text=True)))


# --- sessions ---


def sessions() -> Response:
    """List where one is signed in."""
    return make_response(render_template("sessions.html", user=subject().name, sessions=archive().sessions.mine(subject())))


def session_end(number: int) -> Response:
    """End one."""
    ended = archive().sessions.end_mine(subject(), number)
    response = redirect("/login" if ended["current"] else "/me/sessions", code=303)
    if ended["current"]:
        session.clear_cookie(response)  # type: ignore[arg-type] # redirect makes a Flask response
    return response


def sessions_end() -> Response:
    """End all others."""
    archive().sessions.end_others(subject())
    return redirect("/me/sessions", code=303)


def _json(text: str) -> Response:
    return FlaskResponse(text, content_type="application/json")


def _with_cookie(response: Response, begun: SignedIn) -> Response:
    session.set_cookie(response, begun.token)  # type: ignore[arg-type] # as above
    return response
