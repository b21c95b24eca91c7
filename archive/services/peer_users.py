"""The user a device speaks for: proven by a password, an API token or an ID token, over TLS alone (PS3.7 D.3.3.7).

What is proven narrows: who asks is the device and the user together, never more than the device alone.
"""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from archive.access import credentials, demands, external, factors, passwords, throttle
from archive.access.sessions import Lifetime
from archive.access.subject import Subject
from archive.config import Config
from archive.db.engine import Database
from archive.errors import ArchiveError, Forbidden, Unauthenticated, Unavailable
from archive.keys.keyring import Keyring
from archive.ledger.audit import Event, Kind
from archive.ledger.log import Ledger
from archive.services.beginning import plain
from archive.services.clock import Clock, utc_now
from archive.services.oidc import Oidc
from archive.services.oidc_provider import Refused
from archive.services.signin import SignIn

_BEGINS = "sr_"  # an API token


class PeerUsers(SignIn):
    """Checks what a device shows of its user, as the browser's sign-in checks it."""

    def __init__(self, database: Database, ledger: Ledger, keyring: Keyring, config: Config, clock: Clock = utc_now) -> None:
        """Ask nobody yet."""
        super().__init__(database, ledger, keyring, config, clock)
        self._oidc = Oidc(database, ledger, keyring, config, clock)

    def claimed(self, device: Subject, name: str) -> None:
        """Note a name that came without a proof: it changes nothing."""
        self._told(device, {"what": "user identity", "claimed": plain(name), "proven": False})

    def by_password(self, device: Subject, name: str, password: str) -> Subject:
        """Return the user of a name and a password, or of a name and an API token in its place.

        Raises:
            Unauthenticated: wrong, too soon after failures, or a password that is not enough for its user.
            Unavailable: it could not be looked at.
        """
        name = plain(name)
        if password.startswith(_BEGINS):
            return self._noted(device, self.basic(name, password, address=device.address), "token")
        account, attempt = self._attempt(name, device.address)
        at = self._clock()
        person = self._directory.check(name if account is None else "", password) if self._directory.there else None
        who: tuple[int, str] | None = None
        try:
            passwords.verify(password, None if account is None else account.phc)
        except Unauthenticated:
            if account is None and person is not None:
                with self._database.glance() as tx:
                    known = external.find(tx, self._directory.issuer, person.dn)
                who = None if known is None else (known.principal_id, known.name)
        else:
            assert account is not None
            who = (account.principal_id, account.name)
        why = "wrong"
        if who is not None:
            with self._database.begin(durable=False) as tx:
                why = self._not_enough(tx, who[0], at)
                if account is not None and credentials.account_of(tx, who[0]) != account:
                    why = "changed meanwhile"
                if not why:
                    throttle.succeeded(tx, attempt)
        if who is not None and not why:
            return self._noted(device, Subject(*who, "user", "dimse", address=device.address), "password")
        self._refusal(device, name, at, "password", why)
        raise Unauthenticated

    def by_token(self, device: Subject, token: str) -> Subject:
        """Return the user of an API token, or of an ID token of the configured provider.

        Raises:
            Unauthenticated. Unavailable: the provider does not answer.
        """
        if token.startswith(_BEGINS):
            return self._noted(device, self.bearer(token, address=device.address), "token")
        at, why = self._clock(), "nobody here is bound to that sub"
        try:
            found = self._oidc.who(token)
        except Refused as refusal:
            found, why = None, refusal.message
        if found is not None:
            who, level = found
            with self._database.glance() as tx:
                why = "" if level == 2 else self._not_enough(tx, who.principal_id, at)
            if not why:
                return self._noted(device, Subject(who.principal_id, who.name, "user", "dimse", address=device.address), "token")
        self._refusal(device, "", at, "token", why)
        raise Unauthenticated

    # -------------------------------------------------------------------------------------------------------------------------------

    def _not_enough(self, tx: sa.Connection, principal_id: int, at: datetime) -> str:
        """Why one proof alone is not enough for a user; nothing where it is."""
        account = credentials.account_of(tx, principal_id)
        if account is not None and account.must_change:
            return "the password was handed out and is to be changed"
        if factors.of(tx, principal_id) or demands.of(tx, principal_id, Lifetime(), at=at).second_factor:
            return "the user signs in with a second factor: an API token stands for both"
        return ""

    def _noted(self, device: Subject, user: Subject, by: str) -> Subject:
        self._told(device, {"what": "user identity", "user": user.name, "id": user.principal_id, "by": by, "proven": True})
        return user

    def _told(self, device: Subject, detail: dict[str, object]) -> None:
        at = self._clock()
        try:
            self._database.group(
                lambda tx: self._ledger.record(tx, Event(Kind.ASSOCIATION_OPENED, subject=device, detail=detail), at=at), durable=False
            )
        except ArchiveError as error:
            message = "the user of an association could not be recorded"
            raise Unavailable(message, remedy=error.remedy) from error

    def _refusal(self, device: Subject, name: str, at: datetime, by: str, why: str) -> None:
        """Record a refusal; the same device that tries again and again is one event in a while."""
        if not self._refused.first(f"{device.peer_id}/{name}/{by}", at):
            return
        detail = {
            "how": f"user identity by {by}", "name": name, "address": device.address, "user_agent": "", "why": why, "through": device.name,
        }
        with self._database.begin() as tx:
            self._ledger.record(tx, Event(Kind.SIGNIN_FAILED, outcome=8, detail=detail), at=at)


def no_tls() -> Forbidden:
    """Return what a proof that came in the clear is answered with."""
    message = "a proof of who somebody is came without TLS"
    return Forbidden(message, remedy="let the device use the TLS listener")
