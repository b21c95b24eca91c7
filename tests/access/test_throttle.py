"""Slower after failures, never locked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa

from archive.access import throttle
from archive.db import tables
from archive.db.engine import Database
from archive.errors import Unauthenticated
from archive.keys.keyring import Keyring


def test_the_delay_doubles_to_a_quarter_of_an_hour() -> None:
    assert [throttle.delay(n, 4).total_seconds() for n in (0, 3, 4, 5, 6, 13, 14, 40, 10_000)] == [0, 0, 1, 2, 4, 512, 900, 900, 900]


def attempts(database: Database, keyring: Keyring, name: str, address: str, start: datetime, count: int) -> list[datetime]:
    """Try again as soon as it is allowed; return when each attempt was looked at."""
    at, looked = start, []
    with database.begin() as tx:
        while len(looked) < count:
            try:
                throttle.begin(tx, keyring, name, address, at=at)
                looked.append(at)
            except Unauthenticated:
                at += timedelta(seconds=1)
    return looked


def test_one_guesser_is_slowed_and_never_locked_out(database: Database, keyring: Keyring, now: datetime) -> None:
    looked = attempts(database, keyring, "ada", "192.0.2.7", now, 9)
    assert [(at - now).total_seconds() for at in looked] == [0, 0, 0, 0, 1, 3, 7, 15, 31]
    with database.begin() as tx:
        throttle.begin(tx, keyring, "ada", "198.51.100.1", at=looked[-1])  # her own desk is another network
        throttle.begin(tx, keyring, "bob", "192.0.2.9", at=looked[-1])
        with pytest.raises(Unauthenticated):
            throttle.begin(tx, keyring, " ADA ", "192.0.2.200", at=looked[-1])  # the same /24, the name written otherwise
        throttle.begin(tx, keyring, "ada", "192.0.2.7", at=looked[-1] + timedelta(minutes=15))


def test_a_guesser_from_everywhere_is_slowed_too(database: Database, keyring: Keyring, now: datetime) -> None:
    with database.begin() as tx:
        for n in range(throttle.FREE_ACCOUNT):
            throttle.begin(tx, keyring, "ada", f"10.0.{n}.1", at=now)
        with pytest.raises(Unauthenticated):
            throttle.begin(tx, keyring, "ada", "10.1.0.1", at=now)


def test_spraying_many_names_from_one_network_is_slowed(database: Database, keyring: Keyring, now: datetime) -> None:
    with database.begin() as tx:
        for n in range(throttle.FREE_NETWORK):
            throttle.begin(tx, keyring, f"user{n}", f"2001:db8::{n:x}", at=now)
        with pytest.raises(Unauthenticated):
            throttle.begin(tx, keyring, "another", "2001:db8::ffff:1", at=now)
        throttle.begin(tx, keyring, "another", "2001:db8:0:1::1", at=now)


def test_signing_in_forgives_and_a_day_forgets(database: Database, keyring: Keyring, now: datetime) -> None:
    last = attempts(database, keyring, "ada", "192.0.2.7", now, 6)[-1]
    with database.begin() as tx:
        at = last + timedelta(minutes=1)
        throttle.succeeded(tx, throttle.begin(tx, keyring, "ada", "192.0.2.7", at=at))
        for _ in range(throttle.FREE_HERE):
            throttle.begin(tx, keyring, "ada", "::ffff:192.0.2.7", at=at)
        with pytest.raises(Unauthenticated):
            throttle.begin(tx, keyring, "ada", "192.0.2.7", at=at)
        throttle.begin(tx, keyring, "ada", "192.0.2.7", at=at + timedelta(hours=25))
        assert tx.execute(sa.select(sa.func.count()).select_from(tables.login_attempt)).scalar() == 1


@pytest.mark.parametrize("other", ["ada", "bob"])
def test_nobody_is_locked_out_by_failures_under_a_clock_that_was_set_back(
    database: Database, keyring: Keyring, now: datetime, other: str
) -> None:
    """Of the account, or of the network at any account."""
    ahead = now + timedelta(days=400)
    with database.begin() as tx:
        for n in range(throttle.FREE_NETWORK):
            with suppress(Unauthenticated):
                throttle.begin(tx, keyring, "ada" if other == "ada" else f"user{n}", "192.0.2.7", at=ahead)
    [looked] = attempts(database, keyring, other, "192.0.2.7", now, 1)
    assert looked - now <= throttle.LONGEST


def test_of_many_at_once_no_more_pass_than_one_after_the_other(database: Database, keyring: Keyring, now: datetime) -> None:
    """Of one account from one network, of one account from anywhere, of one network at any account."""
    ways = {
        throttle.FREE_HERE: lambda n: ("ada", "192.0.2.7"), throttle.FREE_ACCOUNT: lambda n: ("bob", f"10.0.{n}.1"),
        throttle.FREE_NETWORK: lambda n: (f"user{n}", "198.51.100.1"),
    }
    for free, of in ways.items():
        with database.begin() as tx:
            for n in range(free):
                throttle.begin(tx, keyring, *of(n), at=now)
        gate, looked = threading.Barrier(8), []

        def once(n: int, of: Callable[[int], tuple[str, str]] = of, gate: threading.Barrier = gate, looked: list[int] = looked) -> None:
            gate.wait()
            with suppress(Unauthenticated), database.begin(durable=False) as tx:
                throttle.begin(tx, keyring, *of(n), at=now + timedelta(seconds=1))
                looked.append(n)

        threads = [threading.Thread(target=once, args=(100 + n,)) for n in range(8)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert len(looked) == 1, free


def test_names_and_addresses_are_not_kept(database: Database, keyring: Keyring, now: datetime) -> None:
    with database.begin() as tx:
        throttle.begin(tx, keyring, "ada", "not an address", at=now)
        kept = str(tx.execute(sa.select(tables.login_attempt)).mappings().one())
    assert "ada" not in kept
    assert "address" not in kept


def test_a_clock_that_was_ahead_locks_nobody_out(database: Database, keyring: Keyring, now: datetime) -> None:
    """Failures that were noted by it would keep whoever failed then waiting until that time comes."""
    for ahead in (timedelta(hours=5), timedelta(days=365)):
        attempts(database, keyring, "ada", "192.0.2.7", now + ahead, 8)
        with suppress(Unauthenticated), database.begin() as tx:
            throttle.begin(tx, keyring, "ada", "192.0.2.7", at=now)  # one that is refused leaves nothing behind
        at = now + throttle.LONGEST
        with database.begin() as tx:
            throttle.succeeded(tx, throttle.begin(tx, keyring, "ada", "192.0.2.7", at=at))
            assert tx.execute(sa.select(sa.func.max(tables.login_attempt.c.at))).scalar() == at


def test_a_clock_set_right_by_minutes_forgets_no_failure(database: Database, keyring: Keyring, now: datetime) -> None:
    attempts(database, keyring, "ada", "192.0.2.7", now, throttle.FREE_HERE)
    with database.begin() as tx, pytest.raises(Unauthenticated):
        throttle.begin(tx, keyring, "ada", "192.0.2.7", at=now - timedelta(minutes=10))
