"""What the rules found in the audit log: a count on every page of whoever may look, a list, a word about each to close it."""

from __future__ import annotations

from flask import Blueprint, g, make_response, redirect, render_template, request
from werkzeug.wrappers import Response

from archive.access.permissions import Permission
from archive.errors import ArchiveError
from archive.web.context import node, subject
from archive.web.pages.account import sentence
from archive.web.permissions import Rule

RULES = {"pages.alerts": Rule(Permission.AUDIT), "pages.alert_acknowledge": Rule(Permission.AUDIT)}
OWN = ("/admin/alerts",)
_LONGEST = 2000


def add(pages: Blueprint) -> None:
    """Add the pages of this file."""
    pages.add_url_rule("/admin/alerts", "alerts", alerts)
    pages.add_url_rule("/admin/alerts/<int:number>/acknowledge", "alert_acknowledge", acknowledge, methods=["POST"])


def waiting() -> int | None:
    """Return how many wait to be looked at; None for whoever may not look."""
    asker = g.get("subject")
    return node().alerts.waiting(asker) if asker is not None and asker.via == "web" else None


def alerts() -> Response:
    """List them."""
    return _list()


def acknowledge(number: int) -> Response:
    """Close one with a word about it."""
    try:
        node().alerts.acknowledge(subject(), number, note=request.form.get("note", "")[:_LONGEST])
    except ArchiveError as error:
        return _list(refusal=sentence(error))
    return redirect("/admin/alerts", code=303)


def _list(*, refusal: str = "") -> Response:
    every = "all" in request.args
    rows = node().alerts.list(subject(), every=every)
    page = render_template("alerts.html", user=subject().name, alerts=rows, every=every, refusal=refusal)
    return make_response(page, 400 if refusal else 200)
