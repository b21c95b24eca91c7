"""Who asks: bearer token, Basic with an API token, or the browser's session cookie; and what a cookie may not do from another site.

A credential in the Authorization header is used alone: when it fails, the cookie is not tried.
"""

from __future__ import annotations

import base64
import binascii
from urllib.parse import urlsplit

from flask import Response, request

from archive.access.subject import Subject
from archive.config import Config
from archive.errors import Forbidden, Unauthenticated
from archive.web.context import archive

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
HOST_COOKIE = "__Host-session"
PLAIN_COOKIE = "session"
CREDENTIAL_BYTES = 4096


class CrossSite(Forbidden):
    """A browser was led here by another site; its cookie does not count."""

    code = "cross-site"

    def __init__(self) -> None:
        """The text is fixed: nothing about the object asked for."""
        message = "the request did not come from the archive's own pages"
        super().__init__(message, remedy="open the archive's own address, or use a token")


def cookie_name(config: Config) -> str:
    """Return the session cookie's name; the __Host- prefix needs Secure, so plain loopback addresses go without."""
    return HOST_COOKIE if secure(config) else PLAIN_COOKIE


def set_cookie(response: Response, token: str) -> None:
    """Hand the browser its session; gone when the browser closes, ended by the server earlier."""
    config = archive().config
    response.set_cookie(cookie_name(config), token, path="/", secure=secure(config), httponly=True, samesite="Strict")


def held() -> str:
    """Return the word of the session the browser brings along, whatever it is worth."""
    token = request.cookies.get(cookie_name(archive().config), "")
    return token if len(token) <= CREDENTIAL_BYTES else ""


def clear_cookie(response: Response) -> None:
    """Take the session away from the browser."""
    config = archive().config
    response.delete_cookie(cookie_name(config), path="/", secure=secure(config), httponly=True, samesite="Strict")


def authenticate(*, dicomweb: bool) -> Subject:
    """Return who sent this request.

    Raises:
        Unauthenticated: no credential, or one that is not valid.
        CrossSite: the cookie came with a request from another site, or one whose origin cannot be told.
    """
    header = request.headers.get("Authorization")
    if header is not None:
        return _from_header(header)
    token = request.cookies.get(cookie_name(archive().config), "")
    if not token or len(token) > CREDENTIAL_BYTES:
        message = "sign in first"
        raise Unauthenticated(message, remedy="send a token (archive token create), or sign in with the browser")
    if (dicomweb or request.method not in SAFE_METHODS) and not same_origin():
        raise CrossSite
    return archive().signin.session(token, address=address())


def refuse_foreign_forms() -> None:
    """Refuse a state-changing request without a credential (signing in) that another site's page sent.

    Raises:
        CrossSite.
    """
    if request.method in SAFE_METHODS:
        return
    told = request.headers.get("Sec-Fetch-Site") is not None or request.headers.get("Origin") is not None
    if told and not same_origin():
        raise CrossSite


def same_origin() -> bool:
    """Return whether the browser says that the archive's own page (or its user) made this request."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in {"same-origin", "none"}
    origin = request.headers.get("Origin")
    return origin is not None and origin_of(origin) == origin_of(archive().config.archive.public_url)


def address() -> str:
    """Return the peer's address; forwarded headers are not believed."""
    return request.environ.get("REMOTE_ADDR") or ""


def _from_header(header: str) -> Subject:
    scheme, _, credential = header.strip().partition(" ")
    credential = credential.strip()
    if len(credential) <= CREDENTIAL_BYTES:
        if scheme.lower() == "bearer" and credential:
            return archive().signin.bearer(credential, address=address())
        if scheme.lower() == "basic":
            pair = pair_of(credential)
            if pair is not None:
                return archive().signin.basic(*pair, address=address())
    message = "the Authorization header holds no credential the archive takes"
    raise Unauthenticated(message, remedy="send 'Bearer TOKEN', or Basic with a user name and an API token")


def pair_of(credential: str) -> tuple[str, str] | None:
    """Return user name and token of a Basic credential, None when it is none."""
    try:
        user, colon, token = base64.b64decode(credential, validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
    return (user, token) if colon and user and token else None


def origin_of(text: str) -> tuple[str, str, int | None] | None:
    """Return scheme, host and port of an address, None when it is none."""
    try:
        parts = urlsplit(text)
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    except ValueError:
        return None
    return (parts.scheme, (parts.hostname or "").lower(), port) if parts.scheme and parts.hostname else None


def secure(config: Config) -> bool:
    """Return whether browsers reach the archive over TLS."""
    return config.http.tls != "off" or config.archive.public_url.startswith("https://")
