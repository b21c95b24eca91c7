"""How every way of signing in ends: attempts counted, a second factor asked for, a session begun; each with its event."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from archive.access import credentials, demands, external, factors, halves, passkeys, principals, recovery, roles, sessions, throttle
from archive.access.credentials import Account
from archive.access.external import Identity
from archive.access.halves import Half
from archive.access.permissions import ADMINISTRATIVE
from archive.access.sessions import Lifetime
from archive.access.subject import Subject
from archive.config import Config
from archive.db.engine import Database
from archive.errors import InvalidRequest, Unauthenticated
from archive.keys.keyring import Keyring
from archive.ledger.audit import Detail, Event, Kind, secret_digest
from archive.ledger.log import Ledger
from archive.services.clock import Clock, machine_now, utc_now

WRONG = "the name or the password is wrong"
WRONG_CODE = "the code is wrong, or was used already"
WAIT = "try again; after several failures wait up to 15 minutes"


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A new session: `token` is for the browser alone and shown once; `must_change` asks for a new password first."""

    token: str
    subject: Subject
    must_change: bool


@dataclass(frozen=True, slots=True)
class SecondAsked:
    """What was shown first was right and is not enough: `half` comes back with the second factor, of one of `kinds`."""

    half: str
    kinds: frozenset[str]


