"""Errors as answers: one table from the archive's errors to HTTP, and RFC 9457 bodies.

A body never tells more than the caller may know: an object that is absent and one that may not be seen give the same bytes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from http import HTTPStatus

import msgspec
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from archive import errors

log = logging.getLogger("archive.web")

RETRY_AFTER_S = 10


@dataclass(frozen=True, slots=True)
class Line:
    """The answer to one class of error: `detail` "" means the error's own message."""

    status: HTTPStatus
    detail: str = ""
    retry_after_s: int = 0


_ABSENT = Line(HTTPStatus.NOT_FOUND, "there is nothing here, or nothing you may see")
_DAMAGED = Line(HTTPStatus.INTERNAL_SERVER_ERROR, "the stored bytes are not what was stored, so nothing is served")
_LATER = RETRY_AFTER_S

TABLE: dict[type[errors.ArchiveError], Line] = {
    errors.ArchiveError: Line(HTTPStatus.INTERNAL_SERVER_ERROR, "the request failed"),
    errors.Rejected: Line(HTTPStatus.BAD_REQUEST),
    errors.InvalidInstance: Line(HTTPStatus.CONFLICT),
    errors.UnsupportedClass: Line(HTTPStatus.CONFLICT),
    errors.InvalidQuery: Line(HTTPStatus.BAD_REQUEST),
    errors.InvalidRequest: Line(HTTPStatus.BAD_REQUEST),
    errors.NotAcceptable: Line(HTTPStatus.NOT_ACCEPTABLE),
    errors.InstanceConflict: Line(HTTPStatus.CONFLICT),
    errors.StateConflict: Line(HTTPStatus.CONFLICT),
    errors.Denied: Line(HTTPStatus.FORBIDDEN),
    errors.Unauthenticated: Line(HTTPStatus.UNAUTHORIZED),
    errors.Forbidden: Line(HTTPStatus.FORBIDDEN),
    errors.AwaitsApproval: Line(HTTPStatus.ACCEPTED),
    errors.NotFound: _ABSENT,
    errors.Unavailable: Line(HTTPStatus.SERVICE_UNAVAILABLE, retry_after_s=_LATER),
    errors.OutOfSpace: Line(HTTPStatus.INSUFFICIENT_STORAGE),
    errors.VaultUnavailable: Line(HTTPStatus.SERVICE_UNAVAILABLE, "the storage cannot be read or written now", _LATER),
    errors.DatabaseUnavailable: Line(HTTPStatus.SERVICE_UNAVAILABLE, "the database cannot be reached now", _LATER),
    errors.CommitUncertain: Line(HTTPStatus.SERVICE_UNAVAILABLE, "the database cannot be reached now", _LATER),
    errors.KeysUnavailable: Line(HTTPStatus.SERVICE_UNAVAILABLE, "the keys cannot be opened now", _LATER),
    errors.ReadOnly: Line(HTTPStatus.SERVICE_UNAVAILABLE, "the archive is read-only until a finding is acknowledged", _LATER),
    errors.IntegrityError: _DAMAGED,
    errors.SealBroken: _DAMAGED,
    errors.KeyShredded: _ABSENT,
    errors.DigestMismatch: _DAMAGED,
    errors.LedgerBroken: Line(HTTPStatus.SERVICE_UNAVAILABLE, "the ledger does not verify, so nothing is answered", _LATER),
    errors.ConfigurationError: Line(HTTPStatus.INTERNAL_SERVER_ERROR, "the archive's configuration is at fault"),
}
"""One line for each class of archive/errors.py; a test demands it."""

_TOLD = frozenset({202, 400, 401, 403, 406, 409})
"""Statuses whose remedy is the caller's business; the others' is the operator's, and stays in the log."""


def line_of(error: errors.ArchiveError) -> Line:
    """Return the table's line for an error, the nearest base class's when it has none of its own."""
    return next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)


def status_of(error: errors.ArchiveError) -> HTTPStatus:
    """Return the status an error is answered with; pages show it in their own form."""
    return line_of(error).status


def title_of(status: int) -> str:
    """Return the short name of a status."""
    return HTTPStatus(status).phrase


