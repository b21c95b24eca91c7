"""Signing in: by password, session, bearer and Basic; out; and what a failure tells."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

import pytest
import sqlalchemy as sa

from archive.access import passwords, sessions, throttle
from archive.access.permissions import Permission
from archive.access.sessions import Lifetime
from archive.db import tables
from archive.errors import Forbidden, InvalidRequest, Unauthenticated
from archive.services.signin import SignedIn
from tests.access import rows
from tests.services.office import Office

DESK = {"address": "192.0.2.7", "user_agent": "Browser/1"}
GOOD = "kq7vw mh3xz pp2ra tn8bd"
NEW = "another river behind the town"


def sign_in(office: Office, name: str = "admin", password: str = rows.PASSWORD) -> SignedIn:
    return office.signin.password(name, password, **DESK)


def refusal(call: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(Unauthenticated) as refused:
        call()
    return refused.value.message, refused.value.remedy


def test_a_password_makes_a_session(office: Office) -> None:
    made = sign_in(office)
    assert not made.must_change
    assert (made.subject.name, made.subject.kind, made.subject.via) == ("admin", "user", "web")
    me = office.signin.session(made.token, address="192.0.2.7")
    assert me == made.subject
    assert office.seen(me) == {"1.1.1", "1.1.2", "1.2.1", "2.1.1"}
    event = office.events()[0]
    assert (event.kind, event.outcome, event.principal_id) == ("signed-in", 0, office.owner.principal_id)


def test_the_idle_end_slides(office: Office) -> None:
    token = sign_in(office).token
    for _ in range(10):
        office.at += timedelta(minutes=14)
        assert office.seen(office.signin.session(token, address=""))
    office.at += timedelta(minutes=15)
    refusal(lambda: office.signin.session(token, address=""))


def test_every_failure_says_the_same_and_names_are_sealed(office: Office) -> None:
    office.user("nopassword")
    office.user("zoe", password=GOOD)
    office.accounts.disable_user(office.console, "zoe")
    told = {
        refusal(lambda name=name, password=password: sign_in(office, name, password))
        for name, password in (
            ("admin", "wrong wrong wrong"), ("quuxnobody", rows.PASSWORD), ("nopassword", ""), ("zoe", GOOD), ("console", rows.PASSWORD),
            ("", ""), ("a\0b", "x"), ("\ud800", "\ud800"), ("x" * 9999, "y" * 9999),
        )
    }
    assert len(told) == 1
    failed = [event for event in office.events() if event.kind == "signin-failed"]
    assert len(failed) == 9
    assert {event.principal_id for event in failed} == {None}
    named = failed[-2]
    assert named.body is not None
    assert named.body["detail"]["name"] == "quuxnobody"
    with office.place.database.read() as tx:
        leaves = b"".join(tx.execute(sa.select(tables.ledger_leaf.c.data)).scalars())
        everything = leaves + repr(tx.execute(sa.select(tables.login_attempt)).all()).encode()
    assert b"quux" not in everything
    assert all(rows.PASSWORD not in str(event.body) for event in office.events())


def test_a_name_of_nothing_but_accents_is_answered_as_any_other(office: Office) -> None:
    """Strangers may send one as long as a form may be; to compose it takes the square of its length."""
    began = time.process_time()
    assert refusal(lambda: sign_in(office, "a" + "\u0301\u0316" * 60_000)) == refusal(lambda: sign_in(office, "b"))
    assert time.process_time() - began < 5


def test_failures_slow_down_and_the_answer_stays_the_same(office: Office) -> None:
    wrong = {refusal(lambda: sign_in(office, "admin", "wrong wrong wrong")) for _ in range(throttle.FREE_HERE + 3)}
    assert wrong == {refusal(lambda: sign_in(office))}  # the right password, too soon
    assert len([event for event in office.events() if event.kind == "signin-failed"]) == throttle.FREE_HERE
    office.at += timedelta(minutes=15)
    sign_in(office)


@pytest.mark.usefixtures("costly")
def test_unknown_names_cost_the_same_work(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    work: list[str] = []

    class Counted:
        @staticmethod
        def verify_phc_encoded(_key: bytes, phc: str) -> None:
            work.append(phc.rsplit("$", 2)[0])
            raise passwords.InvalidKey

    passwords._nobody()
    monkeypatch.setattr(passwords, "Argon2id", Counted)
    for name in ("admin", "nobody"):
        refusal(lambda name=name: sign_in(office, name, "wrong wrong wrong"))
    assert len(work) == 2
    assert work[0] == work[1]


@pytest.mark.usefixtures("costly")
def test_older_parameters_are_replaced_at_sign_in(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as cheap:
        cheap.setattr(passwords, "MEMORY_KIB", 8192)
        office.user("ada", password=GOOD)
    sign_in(office, "ada", GOOD)
    with office.place.database.read() as tx:
        kept = tx.execute(sa.select(tables.credential.c.data).order_by(tables.credential.c.id.desc())).scalars().first()
    assert kept is not None
    assert "m=19456" in kept
    sign_in(office, "ada", GOOD)


def test_no_session_without_its_event(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> int:
        raise RuntimeError

    monkeypatch.setattr(office.ledger, "record", broken)
    with pytest.raises(RuntimeError):
        sign_in(office)
    with office.place.database.read() as tx:
        assert tx.execute(sa.select(sa.func.count()).select_from(tables.session)).scalar() == 0


def test_signing_out(office: Office) -> None:
    made = sign_in(office)
    office.signin.sign_out(made.subject)
    refusal(lambda: office.signin.session(made.token, address=""))
    assert office.seen(made.subject) == set()
    assert office.events()[0].kind == "signed-out"


def test_changing_the_password_ends_the_other_sessions(office: Office) -> None:
    here, elsewhere = sign_in(office), sign_in(office)
    path = office.config.storage_dir / "first-password"
    path.write_text(rows.PASSWORD + "\n")
    office.signin.change_password(here.subject, rows.PASSWORD, NEW)
    assert not path.exists()
    office.signin.session(here.token, address="")
    assert office.seen(here.subject)
    refusal(lambda: office.signin.session(elsewhere.token, address=""))
    assert office.seen(elsewhere.subject) == set()
    refusal(lambda: sign_in(office))
    sign_in(office, password=NEW)
    assert "password-changed" in [event.kind for event in office.events()]


def test_a_new_password_must_be_new_and_good_and_the_old_one_right(office: Office) -> None:
    me = sign_in(office).subject
    path = office.config.storage_dir / "first-password"
    path.write_text("somebody else's\n")
    for new in ("short", "passwordpassword", rows.PASSWORD):
        with pytest.raises(InvalidRequest):
            office.signin.change_password(me, rows.PASSWORD, new)
    refusal(lambda: office.signin.change_password(me, "wrong wrong wrong", NEW))
    office.at += timedelta(minutes=1)
    office.signin.change_password(me, rows.PASSWORD, NEW)
    assert path.exists()


def owes_password(office: Office, made: SignedIn) -> bool:
    standing = office.signin.standing(made.subject)
    assert standing is not None
    return standing.must_change


def test_a_reset_password_must_be_changed(office: Office) -> None:
    old = sign_in(office)
    drawn = office.accounts.reset_password(office.console, "admin")["password"]
    refusal(lambda: office.signin.session(old.token, address=""))
    made = sign_in(office, password=drawn)
    assert made.must_change
    assert owes_password(office, made)
    office.signin.change_password(made.subject, drawn, NEW)
    assert not owes_password(office, made)
    assert not sign_in(office, password=NEW).must_change


def test_bearer_and_basic_take_tokens_and_never_the_password(office: Office) -> None:
    token = office.accounts.create_token(office.console, owner="admin")["token"]
    for me in (office.signin.bearer(token, address="192.0.2.7"), office.signin.basic("admin", token, address="192.0.2.7")):
        assert (me.name, me.via, me.session_id) == ("admin", "token", None)
        assert me.limit is not None
        assert not me.limit & Permission.USER_MANAGE
        assert office.seen(me) == {"1.1.1", "1.1.2", "1.2.1", "2.1.1"}
        with pytest.raises(Forbidden):
            office.signin.change_password(me, rows.PASSWORD, NEW)
        with pytest.raises(Forbidden):
            office.accounts.add_user(me, "eve")
    office.user("bob")
    for call in (
        lambda: office.signin.basic("admin", rows.PASSWORD, address=""), lambda: office.signin.basic("bob", token, address=""),
        lambda: office.signin.basic("\ud800", token, address=""), lambda: office.signin.bearer(rows.PASSWORD, address=""),
        lambda: office.signin.bearer(sign_in(office).token, address=""), lambda: office.signin.session(token, address=""),
    ):
        refusal(call)
    assert office.accounts.list_tokens(office.console)[0]["last_used_at"] == office.at


def test_a_dead_token_in_a_loop_does_not_fill_the_ledger(office: Office) -> None:
    for _ in range(20):
        refusal(lambda: office.signin.bearer("sr_dead", address="192.0.2.7"))
    refusal(lambda: office.signin.bearer("sr_dead", address="192.0.2.8"))
    assert [event.kind for event in office.events()].count("signin-failed") == 2
    office.at += timedelta(minutes=10)
    refusal(lambda: office.signin.bearer("sr_dead", address="192.0.2.7"))
    assert [event.kind for event in office.events()].count("signin-failed") == 3


def test_passkeys_that_are_none_do_not_fill_the_ledger(office: Office) -> None:
    for n in range(20):
        refusal(lambda n=n: office.signin.passkey("{}" if n else "", address="192.0.2.7", user_agent=""))
    refusal(lambda: office.signin.passkey("{}", address="192.0.2.8", user_agent=""))
    assert [event.kind for event in office.events()].count("signin-failed") == 2
    office.at += timedelta(minutes=10)
    refusal(lambda: office.signin.passkey("{}", address="192.0.2.7", user_agent=""))
    refusal(lambda: office.signin.bearer("sr_dead", address="192.0.2.7"))
    assert [event.kind for event in office.events()].count("signin-failed") == 4


def test_refusals_are_told_again_once_a_clock_that_was_ahead_is_set_right(office: Office) -> None:
    office.at += timedelta(hours=5)
    refusal(lambda: office.signin.bearer("sr_dead", address="192.0.2.7"))
    office.at -= timedelta(hours=5)
    refusal(lambda: office.signin.bearer("sr_dead", address="192.0.2.7"))
    assert [event.kind for event in office.events()].count("signin-failed") == 2


def test_a_password_changed_while_it_was_looked_at_lets_nobody_in(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = passwords.verify

    def slowly(password: str, phc: str | None) -> None:
        real(password, phc)
        monkeypatch.setattr(passwords, "verify", real)
        office.accounts.reset_password(office.console, "admin")

    monkeypatch.setattr(passwords, "verify", slowly)
    refusal(lambda: sign_in(office))
    assert Lifetime().idle == sessions.IDLE
