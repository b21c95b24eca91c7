"""A part of a representation: Range and If-Range of a single part, one range at a time (RFC 9110 14, PS3.18 8.4.1).

Several ranges at once, or what is no range at all, are passed over and the whole is answered, as the RFC allows.
"""

from __future__ import annotations

import re

from flask import Response, request
from werkzeug.exceptions import RequestedRangeNotSatisfiable

_ONE = re.compile(r"bytes\s*=\s*([0-9]{0,18})\s*-\s*([0-9]{0,18})", re.IGNORECASE)


def asked(length: int, etag: str) -> tuple[int, int] | None:
    """Return start and length of the bytes asked for, None for the whole.

    Raises:
        RequestedRangeNotSatisfiable: nothing of it lies inside.
    """
    found = _ONE.fullmatch(request.headers.get("Range", "").strip()) if request.method == "GET" else None
    if found is None or not (found[1] or found[2]):
        return None
    condition = request.headers.get("If-Range")
    if condition is not None and condition.strip() != etag:  # strong comparison; a date never matches
        return None
    if not found[1]:
        start, stop = max(0, length - int(found[2])), length
    else:
        start, stop = int(found[1]), min(length, int(found[2]) + 1) if found[2] else length
        if found[2] and int(found[2]) < start:
            return None
    if start >= stop:
        raise RequestedRangeNotSatisfiable(length)
    return start, stop - start


def marked(response: Response, part: tuple[int, int] | None, length: int) -> Response:
    """Say which bytes of the whole an answer is."""
    response.headers["Accept-Ranges"] = "bytes"
    if part is not None:
        response.status_code = 206
        response.headers["Content-Range"] = f"bytes {part[0]}-{part[0] + part[1] - 1}/{length}"
    return response


def of(value: bytes, content_type: str, etag: str) -> Response:
    """Answer a value, or the part of it that is asked for.

    Raises:
        RequestedRangeNotSatisfiable.
    """
    part = asked(len(value), etag)
    sent = value if part is None else value[part[0] : part[0] + part[1]]
    return marked(Response(sent, content_type=content_type), part, len(value))
