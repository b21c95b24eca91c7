"""Albums: those of one's own and those shared with one; what is in each, and with whom it is shared."""

from __future__ import annotations

from flask import Blueprint, g, make_response, redirect, render_template, request
from werkzeug.wrappers import Response

from archive.errors import Forbidden, InvalidRequest, NotFound
from archive.web.context import archive, node, subject
from archive.web.permissions import SIGNED_IN, StepUp

TEXT = 200
RULES = {"pages.albums": SIGNED_IN, "pages.album": SIGNED_IN}


def add(pages: Blueprint) -> None:
    """Add the pages of this file."""
    pages.add_url_rule("/albums", "albums", albums, methods=["GET", "POST"])
    pages.add_url_rule("/albums/<int:number>", "album", album, methods=["GET", "POST"])


def albums() -> Response:
    """List them, and make one."""
    refusal, status = "", 200
    if request.method == "POST":
        try:
            made = node().albums.create(subject(), _said("name"), until=_said("until") or None)
            return redirect(f"/albums/{made['id']}", code=303)
        except InvalidRequest as error:
            refusal, status = f"{error.message}; {error.remedy}", 400
    return make_response(
        render_template("albums.html", user=subject().name, albums=node().albums.list(subject()), refusal=refusal), status
    )


def album(number: int) -> Response:
    """Show one, and change it: put in, take out, share, share no more, end."""
    refusal, status = "", 200
    if request.method == "POST":
        try:
            return redirect(_changed(number), code=303)
        except StepUp:
            raise
        except (InvalidRequest, Forbidden) as error:
            refusal, status = f"{error.message}; {error.remedy}", 400
        except NotFound as error:
            refusal, status = f"{error.message}; {error.remedy}", 404
    return make_response(
        render_template("album.html", user=subject().name, album=node().albums.show(subject(), number), refusal=refusal), status
    )


def _changed(number: int) -> str:
    """Do what the form asks, and return where to go on."""
    what, service, here = request.form.get("what", ""), node().albums, f"/albums/{number}"
    standing = g.get("standing")
    if what == "share" and standing is not None and not archive().signin.fresh(standing):
        raise StepUp
    if what == "add":
        service.add(subject(), number, studies=tuple(_said("studies").split()))
    elif what == "remove":
        service.remove(subject(), number, "series" if _said("level") == "series" else "study", _said("uid"))
    elif what == "share":
        rights = _said("rights")
        service.share(
            subject(), number, _said("to"), rights=rights if rights in ("view", "add", "manage") else "view",
            until=_said("until") or None, download=_said("download") == "yes",
        )
    elif what == "unshare":
        service.unshare(subject(), number, _said("to"))
        here = here if _said("to") != subject().name else "/albums"
    elif what == "end":
        service.end(subject(), number)
        here = "/albums"
    return here


def _said(name: str) -> str:
    return request.form.get(name, "").strip()[:4096 if name == "studies" else TEXT]
