"""Passkeys: a key in the user's device that checks the user itself (WebAuthn Level 2, user verification required).

Offered only where the archive's public address is https on a host name, or localhost: browsers know passkeys for no address of numbers.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlsplit

import sqlalchemy as sa

from archive.access import factors
from archive.access.factors import Factor
from archive.db.tables import passkey_challenge
from archive.errors import InvalidRequest
from archive.keys.keyring import Keyring

LASTS = timedelta(minutes=5)
ANSWER_CHARACTERS = 16384


@dataclass(frozen=True, slots=True)
class Site:
    """What a passkey is bound to: the host name (empty: none are taken), the origin, and the name shown to people."""

    host: str
    origin: str
    name: str

    @classmethod
    def of(cls, public_url: str, name: str) -> Site:
        """Read the public address."""
        parts = urlsplit(public_url)
        host = (parts.hostname or "").lower()
        try:
            ipaddress.ip_address(host)
        except ValueError:
            fit = bool(host) and (parts.scheme == "https" or host == "localhost")
        else:
            fit = False
        port = parts.port
        usual = port is None or port == {"https": 443, "http": 80}.get(parts.scheme)
        origin = f"{parts.scheme}://{host}" + ("" if usual else f":{port}")
        return cls(host if fit else "", origin, name)

    def require(self) -> None:
        """Refuse where no passkey works.

        Raises:
            InvalidRequest.
        """
        if not self.host:
            message = "passkeys need a public address with a host name"
            raise InvalidRequest(message, remedy="use an authenticator app, or set [archive] public_url to https and a host name")


def begin(tx: sa.Connection, *, session_id: int | None, at: datetime) -> bytes:
    """Return a new challenge, good once and for a few minutes; those that ran out are forgotten."""
    c = passkey_challenge.c
    tx.execute(sa.delete(passkey_challenge).where(c.not_after <= at))
    challenge = secrets.token_bytes(32)
    tx.execute(sa.insert(passkey_challenge).values(
        challenge_sha256=hashlib.sha256(challenge).digest(), session_id=session_id, not_after=at + LASTS
    ))
    return challenge


def registration(site: Site, challenge: bytes, *, principal_id: int, user: str, known: list[bytes]) -> str:
    """Return, as JSON, what a browser needs to make a passkey."""
    import webauthn
    from webauthn.helpers import structs

    options = webauthn.generate_registration_options(
        rp_id=site.host, rp_name=f"Strongroom {site.name}", user_id=principal_id.to_bytes(8, "big"), user_name=user, challenge=challenge,
        authenticator_selection=structs.AuthenticatorSelectionCriteria(
            resident_key=structs.ResidentKeyRequirement.REQUIRED, user_verification=structs.UserVerificationRequirement.REQUIRED,
        ),
        exclude_credentials=[structs.PublicKeyCredentialDescriptor(id=one) for one in known],
    )
    return webauthn.options_to_json(options)


def request(site: Site, challenge: bytes, known: list[bytes]) -> str:
    """Return, as JSON, what a browser needs to use a passkey; with none named it offers those it has for this site."""
    import webauthn
    from webauthn.helpers import structs

    return webauthn.options_to_json(webauthn.generate_authentication_options(
        rp_id=site.host, challenge=challenge, user_verification=structs.UserVerificationRequirement.REQUIRED,
        allow_credentials=[structs.PublicKeyCredentialDescriptor(id=one) for one in known] or None,
    ))


def register(
    tx: sa.Connection, keyring: Keyring, site: Site, answer: str, *, principal_id: int, session_id: int, label: str,
    at: datetime,
) -> int:
    """Keep the passkey a browser made, and return its id.

    Raises:
        InvalidRequest: it answers another challenge, another site, or without a check of the user.
    """
    import webauthn

    refused = InvalidRequest("the passkey was not accepted", remedy="try again; a device that checks its user is needed")
    challenge = challenge_of(answer)
    if not _taken(tx, challenge, session_id, at):
        raise refused
    try:
        made = webauthn.verify_registration_response(
            credential=answer, expected_challenge=challenge, expected_rp_id=site.host, expected_origin=site.origin,
            require_user_verification=True,
        )
    except Exception as error:  # whatever the parser of a hostile answer stumbles over
        raise refused from error
    return factors.add_passkey(
        tx, keyring, principal_id, credential_id=made.credential_id, public_key=made.credential_public_key, sign_count=made.sign_count,
        label=label, at=at,
    )


def take(
    tx: sa.Connection, keyring: Keyring, site: Site, answer: str, *, session_id: int | None, at: datetime
) -> Factor | None:
    """Return the passkey that answered a challenge, None when the answer does not hold."""
    import webauthn
    from webauthn.helpers import base64url_to_bytes

    challenge = challenge_of(answer)
    if not site.host or not _taken(tx, challenge, session_id, at):
        return None
    try:
        raw = json.loads(answer)
        known = factors.passkey(tx, base64url_to_bytes(raw["rawId"]))
        both = None if known is None else factors.public_key(keyring, known)
        if known is None or both is None:
            return None
        held = webauthn.verify_authentication_response(
            credential=answer, expected_challenge=challenge, expected_rp_id=site.host, expected_origin=site.origin,
            credential_public_key=both[1], credential_current_sign_count=known.sign_count, require_user_verification=True,
        )
    except Exception:  # noqa: BLE001 # as above
        return None
    factors.used(tx, known.id, sign_count=held.new_sign_count, at=at)
    return known


def challenge_of(answer: str) -> bytes:
    """Return the challenge an answer says it is for; nothing when it says none."""
    try:
        said = json.loads(answer if len(answer) <= ANSWER_CHARACTERS else "")["response"]["clientDataJSON"]
        text = json.loads(_bytes(said))["challenge"]
        return _bytes(text)
    except (ValueError, KeyError, TypeError, RecursionError):
        return b""


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _taken(tx: sa.Connection, challenge: bytes, session_id: int | None, at: datetime) -> bool:
    """Use a challenge up; whether it was one for this session, in time."""
    c = passkey_challenge.c
    mine = sa.and_(
        c.challenge_sha256 == hashlib.sha256(challenge).digest(), c.not_after > at,
        c.session_id.is_(None) if session_id is None else c.session_id == session_id,
    )
    return bool(tx.execute(sa.delete(passkey_challenge).where(mine)).rowcount)
