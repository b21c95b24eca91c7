"""Signing in with an OpenID provider: out to it, and back with its word for who somebody is; it makes no user and gives no role."""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa

from archive.access import external, factors, sessions, throttle
from archive.access.external import Identity
from archive.access.subject import Subject
from archive.config import Config
from archive.db.engine import Database
from archive.errors import InvalidRequest, Unauthenticated, Unavailable
from archive.keys import sealing
from archive.keys.keyring import Keyring
from archive.ledger.audit import Detail
from archive.ledger.log import Ledger
from archive.services.beginning import Beginning, SecondAsked, SignedIn
from archive.services.clock import Clock, machine_now, utc_now
from archive.services.memberships import keep_in_step
from archive.services.oidc_provider import Provider, Refused
from archive.services.outgoing import Undeliverable

LOG = logging.getLogger("archive.services")
LASTS = timedelta(minutes=10)
LONGEST = 4096
_AAD = b"strongroom/v1/oidc"
_NOT_YOU = "you could not be signed in this way"
_ASK = "ask whoever manages the archive whether your account is connected, or sign in with name and password"
_LATE, _ANEW = "the sign-in took too long, or began elsewhere", "begin again"


@dataclass(frozen=True, slots=True)
class Kept:
    """What the browser keeps, sealed, while it is at the provider; `session_id` is set where a user shows again who it is.

    `asked` is `begun` by the machine's clock, as the provider's times are.
    """

    state: str
    nonce: str
    verifier: str
    target: str
    begun: datetime
    session_id: int | None = None
    asked: datetime | None = None


@dataclass(frozen=True, slots=True)
class Returned:
    """A return that was good: what it led to, and where the browser goes on."""

    outcome: SignedIn | SecondAsked
    target: str


