"""An OpenID provider on a socket of its own, honest until a test tells it otherwise; it shares no code with the archive's side."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

CLIENT, SECRET = "strongroom", "s3cret/of the: client"
CALLBACK = "https://127.0.0.1:8443/login/oidc/callback"


def _rsa(kid: str) -> Key:
    return RSAKey.generate_key(2048, {"kid": kid, "use": "sig"})


class Provider:
    """`who` signs in at it; the knobs below make it, or somebody in between, lie."""

    def __init__(self) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.issuer = f"http://127.0.0.1:{self.server.server_address[1]}/realm"
        self.keys: dict[str, Key] = {
            "RS256": _rsa("rsa"), "ES256": ECKey.generate_key("P-256", {"kid": "ec", "use": "sig"}),
            "EdDSA": OKPKey.generate_key("Ed25519", {"kid": "ed", "use": "sig"}),
        }
        self.reset()

    def reset(self) -> None:
        self.who: dict[str, Any] = {"sub": "mia-at-the-clinic"}
        self.clock: Callable[[], float] = time.time
        self.algorithm = "RS256"
        self.claims: dict[str, Any] = {}  # put over the honest ones; None takes one away
        self.token: Callable[[dict[str, Any]], str] | None = None  # makes the ID token instead
        self.metadata: dict[str, Any] = {}
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}  # of a path, instead of the honest one
        self.codes: dict[str, dict[str, str]] = {}
        self.asked: list[str] = []
        self.forgets_codes = True

    def signed(self, claims: dict[str, Any], key: Key | None = None, **header: Any) -> str:
        key = key or self.keys[self.algorithm]
        said = {"alg": self.algorithm, "kid": key.kid, **header}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of EdDSA, which RFC 9864 calls Ed25519
            return jwt.encode({name: value for name, value in said.items() if value is not None}, claims, key, algorithms=[said["alg"]])

    def visit(self, address: str) -> dict[str, str]:
        """What a browser that goes to `address` comes back with."""
        with pytest.raises(urllib.error.HTTPError) as answer:
            urllib.request.build_opener(_Stay).open(address, timeout=60)
        assert answer.value.code == 302
        place = answer.value.headers["Location"]
        answer.value.close()
        assert place.startswith(CALLBACK + "?")
        return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(place).query))

    # -------------------------------------------------------------------------------------------------------------------------------

    def discovery(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer, "authorization_endpoint": f"{self.issuer}/authorize", "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/jwks", "response_types_supported": ["code"],
            "authorization_response_iss_parameter_supported": True, **self.metadata,
        }

    def authorize(self, asked: dict[str, str]) -> str:
        assert asked["response_type"] == "code"
        assert asked["client_id"] == CLIENT
        assert asked["redirect_uri"] == CALLBACK, "a redirect URI that was not registered"
        assert asked["code_challenge_method"] == "S256"
        assert "openid" in asked["scope"].split()
        code = secrets.token_urlsafe(16)
        self.codes[code] = asked
        return CALLBACK + "?" + urllib.parse.urlencode({"code": code, "state": asked["state"], "iss": self.issuer})

    def exchange(self, form: dict[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        shown = urllib.parse.unquote_plus(base64.b64decode(authorization.removeprefix("Basic ")).decode())
        if shown != f"{CLIENT}:{SECRET}":
            return 401, {"error": "invalid_client"}
        asked = self.codes.pop(form["code"], None) if self.forgets_codes else self.codes.get(form["code"])
        challenge = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest()).rstrip(b"=").decode()
        if asked is None or form["redirect_uri"] != asked["redirect_uri"] or challenge != asked["code_challenge"]:
            return 400, {"error": "invalid_grant"}
        at = int(self.clock())
        claims = {
            "iss": self.issuer, "aud": CLIENT, "iat": at, "exp": at + 300, "nonce": asked["nonce"], **self.who, **self.claims,
        }
        if "max_age" in asked:
            claims.setdefault("auth_time", at)
        claims = {name: value for name, value in claims.items() if value is not None}
        token = self.signed(claims) if self.token is None else self.token(claims)
        return 200, {"id_token": token, "access_token": "opaque", "token_type": "Bearer"}


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args: Any, **_more: Any) -> None:
        return None


def _handler(provider: Provider) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urllib.parse.urlsplit(self.path)
            provider.asked.append(parts.path)
            if parts.path in provider.answers:
                return self._send(*provider.answers[parts.path])
            if parts.path.endswith("/.well-known/openid-configuration"):
                return self._json(200, provider.discovery())
            if parts.path.endswith("/jwks"):
                return self._json(200, {"keys": [key.as_dict(private=False) for key in provider.keys.values()]})
            assert parts.path.endswith("/authorize"), parts.path
            return self._send(302, {"Location": provider.authorize(dict(urllib.parse.parse_qsl(parts.query)))}, b"")

        def do_POST(self) -> None:
            provider.asked.append(self.path)
            form = dict(urllib.parse.parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
            if self.path in provider.answers:
                return self._send(*provider.answers[self.path])
            return self._json(*provider.exchange(form, self.headers.get("Authorization", "")))

        def _json(self, status: int, body: Any) -> None:
            self._send(status, {"Content-Type": "application/json"}, json.dumps(body).encode())

        def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: Any) -> None:
            pass

    return Handler


@contextmanager
def running() -> Iterator[Provider]:
    provider = Provider()
    thread = threading.Thread(target=provider.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield provider
    finally:
        provider.server.shutdown()
        thread.join()
        provider.server.server_close()


def unsigned(claims: dict[str, Any]) -> str:
    """A token of nobody."""
    parts = ({"alg": "none", "typ": "JWT"}, claims)
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts) + "."


def with_public_key(provider: Provider, claims: dict[str, Any]) -> str:
    """A token "signed" with HMAC under the public key everybody has."""
    pem = provider.keys["RS256"].as_pem(private=False)
    header = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "kid": "rsa"}).encode()).rstrip(b"=")
    body = header + b"." + base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=")
    return (body + b"." + base64.urlsafe_b64encode(hmac.digest(pem, body, "sha256")).rstrip(b"=")).decode()
