"""Share links: who may make one, what it shows, and every way in which it ends, on a clock that is set by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from archive.access import share_codes, shares
from archive.access.grants import Target
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.engine import Database
from archive.db.tables import share_code, share_link, share_session
from archive.errors import ArchiveError, Forbidden, InvalidRequest, NotFound, StateConflict, Unauthenticated, Unavailable
from archive.services.shares import Wanted
from tests.services.office import Office
from tests.services.shares_world import BROWSER, World

P = Permission
BOTH = {"1.1.1", "1.1.2"}
ONE_ENGINE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture
def world(office: Office) -> World:
    """Codes are told apart."""
    return World(office)


@pytest.fixture
def mailing(office: Office) -> World:
    """Codes are mailed."""
    return World(office, mail=True)


@ONE_ENGINE
def test_a_link_shows_what_was_shared_and_nothing_else(world: World) -> None:
    made = world.create(series=["1.1.1"], studies=[])
    visitor = world.visitor(world.enter(made))
    assert world.seen(world.doc) >= BOTH | {"1.2.1"}
    for need in (P.SEARCH, P.METADATA, P.PIXELS):
        assert world.seen(visitor, need) == {"1.1.1"}
    for need in (P.ORIGINAL, P.DELETE, P.UPDATE, P.SEND):
        assert world.seen(visitor, need) == set()
    whole = world.visitor(world.enter(world.create(download=True)))
    assert world.seen(whole) == world.seen(whole, P.ORIGINAL) == BOTH


@ONE_ENGINE
def test_only_what_one_may_share_is_shared_and_the_rest_is_not_there(world: World) -> None:
    told = set()
    for uid in ("1.2", "2.1", "9.9", "", "x", "1.1.1"):  # seen and not shared, unseen, absent, no UID, a series
        for act in (world.shares.create, world.shares.preview):
            with pytest.raises(NotFound) as refused:
                act(world.doc, Wanted(studies=["1.1", uid]))
            told.add((refused.value.message, refused.value.remedy))
    assert len(told) == 1
    with world.office.place.database.read() as tx:
        assert tx.execute(sa.select(sa.func.count()).select_from(share_link)).scalar_one() == 0


@ONE_ENGINE
def test_a_look_at_it_first_makes_nothing(world: World) -> None:
    told = world.shares.preview(world.doc, Wanted(studies=["1.1"], series=["1.1.2"], recipient="Dr\nOtt  "))
    assert (told["recipient"], told["code_by"], told["owner"]) == ("Dr Ott", "apart", "doc")
    assert [(one["level"], one["uid"], one["series"], one["instances"]) for one in told["items"]] == [
        ("study", "1.1", 2, 2), ("series", "1.1.2", 1, 1),
    ]
    assert told["until"] == world.office.at + timedelta(days=7)
    assert world.shares.list(world.doc) == []
    assert world.office.events()[0].body["detail"] == {"what": "share-preview"}  # type: ignore[index]


@ONE_ENGINE
def test_it_ends_at_its_end_and_never_later_than_the_archive_allows(world: World) -> None:
    with pytest.raises(InvalidRequest):
        world.create(until="91d")
    with pytest.raises(InvalidRequest):
        world.create(until=world.office.at)
    assert world.create(until="90d")["until"] == world.office.at + timedelta(days=90)
    made = world.create()
    session = world.enter(made)
    visitor = world.visitor(session)
    fresh = world.create(until="20m")
    short = world.enter(fresh)
    world.later(minutes=20, microseconds=-1)
    assert world.seen(world.visitor(short)) == BOTH
    world.later(microseconds=1)
    with pytest.raises(Unauthenticated):
        world.visitor(short)
    assert world.seen(visitor) == BOTH
    world.later(days=7, minutes=-20, microseconds=-1)
    assert world.door.ask(world.word(made)).code_by == "apart"
    world.later(microseconds=1)
    with pytest.raises(NotFound):
        world.door.ask(world.word(made))
    assert world.shares.list(world.doc)[1]["state"] == "expired"


@ONE_ENGINE
def test_a_session_ends_when_it_is_idle_and_at_its_end(world: World) -> None:
    made = world.create()
    session = world.enter(made)
    for _ in range(24):
        world.later(minutes=29, seconds=59)
        visitor = world.visitor(session)
    assert world.seen(visitor) == BOTH
    world.later(minutes=1)
    with pytest.raises(Unauthenticated):
        world.visitor(session)
    assert world.seen(visitor) == set()
    other = world.enter(made, world.shares.new_code(world.doc, made["id"])["code"])
    visitor = world.visitor(other)
    world.later(minutes=30)
    assert world.seen(visitor) == set()
    with pytest.raises(Unauthenticated):
        world.visitor(other)


ENDINGS: dict[str, Callable[[World, int], object]] = {
    "revoked": lambda w, share: w.shares.revoke(w.doc, share),
    "by whoever manages users": lambda w, share: w.shares.revoke(w.office.console, share),
    "the sharer loses the grant": lambda w, _: w.office.accounts.revoke_grant(w.office.console, w.grant["id"]),
    "the sharer is denied": lambda w, _: w.office.accounts.add_grant(
        w.office.console, to="doc", role="referrer", target=Target("study", "1.1"), deny=True),
    "the sharer is disabled": lambda w, _: w.office.accounts.disable_user(w.office.console, "doc"),
    "the sharer is removed": lambda w, _: w.office.accounts.remove_user(w.office.console, "doc"),
}


def test_it_dies_at_once_whatever_ends_it(world: World) -> None:
    accounts, console = world.office.accounts, world.office.console
    for what, ending in ENDINGS.items():
        made = world.create()
        visitor = world.visitor(world.enter(made))
        assert world.seen(visitor) == BOTH, what
        ending(world, made["id"])
        assert world.seen(visitor) == set(), what
        if "loses" in what:
            world.grant = accounts.add_grant(console, to="doc", role="radiologist", target=Target("study", "1.1"))
        elif "denied" in what:
            accounts.revoke_grant(console, next(row["id"] for row in accounts.list_grants(console, to="doc") if row["effect"] == "deny"))
        elif "disabled" in what:
            accounts.enable_user(console, "doc")


@ONE_ENGINE
def test_who_may_see_but_share_no_longer_shares_no_longer(world: World) -> None:
    made = world.create()
    visitor = world.visitor(world.enter(made))
    world.office.accounts.add_grant(world.office.console, to="doc", role="referrer", target=Target("study", "1.1"))
    world.office.accounts.revoke_grant(world.office.console, world.grant["id"])
    assert world.seen(world.doc) >= BOTH
    assert world.seen(visitor) == set()


@ONE_ENGINE
def test_a_link_that_opens_nothing_tells_the_same_whatever_it_was(world: World) -> None:
    live, revoked, used = world.create(), world.create(), world.create(max_views=1)
    expired = world.create(until="1h")
    world.shares.revoke(world.doc, revoked["id"])
    world.enter(used)
    world.later(hours=1)
    told = set()
    words = [world.word(one) for one in (revoked, used, expired)]
    words += ["", "x" * 43, "A" * 42, "ä" * 43, "\0" * 43, world.word(live)[:-1] + "_"]
    for word in words:
        for act in (world.door.ask, lambda one: world.door.enter(one, "123456", **BROWSER)):
            with pytest.raises(NotFound) as refused:
                act(word)
            told.add((refused.value.message, refused.value.remedy, refused.value.code))
    assert len(told) == 1
    assert world.door.ask(world.word(live)).code_by == "apart"


def test_words_that_open_nothing_keep_nobody_from_writing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody sends them, as many as they like."""
    live, revoked = world.create(), world.create()
    world.shares.revoke(world.doc, revoked["id"])
    begin, begun = Database.begin, []

    def counted(database: Database, **options: Any) -> Any:
        begun.append(True)
        return begin(database, **options)

    monkeypatch.setattr(Database, "begin", counted)
    for word in ("", "x" * 42, "x" * 43, world.word(revoked)):
        for act in (world.door.ask, lambda one: world.door.enter(one, "123456", **BROWSER)):
            with pytest.raises(NotFound):
                act(word)
    assert not begun
    world.door.ask(world.word(live))
    assert begun


