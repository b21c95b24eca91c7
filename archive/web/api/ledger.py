"""/api/ledger: the log as tiles (c2sp.org/tlog-tiles) for whoever recomputes it elsewhere, and the witnesses outside."""

from __future__ import annotations

import gzip
from datetime import datetime
from typing import Annotated, Any

from flask import Blueprint, Flask, Response, request
from msgspec import Meta

from archive.access.permissions import Permission
from archive.web.api.operation import Asked, Operation, Taken, Told
from archive.web.context import node, subject
from archive.web.dicomweb import conditional
from archive.web.permissions import Rule, declare

_P = Permission
RULES = {f"ledger.{name}": Rule(_P.AUDIT) for name in ("checkpoint", "hashes", "entries")}
FULL = "private, max-age=31536000, immutable"
PARTIAL = "private, max-age=3600"
"""A tile that is not full is replaced by wider ones, never by another of its width."""


class Witness(Told):
    """A witness outside: the key it signs with, what it remembers, when it last agreed and why it did not since."""

    name: str
    url: str
    key: str
    size: int
    agreed_at: datetime | None
    problem: str


class Answered(Told):
    """How asking a witness went; `at` is by its clock, `against`: it showed that the log is not what it agreed to."""

    name: str
    size: int
    at: datetime | None
    problem: str
    against: bool


class WitnessAsked(Taken):
    """Which witness; all of them when no name is given."""

    name: Annotated[str, Meta(max_length=63)] | None = None


class Copy(Taken):
    """The text of a checkpoint as it was printed or mailed."""

    text: Annotated[str, Meta(max_length=100_000)]


class Compared(Told):
    """Whether the log, now of `now` events, contains those `size`, else why not; `signed`: the text carried the log's signature."""

    consistent: bool
    why: str
    size: int
    now: int
    signed: bool


def _ask(asked: Asked) -> Any:
    return node().witnesses.ask(subject(), asked.body.name)


def _compare(asked: Asked) -> Any:
    return node().printed.compare(subject(), asked.body.text)


OPERATIONS = (
    Operation("GET", "/ledger/witnesses", "witnesses", "List the witnesses outside", _P.AUDIT,
              lambda _asked: node().witnesses.show(subject()), list[Witness], tag="oversight"),
    Operation("POST", "/ledger/witnesses/ask", "witnesses_ask", "Send the newest checkpoint to a witness now", _P.CONFIGURE,
              _ask, list[Answered], WitnessAsked, tag="oversight", refuses=(404,)),
    Operation("POST", "/ledger/compare", "ledger_compare", "Tell whether the log still contains a checkpoint that was printed or mailed",
              _P.AUDIT, _compare, Compared, Copy, tag="oversight", refuses=(404,)),
)


def register(app: Flask) -> None:
    """Add the tiles to the application: files of a fixed form, no part of the JSON API."""
    tiles = Blueprint("ledger", "archive.web", url_prefix="/api/ledger")
    tiles.add_url_rule("/checkpoint", "checkpoint", checkpoint)
    tiles.add_url_rule("/tile/entries/<path:tile>", "entries", entries)
    tiles.add_url_rule("/tile/<level>/<path:tile>", "hashes", hashes)
    declare(RULES)
    app.register_blueprint(tiles)


def checkpoint() -> Response:
    """Answer with the newest checkpoint."""
    return _answer(node().tiles.checkpoint(subject()), "text/plain; charset=utf-8", "private, no-cache")


def hashes(level: str, tile: str) -> Response:
    """Answer with a tile of hashes."""
    return _answer(node().tiles.hashes(subject(), level, tile), "application/octet-stream", _caching(tile))


def entries(tile: str) -> Response:
    """Answer with a bundle of leaves, compressed for those who take it so."""
    data = node().tiles.entries(subject(), tile)
    zipped = request.accept_encodings.quality("gzip") > 0
    response = _answer(gzip.compress(data, 6, mtime=0) if zipped else data, "application/octet-stream", _caching(tile))
    response.headers["Vary"] = "Accept-Encoding"
    if zipped:
        response.headers["Content-Encoding"] = "gzip"
    return response


def _caching(tile: str) -> str:
    return PARTIAL if ".p/" in tile else FULL


def _answer(data: bytes, content_type: str, caching: str) -> Response:
    etag = '"' + conditional.tag("ledger", data.hex()) + '"'
    response = conditional.unchanged(etag) or Response(data, content_type=content_type)
    response.headers["ETag"] = etag
    response.headers["Cache-Control"] = caching
    return response
