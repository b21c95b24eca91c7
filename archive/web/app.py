"""The application: built once around an opened archive, for granian to call."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, g, request
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.routing import IntegerConverter

from archive.web import api, body, cors, direct, headers, permissions, probes, problems, rate
from archive.web.context import KEY, SLOTS, Node, slots
from archive.web.dicomweb import routes
from archive.web.streaming import Answer

access_log = logging.getLogger("archive.web.access")

STREAMING_ENDPOINTS = frozenset({"store", "store_study"})
"""DICOMweb views that read their body themselves, as it comes."""


class _Number(IntegerConverter):
    """A number in a path; one no database counts to is at no address, so nothing is asked for it."""

    regex = "[0-9]{1,15}"


class _Flask(Flask):
    """Flask without a look at each view and hook of each request for whether it is a coroutine: none is."""

    short: direct.Direct | None = None

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        """Answer a request, by the short way where there is one."""
        return (self.short or self.wsgi_app)(environ, start_response)

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function itself."""
        return func


def create_app(node: Node) -> Flask:
    """Return the application for `node`; pages are registered on it afterwards, their rows by `permissions.declare`."""
    app = _Flask("archive.web")
    app.response_class = Answer
    app.extensions[KEY] = node
    app.extensions[SLOTS] = body.Slots(node.config.http.threads)
    app.config.update(
        MAX_CONTENT_LENGTH=body.FORM_BYTES, MAX_FORM_MEMORY_SIZE=body.FORM_BYTES, MAX_FORM_PARTS=1000, PROPAGATE_EXCEPTIONS=False,
        PREFERRED_URL_SCHEME="https",
    )
    app.url_map.merge_slashes = False  # a redirect would be built from the Host header
    app.url_map.strict_slashes = False
    app.url_map.converters["int"] = _Number
    # The order is the order of a request: its id, then whether it may go on, then its body.
    app.before_request(_begin)
    rate.register(app, node.config.http.requests_per_second)
    permissions.register(app)
    app.before_request(_take_body)
    headers.register(app)
    cors.register(app)
    app.after_request(_drain)
    app.after_request(_end)
    problems.register(app)
    app.register_blueprint(probes.blueprint)
    routes.register(app)
    api.register(app)
    app.short = direct.Direct(app)
    return app


def _begin() -> None:
    g.request_id = secrets.token_hex(8)
    g.started_s = time.monotonic()


def _take_body() -> None:
    """Take a form's body now, with a time limit; DICOMweb stores read theirs as it comes."""
    length = body.content_length(request.environ)
    if request.endpoint is None or _streams():
        return
    if length is not None and length > body.FORM_BYTES:
        raise RequestEntityTooLarge
    if body.has_body(request.environ):
        with slots().form():
            body.take_small(request.environ)


def _drain(response: Response) -> Response:
    """Let the sender of instances that were refused unread come to the end of its sending, so that it reads the answer."""
    # Not when there was no thread to spare for it (503): this would take another.
    if 400 <= response.status_code < 500 and _streams() and not g.get("body_taken"):
        body.drain_refused(request.environ, slots())
    return response


def _streams() -> bool:
    return (request.endpoint or "").rpartition(".")[2] in STREAMING_ENDPOINTS


def _end(response: Response) -> Response:
    """Count and log the request when its last byte is out; never a path, a query string or an address."""
    if response.status_code >= 500:
        response.headers["X-Request-Id"] = g.get("request_id", "")
    started_s: float = g.get("started_s", time.monotonic())
    line = {
        "method": request.method if request.method in probes.METHODS else "OTHER",
        "route": problems.route(), "status": response.status_code, "request_id": g.get("request_id", ""),
    }
    endpoint = request.endpoint or ""

    def finish() -> None:
        taken_s = time.monotonic() - started_s
        probes.count(endpoint, response.status_code, taken_s)
        access_log.info("request", extra={**line, "ms": round(taken_s * 1000, 1)})

    if response.is_streamed:
        response.call_on_close(finish)
    else:
        finish()
    return response