@ONE_ENGINE
def test_the_view_count_is_a_bound(world: World) -> None:
    made = world.create(max_views=2)
    assert world.enter(made)
    code = world.shares.new_code(world.doc, made["id"])["code"]
    second = world.enter(made, code)
    assert world.seen(world.visitor(second)) == BOTH  # the last one goes on
    row = world.shares.list(world.doc)[0]
    assert (row["views"], row["state"], row["last_opened_at"]) == (2, "used up", world.office.at)
    with pytest.raises(NotFound):
        world.shares.new_code(world.doc, made["id"])
    for wrong in (0, -1, 10_001):
        with pytest.raises(InvalidRequest):
            world.create(max_views=wrong)


# --- codes ------------------------------------------------------------------------------------------------------------------------


def test_a_code_counts_once_and_few_wrong_ones_are_looked_at(world: World) -> None:
    made = world.create()
    wrong = "000000" if made["code"] != "000000" else "111111"
    told = {world.refused(made, one) for one in (wrong, "", "12345", "٠١٢٣٤٥")}
    assert world.enter(made, f" {made['code'][:3]} {made['code'][3:]}-")
    told.add(world.refused(made, made["code"]))  # a replay
    again = world.shares.new_code(world.doc, made["id"])
    for _ in range(share_codes.TRIES):
        told.add(world.refused(made, wrong if again["code"] != wrong else "222222"))
    told.add(world.refused(made, again["code"]))
    assert len(told) == 1
    assert not world.shares.list(world.doc)[0]["code_waits"]
    assert world.shares.list(world.doc)[0]["views"] == 1


