"""Entity tags and If-None-Match; asked only after the caller's right to the object has been settled."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from flask import Response, request


def tag(*parts: str) -> str:
    """Return an opaque entity tag from keyed ones of the archive and what tells representations apart."""
    return tag_of(parts)


def tag_of(parts: Iterable[str]) -> str:
    """Return the same of many parts, none of which has to stay in memory."""
    digest = hashlib.sha256()
    for number, part in enumerate(parts):
        digest.update(f"\0{part}".encode() if number else part.encode())
    return digest.hexdigest()[:32]


def bare(etag: str) -> str:
    """Return an entity tag without quotes and weakness."""
    return etag.removeprefix("W/").strip('"')


def unchanged(etag: str) -> Response | None:
    """Return 304 when the caller holds this representation already (weak comparison, RFC 9110 13.1.2)."""
    sent = request.headers.get("If-None-Match")
    if sent is None:
        return None
    if sent.strip() == "*" or any(bare(one.strip()) == bare(etag) for one in sent.split(",")):
        response = Response(status=304)
        response.headers["ETag"] = etag
        return response
    return None
