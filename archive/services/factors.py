"""One's own second factors: an authenticator app or a passkey added, shown to work, removed; recovery codes. Each change is an event."""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.access import demands, factors, passkeys, recovery, sessions, throttle, totp
from archive.access.sessions import Lifetime
from archive.access.subject import Subject
from archive.config import Config
from archive.db.engine import Database
from archive.errors import Forbidden, InvalidRequest, StateConflict, Unauthenticated
from archive.keys.keyring import Keyring
from archive.ledger.audit import Kind, secret_digest
from archive.ledger.log import Ledger
from archive.services.changes import Changes
from archive.services.clock import Clock, machine_now, utc_now
from archive.services.signin import WRONG_CODE

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Begun:
    """An authenticator to be set up: shown once, and counting only when a code shows that it works."""

    id: int
    secret: str
    address: str
    picture: str  # of the address, as SVG


class Factors(Changes):
    """What a user signed in with the browser does with their own factors.

    What depends on those there are is done alone: else two at once could leave none, or recovery codes that were to count no more.
    """

    def __init__(
        self, database: Database, ledger: Ledger, keyring: Keyring, config: Config, clock: Clock = utc_now, *, read_only: str = ""
    ) -> None:
        """Passkeys are bound to the public address of the configuration."""
        super().__init__(database, ledger, clock, read_only=read_only)
        self._keyring = keyring
        self._site = passkeys.Site.of(config.archive.public_url, config.archive.name)

    @property
    def passkeys_work(self) -> bool:
        """Whether the archive's address is one browsers know passkeys for."""
        return bool(self._site.host)

    def listed(self, subject: Subject) -> Row:
        """Return one's own factors, how many recovery codes are left, and whether a role asks for a second factor."""

        def work(tx: sa.Connection, at: datetime) -> Row:
            needed = demands.of(tx, subject.principal_id, Lifetime(), at=at).second_factor
            return {
                "factors": [shown(found) for found in factors.of(tx, subject.principal_id)],
                "recovery_codes_left": recovery.left(tx, subject.principal_id), "required": needed, "passkeys": self.passkeys_work,
            }

        return self._read(subject, None, work)

    def begin_totp(self, subject: Subject, label: str = "") -> Begun:
        """Draw the secret of a new authenticator; it counts when `confirm_totp` got a code of it.

        Raises:
            Forbidden: not signed in with the browser. InvalidRequest: there are too many.
        """
        _in_browser(subject)

        def work(tx: sa.Connection, at: datetime) -> Begun:
            key, secret = factors.add_totp(tx, self._keyring, subject.principal_id, label=label, at=at)
            address = totp.address(secret, account=subject.name, issuer=f"Strongroom {self._site.name}".strip())
            self._record(tx, Kind.FACTOR_CHANGED, subject, at, what="begun", factor=key, id=subject.principal_id, factor_kind="totp")
            return Begun(key, totp.typed_secret(secret), address, picture(address))

        return self._change(subject, None, work)

    def confirm_totp(self, subject: Subject, factor_id: int, code: str) -> list[str]:
        """Let a new authenticator count, and return new recovery codes with the first factor; one's other sessions end.

        Raises:
            Unauthenticated: a wrong code, or too many. NotFound. StateConflict: it counts already.
        """
        _in_browser(subject)
        wrong = Unauthenticated(WRONG_CODE, remedy="wait for the next code; the clocks of both devices must be right")
        with self._database.begin(durable=False) as tx:
            try:
                attempt = throttle.begin(tx, self._keyring, subject.name, subject.address, at=machine_now(self._clock))
            except Unauthenticated:
                raise wrong from None

        def work(tx: sa.Connection, at: datetime) -> list[str] | None:
            found = factors.begun(tx, subject.principal_id, factor_id)
            if found.kind != "totp" or found.confirmed_at is not None:
                message = "that authenticator is set up already"
                raise StateConflict(message, remedy="remove it first, or add another")
            if not factors.confirm(tx, self._keyring, found, code, at=at, now=machine_now(self._clock)):
                return None
            throttle.succeeded(tx, attempt)
            return self._added(tx, subject, found.id, at)

        codes = self._change(subject, None, work, alone=True)
        if codes is None:
            raise wrong
        return codes

    def _added(self, tx: sa.Connection, subject: Subject, factor_id: int, at: datetime) -> list[str]:
        """Record a new factor, lift the session, end the others, and draw recovery codes where it is the first."""
        assert subject.session_id is not None
        added = factors.begun(tx, subject.principal_id, factor_id)
        first = len(factors.of(tx, subject.principal_id)) == 1
        sessions.lift(tx, subject.session_id, level=2)
        if first:
            sessions.end_all(tx, subject.principal_id, at=at, keep=subject.session_id)
        codes = recovery.renew(tx, self._keyring, subject.principal_id, at=at) if first else []
        self._record(
            tx, Kind.FACTOR_CHANGED, subject, at, what="added", factor=factor_id, id=subject.principal_id, factor_kind=added.kind,
            sealed=secret_digest(added.sealed), alone=first, **self._codes(tx, subject.principal_id),
        )
        return codes

    def _codes(self, tx: sa.Connection, principal_id: int) -> Row:
        return {"codes": [secret_digest(one) for one in recovery.kept(tx, principal_id)]}

    def renew_codes(self, subject: Subject) -> list[str]:
        """Draw ten new recovery codes; the earlier ones count no more.

        Raises:
            InvalidRequest: there is no factor they could stand in for.
        """
        _in_browser(subject)

        def work(tx: sa.Connection, at: datetime) -> list[str]:
            if not factors.of(tx, subject.principal_id):
                message = "there is no second factor yet"
                raise InvalidRequest(message, remedy="set up an authenticator app or a passkey first")
            codes = recovery.renew(tx, self._keyring, subject.principal_id, at=at)
            self._record(tx, Kind.FACTOR_CHANGED, subject, at, what="codes", id=subject.principal_id,
                         **self._codes(tx, subject.principal_id))
            return codes

        return self._change(subject, None, work, alone=True)

    def remove(self, subject: Subject, factor_id: int) -> Row:
        """Take one of one's own factors away; the last one not while a role asks for one.

        Raises:
            Forbidden, NotFound.
        """
        _in_browser(subject)

        def work(tx: sa.Connection, at: datetime) -> Row:
            found = factors.begun(tx, subject.principal_id, factor_id)
            others = [one for one in factors.of(tx, subject.principal_id) if one.id != found.id]
            if not others and demands.of(tx, subject.principal_id, Lifetime(), at=at).second_factor:
                message = "your role asks for a second factor"
                raise Forbidden(message, remedy="add another before you remove this one")
            factors.remove(tx, found.id)
            if not others:
                recovery.clear(tx, subject.principal_id)
            self._record(tx, Kind.FACTOR_CHANGED, subject, at, what="removed", factor=found.id, id=subject.principal_id,
                         factor_kind=found.kind, **self._codes(tx, subject.principal_id))
            return shown(found)

        return self._change(subject, None, work, alone=True)

    # --- passkeys ---

    def begin_passkey(self, subject: Subject) -> str:
        """Return, as JSON, what the browser needs to make a passkey.

        Raises:
            InvalidRequest: the archive's address is none for passkeys. Forbidden.
        """
        _in_browser(subject)
        self._site.require()

        def work(tx: sa.Connection, at: datetime) -> str:
            challenge = passkeys.begin(tx, session_id=subject.session_id, at=at)
            known = self._known(tx, subject.principal_id)
            return passkeys.registration(
                self._site, challenge, principal_id=subject.principal_id, user=subject.name, known=known
            )

        return self._change(subject, None, work)

    def add_passkey(self, subject: Subject, answer: str, label: str = "") -> list[str]:
        """Keep the passkey the browser made, and return recovery codes when it is the first factor.

        Raises:
            InvalidRequest: it does not hold. Forbidden.
        """
        _in_browser(subject)
        self._site.require()

        def work(tx: sa.Connection, at: datetime) -> list[str]:
            assert subject.session_id is not None
            key = passkeys.register(
                tx, self._keyring, self._site, answer, principal_id=subject.principal_id, session_id=subject.session_id,
                label=label, at=at,
            )
            return self._added(tx, subject, key, at)

        return self._change(subject, None, work, alone=True)

    def ask_passkey(self, subject: Subject | None) -> str:
        """Return, as JSON, what the browser needs to use a passkey: anyone's to sign in, one's own to confirm.

        Raises:
            InvalidRequest: the archive's address is none for passkeys.
        """
        self._site.require()
        at = self._clock()
        with self._database.begin(durable=False) as tx:
            if subject is None:
                challenge = passkeys.begin(tx, session_id=None, at=at)
                return passkeys.request(self._site, challenge, [])
            challenge = passkeys.begin(tx, session_id=subject.session_id, at=at)
            return passkeys.request(self._site, challenge, self._known(tx, subject.principal_id))

    def _known(self, tx: sa.Connection, principal_id: int) -> list[bytes]:
        both = [factors.public_key(self._keyring, one) for one in factors.of(tx, principal_id) if one.kind == "passkey"]
        return [one[0] for one in both if one is not None]


def shown(found: factors.Factor) -> Row:
    """Return a factor as lists show it."""
    return {
        "id": found.id, "kind": found.kind, "label": found.label, "created_at": found.created_at, "last_used_at": found.last_used_at,
    }


def picture(address: str) -> str:
    """Return the QR code of an address as SVG without a style or script of its own."""
    import segno

    out = io.BytesIO()
    segno.make(address, error="m", micro=False).save(
        out, kind="svg", scale=5, border=4, xmldecl=False, nl=False, svgclass=None, lineclass=None, dark="#000", light="#fff",
        title="QR code of the secret", omitsize=True,
    )
    return out.getvalue().decode()


def _in_browser(subject: Subject) -> None:
    """Refuse a token: it does not change how its user signs in.

    Raises:
        Forbidden.
    """
    if subject.session_id is None:
        message = "second factors are changed by their user, signed in with the browser"
        raise Forbidden(message, remedy="sign in with the browser, or use 'archive user reset-mfa' on the server")