@ONE_ENGINE
def test_codes_are_not_drawn_without_end(world: World) -> None:
    made = world.create()
    for _ in range(2 * share_codes.A_DAY - 1):
        made["code"] = world.shares.new_code(world.doc, made["id"])["code"]
    with pytest.raises(StateConflict):
        world.shares.new_code(world.doc, made["id"])
    world.later(days=1)
    assert world.enter(made, world.shares.new_code(world.doc, made["id"])["code"])


@ONE_ENGINE
def test_mailed_codes_last_ten_minutes_and_are_not_sent_without_end(mailing: World) -> None:
    made = mailing.create(email="otto@praxis.example")
    assert (made["code"], made["code_by"]) == (None, "mail")
    word, door = mailing.word(made), mailing.door
    first = door.ask(word)
    assert (first.sent, first.hint) == (True, "o…@p….example")
    assert mailing.post.sent[0][2] == ["otto@praxis.example"]
    assert "doc" in mailing.post.sent[0][1]
    assert not door.ask(word).sent
    mailing.later(minutes=1)
    old = mailing.post.code
    assert door.ask(word).sent
    if old != mailing.post.code:
        mailing.refused(made, old)
    mailing.later(minutes=10, microseconds=-1)
    assert door.enter(word, mailing.post.code, **BROWSER)
    assert door.ask(word).sent
    mailing.later(minutes=10)
    mailing.refused(made, mailing.post.code)
    for _ in range(2):
        assert door.ask(word).sent
        mailing.later(minutes=2)
    assert not door.ask(word).sent
    assert len(mailing.post.sent) == share_codes.A_DAY
    mailing.later(days=1)
    assert door.ask(word).sent


@ONE_ENGINE
def test_codes_are_mailed_again_once_a_clock_that_was_ahead_is_set_right(mailing: World) -> None:
    word = mailing.word(mailing.create(email="otto@praxis.example"))
    mailing.later(hours=5)
    for _ in range(share_codes.A_DAY):
        assert mailing.door.ask(word).sent
        mailing.later(minutes=1)
    session = mailing.door.enter(word, mailing.post.code, **BROWSER)
    assert mailing.visitor(session)
    mailing.later(hours=-5)
    with pytest.raises(Unauthenticated):
        mailing.visitor(session)  # its idle end was noted by that clock, and lies hours away
    assert mailing.door.ask(word).sent
    assert not mailing.door.ask(word).sent
    assert mailing.visitor(mailing.door.enter(word, mailing.post.code, **BROWSER))


