"""Lists a page at a time: `limit`, and the `cursor` that the page before named in its Link header (RFC 8288).

A page goes on behind the last row of the one before, wherever that row has gone: rows that come or go meanwhile neither repeat nor hide
another. Rows with a number come newest first, rows with a name in its order. Without `limit` a list comes whole, in its own order.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin
from urllib.parse import urlencode

import msgspec
from flask import Response, request

from archive.errors import InvalidQuery

LIMIT, CURSOR = "limit", "cursor"
LARGEST = 1000
PARAMETERS = (
    {"name": LIMIT, "in": "query", "required": False, "schema": {"type": "integer", "minimum": 1, "maximum": LARGEST},
     "description": "Rows a page; the Link header of the answer names the next one"},
    {"name": CURSOR, "in": "query", "required": False, "schema": {"type": "string", "maxLength": 512},
     "description": "As the Link header of the page before says; with limit"},
)
_KEYS = ("id", "name")


def key_of(method: str, answer: Any, query: type[msgspec.Struct]) -> str:
    """Return the field by which a list is paged; nothing when it is no list, or pages by itself."""
    if method != "GET" or get_origin(answer) is not list:
        return ""
    taken = {one.name for one in msgspec.structs.fields(query)}
    row = get_args(answer)[0]
    if taken & {LIMIT, CURSOR} or not (isinstance(row, type) and issubclass(row, msgspec.Struct)):
        return ""
    named = {one.name: one.type for one in msgspec.structs.fields(row)}
    return next((key for key in _KEYS if named.get(key) in {int, str}), "")


def taken(arguments: Mapping[str, str]) -> tuple[int | None, int | str | None]:
    """Return the limit and the key behind which the page begins.

    Raises:
        InvalidQuery.
    """
    said = arguments.get(LIMIT)
    if said is None:
        if CURSOR in arguments:
            message = "a cursor goes with a limit"
            raise InvalidQuery(message, remedy="follow the Link header of the page before")
        return None, None
    if not (said.isascii() and said.isdigit() and len(said) < 5 and 1 <= int(said) <= LARGEST):
        message = f"the limit is not a number from 1 to {LARGEST}"
        raise InvalidQuery(message)
    return int(said), _opened(arguments[CURSOR]) if CURSOR in arguments else None


def paged(rows: Sequence[Any], key: str, limit: int | None, after: int | str | None, response: Response) -> list[Any]:
    """Return the rows of a page, and name the next one in the answer."""
    if limit is None:
        return list(rows)
    newest_first = bool(rows) and isinstance(getattr(rows[0], key), int)
    ordered = sorted(rows, key=lambda row: getattr(row, key), reverse=newest_first)
    if after is not None and ordered:
        if type(getattr(ordered[0], key)) is not type(after):
            raise _wrong()
        ordered = [row for row in ordered if (getattr(row, key) < after if newest_first else getattr(row, key) > after)]
    page = ordered[:limit]
    if len(ordered) > limit:
        asked = [(name, value) for name, value in request.args.items(multi=True) if name not in {LIMIT, CURSOR}]
        following = urlencode([*asked, (LIMIT, str(limit)), (CURSOR, _closed(getattr(page[-1], key)))])
        response.headers["Link"] = f'<{request.path}?{following}>; rel="next"'
    return page


def _closed(key: int | str) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).decode().rstrip("=")


def _opened(cursor: str) -> int | str:
    try:
        if len(cursor) > 512:
            raise _wrong()
        key: int | str = msgspec.json.decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), type=int | str)
    except (ValueError, binascii.Error, msgspec.DecodeError):
        raise _wrong() from None
    return key


def _wrong() -> InvalidQuery:
    message = "the cursor is not one that a page named"
    return InvalidQuery(message, remedy="follow the Link header of the page before")
