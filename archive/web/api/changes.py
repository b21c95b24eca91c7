"""/api/changes: what came and went, in order, for those who may see it; ask again with the cursor of the last answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from flask import Response, request

from archive.access.permissions import Permission
from archive.errors import InvalidQuery
from archive.services.changefeed import LONGEST_WAIT_S
from archive.services.webhooks import as_dict
from archive.web.context import node, subject
from archive.web.permissions import Rule

LIMIT, MOST = 100, 1000
_KNOWN = frozenset({"since", "limit", "wait", "datastore"})


def read() -> Response:
    """Answer changes behind the cursor `since`; `wait` holds an empty answer back for so many seconds.

    Raises:
        InvalidQuery, NotFound, Unavailable.
    """
    given: dict[str, str] = {}
    for name, values in request.args.lists():
        if name not in _KNOWN or len(values) != 1:
            message = f"{name} is given more than once" if name in _KNOWN else "a parameter is not known here"
            raise InvalidQuery(message, remedy="give since, limit, wait and datastore, each at most once")
        given[name] = values[0]
    limit = min(_number(given, "limit", 1, LIMIT), MOST)
    wait_s = _number(given, "wait", 0, 0)
    feed = node().changefeed.read(
        subject(), given.get("datastore", "clinical"), given.get("since") or None, limit=limit, wait_s=min(wait_s, LONGEST_WAIT_S)
    )
    told = {
        "changes": [{**as_dict(one), "cursor": cursor} for one, cursor in feed.changes], "next": feed.next, "more": feed.more,
    }
    return Response(msgspec.json.encode(told), content_type="application/json")


def _number(given: dict[str, str], name: str, lowest: int, default: int) -> int:
    text = given.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or int(text) < lowest:
        message = f"{name} is not a whole number from {lowest} up"
        raise InvalidQuery(message)
    return int(text)


ROUTES: tuple[tuple[str, str, str, Callable[..., Any]], ...] = (("GET", "/changes", "changes", read),)
RULES = {"api.changes": Rule(Permission.SEARCH)}
