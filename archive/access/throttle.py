"""Slower with every wrong password: a doubling delay up to 15 minutes, never a lock.

Three counts, so that a stranger who guesses at an account delays himself first: failures of this account from this network, of this
account from anywhere, of this network at any account. Names and networks are kept as keyed pseudonyms. An attempt is counted as
failed before its password is looked at, so that a thousand at once are a thousand attempts.
"""

from __future__ import annotations

import ipaddress
import unicodedata
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from archive.db.prepared import Prepared
from archive.db.tables import login_attempt
from archive.errors import Unauthenticated
from archive.keys.keyring import Keyring

LONGEST = timedelta(minutes=15)
REMEMBERED = timedelta(hours=24)
FREE_HERE, FREE_ACCOUNT, FREE_NETWORK = 4, 10, 30
_TURN = Prepared(sa.select(sa.func.pg_advisory_xact_lock(sa.bindparam("number", type_=sa.BigInteger()))))


def begin(tx: sa.Connection, keyring: Keyring, name: str, address: str, *, at: datetime, besides: int = 0) -> int:
    """Count an attempt as failed and return its id, for `succeeded`; the attempt `besides` that it goes on with is left out of account.

    Raises:
        Unauthenticated: too soon after earlier failures; nothing is counted, and the answer is that of a wrong password.
    """
    account, network = _account(keyring, name), _network(keyring, address)
    _take_turn(tx, account, network)
    a = login_attempt.c
    # One from later than any wait was noted by a clock that has been set back since: who failed then would wait until that time comes.
    over = sa.or_(a.at <= at - REMEMBERED, a.at > at + LONGEST)
    tx.execute(sa.delete(login_attempt).where(a.account_hmac == account, over))
    tx.execute(sa.delete(login_attempt).where(a.network_hmac == network, over))
    here = sa.and_(a.account_hmac == account, a.network_hmac == network)
    for which, free, forgiven in (
        (here, FREE_HERE, True), (a.account_hmac == account, FREE_ACCOUNT, True), (a.network_hmac == network, FREE_NETWORK, False),
    ):
        if at < _next_try(tx, sa.and_(which, a.id != besides), free, forgiven=forgiven):
            message = "the name or the password is wrong"
            raise Unauthenticated(message)
    made = tx.execute(sa.insert(login_attempt).values(account_hmac=account, network_hmac=network, at=at, succeeded=False))
    assert made.inserted_primary_key is not None
    return int(made.inserted_primary_key[0])


def succeeded(tx: sa.Connection, attempt: int) -> None:
    """Turn a counted attempt into a success: earlier failures of the account are forgiven where it signed in."""
    tx.execute(sa.update(login_attempt).where(login_attempt.c.id == attempt).values(succeeded=True))


def delay(failures: int, free: int) -> timedelta:
    """Return how long after the last of so many failures the next attempt is looked at."""
    if failures < free:
        return timedelta(0)
    return min(timedelta(seconds=2 ** min(failures - free, 20)), LONGEST)


def _take_turn(tx: sa.Connection, *pseudonyms: bytes) -> None:
    """Wait until no other attempt of the account or the network is between its look and its count.

    On SQLite who writes has the turn of all. The order is that of the numbers, so that no two attempts wait for each other.
    """
    if tx.dialect.name == "postgresql":
        for number in sorted({int.from_bytes(one[:8], "big", signed=True) for one in pseudonyms}):
            _TURN.first(tx, {"number": number})


def _next_try(tx: sa.Connection, which: sa.ColumnElement[bool], free: int, *, forgiven: bool) -> datetime:
    a = login_attempt.c
    condition = sa.and_(which, a.succeeded == sa.false())
    if forgiven:
        last = sa.select(sa.func.coalesce(sa.func.max(a.id), 0)).where(which, a.succeeded == sa.true()).scalar_subquery()
        condition = sa.and_(condition, a.id > last)
    failures, latest = tx.execute(sa.select(sa.func.count(), sa.func.max(a.at)).where(condition)).one()
    return datetime.min.replace(tzinfo=UTC) if failures < free else latest + delay(failures, free)


def _account(keyring: Keyring, name: str) -> bytes:
    """Return what stands for an account by its name, however it is written: a directory takes it in any of these ways (RFC 4518 2)."""
    shown = "".join(one for one in unicodedata.normalize("NFKC", name).casefold() if unicodedata.category(one) != "Cf")
    return keyring.pseudonym("signin/account", " ".join(unicodedata.normalize("NFKC", shown).split()))


def _network(keyring: Keyring, address: str) -> bytes:
    """Return what stands for an address' /24 (IPv4) or /64 (IPv6); an IPv4 address inside IPv6 counts as IPv4."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return keyring.pseudonym("signin/network", address)
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    network = ipaddress.ip_network((found, 24 if found.version == 4 else 64), strict=False)
    return keyring.pseudonym("signin/network", str(network))
