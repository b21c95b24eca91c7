"""/api/session, /api/me and what an administrator does of it for others: second factors and sessions."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import msgspec
from flask import Response, g

from archive.access.permissions import Permission
from archive.web import session
from archive.web.api.operation import JSON, Asked, Operation, Taken, Told
from archive.web.api.roles import Role
from archive.web.context import archive, node, subject

_P = Permission


class Who(Told):
    """Who asks; `fresh_until` is the end of what a session may do without being asked again, null for a token."""

    name: str
    via: str
    second_factor: bool
    must_change_password: bool
    must_enrol: bool
    fresh_until: datetime | None = None


class Proof(Taken):
    """The password, or where there is a second factor a code of it."""

    password: str = ""
    code: str = ""


class Factor(Told):
    """A second factor."""

    id: int
    kind: str
    label: str
    created_at: datetime
    last_used_at: datetime | None


class Held(Told):
    """One's own second factors; `required` when a role asks for one, `passkeys` when the archive's address is fit for them."""

    factors: list[Factor]
    recovery_codes_left: int
    required: bool
    passkeys: bool


class NewFactor(Taken):
    """A name to tell the factor by."""

    label: str = ""


class Begun(Told):
    """An authenticator that counts once a code of it was confirmed; secret and picture are told this once."""

    id: int
    secret: str
    address: str
    picture: str


class Code(Taken):
    """The code an authenticator shows."""

    code: str


class Codes(Told):
    """Recovery codes, told this once; none when there were some already."""

    recovery_codes: list[str]


class Session(Told):
    """A browser's session."""

    id: int
    current: bool
    device: str
    address: str
    created_at: datetime
    last_seen_at: datetime
    idle_until: datetime
    until: datetime
    second_factor: bool


class FactorsReset(Told):
    """Whose second factors were taken away, and how many."""

    id: int
    name: str
    removed: int


def _who(_asked: Asked) -> Any:
    standing, asker = g.get("standing"), subject()
    minutes = timedelta(minutes=archive().config.signin.step_up_minutes)
    return {
        "name": asker.name, "via": asker.via, "second_factor": standing is not None and standing.level >= 2,
        "must_change_password": standing is not None and standing.must_change,
        "must_enrol": standing is not None and standing.must_enrol,
        "fresh_until": None if standing is None else standing.authn_at + minutes,
    }


def _confirm(asked: Asked) -> Response:
    begun = archive().signin.confirm(subject(), password=asked.body.password, code=asked.body.code)
    g.standing = archive().signin.standing(begun.subject)
    response = Response(msgspec.json.encode(msgspec.convert(_who(asked), Who)), content_type=JSON)
    session.set_cookie(response, begun.token)
    return response


def _confirm_totp(asked: Asked, number: int) -> Any:
    return {"recovery_codes": archive().factors.confirm_totp(subject(), number, asked.body.code)}


class SignInChange(Taken):
    """What a role asks of how its holders sign in: what is left out stays, 0 is the archive's own limit."""

    second_factor: bool | None = None
    idle_minutes: int | None = None
    absolute_hours: int | None = None


def _role(asked: Asked, role: str) -> Any:
    given: SignInChange = asked.body
    return node().accounts.role_signs_in(
        subject(), role, second_factor=given.second_factor, idle_minutes=given.idle_minutes, absolute_hours=given.absolute_hours
    )


OPERATIONS = (
    Operation("PATCH", "/roles/<role>/sign-in", "role_sign_in", "Set what a role asks of how its holders sign in", _P.ROLE_MANAGE, _role,
              Role, SignInChange, tag="identity", refuses=(404,)),
    Operation("GET", "/session", "session", "Say who asks, and how far the session has come", _P.NONE, _who, Who, tag="identity"),
    Operation("POST", "/session/confirm", "session_confirm", "Prove again who one is; the session gets a new cookie", _P.NONE, _confirm,
              Who, Proof, tag="identity"),
    Operation("GET", "/me/factors", "my_factors", "List one's own second factors", _P.NONE,
              lambda _asked: archive().factors.listed(subject()), Held, tag="identity"),
    Operation("POST", "/me/factors/totp", "my_totp_begin", "Begin an authenticator app", _P.NONE,
              lambda asked: archive().factors.begin_totp(subject(), asked.body.label), Begun, NewFactor, tag="identity"),
    Operation("POST", "/me/factors/<number>/confirm", "my_totp_confirm", "Let an authenticator count: a code shows that it works", _P.NONE,
              _confirm_totp, Codes, Code, tag="identity", refuses=(404, 409)),
    Operation("DELETE", "/me/factors/<number>", "my_factor_remove", "Take one of one's own factors away", _P.NONE,
              lambda _asked, number: archive().factors.remove(subject(), number), Factor, tag="identity", refuses=(404,)),
    Operation("POST", "/me/recovery-codes", "my_recovery_codes", "Draw ten new recovery codes; the earlier ones count no more", _P.NONE,
              lambda _asked: {"recovery_codes": archive().factors.renew_codes(subject())}, Codes, tag="identity"),
    Operation("GET", "/me/sessions", "my_sessions", "List one's own sessions", _P.NONE,
              lambda _asked: archive().sessions.mine(subject()), list[Session], tag="identity"),
    Operation("DELETE", "/me/sessions", "my_sessions_end", "End every other session of one's own", _P.NONE,
              lambda _asked: archive().sessions.end_others(subject()), list[Session], tag="identity"),
    Operation("DELETE", "/me/sessions/<number>", "my_session_end", "End one of one's own sessions", _P.NONE,
              lambda _asked, number: archive().sessions.end_mine(subject(), number), Session, tag="identity", refuses=(404,)),
    Operation("GET", "/users/<user>/sessions", "user_sessions", "List a user's sessions", _P.USER_MANAGE,
              lambda _asked, user: archive().sessions.of(subject(), user), list[Session], tag="identity", refuses=(404,)),
    Operation("DELETE", "/users/<user>/sessions", "user_sessions_end", "End all sessions of a user", _P.USER_MANAGE,
              lambda _asked, user: archive().sessions.end_of(subject(), user), list[Session], tag="identity", refuses=(404,)),
    Operation("DELETE", "/users/<user>/sessions/<number>", "user_session_end", "End a session of a user", _P.USER_MANAGE,
              lambda _asked, user, number: archive().sessions.end_of(subject(), user, number), list[Session], tag="identity",
              refuses=(404,)),
    Operation("DELETE", "/users/<user>/factors", "user_factors_reset", "Take a user's second factors away, and end the sessions",
              _P.USER_MANAGE, lambda _asked, user: node().accounts.reset_mfa(subject(), user), FactorsReset, tag="identity",
              refuses=(404,)),
)