@ONE_ENGINE
def test_a_code_that_cannot_be_mailed_counts_for_nothing(mailing: World) -> None:
    made = mailing.create(email="otto@praxis.example")
    mailing.post.down = True
    with pytest.raises(Unavailable):
        mailing.door.ask(mailing.word(made))
    with mailing.office.place.database.read() as tx:
        assert not share_codes.waiting(tx, made["id"], at=mailing.office.at)
    for wrong in ("otto", "a@b@c.example", "a@b\r\nBcc: x@y.example", "a b@c.example", "<a@b.example>", "a@b..example", "a,b@c.example"):
        with pytest.raises(InvalidRequest):
            mailing.create(email=wrong)


# --- who ----------------------------------------------------------------------------------------------------------------------------


@ONE_ENGINE
def test_the_console_makes_one_in_a_users_right_only(world: World) -> None:
    office, wanted = world.office, Wanted(studies=["1.1"])
    with pytest.raises(InvalidRequest, match="user's right"):
        world.shares.create(office.console, wanted)
    with pytest.raises(NotFound):
        world.shares.create(office.console, Wanted(studies=["1.2"]), owner="doc")
    made = world.shares.create(office.console, wanted, owner="doc")
    assert made["owner"] == "doc"
    assert world.seen(world.visitor(world.enter(made))) == BOTH
    assert [row["id"] for row in world.shares.list(office.console)] == [made["id"]]
    office.accounts.disable_user(office.console, "doc")
    with pytest.raises(InvalidRequest):
        world.shares.create(office.console, wanted, owner="doc")


@ONE_ENGINE
def test_others_see_and_end_no_link_of_mine(world: World) -> None:
    made = world.create()
    office = world.office
    other, clerk, auditor = office.user("other"), office.user("clerk", "administrator"), office.user("auditor", "auditor")
    assert world.shares.list(other) == []
    for act in (world.shares.revoke, world.shares.new_code):
        with pytest.raises(NotFound):
            act(other, made["id"])
    with pytest.raises(Forbidden):
        world.shares.list(other, everybody=True)
    assert [row["id"] for row in world.shares.list(auditor, everybody=True)] == [made["id"]]
    with pytest.raises(NotFound):
        world.shares.revoke(auditor, made["id"])
    with pytest.raises(NotFound):
        world.shares.new_code(clerk, made["id"])  # who could draw one could come in
    assert world.shares.revoke(clerk, made["id"])["state"] == "revoked"


def test_a_link_made_with_a_token_is_bound_as_the_token_and_ends_with_it(world: World) -> None:
    office = world.office
    told = office.accounts.create_token(office.console, owner="doc", series=["1.1.1"])
    token = office.signin.bearer(told["token"], address="192.0.2.7")
    made = world.shares.create(token, Wanted(studies=["1.1"]))
    assert made["sees"][0]["series"] == 1
    session = world.enter(made)
    visitor = world.visitor(session)
    assert world.seen(visitor) == {"1.1.1"}
    apart = world.create()
    assert [row["id"] for row in world.shares.list(token)] == [made["id"]]
    with pytest.raises(NotFound):
        world.shares.revoke(token, apart["id"])
    narrow = office.accounts.create_token(office.console, owner="doc", permissions=["search", "share"])
    with pytest.raises(NotFound):
        world.shares.create(office.signin.bearer(narrow["token"], address=""), Wanted(studies=["1.1"]))
    office.accounts.revoke_token(office.console, told["id"])
    assert world.seen(visitor) == set()
    with pytest.raises(Unauthenticated):
        world.visitor(session)
    with pytest.raises(NotFound):
        world.door.ask(world.word(made))


@ONE_ENGINE
def test_a_visitor_makes_and_lists_nothing(world: World) -> None:
    visitor = world.visitor(world.enter(world.create()))
    for act in (world.shares.create, world.shares.preview):
        with pytest.raises(Forbidden):
            act(visitor, Wanted(studies=["1.1"]))


