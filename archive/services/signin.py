"""Who asks: a password makes a session, a session or API token makes a Subject. Signing in, out and failing are ledger events."""

from __future__ import annotations

import contextlib
import hmac
import threading
import unicodedata
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import sqlalchemy as sa

from archive.access import credentials, demands, factors, halves, passkeys, passwords, principals, recovery, sessions, throttle, tokens
from archive.access.credentials import Account
from archive.access.demands import Standing
from archive.access.halves import Half
from archive.access.permissions import Permission
from archive.access.sessions import Lifetime
from archive.access.subject import Subject
from archive.config import Config
from archive.db.engine import Database
from archive.errors import Forbidden, InvalidRequest, Unauthenticated
from archive.keys.keyring import Keyring
from archive.ledger.audit import Detail, Event, Kind, secret_digest
from archive.ledger.log import Ledger
from archive.services.clock import Clock, utc_now

REFUSED_EVERY = timedelta(minutes=10)
_WRONG = "the name or the password is wrong"
WRONG_CODE = "the code is wrong, or was used already"
_NOT_CONFIRMED = "that does not show that it is you"
_WAIT = "try again; after several failures wait up to 15 minutes"


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A new session: `token` is for the browser alone and shown once; `must_change` asks for a new password first."""

    token: str
    subject: Subject
    must_change: bool


@dataclass(frozen=True, slots=True)
class SecondAsked:
    """The password was right and is not enough: `half` comes back with the second factor, of one of `kinds`."""

    half: str
    kinds: frozenset[str]


class SignIn:
    """Checks credentials; one answer for every failure, so that nobody learns which names exist."""

    def __init__(self, database: Database, ledger: Ledger, keyring: Keyring, config: Config, clock: Clock = utc_now) -> None:
        """Take session lifetimes and the place of the first password from the configuration."""
        self._database = database
        self._ledger = ledger
        self._keyring = keyring
        self._clock = clock
        self._lifetime = Lifetime(timedelta(minutes=config.signin.idle_minutes), timedelta(hours=config.signin.absolute_hours))
        self._most = config.signin.sessions
        self._step_up = timedelta(minutes=config.signin.step_up_minutes)
        self._site = passkeys.Site.of(config.archive.public_url, config.archive.name)
        self._first_password = config.storage_dir / "first-password"
        self._refused = _Recently(REFUSED_EVERY)

    def password(self, name: str, password: str, *, address: str, user_agent: str, replaced: str = "") -> SignedIn | SecondAsked:
        """Start a session, or ask for the second factor of a user who has one; the session of the word `replaced` ends.

        Raises:
            Unauthenticated: wrong name or password, or too soon after failures; the same for all, after the same work for the first two.
        """
        name = _plain(name)
        account, attempt = self._attempt(name, address)
        at = self._clock()
        try:
            passwords.verify(password, None if account is None else account.phc)
        except Unauthenticated:
            self._failed(at, address=address, user_agent=user_agent, name=name, how="password")
            raise Unauthenticated(_WRONG, remedy=_WAIT) from None
        assert account is not None
        remade = passwords.seal(password) if passwords.outdated(account.phc) else None
        with self._database.begin() as tx:
            if credentials.account_of(tx, account.principal_id) != account:  # disabled or changed while the password was looked at
                raise Unauthenticated(_WRONG, remedy=_WAIT)
            detail: Detail = {"how": "password"}
            if remade is not None:
                credentials.remake(tx, account, remade)
                detail["password"] = secret_digest(remade)
            if kinds := {found.kind for found in factors.of(tx, account.principal_id)}:
                # The attempt stays a failure until the second factor came: a known password alone forgives none.
                phc = remade or account.phc
                if remade is not None:
                    known = Subject(account.principal_id, account.name, "user", "web", address=address, user_agent=user_agent[:300])
                    self._ledger.record(tx, Event(Kind.PASSWORD_CHANGED, subject=known, detail={
                        "what": "remade", "id": account.principal_id, "password": detail["password"],
                    }), at=at)
                half = Half(account.principal_id, secret_digest(phc), attempt, at + halves.LASTS)
                return SecondAsked(halves.seal(self._keyring, half), frozenset(kinds))
            throttle.succeeded(tx, attempt)
            return self._begin(tx, account.principal_id, account.name, at, address, user_agent, replaced, detail, account.must_change)

    def second(self, half: str, code: str, *, address: str, user_agent: str, replaced: str = "") -> SignedIn:
        """End a sign-in that a password began with a one-time code, or a recovery code, which is used up.

        Raises:
            Unauthenticated: a wrong or used code, too soon after failures, or the password lies too far back.
        """
        at = self._clock()
        begun = halves.opened(self._keyring, half, at=at)
        with self._database.glance() as tx:
            account = None if begun is None else credentials.account_of(tx, begun.principal_id)
        if begun is None or account is None or secret_digest(account.phc) != begun.password:
            message = "the sign-in took too long"
            raise Unauthenticated(message, remedy="begin again with name and password")
        found, attempt = self._attempt(account.name, address, wrong=WRONG_CODE, besides=begun.attempt)
        with self._database.begin() as tx:
            if found is not None and credentials.account_of(tx, account.principal_id) == account:
                who = Subject(account.principal_id, account.name, "user", "web", address=address, user_agent=user_agent[:300])
                how = self._take(tx, who, code, at)
                if how is not None:
                    throttle.succeeded(tx, attempt)
                    throttle.succeeded(tx, begun.attempt)
                    return self._begin(
                        tx, account.principal_id, account.name, at, address, user_agent, replaced, how, account.must_change, level=2
                    )
        self._failed(at, address=address, user_agent=user_agent, name=account.name, how="second factor")
        raise Unauthenticated(WRONG_CODE, remedy=_WAIT)

    def _take(self, tx: sa.Connection, who: Subject, code: str, at: datetime) -> Detail | None:
        """Use a one-time code or a recovery code up and say how it went; None when it is neither."""
        taken = factors.take(tx, self._keyring, who.principal_id, code, at=at)
        if taken is not None:
            return {"how": "password and totp", "factor": taken.id}
        used = recovery.take(tx, self._keyring, who.principal_id, code, at=at)
        if used is None:
            return None
        left = recovery.left(tx, who.principal_id)
        detail: Detail = {"what": "code used", "id": who.principal_id, "code": secret_digest(used), "left": left}
        self._ledger.record(tx, Event(Kind.FACTOR_CHANGED, subject=who, detail=detail), at=at)
        return {"how": "password and recovery code", "left": left}

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

    def passkey(self, answer: str, *, address: str, user_agent: str, replaced: str = "") -> SignedIn:
        """Start a session with a passkey alone: it shows the device and, by its own check, the user.

        Raises:
            Unauthenticated: whatever is wrong with it.
        """
        at = self._clock()
        with self._database.begin() as tx:
            known = passkeys.take(tx, self._keyring, self._site, answer, session_id=None, at=at)
            name = None if known is None else principals.enabled_name(tx, known.principal_id)
            if known is not None and name is not None:
                account = credentials.account_of(tx, known.principal_id)
                return self._begin(
                    tx, known.principal_id, name, at, address, user_agent, replaced, {"how": "passkey", "factor": known.id},
                    account is not None and account.must_change, level=2,
                )
        self._failed(at, address=address, user_agent=user_agent, name="", how="passkey")
        message = "the passkey was not accepted"
        raise Unauthenticated(message, remedy="try again, or sign in with name and password")

    def session(self, token: str, *, address: str) -> Subject:
        """Return who a browser's session belongs to, and move its idle end.

        Raises:
            Unauthenticated.
        """
        at = self._clock()
        with self._database.glance() as tx:
            found = sessions.find(tx, token, at=at)
        if at - found.last_seen_at >= min(sessions.TOUCH_EVERY, timedelta(seconds=found.idle_s) / 4):
            with self._database.begin(durable=False) as tx:
                sessions.touch(tx, found, at=at)
        return Subject(
            found.principal_id, found.name, "user", "web", address=address, session_id=found.id, user_agent=found.user_agent
        )

    def must_change(self, subject: Subject) -> bool:
        """Whether the user's password was given by somebody else and waits to be replaced."""
        with self._database.read() as tx:
            account = credentials.account_of(tx, subject.principal_id)
        return account is not None and account.must_change

    def standing(self, subject: Subject) -> Standing | None:
        """Return how far the session the subject came with has come; None for a token."""
        if subject.session_id is None:
            return None
        with self._database.glance() as tx:
            return demands.standing(tx, subject.principal_id, subject.session_id, at=self._clock())

    def fresh(self, standing: Standing) -> bool:
        """Whether the user proved who they are within the last minutes, as what cannot be undone asks for."""
        return self._clock() - standing.authn_at < self._step_up

    def confirm(self, subject: Subject, *, password: str = "", code: str = "") -> SignedIn:
        """Prove again who one is: by a code where there is a second factor, else by the password; the session gets a new word.

        Raises:
            Forbidden: not signed in with the browser.
            Unauthenticated: wrong, or too soon after failures.
        """
        if subject.session_id is None:
            message = "a token has nobody to ask again"
            raise Forbidden(message, remedy="sign in with the browser")
        account, attempt = self._attempt(subject.name, subject.address, wrong=_NOT_CONFIRMED)
        at = self._clock()
        with self._database.glance() as tx:
            has = bool(factors.of(tx, subject.principal_id))
        if not has:
            try:
                passwords.verify(password, None if account is None else account.phc)
            except Unauthenticated:
                account = None
        with self._database.begin() as tx:
            if account is not None and credentials.account_of(tx, subject.principal_id) == account and (
                bool(factors.of(tx, subject.principal_id)) == has
            ):
                how: Detail | None = self._take(tx, subject, code, at) if has else {"how": "password"}
                if how is not None:
                    throttle.succeeded(tx, attempt)
                    return self._stepped(tx, subject, at, how, level=2 if has else 1)
        self._failed(at, address=subject.address, user_agent=subject.user_agent, name=subject.name, how="confirm")
        raise Unauthenticated(_NOT_CONFIRMED, remedy=_WAIT)

    def confirm_passkey(self, subject: Subject, answer: str) -> SignedIn:
        """Prove again who one is with a passkey of one's own.

        Raises:
            Unauthenticated.
        """
        at = self._clock()
        with self._database.begin() as tx:
            known = passkeys.take(tx, self._keyring, self._site, answer, session_id=subject.session_id, at=at)
            if known is not None and known.principal_id == subject.principal_id and subject.session_id is not None:
                return self._stepped(tx, subject, at, {"how": "passkey", "factor": known.id}, level=2)
        self._failed(at, address=subject.address, user_agent=subject.user_agent, name=subject.name, how="confirm")
        raise Unauthenticated(_NOT_CONFIRMED, remedy="try again")

    def _stepped(self, tx: sa.Connection, subject: Subject, at: datetime, how: Detail, *, level: int) -> SignedIn:
        assert subject.session_id is not None
        word = sessions.renew(tx, subject.session_id, at=at, level=level)
        begun = {"of": secret_digest(sessions.digest(word)), "level": level, "authn": at.isoformat()}
        self._ledger.record(tx, Event(Kind.STEPPED_UP, subject=subject, detail={**how, "session": begun}), at=at)
        return SignedIn(word, subject, must_change=False)

    def bearer(self, token: str, *, address: str) -> Subject:
        """Return who an API token stands for; what it may do is asked at each statement.

        Raises:
            Unauthenticated.
        """
        return self._token(token, None, address)

    def basic(self, user: str, token: str, *, address: str) -> Subject:
        """Return who a user name with an API token as the password stands for; an account's own password is never taken.

        Raises:
            Unauthenticated.
        """
        return self._token(token, user, address)

    def _token(self, token: str, user: str | None, address: str) -> Subject:
        at = self._clock()
        try:
            with self._database.glance() as tx:
                found = tokens.find(tx, self._keyring, token, at=at)
            if user is not None and not hmac.compare_digest(_plain(user).encode(), found.name.encode()):
                message = "the token is not valid"
                raise Unauthenticated(message, remedy="use the name of the user the token was made for")
        except Unauthenticated:
            if self._refused.first(address, at):
                self._failed(at, address=address, user_agent="", name=_plain(user or ""), how="token")
            raise
        if found.last_used_at is None or at - found.last_used_at >= tokens.TOUCH_EVERY:
            with self._database.begin(durable=False) as tx:
                tokens.touch(tx, found.id, at=at)
        return Subject(
            found.principal_id, found.name, "service" if found.kind == "service" else "user", "token", address=address,
            token_id=found.id, boundary_id=found.boundary_id, limit=Permission(found.permissions),
        )

    def sign_out(self, subject: Subject) -> None:
        """End the session the subject came with."""
        if subject.session_id is None:
            return
        at = self._clock()
        with self._database.begin() as tx:
            sessions.end(tx, subject.session_id, at=at)
            self._ledger.record(tx, Event(Kind.SIGNED_OUT, subject=subject), at=at)

    def change_password(self, subject: Subject, old: str, new: str) -> None:
        """Replace one's own password; every other session of the user ends, and storage/first-password goes if it held the old one.

        Raises:
            Forbidden: not signed in with the browser.
            Unauthenticated: the old password is wrong, or too many were.
            InvalidRequest: the new one is weak or the old one again.
        """
        if subject.session_id is None:
            message = "a password is changed by its user, signed in with the browser"
            raise Forbidden(message, remedy="sign in with the browser, or use 'archive user reset-password' on the server")
        account, attempt = self._attempt(subject.name, subject.address)
        at = self._clock()
        try:
            passwords.verify(old, None if account is None else account.phc)
        except Unauthenticated:
            self._failed(at, address=subject.address, user_agent=subject.user_agent, name=subject.name, how="change-password")
            message = "the old password is wrong"
            raise Unauthenticated(message, remedy=_WAIT) from None
        assert account is not None
        passwords.check_new(new, name=account.name)
        if hmac.compare_digest(old.encode("utf-8", "replace"), new.encode("utf-8", "replace")):
            message = "the new password is the old one"
            raise InvalidRequest(message, remedy="choose another")
        phc = passwords.seal(new)
        with self._database.begin() as tx:
            if credentials.account_of(tx, subject.principal_id) != account:
                raise Unauthenticated(_WRONG, remedy=_WAIT)
            throttle.succeeded(tx, attempt)
            credentials.keep(tx, account.principal_id, phc, must_change=False, at=at)
            sessions.end_all(tx, account.principal_id, at=at, keep=subject.session_id)
            detail = {"what": "own", "id": account.principal_id, "password": secret_digest(phc)}
            self._ledger.record(tx, Event(Kind.PASSWORD_CHANGED, subject=subject, detail=detail), at=at)
        _forget(self._first_password, old)

    def _attempt(self, name: str, address: str, *, wrong: str = _WRONG, besides: int = 0) -> tuple[Account | None, int]:
        """Count an attempt before its password is looked at."""
        try:
            with self._database.begin(durable=False) as tx:
                attempt = throttle.begin(tx, self._keyring, name, address, at=self._clock(), besides=besides)
                return credentials.account(tx, name), attempt
        except Unauthenticated:
            raise Unauthenticated(wrong, remedy=_WAIT) from None

    def _failed(self, at: datetime, *, address: str, user_agent: str, name: str, how: str) -> None:
        detail = {"how": how, "name": name, "address": address, "user_agent": user_agent[:300]}
        with self._database.begin() as tx:
            self._ledger.record(tx, Event(Kind.SIGNIN_FAILED, outcome=8, detail=detail), at=at)


class _Recently:
    """Which addresses were met a moment ago: a client that repeats a dead token must not fill the ledger."""

    def __init__(self, every: timedelta, size: int = 1024) -> None:
        self._every = every
        self._size = size
        self._met: OrderedDict[str, datetime] = OrderedDict()
        self._lock = threading.Lock()

    def first(self, what: str, at: datetime) -> bool:
        """Whether `what` was not met within the time, and remember it."""
        with self._lock:
            last = self._met.get(what)
            if last is not None and at - last < self._every:
                return False
            self._met[what] = at
            self._met.move_to_end(what)
            if len(self._met) > self._size:
                self._met.popitem(last=False)
            return True


def _plain(name: str) -> str:
    """Return a name as typed, without what no name holds and some database or encoder would choke on."""
    return unicodedata.normalize("NFC", name.encode("utf-8", "replace").decode().replace("\0", "").strip())[:200]


def _forget(path: Path, password: str) -> None:
    """Delete the file of the first password when it held this one."""
    with contextlib.suppress(OSError):
        if path.read_text(encoding="utf-8").strip() == password:
            path.unlink()
