"""CORS: which other sites' pages may ask DICOMweb, by `[http] cors_origins`; nobody's unless it says so.

Such a page sends a token in the Authorization header; cookies are never taken from another site (`Access-Control-Allow-Credentials`
is not sent).

Source: the Fetch standard, 3.2.
"""

from __future__ import annotations

from flask import Flask, Response, request

from archive.web.context import archive
from archive.web.permissions import DICOMWEB_BLUEPRINTS

REQUEST_HEADERS = "Accept, Authorization, Content-Type, If-Match, If-None-Match, If-Range, Range"
EXPOSED = "Accept-Ranges, Content-Location, Content-Range, Content-Type, ETag, Location, Repr-Digest, Warning, X-Total-Count"
KEPT_S = 600


def register(app: Flask) -> None:
    """Add what a configured origin's browser must read."""
    app.after_request(_add)


def _add(response: Response) -> Response:
    if request.blueprint not in DICOMWEB_BLUEPRINTS:
        return response
    allowed = archive().config.http.cors_origins
    if not allowed:
        return response
    response.vary.add("Origin")
    origin = request.headers.get("Origin", "")
    if origin not in allowed:
        return response
    response.headers["Access-Control-Allow-Origin"] = origin
    response.headers["Access-Control-Expose-Headers"] = EXPOSED
    if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
        response.headers["Access-Control-Allow-Methods"] = ", ".join(sorted(response.allow))
        response.headers["Access-Control-Allow-Headers"] = REQUEST_HEADERS
        response.headers["Access-Control-Max-Age"] = str(KEPT_S)
    return response