@ONE_ENGINE
def test_a_visitor_who_is_not_quite_one_sees_nothing(world: World) -> None:
    made, other = world.create(), world.create()
    visitor = world.visitor(world.enter(made))
    later = world.visitor(world.enter(other))
    replaced = {
        "another's link": {"share_id": other["id"]}, "another's session": {"share_session_id": later.share_session_id},
        "another's bound": {"boundary_ids": later.boundary_ids}, "no bound": {"boundary_ids": ()}, "no session": {"share_session_id": 0},
        "another person": {"principal_id": world.office.owner.principal_id}, "a token": {"token_id": 1},
    }
    for what, change in replaced.items():
        assert world.seen(dataclasses.replace(visitor, **change)) == set(), what
    assert world.seen(visitor) == BOTH


# --- what is written --------------------------------------------------------------------------------------------------------------


@ONE_ENGINE
def test_every_step_is_an_event_and_no_secret_is_in_any(world: World, caplog: pytest.LogCaptureFixture) -> None:
    made = world.create(recipient="Dr Otto Geheim", email="otto@geheim.example")
    world.refused(made, "999999" if made["code"] != "999999" else "888888")
    session = world.enter(made)
    visitor = world.visitor(session)
    world.door.leave(visitor)
    world.shares.revoke(world.doc, made["id"])
    events = [row for row in world.office.events() if row.kind.startswith("share")]
    assert [(row.kind, row.outcome) for row in reversed(events)] == [
        ("shared", 0), ("share-opened", 8), ("share-opened", 0), ("share-closed", 0), ("share-changed", 0),
    ]
    opened = events[2].body
    assert opened is not None
    assert {name: opened["subject"][name] for name in ("via", "share", "name")} == {"via": "share", "share": made["id"], "name": "doc"}
    assert len(opened["subject"]["recipient"]) == 32
    shared = events[4].body
    assert shared is not None
    assert shared["objects"] == [["study", "1.1"]]
    assert opened["subject"]["recipient"] == shared["detail"]["recipient"]
    text = msgspec.json.encode([row.body for row in events]).decode() + caplog.text
    for secret in (world.word(made), made["code"], session, "Geheim", "geheim.example"):
        assert secret not in text
    with world.office.place.database.read() as tx:
        for table in (share_link, share_code, share_session):
            rows = repr([tuple(row) for row in tx.execute(sa.select(table))])
            assert not any(secret in rows for secret in (world.word(made), session)), table.name
    assert world.seen(visitor) == set()
    with pytest.raises(Unauthenticated):
        world.visitor(session)


@ONE_ENGINE
def test_what_ended_long_ago_is_forgotten(world: World) -> None:
    old = world.create(until="1h")
    world.enter(old)
    world.later(days=31)
    new = world.create()
    session = world.enter(new)
    with world.office.place.database.begin() as tx:
        shares.sweep(tx, world.office.at)
        kept = [tx.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() for table in (share_session, share_code, share_link)]
    assert kept == [1, 1, 2]
    assert world.seen(world.visitor(session)) == BOTH


@ONE_ENGINE
def test_the_words_are_long_and_kept_under_the_pepper(world: World) -> None:
    words = {world.word(world.create()) for _ in range(5)}
    assert len(words) == 5
    assert all(len(word) == 43 for word in words)
    with world.office.place.database.read() as tx:
        kept = {bytes(one) for one in tx.execute(sa.select(share_link.c.token_hmac)).scalars()}
    assert kept == {shares.kept(world.core.keyring, word) for word in words}


@ONE_ENGINE
def test_what_is_refused_is_refused_before_anything_is_made(world: World) -> None:
    with pytest.raises(InvalidRequest):
        world.create(studies=[])
    with pytest.raises(InvalidRequest):
        world.create(studies=["1.1"] * 201)
    nobody = Subject(world.doc.principal_id, "doc", "device", "dimse")
    with pytest.raises(Forbidden):
        world.shares.create(nobody, Wanted(studies=["1.1"]))
    with pytest.raises(ArchiveError):
        world.create(datastore="elsewhere")