def problem(
    status: HTTPStatus, *, code: str = "", detail: str = "", remedy: str = "", request_id: str = "", **headers: str
) -> Response:
    """Return an application/problem+json answer (RFC 9457)."""
    told = {"type": "about:blank", "title": status.phrase, "status": int(status), "detail": detail, "code": code, "remedy": remedy}
    body = {name: value for name, value in told.items() if value} | ({"request_id": request_id} if request_id else {})
    response = Response(msgspec.json.encode(body), status=int(status), content_type="application/problem+json")
    for name, value in headers.items():
        response.headers[name.replace("_", "-").title()] = value
    return response


def answer(error: errors.ArchiveError) -> Response:
    """Return the answer to one of the archive's errors."""
    line = line_of(error)
    detail = line.detail or error.message
    remedy = error.remedy if line.status in _TOLD else ""
    request_id = ""
    headers: dict[str, str] = {}
    if line.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        request_id = note(error)
    if line.retry_after_s:
        headers["retry_after"] = str(line.retry_after_s)
    if isinstance(error, errors.AwaitsApproval):
        headers["location"] = f"/api/approvals/{error.approval}"
    # KeyShredded answers as NotFound in every byte, so the code is the line's, not the error's.
    code = errors.NotFound.code if line is _ABSENT else error.code
    response = problem(line.status, code=code, detail=detail, remedy=remedy, request_id=request_id, **headers)
    if line.status is HTTPStatus.UNAUTHORIZED:
        challenge(response, failed=bool(request.headers.get("Authorization")))
    return response


def note(error: errors.ArchiveError) -> str:
    """Write down what the operator must know of a failed request, and return the identifier to look it up by."""
    request_id: str = g.get("request_id", "")
    log.error("request failed", extra={
        "request_id": request_id, "route": route(), "error": error.code, "verdict": error.verdict, "detail": error.message,
        "remedy": error.remedy,
    })
    return request_id


def challenge(response: Response, *, failed: bool) -> None:
    """Say how to sign in; Basic only to programs, because a browser would show its own dialogue for it."""
    bearer = 'Bearer realm="strongroom"' + (', error="invalid_token"' if failed else "")
    response.headers.add("WWW-Authenticate", bearer)
    sent_basic = request.headers.get("Authorization", "").lower().startswith("basic")
    from_browser = bool(request.cookies) or any(name.lower().startswith("sec-fetch-") for name in request.headers.keys())  # noqa: SIM118
    if (sent_basic or not request.headers.get("Authorization")) and not from_browser:
        response.headers.add("WWW-Authenticate", 'Basic realm="strongroom", charset="UTF-8"')


def route() -> str:
    """Return the matched rule, which names no object; "" when nothing matched."""
    return request.url_rule.rule if request.url_rule is not None else ""


def register(app: Flask) -> None:
    """Answer every error of `app` from the table."""
    app.register_error_handler(errors.ArchiveError, answer)
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(Exception, _unexpected)


def _http(error: HTTPException) -> Response:
    """Answer what werkzeug raises (404, 405, 408, 411, 413, 415 …) without echoing the request."""
    status = HTTPStatus(error.code or 500)
    if status < HTTPStatus.BAD_REQUEST:
        return error.get_response()  # type: ignore[return-value]
    if status is HTTPStatus.NOT_FOUND:
        return problem(status, code=errors.NotFound.code, detail=_ABSENT.detail)
    # werkzeug's own texts are fixed sentences, and those given where we raise hold no value either.
    response = problem(status, code=status.phrase.lower().replace(" ", "-"), detail=error.description or status.description)
    for name, value in error.get_headers():
        if name.lower() in {"allow", "retry-after", "content-range"}:
            response.headers[name] = value
    if status in {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE}:
        response.headers["Connection"] = "close"
    return response


def _unexpected(error: Exception) -> Response:
    """Answer a fault of the program: an identifier to look it up by, and nothing else."""
    request_id: str = g.get("request_id", "")
    log.error(
        "unexpected %s", type(error).__qualname__, exc_info=error, extra={"request_id": request_id, "route": route()},
    )
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, code="unexpected", detail="the request failed", request_id=request_id)
