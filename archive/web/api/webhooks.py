"""/api/webhooks: where the change feed is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from flask import Response, request

from archive.access.permissions import Permission
from archive.errors import InvalidRequest, NotFound
from archive.web.context import node, subject
from archive.web.permissions import Rule

_TAKEN = {"url": str, "owner": str, "datastore": str, "everything": bool}


def listed() -> Response:
    """Answer every webhook, without its secret.

    Raises:
        Forbidden.
    """
    return _json(node().webhooks.list(subject()))


def add() -> Response:
    """Add a webhook; the answer alone holds its secret.

    Raises:
        InvalidRequest, Forbidden, NotFound, ReadOnly.
    """
    try:
        given = msgspec.json.decode(request.get_data())
    except (msgspec.DecodeError, RecursionError) as error:
        message = "the body is no JSON"
        raise InvalidRequest(message, remedy="send an object with url and owner") from error
    if not isinstance(given, dict) or not {"url", "owner"} <= given.keys() or any(
        name not in _TAKEN or not isinstance(value, _TAKEN[name]) for name, value in given.items()
    ):
        message = "a webhook is an object with url, owner, and perhaps datastore and everything"
        raise InvalidRequest(message)
    return _json(node().webhooks.add(subject(), **given), 201)


def remove(webhook: str) -> Response:
    """End a webhook.

    Raises:
        NotFound, Forbidden, ReadOnly.
    """
    node().webhooks.remove(subject(), _key(webhook))
    return Response(status=204)


def test(webhook: str) -> Response:
    """Send a body without changes, and answer what came back.

    Raises:
        NotFound, Forbidden, ReadOnly, Undeliverable.
    """
    return _json(node().webhooks.test(subject(), _key(webhook)))


def _key(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 15:
        message = "there is no such webhook"
        raise NotFound(message)
    return int(text)


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status=status, content_type="application/json")


ROUTES: tuple[tuple[str, str, str, Callable[..., Any]], ...] = (
    ("GET", "/webhooks", "webhooks", listed),
    ("POST", "/webhooks", "webhook_add", add),
    ("DELETE", "/webhooks/<webhook>", "webhook_remove", remove),
    ("POST", "/webhooks/<webhook>/test", "webhook_test", test),
)
RULES = {f"api.{name}": Rule(Permission.CONFIGURE) for _method, _path, name, _view in ROUTES}
