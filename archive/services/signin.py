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

from archive.access import credentials, passwords, sessions, throttle, tokens
from archive.access.credentials import Account
from archive.access.permissions import Permission
from archive.access.sessions import Lifetime
from archive.access.subject import Subject
from archive.config import Config
from archive.db.engine import Database
from archive.errors import Forbidden, InvalidRequest, Unauthenticated
from archive.keys.keyring import Keyring
from archive.ledger.audit import Event, Kind, secret_digest
from archive.ledger.log import Ledger
from archive.services.clock import Clock, utc_now

REFUSED_EVERY = timedelta(minutes=10)
_WRONG = "the name or the password is wrong"
_WAIT = "try again; after several failures wait up to 15 minutes"


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A new session: `token` is for the browser alone and shown once; `must_change` asks for a new password first."""

    token: str
    subject: Subject
    must_change: bool


class SignIn:
    """Checks credentials; one answer for every failure, so that nobody learns which names exist."""

    def __init__(self, database: Database, ledger: Ledger, keyring: Keyring, config: Config, clock: Clock = utc_now) -> None:
        """Take session lifetimes and the place of the first password from the configuration."""
        self._database = database
        self._ledger = ledger
        self._keyring = keyring
        self._clock = clock
        self._lifetime = Lifetime(timedelta(minutes=config.signin.idle_minutes), timedelta(hours=config.signin.absolute_hours))
        self._first_password = config.storage_dir / "first-password"
        self._refused = _Recently(REFUSED_EVERY)

    def password(self, name: str, password: str, *, address: str, user_agent: str) -> SignedIn:
        """Start a session.

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
            throttle.succeeded(tx, attempt)
            if remade is not None:
                credentials.remake(tx, account, remade)
            key, word = sessions.create(
                tx, account.principal_id, at=at, lifetime=self._lifetime, address=address, user_agent=user_agent
            )
            subject = Subject(
                account.principal_id, account.name, "user", "web", address=address, session_id=key, user_agent=user_agent[:300]
            )
            until = at + self._lifetime.absolute
            detail = {"how": "password", "session": {"of": secret_digest(sessions.digest(word)), "until": until.isoformat()}}
            if remade is not None:
                detail["password"] = secret_digest(remade)
            self._ledger.record(tx, Event(Kind.SIGNED_IN, subject=subject, detail=detail), at=at)
        return SignedIn(word, subject, account.must_change)

    def session(self, token: str, *, address: str) -> Subject:
        """Return who a browser's session belongs to, and move its idle end.

        Raises:
            Unauthenticated.
        """
        at = self._clock()
        with self._database.glance() as tx:
            found = sessions.find(tx, token, at=at)
        if at - found.last_seen_at >= min(sessions.TOUCH_EVERY, self._lifetime.idle / 4):
            with self._database.begin(durable=False) as tx:
                sessions.touch(tx, found, at=at, lifetime=self._lifetime)
        return Subject(
            found.principal_id, found.name, "user", "web", address=address, session_id=found.id, user_agent=found.user_agent
        )

    def must_change(self, subject: Subject) -> bool:
        """Whether the user's password was given by somebody else and waits to be replaced."""
        with self._database.read() as tx:
            account = credentials.account_of(tx, subject.principal_id)
        return account is not None and account.must_change

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

    def _attempt(self, name: str, address: str) -> tuple[Account | None, int]:
        """Count an attempt before its password is looked at."""
        try:
            with self._database.begin(durable=False) as tx:
                attempt = throttle.begin(tx, self._keyring, name, address, at=self._clock())
                return credentials.account(tx, name), attempt
        except Unauthenticated:
            raise Unauthenticated(_WRONG, remedy=_WAIT) from None

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
