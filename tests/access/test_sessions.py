"""Browser sessions: idle, absolute, ended."""

from __future__ import annotations

from datetime import datetime, timedelta

import sqlalchemy as sa

from archive.access import principals, sessions
from archive.access.sessions import Lifetime
from archive.db import tables
from archive.errors import Unauthenticated
from tests.access.rows import Place

LIFE = Lifetime()
MICRO = timedelta(microseconds=1)


def start(tx: sa.Connection, place: Place, at: datetime | None = None) -> tuple[int, str]:
    return sessions.create(tx, place.first.owner_id, at=at or place.at, lifetime=LIFE, address="", user_agent="")


def live(tx: sa.Connection, word: str, at: datetime) -> bool:
    try:
        sessions.find(tx, word, at=at)
    except Unauthenticated:
        return False
    return True


def test_what_a_browser_calls_itself_is_cut(place: Place) -> None:
    with place.database.begin() as tx:
        _, word = sessions.create(tx, place.first.owner_id, at=place.at, lifetime=LIFE, address="", user_agent="x" * 100_000)
        assert sessions.find(tx, word, at=place.at).user_agent == "x" * 300


def test_the_word_is_not_kept(place: Place) -> None:
    with place.database.begin() as tx:
        _, word = start(tx, place)
        assert len(word) == 43
        assert word not in str(tx.execute(sa.select(tables.session)).mappings().one())
        found = sessions.find(tx, word, at=place.at)
        assert (found.principal_id, found.name, found.kind) == (place.first.owner_id, "admin", "user")
        for wrong in ("", word[:-1], word + "x", "\ud800"):
            assert not live(tx, wrong, place.at)


def test_idle_slides_and_absolute_does_not(place: Place) -> None:
    with place.database.begin() as tx:
        _, word = start(tx, place)
        at = place.at
        assert live(tx, word, at + LIFE.idle - MICRO)
        assert not live(tx, word, at + LIFE.idle)
        while at + LIFE.idle < place.at + LIFE.absolute:
            at += timedelta(minutes=14)
            sessions.touch(tx, sessions.find(tx, word, at=at), at=at)
        assert live(tx, word, place.at + LIFE.absolute - MICRO)
        assert not live(tx, word, place.at + LIFE.absolute)


def test_touching_an_ended_session_does_not_revive_it(place: Place) -> None:
    with place.database.begin() as tx:
        key, word = start(tx, place)
        found = sessions.find(tx, word, at=place.at)
        sessions.end(tx, key, at=place.at)
        sessions.touch(tx, found, at=place.at)
        assert not live(tx, word, place.at)


def test_a_scope_ends_with_the_session(place: Place) -> None:
    with place.database.begin() as tx:
        key, _ = start(tx, place)
    me = place.subject(place.first.owner_id, session_id=key)
    assert place.seen(me)
    assert place.seen(me, at=place.at + LIFE.idle) == set()
    with place.database.begin() as tx:
        sessions.end(tx, key, at=place.at)
    assert place.seen(me) == set()


def test_all_others_end_together(place: Place) -> None:
    with place.database.begin() as tx:
        (keep, kept), (other, gone) = start(tx, place), start(tx, place)
        sessions.end_all(tx, place.first.owner_id, at=place.at, keep=keep)
        assert live(tx, kept, place.at)
        assert not live(tx, gone, place.at)
    assert place.seen(place.subject(place.first.owner_id, session_id=keep))
    assert not place.seen(place.subject(place.first.owner_id, session_id=other))


def test_switching_a_user_off_and_on_does_not_bring_sessions_back(place: Place) -> None:
    with place.database.begin() as tx:
        _, word = start(tx, place)
        principals.set_enabled(tx, place.first.owner_id, enabled=False, at=place.at)
        assert not live(tx, word, place.at)
        principals.set_enabled(tx, place.first.owner_id, enabled=True, at=place.at)
        assert not live(tx, word, place.at)


def test_a_session_of_a_clock_that_was_ahead_has_ended(place: Place) -> None:
    """Its ends were noted by that clock, and lie hours or years away."""
    with place.database.begin() as tx:
        key, word = start(tx, place)
        for ahead in (timedelta(hours=5), timedelta(days=365)):
            _, other = start(tx, place, place.at + ahead)
            assert not live(tx, other, place.at)
        assert [row["id"] for row in sessions.live_of(tx, place.first.owner_id, at=place.at)] == [key]
        assert live(tx, word, place.at - timedelta(seconds=30))  # set right by a little, or read a moment earlier
        sessions.touch(tx, sessions.find(tx, word, at=place.at), at=place.at + timedelta(minutes=5))
        assert not live(tx, word, place.at)
