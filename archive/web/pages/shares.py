"""Share links as their owner sees them: a study's link made after a look at what it shows, all of them listed, ended, given a new code."""

from __future__ import annotations

from flask import Blueprint, make_response, redirect, render_template, request
from werkzeug.wrappers import Response

from archive.access.permissions import Permission
from archive.errors import InvalidRequest
from archive.services.shares import Wanted
from archive.web.context import node, subject
from archive.web.pages import studies
from archive.web.permissions import SIGNED_IN, Rule

ENDS = (("1d", "1 day"), ("7d", "7 days"), ("30d", "30 days"), ("90d", "90 days"))
TEXT = 200
RULES = {
    "pages.share": Rule(Permission.SHARE), "pages.shares": SIGNED_IN, "pages.share_revoke": SIGNED_IN, "pages.share_code": SIGNED_IN,
}


def add(pages: Blueprint) -> None:
    """Add the pages of this file."""
    pages.add_url_rule("/studies/<study>/share", "share", share, methods=["GET", "POST"])
    pages.add_url_rule("/shares", "shares", shares)
    pages.add_url_rule("/shares/<int:number>/revoke", "share_revoke", revoke, methods=["POST"])
    pages.add_url_rule("/shares/<int:number>/code", "share_code", code, methods=["POST"])


def back() -> dict[str, str]:
    """Return where to go on after being asked again, from what cannot be sent again."""
    return {"pages.share": request.path, "pages.album": request.path, "pages.share_code": "/shares"}


def shares() -> Response:
    """List one's own links, those that count first."""
    return make_response(_list())


def revoke(number: int) -> Response:
    """End a link."""
    node().shares.revoke(subject(), number)
    return redirect("/shares", code=303)


def code(number: int) -> Response:
    """Draw another code, and show it this once."""
    return make_response(_list(told=node().shares.new_code(subject(), number)))


def share(study: str) -> Response:
    """Ask what of a study to share, with whom and until when; show what they will see; make the link when that is confirmed."""
    line = studies.find_study(study)
    asked = {
        "recipient": _said("recipient"), "email": _said("email"), "until": _said("until") or "7d", "views": _said("views"),
        "label": _said("label"), "download": request.form.get("download") == "yes",
        "series": [uid[:64] for uid in request.form.getlist("series")][:TEXT],
    }
    page = {"study": line, "asked": asked, "ends": ENDS, "user": subject().name, "refusal": "", "preview": None, "made": None, "series": ()}
    status = 200
    if request.method == "POST":
        try:
            wanted = _wanted(line.uid, asked)
            if request.form.get("step") == "make":
                page["made"] = node().shares.create(subject(), wanted)
            else:
                page["preview"] = node().shares.preview(subject(), wanted)
        except InvalidRequest as error:
            page["refusal"], status = f"{error.message}; {error.remedy}", 400
    if page["made"] is None and page["preview"] is None:
        page["series"] = studies.series_of(study)
    return make_response(render_template("share.html", **page), status)


def _wanted(study: str, asked: dict[str, object]) -> Wanted:
    views = str(asked["views"])
    if views and not (views.isascii() and views.isdigit() and len(views) < 6):
        message = "that is no number of times"
        raise InvalidRequest(message, remedy="leave it empty for as often as wanted")
    chosen = tuple(str(uid) for uid in asked["series"])  # type: ignore[attr-defined] # a list
    return Wanted(
        studies=() if chosen else (study,), series=chosen, until=str(asked["until"]), recipient=str(asked["recipient"]),
        email=str(asked["email"]), download=bool(asked["download"]), max_views=int(views) if views else None, label=str(asked["label"]),
    )


def _said(name: str) -> str:
    return request.form.get(name, "").strip()[:TEXT]


def _list(told: dict[str, object] | None = None) -> str:
    rows = node().shares.list(subject())
    active = [row for row in rows if row["state"] == "active"]
    ended = [row for row in rows if row["state"] != "active"]
    return render_template("shares.html", user=subject().name, active=active, ended=ended[:TEXT], told=told)
