"""Who asks: a password makes a session, a session or API token makes a Subject. Signing in, out and failing are ledger events."""

from __future__ import annotations

import contextlib
import hmac
import threading
from collections import OrderedDict
from datetime import datetime, timedelta
from pathlib import Path

import sqlalchemy as sa

from archive.access import credentials, demands, external, factors, passkeys, passwords, principals, sessions, throttle, tokens
from archive.access.demands import Standing
from archive.access.subject import Subject
from archive.config import Config
from archive.db.engine import Database
from archive.errors import Forbidden, InvalidRequest, Unauthenticated
from archive.keys.keyring import Keyring
from archive.ledger.audit import Detail, Event, Kind, secret_digest
from archive.ledger.log import Ledger
from archive.services.beginning import WAIT, WRONG, WRONG_CODE, Beginning, SecondAsked, SignedIn, plain
from archive.services.clock import Clock, utc_now
from archive.services.directory import Directory, Person
from archive.services.memberships import keep_in_step

__all__ = ["WRONG_CODE", "SecondAsked", "SignIn", "SignedIn"]

REFUSED_EVERY = timedelta(minutes=10)
_NOT_CONFIRMED = "that does not show that it is you"


class SignIn(Beginning):
    """Checks passwords, passkeys, sessions and tokens."""

    def __init__(self, database: Database, ledger: Ledger, keyring: Keyring, config: Config, clock: Clock = utc_now) -> None:
        """Take session lifetimes and the place of the first password from the configuration."""
        super().__init__(database, ledger, keyring, config, clock)
        self._step_up = timedelta(minutes=config.signin.step_up_minutes)
        self._first_password = config.storage_dir / "first-password"
        self._refused = _Recently(REFUSED_EVERY)
        self._directory = Directory(config)
        self._directory_binds = config.ldap.bind_by == "name"

    def password(self, name: str, password: str, *, address: str, user_agent: str, replaced: str = "") -> SignedIn | SecondAsked:
        """Start a session, or ask for the second factor of a user who has one; the session of the word `replaced` ends.

        Raises:
            Unauthenticated: wrong name or password, or too soon after failures; the same for all, after the same work for the first two.
        """
        name = plain(name)
        account, attempt = self._attempt(name, address)
        at = self._clock()
        # Who has a password here is not asked there; the directory has the same work all the same.
        person = self._directory.check(name if account is None else "", password) if self._directory.there else None
        try:
            passwords.verify(password, None if account is None else account.phc)
        except Unauthenticated:
            if account is None and person is not None:
                with self._database.begin() as tx:
                    done = self._of_directory(tx, person, name, attempt, at, address, user_agent, replaced)
                if done is not None:
                    return done
            tried = {} if account is not None or person is None else {"why": "nobody here is bound to that", "sub": person.dn}
            self._failed(at, address=address, user_agent=user_agent, name=name, how="directory" if tried else "password", **tried)
            raise Unauthenticated(WRONG, remedy=WAIT) from None
        assert account is not None
        remade = passwords.seal(password) if passwords.outdated(account.phc) else None
        with self._database.begin() as tx:
            if credentials.account_of(tx, account.principal_id) != account:  # disabled or changed while the password was looked at
                raise Unauthenticated(WRONG, remedy=WAIT)
            detail: Detail = {"how": "password"}
            if remade is not None:
                credentials.remake(tx, account, remade)
                detail["password"] = secret_digest(remade)
            asked = self._ask_second(tx, account.principal_id, remade or account.phc, attempt, at)
            if asked is not None:
                if remade is not None:
                    known = Subject(account.principal_id, account.name, "user", "web", address=address, user_agent=user_agent[:300])
                    self._ledger.record(tx, Event(Kind.PASSWORD_CHANGED, subject=known, detail={
                        "what": "remade", "id": account.principal_id, "password": detail["password"],
                    }), at=at)
                return asked
            throttle.succeeded(tx, attempt)
            return self._begin(tx, account.principal_id, account.name, at, address, user_agent, replaced, detail, account.must_change)

    def _of_directory(
        self, tx: sa.Connection, person: Person, name: str, attempt: int, at: datetime, address: str, user_agent: str, replaced: str
    ) -> SignedIn | SecondAsked | None:
        """Go on with somebody whose password the directory took; None when it is nobody's here."""
        issuer = self._directory.issuer
        who = external.find(tx, issuer, person.dn)
        if who is None and self._directory_binds:
            who = self._bind_first(tx, issuer, person.dn, at, via="directory", name=name)
        if who is None:
            return None
        external.used(tx, who.id, at=at)
        groups = self._directory.groups
        if groups:
            keep_in_step(tx, self._ledger, who.principal_id, who.name, groups, person.groups, via="directory", at=at)
        asked = self._ask_second(tx, who.principal_id, who.shown, attempt, at)
        if asked is not None:
            return asked
        throttle.succeeded(tx, attempt)
        how: Detail = {"how": "directory", "issuer": issuer, "identity": who.id}
        return self._begin(tx, who.principal_id, who.name, at, address, user_agent, replaced, how, must_change=False)

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
        if known is not None or self._refused.first(f"passkey/{address}", at):
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
        word = "password"
        with self._database.glance() as tx:
            has = bool(factors.of(tx, subject.principal_id))
        if not has:
            try:
                passwords.verify(password, None if account is None else account.phc)
            except Unauthenticated:
                known = account is None and self._directory.there and self._confirmed_there(subject, password)
                word, account = ("directory" if known else ""), None
        with self._database.begin() as tx:
            same = credentials.account_of(tx, subject.principal_id) == account and bool(factors.of(tx, subject.principal_id)) == has
            if word and same and principals.enabled_name(tx, subject.principal_id) is not None:
                how: Detail | None = self._take(tx, subject, code, at) if has else {"how": word}
                if how is not None:
                    throttle.succeeded(tx, attempt)
                    return self._stepped(tx, subject, at, how, level=2 if has else 1)
        self._failed(at, address=subject.address, user_agent=subject.user_agent, name=subject.name, how="confirm")
        raise Unauthenticated(_NOT_CONFIRMED, remedy=WAIT)

    def _confirmed_there(self, subject: Subject, password: str) -> bool:
        """Whether the directory takes the password of a user who is known there."""
        with self._database.glance() as tx:
            known = external.of(tx, subject.principal_id, self._directory.issuer)
        return any(self._directory.confirm(one.subject, password) for one in known)

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
                found = tokens.find(tx, self._keyring, token, at=at, address=address)
            if user is not None and not hmac.compare_digest(plain(user).encode(), found.name.encode()):
                message = "the token is not valid"
                raise Unauthenticated(message, remedy="use the name of the user the token was made for")
        except Unauthenticated:
            if self._refused.first(address, at):
                self._failed(at, address=address, user_agent="", name=plain(user or ""), how="token")
            raise
        if found.last_used_at is None or at - found.last_used_at >= tokens.TOUCH_EVERY:
            with self._database.begin(durable=False) as tx:
                tokens.touch(tx, found.id, at=at, address=address)
        return found.subject(address)

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
            raise Unauthenticated(message, remedy=WAIT) from None
        assert account is not None
        passwords.check_new(new, name=account.name)
        if hmac.compare_digest(old.encode("utf-8", "replace"), new.encode("utf-8", "replace")):
            message = "the new password is the old one"
            raise InvalidRequest(message, remedy="choose another")
        phc = passwords.seal(new)
        with self._database.begin() as tx:
            if credentials.account_of(tx, subject.principal_id) != account:
                raise Unauthenticated(WRONG, remedy=WAIT)
            throttle.succeeded(tx, attempt)
            credentials.keep(tx, account.principal_id, phc, must_change=False, at=at)
            sessions.end_all(tx, account.principal_id, at=at, keep=subject.session_id)
            detail = {"what": "own", "id": account.principal_id, "password": secret_digest(phc)}
            self._ledger.record(tx, Event(Kind.PASSWORD_CHANGED, subject=subject, detail=detail), at=at)
        _forget(self._first_password, old)

class _Recently:
    """Which addresses were met a moment ago: a client that repeats a dead token, or sends any passkey, must not fill the ledger."""

    def __init__(self, every: timedelta, size: int = 1024) -> None:
        self._every = every
        self._size = size
        self._met: OrderedDict[str, datetime] = OrderedDict()
        self._lock = threading.Lock()

    def first(self, what: str, at: datetime) -> bool:
        """Whether `what` was not met within the time, and remember it."""
        with self._lock:
            last = self._met.get(what)
            if last is not None and abs(at - last) < self._every:  # the clock may have been set back
                return False
            self._met[what] = at
            self._met.move_to_end(what)
            if len(self._met) > self._size:
                self._met.popitem(last=False)
            return True


def _forget(path: Path, password: str) -> None:
    """Delete the file of the first password when it held this one."""
    with contextlib.suppress(OSError):
        if path.read_text(encoding="utf-8").strip() == password:
            path.unlink()
