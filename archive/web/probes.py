"""Liveness, readiness and counters: nothing in them names a person, a study or an instance."""

from __future__ import annotations

import hmac
import ipaddress
import os
import threading
from collections import Counter
from urllib.parse import urlsplit

from flask import Blueprint, Response, request

from archive.config import Config
from archive.errors import ArchiveError, Forbidden, KeysUnavailable
from archive.web.context import archive
from archive.web.session import address

blueprint = Blueprint("probes", __name__)

_OF_PROXIES = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_lock = threading.Lock()
_requests: Counter[tuple[str, int]] = Counter()
_seconds: Counter[str] = Counter()


def count(endpoint: str, status: int, taken_s: float) -> None:
    """Count one answered request."""
    with _lock:
        _requests[endpoint, status] += 1
        _seconds[endpoint] += taken_s  # type: ignore[assignment] # Counter adds floats as well


@blueprint.get("/healthz")
def healthz() -> Response:
    """Answer that the process lives."""
    return Response("ok\n", content_type="text/plain; charset=utf-8")


@blueprint.get("/readyz")
def readyz() -> Response:
    """Answer whether requests can be served, without saying why not."""
    try:
        ready = archive().health.ready()
    except ArchiveError:
        ready = False
    if ready:
        return Response("ready\n", content_type="text/plain; charset=utf-8")
    response = Response("not ready\n", status=503, content_type="text/plain; charset=utf-8")
    response.headers["Retry-After"] = "10"
    return response


@blueprint.get("/metrics")
def metrics() -> Response:
    """Answer this process's counters in Prometheus' text format, to loopback or to who holds the token.

    Raises:
        Forbidden: neither.
        KeysUnavailable: the token's file cannot be read.
    """
    if not _may_read_metrics():
        message = "metrics are for this machine, or for who holds the token"
        raise Forbidden(message, remedy="set http.metrics_token_file and send its content as a bearer token")
    with _lock:
        requests, seconds = dict(_requests), dict(_seconds)
    pid = os.getpid()
    lines = ["# HELP strongroom_http_requests_total Answered requests.", "# TYPE strongroom_http_requests_total counter"]
    lines += [
        f'strongroom_http_requests_total{{pid="{pid}",endpoint="{endpoint}",status="{status}"}} {number}'
        for (endpoint, status), number in sorted(requests.items())
    ]
    lines += ["# HELP strongroom_http_seconds_total Time spent on them.", "# TYPE strongroom_http_seconds_total counter"]
    lines += [
        f'strongroom_http_seconds_total{{pid="{pid}",endpoint="{endpoint}"}} {taken:.6f}'
        for endpoint, taken in sorted(seconds.items())
    ]
    return Response("\n".join(lines) + "\n", content_type="text/plain; version=0.0.4; charset=utf-8")


def _may_read_metrics() -> bool:
    config = archive().config
    if not config.http.metrics_token_file:
        return _is_this_machine(config)
    try:
        expected = config.resolve(config.http.metrics_token_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        message = "the metrics token cannot be read"
        raise KeysUnavailable(message, remedy="check http.metrics_token_file") from error
    sent = request.headers.get("Authorization", "")
    return bool(expected) and hmac.compare_digest(sent.encode(), f"Bearer {expected}".encode())


def _is_this_machine(config: Config) -> bool:
    """Whether the request began here; a proxy on this machine speaks for everybody."""
    if any(name in request.headers for name in _OF_PROXIES):
        return False
    if config.http.tls == "off" and not _is_loopback(urlsplit(config.archive.public_url).hostname or ""):
        return False
    return _is_loopback(address())


def _is_loopback(host: str) -> bool:
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