class Beginning:
    """What every way of signing in shares; one answer for every failure, so that nobody learns which names exist."""

    def __init__(self, database: Database, ledger: Ledger, keyring: Keyring, config: Config, clock: Clock = utc_now) -> None:
        """Take the lifetime of sessions from the configuration."""
        self._database = database
        self._ledger = ledger
        self._keyring = keyring
        self._clock = clock
        self._lifetime = Lifetime(timedelta(minutes=config.signin.idle_minutes), timedelta(hours=config.signin.absolute_hours))
        self._most = config.signin.sessions
        self._site = passkeys.Site.of(config.archive.public_url, config.archive.name)

    def second(self, half: str, code: str, *, address: str, user_agent: str, replaced: str = "") -> SignedIn:
        """End a sign-in that a password, or another system, began with a one-time code, or a recovery code, which is used up.

        Raises:
            Unauthenticated: a wrong or used code, too soon after failures, or the beginning lies too far back.
        """
        at = self._clock()
        begun = halves.opened(self._keyring, half, at=at)
        with self._database.glance() as tx:
            still = None if begun is None else _still(tx, begun)
        if begun is None or still is None:
            message = "the sign-in took too long"
            raise Unauthenticated(message, remedy="begin again with name and password")
        name, first = still
        _, attempt = self._attempt(name, address, wrong=WRONG_CODE, besides=begun.attempt)
        with self._database.begin() as tx:
            if _still(tx, begun) == still:
                who = Subject(begun.principal_id, name, "user", "web", address=address, user_agent=user_agent[:300])
                how = self._take(tx, who, code, at, first=first)
                if how is not None:
                    account = credentials.account_of(tx, begun.principal_id)
                    throttle.succeeded(tx, attempt)
                    throttle.succeeded(tx, begun.attempt)
                    return self._begin(
                        tx, begun.principal_id, name, at, address, user_agent, replaced, how,
                        account is not None and account.must_change, level=2,
                    )
        self._failed(at, address=address, user_agent=user_agent, name=name, how="second factor")
        raise Unauthenticated(WRONG_CODE, remedy=WAIT)

    def _ask_second(self, tx: sa.Connection, principal_id: int, shown: str, attempt: int, at: datetime) -> SecondAsked | None:
        """Ask for the second factor of who has one; `shown` stands for what was right so far, and must not change meanwhile.

        The attempt stays a failure until the second factor came: what was shown alone forgives none.
        """
        kinds = {found.kind for found in factors.of(tx, principal_id)}
        if not kinds:
            return None
        half = Half(principal_id, secret_digest(shown), attempt, at + halves.LASTS)
        return SecondAsked(halves.seal(self._keyring, half), frozenset(kinds))

    def _bind_first(self, tx: sa.Connection, issuer: str, subject: str, at: datetime, *, via: str, **by: str) -> Identity | None:
        """Bind whoever comes for the first time to the user of a name or an address; none who administers, none who is bound already.

        Who administers, now or later, is bound by somebody, never by a name that came along.
        """
        user = external.unbound_user(tx, issuer, **by)
        if user is None or roles.coming(tx, user[0], at=at) & ADMINISTRATIVE:
            return None
        try:
            key = external.bind(tx, user[0], issuer, subject, at=at)
        except InvalidRequest:
            return None  # it is a disabled user's
        detail: Detail = {"what": "bound", "id": user[0], "name": user[1], "identity": key, "issuer": issuer, "sub": subject, "via": via}
        self._ledger.record(tx, Event(Kind.USER_CHANGED, detail=detail), at=at)
        return external.find(tx, issuer, subject)

    def _take(self, tx: sa.Connection, who: Subject, code: str, at: datetime, *, first: str = "password") -> Detail | None:
        """Use a one-time code or a recovery code up and say how it went; None when it is neither."""
        taken = factors.take(tx, self._keyring, who.principal_id, code, at=at, now=machine_now(self._clock))
        if taken is not None:
            return {"how": f"{first} and totp", "factor": taken.id}
        used = recovery.take(tx, self._keyring, who.principal_id, code, at=at)
        if used is None:
            return None
        left = recovery.left(tx, who.principal_id)
        detail: Detail = {"what": "code used", "id": who.principal_id, "code": secret_digest(used), "left": left}
        self._ledger.record(tx, Event(Kind.FACTOR_CHANGED, subject=who, detail=detail), at=at)
        return {"how": f"{first} and recovery code", "left": left}

    def _begin(
        self, tx: sa.Connection, principal_id: int, name: str, at: datetime, address: str, user_agent: str, replaced: str,
        detail: Detail, must_change: bool, *, level: int = 1,
    ) -> SignedIn:
        """Begin a session of a user who has shown who it is, in place of the one the browser held."""
        if replaced:
            sessions.end_word(tx, replaced, at=at)
        lifetime = demands.of(tx, principal_id, self._lifetime, at=at).lifetime
        key, word = sessions.create(
            tx, principal_id, at=at, lifetime=lifetime, address=address, user_agent=user_agent, level=level
        )
        subject = Subject(principal_id, name, "user", "web", address=address, session_id=key, user_agent=user_agent[:300])
        begun = {
            "of": secret_digest(sessions.digest(word)), "until": (at + lifetime.absolute).isoformat(), "level": level,
            "idle_s": int(lifetime.idle.total_seconds()), "authn": at.isoformat(),
        }
        self._ledger.record(tx, Event(Kind.SIGNED_IN, subject=subject, detail={**detail, "session": begun}), at=at)
        for row in sessions.live_of(tx, principal_id, at=at)[self._most:]:
            sessions.end(tx, row["id"], at=at)
            over: Detail = {"what": "too many", "session": row["id"], "of": principal_id}
            self._ledger.record(tx, Event(Kind.SESSION_ENDED, subject=subject, detail=over), at=at)
        return SignedIn(word, subject, must_change)

    def _stepped(self, tx: sa.Connection, subject: Subject, at: datetime, how: Detail, *, level: int) -> SignedIn:
        """Note that the session's user proved again who it is, and give the session a new word."""
        assert subject.session_id is not None
        word = sessions.renew(tx, subject.session_id, at=at, level=level)
        begun = {"of": secret_digest(sessions.digest(word)), "level": level, "authn": at.isoformat()}
        self._ledger.record(tx, Event(Kind.STEPPED_UP, subject=subject, detail={**how, "session": begun}), at=at)
        return SignedIn(word, subject, must_change=False)

    def _attempt(self, name: str, address: str, *, wrong: str = WRONG, besides: int = 0) -> tuple[Account | None, int]:
        """Count an attempt before what it brings is looked at; waits go by the machine's clock, which never stands."""
        try:
            with self._database.begin(durable=False) as tx:
                attempt = throttle.begin(tx, self._keyring, name, address, at=machine_now(self._clock), besides=besides)
                return credentials.account(tx, name), attempt
        except Unauthenticated:
            raise Unauthenticated(wrong, remedy=WAIT) from None

    def _failed(self, at: datetime, *, address: str, user_agent: str, name: str, how: str, **more: str) -> None:
        detail = {"how": how, "name": name, "address": address, "user_agent": user_agent[:300], **more}
        with self._database.begin() as tx:
            self._ledger.record(tx, Event(Kind.SIGNIN_FAILED, outcome=8, detail=detail), at=at)


def _still(tx: sa.Connection, begun: Half) -> tuple[str, str] | None:
    """Return the name of the user a sign-in was begun for, and by what, while that counts still."""
    name = principals.enabled_name(tx, begun.principal_id)
    account = credentials.account_of(tx, begun.principal_id)
    shown = {} if account is None else {secret_digest(account.phc): "password"}
    for one in external.of(tx, begun.principal_id):
        shown[secret_digest(one.shown)] = "directory" if one.issuer.startswith("ldap") else "oidc"
    return None if name is None or begun.password not in shown else (name, shown[begun.password])


def plain(name: str) -> str:
    """Return a name as typed, without what no name holds and some database or encoder would choke on."""
    shown = name.encode("utf-8", "replace").decode().replace("\0", "").strip()
    return unicodedata.normalize("NFC", shown[: principals.LONGEST_TYPED])[:200]
