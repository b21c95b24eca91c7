"""Signing in by two steps, being asked again, sessions and what roles ask of both: under a clock set by hand."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import MutableMapping
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from archive.access import throttle, totp
from archive.access.subject import Subject
from archive.db import tables
from archive.errors import Forbidden, InvalidRequest, NotFound, StateConflict, Unauthenticated
from archive.services.signin import SecondAsked, SignedIn
from archive.services.workitem_watch import Due
from archive.web.events import Events
from archive.web.session import cookie_name
from tests.services.office import Office

DESK = {"address": "192.0.2.7", "user_agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"}
GOOD = "kq7vw mh3xz pp2ra tn8bd"
STEP = timedelta(seconds=totp.STEP_S)


class User:
    """Somebody with a password and an authenticator app."""

    def __init__(self, office: Office, name: str = "mia", *roles: str) -> None:
        self.office, self.name = office, name
        self.id = office.user(name, *roles, password=GOOD).principal_id
        self.secret = b""

    def sign_in(self, code: str | None = None, **where: str) -> SignedIn:
        made = self.office.signin.password(self.name, GOOD, **{**DESK, **where})
        if isinstance(made, SignedIn):
            return made
        return self.office.signin.second(made.half, self.code() if code is None else code, **{**DESK, **where})

    def half(self) -> SecondAsked:
        made = self.office.signin.password(self.name, GOOD, **DESK)
        assert isinstance(made, SecondAsked)
        return made

    def enrol(self, me: Subject | None = None) -> list[str]:
        me = self.sign_in().subject if me is None else me
        begun = self.office.factors.begin_totp(me, "phone")
        self.secret = base64.b32decode(begun.secret.replace(" ", ""))
        codes = self.office.factors.confirm_totp(me, begun.id, self.code())
        self.office.at += STEP
        return codes

    def code(self, off: int = 0) -> str:
        return totp.code(self.secret, totp.step_of(self.office.at) + off)


def refused(call: object, *args: object) -> tuple[str, str]:
    with pytest.raises(Unauthenticated) as found:
        call(*args)  # type: ignore[operator]
    return found.value.message, found.value.remedy


def live(office: Office, token: str) -> bool:
    try:
        office.signin.session(token, address="")
    except Unauthenticated:
        return False
    return True


def test_a_factor_makes_the_password_half_a_sign_in(office: Office) -> None:
    mia = User(office)
    before = mia.sign_in()
    assert len(mia.enrol(before.subject)) == 10
    half = mia.half()
    assert half.kinds == {"totp"}
    assert not live(office, half.half)
    office.at += STEP
    made = office.signin.second(half.half, mia.code(), **DESK)
    assert made.subject.name == "mia"
    standing = office.signin.standing(made.subject)
    assert standing is not None
    assert (standing.level, standing.has_factor) == (2, True)
    event = office.events()[0]
    assert event.body is not None
    assert event.body["detail"]["how"] == "password and totp"


def test_enrolling_ends_the_other_sessions_and_lifts_this_one(office: Office) -> None:
    mia = User(office)
    other, mine = mia.sign_in(), mia.sign_in()
    mia.enrol(mine.subject)
    assert (live(office, other.token), live(office, mine.token)) == (False, True)
    standing = office.signin.standing(mine.subject)
    assert standing is not None
    assert standing.level == 2


def test_an_authenticator_that_was_not_shown_to_work_is_not_asked_for(office: Office) -> None:
    mia = User(office)
    me = mia.sign_in().subject
    begun = office.factors.begin_totp(me)
    refused(office.factors.confirm_totp, me, begun.id, "000000")
    assert isinstance(office.signin.password("mia", GOOD, **DESK), SignedIn)
    again = office.factors.begin_totp(me)
    with pytest.raises(NotFound):
        office.factors.confirm_totp(me, begun.id + 99, "000000")
    mia.secret = base64.b32decode(again.secret.replace(" ", ""))
    office.factors.confirm_totp(me, again.id, mia.code())
    with pytest.raises(StateConflict):
        office.factors.confirm_totp(me, again.id, mia.code(1))


@pytest.mark.parametrize("off", [-2, -1, 0, 1, 2])
def test_t24_the_window(office: Office, off: int) -> None:
    mia = User(office)
    mia.enrol()
    office.at += 5 * STEP
    half = mia.half().half
    if abs(off) <= 1:
        office.signin.second(half, mia.code(off), **DESK)
    else:
        refused(lambda: office.signin.second(half, mia.code(off), **DESK))


def test_t24_a_code_counts_once_and_none_before_it(office: Office) -> None:
    mia = User(office)
    mia.enrol()
    office.at += 5 * STEP
    first, second = mia.half().half, mia.half().half
    used = mia.code()
    office.signin.second(first, used, **DESK)
    told = {refused(lambda code=code: office.signin.second(second, code, **DESK)) for code in (used, mia.code(-1), "000000", "")}
    assert len(told) == 1
    office.at += STEP
    office.signin.second(second, mia.code(), **DESK)


def test_t24_a_recovery_code_is_good_once(office: Office) -> None:
    mia = User(office)
    codes = mia.enrol()
    assert len(set(codes)) == 10
    half = mia.half().half
    office.signin.second(half, codes[3].upper().replace("-", " "), **DESK)
    assert office.factors.listed(mia_subject(office, mia))["recovery_codes_left"] == 9
    refused(lambda: office.signin.second(half, codes[3], **DESK))
    again = office.factors.renew_codes(mia.sign_in(codes[4]).subject)
    refused(lambda: office.signin.second(half, codes[5], **DESK))
    office.signin.second(half, again[0], **DESK)
    with office.place.database.read() as tx:
        kept = repr(tx.execute(sa.select(tables.recovery_code)).all())
    assert not any(code in kept or code.replace("-", "") in kept for code in codes + again)
    assert mia.secret not in office_bytes(office)


def mia_subject(office: Office, mia: User) -> Subject:
    return Subject(mia.id, mia.name, "user", "internal")


def office_bytes(office: Office) -> bytes:
    with office.place.database.read() as tx:
        return b"".join(bytes(one) for one in tx.execute(sa.select(tables.factor.c.sealed)).scalars())


def test_t24_wrong_codes_slow_down_and_the_right_one_too_soon_is_as_wrong(office: Office) -> None:
    mia = User(office)
    mia.enrol()
    office.at += timedelta(hours=1)
    half = mia.half().half  # one attempt, and a failure until it is ended
    told = {refused(lambda: office.signin.second(half, "000000", **DESK)) for _ in range(throttle.FREE_HERE)}
    told.add(refused(lambda: office.signin.second(half, mia.code(), **DESK)))
    assert len(told) == 1
    office.at += timedelta(seconds=4)
    office.signin.second(half, mia.code(), **DESK)
    made = [event for event in office.events() if event.kind == "signin-failed"]
    assert {event.body["detail"]["how"] for event in made if event.body} == {"second factor"}


def test_a_known_password_alone_forgives_no_failure(office: Office) -> None:
    mia = User(office)
    mia.enrol()
    office.at += timedelta(hours=1)
    for _ in range(throttle.FREE_HERE):
        mia.half()
    refused(mia.half)
    office.at += timedelta(minutes=15)
    for _ in range(3):  # whoever ends their sign-ins is not slowed down
        mia.sign_in()
        office.at += STEP


def test_the_half_counts_five_minutes_and_with_its_password(office: Office) -> None:
    mia = User(office)
    codes = mia.enrol()
    half = mia.half().half
    office.at += timedelta(minutes=5)
    late = refused(lambda: office.signin.second(half, mia.code(), **DESK))
    half = mia.half().half
    office.accounts.reset_password(office.console, "mia", "another river behind the town")
    assert refused(lambda: office.signin.second(half, codes[0], **DESK)) == late
    for forged in ("", "x", "\ud800", half[:-4], half.swapcase(), "A" * 99999):
        assert refused(lambda forged=forged: office.signin.second(forged, codes[0], **DESK)) == late


def test_a_factor_moved_to_another_user_opens_nothing(office: Office) -> None:
    mia, zoe = User(office), User(office, "zoe")
    mia.enrol()
    zoe.enrol()
    with office.place.database.begin() as tx:
        tx.execute(sa.delete(tables.factor).where(tables.factor.c.principal_id == zoe.id))
        tx.execute(sa.update(tables.factor).where(tables.factor.c.principal_id == mia.id).values(principal_id=zoe.id))
    half = zoe.half().half
    refused(lambda: office.signin.second(half, mia.code(), **DESK))


def test_resetting_takes_factors_codes_and_sessions(office: Office) -> None:
    mia = User(office)
    mia.enrol()
    token = mia.sign_in().token
    assert office.accounts.reset_mfa(office.console, "mia")["removed"] == 1
    assert not live(office, token)
    mia.secret = b""
    assert isinstance(office.signin.password("mia", GOOD, **DESK), SignedIn)
    with office.place.database.read() as tx:
        assert tx.execute(sa.select(sa.func.count()).select_from(tables.recovery_code)).scalar_one() == 0
    clerk = office.user("clerk", "administrator")
    with pytest.raises(Forbidden):
        office.accounts.reset_mfa(clerk, "admin")


def test_a_token_changes_no_factor_and_ends_no_session(office: Office) -> None:
    mia = User(office)
    token = Subject(mia.id, "mia", "user", "token")
    for call in (
        lambda: office.factors.begin_totp(token), lambda: office.factors.renew_codes(token), lambda: office.factors.remove(token, 1),
        lambda: office.sessions.end_others(token), lambda: office.sessions.end_mine(token, 1), lambda: office.signin.confirm(token),
    ):
        with pytest.raises(Forbidden):
            call()


# --- what roles ask ---


def test_a_role_asks_for_a_factor_and_for_nothing_else_first(office: Office) -> None:
    mia = User(office, "mia", "technologist")
    office.accounts.role_signs_in(office.console, "technologist", second_factor=True)
    made = mia.sign_in()
    standing = office.signin.standing(made.subject)
    assert standing is not None
    assert standing.must_enrol
    mia.enrol(made.subject)
    after = office.signin.standing(made.subject)
    assert after is not None
    assert not after.must_enrol
    only = office.factors.listed(made.subject)["factors"][0]["id"]
    with pytest.raises(Forbidden):
        office.factors.remove(made.subject, only)
    office.accounts.role_signs_in(office.console, "technologist", second_factor=False)
    office.factors.remove(made.subject, only)
    assert office.factors.listed(made.subject)["recovery_codes_left"] == 0


def test_who_owes_a_factor_or_a_password_hears_no_event(office: Office) -> None:
    """The port of notifications asks of a session what every page does."""
    mia = User(office, "mia", "technologist")
    watch = SimpleNamespace(due=lambda *_args: Due([], 0, more=False), newest=lambda: 0)
    app = Events(SimpleNamespace(signin=office.signin, workitem_watch=watch), office.config, look_s=0.01, recheck_s=0.01)
    origin = office.config.archive.public_url.encode()

    def knock(word: str) -> str:
        cookie = f"{cookie_name(office.config)}={word}".encode()
        scope = {
            "type": "websocket", "path": "/dicomweb/subscribers/WATCH", "client": ("192.0.2.7", 1),
            "headers": [(b"cookie", cookie), (b"origin", origin)],
        }
        said, sent = [{"type": "websocket.connect"}, {"type": "websocket.disconnect"}], []

        async def receive() -> dict[str, str]:
            return said.pop(0)

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message["type"])

        asyncio.run(app(scope, receive, send))
        return str(sent[0])

    made = mia.sign_in()
    assert knock(made.token) == "websocket.accept"
    office.accounts.role_signs_in(office.console, "technologist", second_factor=True)
    assert knock(made.token) == "websocket.close"
    mia.enrol(made.subject)
    assert knock(made.token) == "websocket.accept"
    drawn = office.accounts.reset_password(office.console, "mia")["password"]
    half = office.signin.password("mia", drawn, **DESK)
    assert isinstance(half, SecondAsked)
    given = office.signin.second(half.half, mia.code(), **DESK)
    assert given.must_change
    assert knock(given.token) == "websocket.close"


@pytest.mark.parametrize("how", ["group", "grant", "ended", "other"])
def test_whoever_holds_the_role_by_group_or_grant_is_asked(office: Office, how: str) -> None:
    from archive.access.grants import Target

    mia = User(office)
    office.accounts.role_signs_in(office.console, "referrer", second_factor=True)
    if how == "group":
        office.accounts.add_group(office.console, "ward")
        office.accounts.join_group(office.console, "ward", "mia")
        office.accounts.assign_role(office.console, "ward", "referrer")
    elif how in ("grant", "ended"):
        made = office.accounts.add_grant(office.console, to="mia", role="referrer", target=Target("everything"))
        if how == "ended":
            office.accounts.revoke_grant(office.console, made["id"])
    else:
        office.accounts.assign_role(office.console, "mia", "technologist")
    standing = office.signin.standing(mia.sign_in().subject)
    assert standing is not None
    assert standing.must_enrol == (how in ("group", "grant"))


def test_a_role_shortens_sessions_and_never_lengthens_them(office: Office) -> None:
    mia = User(office, "mia", "technologist")
    office.accounts.role_signs_in(office.console, "technologist", idle_minutes=5, absolute_hours=2)
    token = mia.sign_in().token
    for _ in range(29):
        office.at += timedelta(minutes=4)
        assert live(office, token)
    office.at += timedelta(minutes=4, microseconds=-1)
    assert live(office, token)
    office.at += timedelta(microseconds=1)
    assert not live(office, token)
    token = mia.sign_in().token
    office.at += timedelta(minutes=5)
    assert not live(office, token)
    office.accounts.role_signs_in(office.console, "technologist", idle_minutes=600, absolute_hours=100)
    token = mia.sign_in().token
    office.at += timedelta(minutes=15)
    assert not live(office, token)


def test_nobody_loosens_what_their_own_role_asks(office: Office) -> None:
    keeper = office.user("keeper", "security-officer")
    office.accounts.role_signs_in(office.console, "security-officer", second_factor=True, idle_minutes=5)
    office.accounts.role_signs_in(keeper, "security-officer", idle_minutes=4)
    for looser in ({"second_factor": False}, {"idle_minutes": 0}, {"idle_minutes": 5}):
        with pytest.raises(Forbidden):
            office.accounts.role_signs_in(keeper, "security-officer", **looser)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest):
        office.accounts.role_signs_in(office.console, "auditor", idle_minutes=-1)
    with pytest.raises(Forbidden):
        office.accounts.role_signs_in(office.user("clerk", "administrator"), "auditor", second_factor=True)


# --- being asked again ---


def test_a_session_is_fresh_for_five_minutes(office: Office) -> None:
    me = User(office).sign_in().subject

    def fresh() -> bool:
        standing = office.signin.standing(me)
        assert standing is not None
        return office.signin.fresh(standing)

    assert fresh()
    office.at += timedelta(minutes=5, microseconds=-1)
    assert fresh()
    office.at += timedelta(microseconds=1)
    assert not fresh()
    refused(lambda: office.signin.confirm(me, password="wrong wrong wrong"))
    assert not fresh()
    office.signin.confirm(me, password=GOOD)
    assert fresh()


def test_confirming_changes_the_cookie_and_asks_the_factor_where_there_is_one(office: Office) -> None:
    mia = User(office)
    begun = mia.sign_in()
    mia.enrol(begun.subject)
    refused(lambda: office.signin.confirm(begun.subject, password=GOOD))
    after = office.signin.confirm(begun.subject, code=mia.code())
    assert (live(office, begun.token), live(office, after.token)) == (False, True)
    assert after.subject.session_id == begun.subject.session_id
    assert office.events()[0].kind == "stepped-up"


# --- sessions ---


def test_sessions_are_listed_and_ended(office: Office) -> None:
    mia = User(office)
    first, mine, third = mia.sign_in(), mia.sign_in(address="198.51.100.9"), mia.sign_in()
    listed = office.sessions.mine(mine.subject)
    assert {row["device"] for row in listed} == {"Firefox on Linux"}
    assert [(row["id"], row["address"]) for row in listed if row["current"]] == [(mine.subject.session_id, "198.51.100.9")]
    assert first.subject.session_id is not None
    office.sessions.end_mine(mine.subject, first.subject.session_id)
    assert (live(office, first.token), live(office, third.token)) == (False, True)
    with pytest.raises(NotFound):
        office.sessions.end_mine(mine.subject, first.subject.session_id)
    office.sessions.end_others(mine.subject)
    assert (live(office, mine.token), live(office, third.token)) == (True, False)
    stranger = User(office, "zoe").sign_in().subject
    assert mine.subject.session_id is not None
    with pytest.raises(NotFound):
        office.sessions.end_mine(stranger, mine.subject.session_id)
    with pytest.raises(Forbidden):
        office.sessions.of(stranger, "mia")
    clerk = office.user("clerk", "administrator")
    assert len(office.sessions.of(clerk, "mia")) == 1
    office.sessions.end_of(clerk, "mia")
    assert not live(office, mine.token)
    with pytest.raises(Forbidden):
        office.sessions.end_of(clerk, "admin")
    assert [event.kind for event in office.events() if event.kind == "session-ended"] == ["session-ended"] * 3


def test_a_new_sign_in_takes_the_place_of_the_browsers_session(office: Office) -> None:
    mia = User(office)
    first = mia.sign_in()
    office.signin.password("mia", GOOD, **DESK, replaced=first.token)
    assert not live(office, first.token)


def test_there_are_only_so_many_sessions(office: Office) -> None:
    mia = User(office)
    tokens = []
    for _ in range(office.config.signin.sessions + 2):
        tokens.append(mia.sign_in().token)
        office.at += timedelta(seconds=1)
    assert [live(office, token) for token in tokens] == [False] * 2 + [True] * office.config.signin.sessions