class Oidc(Beginning):
    """Begins at the archive, goes on at the provider, ends here in the same sessions as every sign-in."""

    def __init__(self, database: Database, ledger: Ledger, keyring: Keyring, config: Config, clock: Clock = utc_now) -> None:
        """Take the provider from the configuration; it is asked when somebody comes."""
        super().__init__(database, ledger, keyring, config, clock)
        self._config = config.oidc
        self.provider = Provider(config)

    @property
    def offered(self) -> str:
        """What the button says the provider is called; empty where there is none."""
        return (self._config.label or "single sign-on") if self._config.there else ""

    def begin(self, target: str, *, confirming: Subject | None = None) -> tuple[str, str]:
        """Return where the browser goes, and what it keeps meanwhile.

        Raises:
            InvalidRequest: no provider is configured. Unavailable: it does not answer.
        """
        if not self._config.there:
            message = "signing in with another system is not set up"
            raise InvalidRequest(message, remedy="sign in with name and password")
        at, now = self._clock(), machine_now(self._clock)
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        session_id = None if confirming is None else confirming.session_id
        kept = Kept(state, nonce, verifier, target, at, session_id, now)
        try:
            address = self.provider.address(state=state, nonce=nonce, verifier=verifier, again=session_id is not None, at=now)
        except (Refused, Undeliverable, InvalidRequest) as problem:
            raise self._away(problem.message) from None
        return address, base64.urlsafe_b64encode(sealing.seal(self._key, msgspec.json.encode(kept), _AAD)).decode()

    def end(
        self, kept: str, arrived: Mapping[str, str], *, address: str, user_agent: str, replaced: str = ""
    ) -> Returned:
        """Take what came back from the provider.

        Raises:
            Unauthenticated: whatever is wrong with it, and for everybody who is no user here. Unavailable: the provider does not answer.
        """
        at, now = self._clock(), machine_now(self._clock)
        begun = self._opened(kept, at)
        if begun is None or not hmac.compare_digest(begun.state.encode(), arrived.get("state", "").encode()):
            raise Unauthenticated(_LATE, remedy=_ANEW)
        failed: Detail = {}
        attempt = self._first(begun.state, address, at, now)
        try:
            code = self.provider.check_answer(arrived, now)
            claims = self.provider.redeem(code, verifier=begun.verifier, nonce=begun.nonce, at=now)
            failed = {"sub": claims["sub"]}
            if begun.session_id is not None:
                _asked_anew(claims, begun)
            with self._database.begin() as tx:
                return Returned(self._known(tx, claims, begun, attempt, at, address, user_agent, replaced), begun.target)
        except Refused as refusal:
            self._failed(at, address=address, user_agent=user_agent, name="", how="oidc", why=refusal.message, **failed)
        except (Undeliverable, InvalidRequest) as problem:
            raise self._away(problem.message) from None
        raise Unauthenticated(_NOT_YOU, remedy=_ASK)

    def who(self, token: str) -> tuple[Identity, int] | None:
        """Return the user an ID token of the provider stands for, and 2 when two proofs stand behind it; for protocols that carry one.

        Raises:
            Refused. Unavailable: the provider does not answer.
        """
        if not self._config.there:
            return None
        try:
            claims = self.provider.claims(token, at=machine_now(self._clock))
        except (Undeliverable, InvalidRequest) as problem:
            raise self._away(problem.message) from None
        with self._database.glance() as tx:
            found = external.find(tx, self.provider.issuer, claims["sub"])
        return None if found is None else (found, 2 if self._by_two(claims) else 1)

    # -------------------------------------------------------------------------------------------------------------------------------

    @property
    def _key(self) -> bytes:
        return self._keyring.pepper("signin/oidc")

    def _away(self, why: str) -> Unavailable:
        LOG.warning("the OpenID provider cannot be used: %s", why)
        message = "the system you sign in with does not answer"
        return Unavailable(message, remedy="try again later, or sign in with name and password")

    def _opened(self, kept: str, at: datetime) -> Kept | None:
        if len(kept) > LONGEST:
            return None
        try:
            plain = sealing.unseal(self._key, base64.urlsafe_b64decode(kept.encode("ascii", "replace")), _AAD)
        except (sealing.WrongKey, binascii.Error, ValueError):
            return None
        begun = msgspec.json.decode(plain, type=Kept)
        return begun if begun.begun <= at < begun.begun + LASTS else None

    def _first(self, state: str, address: str, at: datetime, now: datetime) -> int:
        """Count the return, by its network, and let each come once."""
        try:
            with self._database.begin(durable=False) as tx:
                try:
                    attempt = throttle.begin(tx, self._keyring, f"oidc/{state}", address, at=now)
                except Unauthenticated:
                    raise Unauthenticated(_NOT_YOU, remedy="after several failures wait up to 15 minutes") from None
                if external.spend(tx, state, at=at, lasts=LASTS):
                    return attempt
        except sa.exc.IntegrityError:
            pass  # the same return came twice at once, and the other was first
        raise Unauthenticated(_LATE, remedy=_ANEW)

    def _known(
        self, tx: sa.Connection, claims: dict[str, Any], begun: Kept, attempt: int, at: datetime, address: str, user_agent: str,
        replaced: str,
    ) -> SignedIn | SecondAsked:
        """Find the user, keep its groups in step, and begin a session, or go on with the one that asked."""
        found = external.find(tx, self.provider.issuer, claims["sub"])
        who = found or self._bound_now(tx, claims, at)
        if who is None:
            message = "nobody here is bound to that subject"
            raise Refused(message)
        level = 2 if self._by_two(claims) else 1
        how: Detail = {"how": "oidc", "issuer": who.issuer, "identity": who.id, "level": level}
        subject = Subject(who.principal_id, who.name, "user", "web", address=address, user_agent=user_agent[:300])
        if begun.session_id is not None:
            return self._confirmed(tx, replace(subject, session_id=begun.session_id), how, level, attempt, at)
        external.used(tx, who.id, at=at)
        if self._config.groups:
            names = _words(claims.get(self._config.groups_claim))
            keep_in_step(tx, self._ledger, who.principal_id, who.name, self._config.groups, names, via="oidc", at=at)
        if level == 1:
            asked = self._ask_second(tx, who.principal_id, who.shown, attempt, at)
            if asked is not None:
                return asked
        throttle.succeeded(tx, attempt)
        return self._begin(tx, who.principal_id, who.name, at, address, user_agent, replaced, how, must_change=False, level=level)

    def _confirmed(
        self, tx: sa.Connection, subject: Subject, how: Detail, level: int, attempt: int, at: datetime
    ) -> SignedIn:
        mine = {row["id"] for row in sessions.live_of(tx, subject.principal_id, at=at)}
        if subject.session_id not in mine:
            message = "the session that asked is another user's, or has ended"
            raise Refused(message)
        if level == 1 and factors.of(tx, subject.principal_id):
            message = "a user with a second factor here confirms with it"
            raise Refused(message)
        throttle.succeeded(tx, attempt)
        return self._stepped(tx, subject, at, how, level=level)

    def _bound_now(self, tx: sa.Connection, claims: dict[str, Any], at: datetime) -> Identity | None:
        """Bind whoever comes for the first time, where the configuration lets a claim say which user it is."""
        issuer, said = self.provider.issuer, claims.get(self._config.bind_by) if self._config.bind_by else None
        if not isinstance(said, str) or not said or (self._config.bind_by == "email" and claims.get("email_verified") is not True):
            return None
        by = {"email": said} if self._config.bind_by == "email" else {"name": said}
        return self._bind_first(tx, issuer, claims["sub"], at, via="oidc", **by)

    def _by_two(self, claims: dict[str, Any]) -> bool:
        """Whether the provider says, in the words the configuration knows, that it asked for more than a password."""
        return bool(_words(claims.get("acr")) & set(self._config.mfa_acr) or _words(claims.get("amr")) & set(self._config.mfa_amr))


def _words(claim: object) -> set[str]:
    """Return the texts of a claim that is one, or a list of them."""
    return {one for one in (claim if isinstance(claim, list) else [claim]) if isinstance(one, str)}


def _asked_anew(claims: dict[str, Any], begun: Kept) -> None:
    """Refuse an answer that rests on an earlier sign-in at the provider.

    Raises:
        Refused.
    """
    when = claims.get("auth_time")
    if isinstance(when, bool) or not isinstance(when, int | float) or when < (begun.asked or begun.begun).timestamp() - 60:
        message = "the provider did not ask the user again"
        raise Refused(message)
