"""An OpenID provider, asked as little as needed and believed as little as possible.

Source: OpenID Connect Core 1.0 3.1 and Discovery 1.0; RFC 7636 (PKCE, S256 alone), RFC 9207 (issuer of an answer), RFC 8725 (JWT).
"""

from __future__ import annotations

import hmac
import threading
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NoReturn
from urllib.parse import urlencode, urlsplit

import msgspec

from archive.config import Config
from archive.errors import ArchiveError, InvalidRequest
from archive.services import outgoing
from archive.services.outgoing import Limits

_MOST_BYTES = 256 << 10
_KEPT = timedelta(hours=1)
_AGAIN = timedelta(seconds=30)
"""How soon it is asked again for unknown keys, or after no answer: strangers must not make the archive ask, and wait, all the time."""
_ANYWHERE, _LOOPBACK = ("0.0.0.0/0", "::/0"), ("127.0.0.0/8", "::1/128")


class Refused(ArchiveError):
    """What the provider, or somebody in its name, sent does not hold; the message is for the log and the ledger, never for whoever asks."""

    code = "refused-elsewhere"


class Provider:
    """What it says of itself and its keys are kept for an hour; safe to share between threads."""

    def __init__(self, config: Config) -> None:
        """Ask nothing yet."""
        self._oidc = config.oidc
        self._secret_file = config.resolve(config.oidc.client_secret_file) if config.oidc.client_secret_file else None
        self._ca_file = str(config.resolve(config.oidc.ca_file)) if config.oidc.ca_file else ""
        self._lock = threading.Lock()
        self._said: tuple[datetime, dict[str, Any]] | None = None
        self._keys: tuple[datetime, list[dict[str, Any]]] | None = None
        self._away: tuple[datetime, str] | None = None
        self.redirect_uri = config.archive.public_url.rstrip("/") + "/login/oidc/callback"

    @property
    def issuer(self) -> str:
        """Who it is."""
        return self._oidc.issuer

    def address(self, *, state: str, nonce: str, verifier: str, again: bool, at: datetime) -> str:
        """Return where the browser is sent; `again` makes the provider ask the user anew.

        Raises:
            Refused, Undeliverable.
        """
        from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
        from authlib.oauth2.rfc7636 import create_s256_code_challenge

        more = {"nonce": nonce, "code_challenge": create_s256_code_challenge(verifier), "code_challenge_method": "S256"}
        if again:
            more |= {"prompt": "login", "max_age": "0"}
        if self._oidc.mfa_acr:
            more["acr_values"] = " ".join(self._oidc.mfa_acr)
        return str(prepare_grant_uri(
            self._metadata(at)["authorization_endpoint"], self._oidc.client_id, "code", redirect_uri=self.redirect_uri,
            scope=" ".join(self._oidc.scopes), state=state, **more,
        ))

    def check_answer(self, arrived: Mapping[str, str], at: datetime) -> str:
        """Return the code of the provider's answer.

        Raises:
            Refused: an error, another issuer's answer, or none at all. Undeliverable.
        """
        told = arrived.get("iss")
        required = self._metadata(at).get("authorization_response_iss_parameter_supported") is True
        if (told is not None or required) and told != self._oidc.issuer:
            _refuse("the answer is another issuer's")
        if "error" in arrived:
            word = arrived["error"][:60]
            _refuse("the provider answered " + (word if word.isascii() and word.replace("_", "").isalnum() else "an error"))
        code = arrived.get("code", "")
        if not 0 < len(code) <= 4096:
            _refuse("the answer holds no code")
        return code

    def redeem(self, code: str, *, verifier: str, nonce: str, at: datetime) -> dict[str, Any]:
        """Return the claims of the ID token a code stands for.

        Raises:
            Refused, Undeliverable.
        """
        said = self._metadata(at)
        form = {
            "grant_type": "authorization_code", "code": code, "redirect_uri": self.redirect_uri, "code_verifier": verifier,
        }
        headers: dict[str, str] = {}
        self._show_client(form, headers, said)
        url = said["token_endpoint"]
        try:
            answer = outgoing.fetch(url, self._limits(url), most_bytes=_MOST_BYTES, headers=headers, form=urlencode(form).encode())
        except outgoing.Undeliverable as problem:
            if problem.message.startswith("answered 4"):
                _refuse(f"the provider did not take the code: it {problem.message}")
            raise
        found = _object(answer)
        token, access = found.get("id_token"), found.get("access_token")
        if not isinstance(token, str):
            _refuse("the provider gave no ID token")
        return self.claims(token, at=at, nonce=nonce, access_token=access if isinstance(access, str) else None)

    def claims(self, token: str, *, at: datetime, nonce: str | None = None, access_token: str | None = None) -> dict[str, Any]:
        """Return the claims of a token the provider signed for this archive.

        Raises:
            Refused, Undeliverable.
        """
        from archive.services.id_tokens import Unsound, claims_of

        try:
            found = claims_of(
                token, lambda algorithm, kid: self._key(algorithm, kid, at), issuer=self._oidc.issuer, client_id=self._oidc.client_id,
                nonce=nonce, access_token=access_token, at=at,
            )
        except Unsound as why:
            raise Refused(str(why)) from None
        if nonce is not None and not hmac.compare_digest(str(found.get("nonce", "")).encode(), nonce.encode()):
            _refuse("the token answers another sign-in")
        return found

    # -------------------------------------------------------------------------------------------------------------------------------

    def _show_client(self, form: dict[str, str], headers: dict[str, str], said: Mapping[str, Any]) -> None:
        """Add what shows that the archive itself asks: its secret the way the provider takes it, or its name alone with PKCE."""
        from authlib.oauth2.auth import ClientAuth

        form["client_id"] = self._oidc.client_id
        if self._secret_file is None:
            return
        try:
            secret = self._secret_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            _refuse("oidc.client_secret_file cannot be read")
        taken = said.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        if "client_secret_basic" in taken or "client_secret_post" not in taken:
            auth = ClientAuth(self._oidc.client_id, secret, "client_secret_basic")
            _, shown, _ = auth.prepare("POST", said["token_endpoint"], {}, "")
            headers.update(shown)
        else:
            form["client_secret"] = secret

    def _key(self, algorithm: str, kid: str | None, at: datetime) -> dict[str, Any] | None:
        """Return the provider's key for a way of signing and a name; an unknown one makes the archive look again."""
        from archive.services.id_tokens import KEY_TYPES

        for fresh in (False, True):
            fitting = [
                one for one in self._jwks(at, fresh=fresh)
                if one.get("kty") == KEY_TYPES[algorithm] and one.get("use", "sig") == "sig" and one.get("alg", algorithm) == algorithm
                and (kid is None or one.get("kid") == kid)
            ]
            if len(fitting) == 1:
                return fitting[0]
        return None

    def _jwks(self, at: datetime, *, fresh: bool) -> list[dict[str, Any]]:
        with self._lock:
            kept = self._keys
        if kept is not None and timedelta(0) <= at - kept[0] < (_AGAIN if fresh else _KEPT):
            return kept[1]
        url = self._metadata(at)["jwks_uri"]
        found = _object(outgoing.fetch(url, self._limits(url), most_bytes=_MOST_BYTES)).get("keys")
        keys = [
            {name: value for name, value in one.items() if name in {"kty", "kid", "use", "alg", "n", "e", "crv", "x", "y"}}
            for one in (found if isinstance(found, list) else []) if isinstance(one, dict)
        ]
        with self._lock:
            self._keys = (at, keys)
        return keys

    def _metadata(self, at: datetime) -> dict[str, Any]:
        with self._lock:
            kept = self._said
        if kept is not None and timedelta(0) <= at - kept[0] < _KEPT:
            return kept[1]
        if self._away is not None and timedelta(0) <= at - self._away[0] < _AGAIN:
            raise outgoing.Undeliverable(self._away[1])
        url = self._oidc.issuer.rstrip("/") + "/.well-known/openid-configuration"
        try:
            said = _object(outgoing.fetch(url, self._limits(url), most_bytes=_MOST_BYTES))
        except outgoing.Undeliverable as problem:
            self._away = (at, problem.message)
            raise
        if said.get("issuer") != self._oidc.issuer:
            _refuse("the provider says it is another issuer than oidc.issuer")
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            try:
                outgoing.check(str(said.get(name, "")), self._limits(str(said.get(name, ""))))
            except InvalidRequest:
                _refuse(f"the provider's {name} is no address to go to")
        with self._lock:
            self._said = (at, said)
        return said

    def _limits(self, url: str) -> Limits:
        """The provider itself is where the operator said, inside the house or out; what it leads to elsewhere is a public address."""
        ours, theirs = urlsplit(self._oidc.issuer), urlsplit(url)
        networks: tuple[str, ...] = ()
        if ours.scheme == "http":
            networks = _LOOPBACK
        elif ours.hostname == theirs.hostname:
            networks = _ANYWHERE
        return Limits(networks, self._ca_file)


def _object(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        _refuse("the provider's answer is not a JSON object")


def _refuse(why: str) -> NoReturn:
    raise Refused(why)
