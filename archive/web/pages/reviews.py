"""Access reviews: a list to go through row by row, kept or revoked, closed with a signed record."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from flask import make_response, redirect, render_template, request
from werkzeug.wrappers import Response

from archive.access import when
from archive.errors import ArchiveError, InvalidRequest, StateConflict
from archive.services.review_rows import Chosen
from archive.web.context import node, subject
from archive.web.pages.account import FIELD_BYTES, sentence

_DIGITS = 15


def reviews() -> Response:
    """List them, and offer another."""
    return _list()


def start() -> Response:
    """Take down what stands now."""
    form = request.form
    days = _field("older_days")
    try:
        if days and not (days.isascii() and days.isdigit() and len(days) < 6):
            message = "days are a number"
            raise InvalidRequest(message)
        chosen = Chosen(endless="endless" in form, group=_field("group"), role=_field("role"), older_days=int(days or 0))
        made = node().reviews.start(subject(), _field("title"), due=_due(_field("due")), chosen=chosen)
    except ArchiveError as error:
        return _list(refusal=sentence(error))
    return redirect(f"/admin/reviews/{made['id']}", code=303)


def review(number: int) -> Response:
    """Show one with its rows."""
    return _one(number)


def decide(number: int) -> Response:
    """Keep or revoke the rows that are ticked."""
    rows = [int(text) for text in request.form.getlist("row") if text.isascii() and text.isdigit() and len(text) <= _DIGITS]
    decision = request.form.get("decision", "")
    try:
        if not rows or decision not in ("keep", "revoke"):
            message = "tick the rows first"
            raise InvalidRequest(message)
        node().reviews.decide(subject(), number, rows, decision, note=_field("note"))
    except (InvalidRequest, StateConflict) as error:
        return _one(number, refusal=sentence(error))
    return redirect(f"/admin/reviews/{number}", code=303)


def close(number: int) -> Response:
    """End what is to be revoked, and sign the record."""
    undecided = request.form.get("undecided", "")
    try:
        node().reviews.close(
            subject(), number, undecided=undecided if undecided in ("keep", "revoke") else None
        )
    except StateConflict as error:
        return _one(number, refusal=sentence(error))
    return redirect(f"/admin/reviews/{number}", code=303)


def back() -> dict[str, str]:
    """Return where a page goes on after its user was asked again, by endpoint."""
    there = request.path.rpartition("/")[0]
    return {"pages.review_decide": there, "pages.review_close": there}


def _list(*, refusal: str = "") -> Response:
    page = render_template("reviews.html", user=subject().name, reviews=node().reviews.list(subject()), refusal=refusal)
    return make_response(page, 400 if refusal else 200)


def _one(number: int, *, refusal: str = "") -> Response:
    found: dict[str, Any] = node().reviews.show(subject(), number)
    return make_response(render_template("review.html", user=subject().name, review=found, refusal=refusal), 400 if refusal else 200)


def _field(name: str) -> str:
    return request.form.get(name, "")[:FIELD_BYTES].strip()


def _due(text: str) -> datetime:
    return when.parse(text or "2w", node().core.clock())
