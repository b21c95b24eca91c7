"""ID tokens: who signed them, for whom, and until when. Imported where one came: what it stands on is slow to load.

Source: OpenID Connect Core 1.0 3.1.3.7; RFC 7515, RFC 7519, RFC 8725.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError, UnsupportedAlgorithmError
from joserfc.jwk import import_key
from joserfc.jws import JWSRegistry, extract_compact

SKEW_S = 60
KEY_TYPES = {"RS256": "RSA", "ES256": "EC", "EdDSA": "OKP", "Ed25519": "OKP"}
"""The ways of signing that are taken, and the kind of key each has: never none, never one whose key the verifier shares."""
MOST_CHARACTERS = 64 << 10


class Unsound(Exception):
    """A token that does not hold; the text says why without saying what is in it."""


class _Taken(JWSRegistry):
    """The library's registry without its warning about the older name of Ed25519, which providers go on using."""

    def get_alg(self, name: str) -> Any:
        if name not in KEY_TYPES:
            raise UnsupportedAlgorithmError(name)
        return self.algorithms[name]


_REGISTRY = _Taken(algorithms=list(KEY_TYPES), strict_check_header=False)


def claims_of(
    token: str, key: Callable[[str, str | None], Mapping[str, Any] | None], *, issuer: str, client_id: str, nonce: str | None,
    access_token: str | None, at: datetime,
) -> dict[str, Any]:
    """Return the claims of a token that holds; `key` finds the issuer's public key for a way of signing and a key's name.

    Raises:
        Unsound.
    """
    if len(token) > MOST_CHARACTERS:
        message = "the token is too long"
        raise Unsound(message)
    try:
        header = extract_compact(token.encode(), registry=_REGISTRY).headers()
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in KEY_TYPES:
            message = "the token is signed in a way that is not taken"
            raise Unsound(message)
        public = key(str(algorithm), None if kid is None else str(kid))
        if public is None:
            message = "the token is signed with a key the provider does not show"
            raise Unsound(message)
        found = jwt.decode(token, import_key(dict(public)), registry=_REGISTRY)
        options = {"iss": {"essential": True, "value": issuer}, "aud": {"essential": True, "value": client_id}}
        params = {"client_id": client_id, "nonce": nonce, "access_token": access_token}
        CodeIDToken(found.claims, found.header, options, params).validate(now=int(at.timestamp()), leeway=SKEW_S)
    except JoseError as error:
        message = f"the token does not hold: {type(error).__name__} {getattr(error, 'claim', None) or ''}".rstrip()
        raise Unsound(message) from None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        message = f"the token is malformed: {type(error).__name__}"
        raise Unsound(message) from None
    claims: dict[str, Any] = found.claims
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= 255 or not subject.isprintable() or subject != subject.strip():
        message = "the token's sub cannot be one"
        raise Unsound(message)
    return claims
