"""Who comes by a share link: its cookie, what it reaches, and what its page says. Everything else answers as to nobody."""

from __future__ import annotations

from flask import Response, g, request

from archive.access.subject import Subject
from archive.errors import NotFound, Unauthenticated
from archive.services.share_door import Visit
from archive.web import session
from archive.web.context import archive, node
from archive.web.session import CREDENTIAL_BYTES, SAFE_METHODS, CrossSite, address, same_origin

HOST_COOKIE = "__Host-share"
PLAIN_COOKIE = "share"
READS = frozenset({
    "search_studies", "search_series", "search_instances", "search_study_series", "search_study_instances", "search_series_instances",
    "retrieve_study", "retrieve_series", "retrieve_instance", "study_metadata", "series_metadata", "instance_metadata", "study_zip",
    "series_zip", "frames", "bulk", "wado_uri", "wado_uri_root", "rendered_study", "rendered_series", "rendered_instance",
    "rendered_frames", "study_thumbnail", "series_thumbnail", "instance_thumbnail", "frame_thumbnail",
})
"""What of DICOMweb a link reaches, beside its own pages."""


def comes_by_share(blueprint: str, name: str) -> bool:
    """Return whether a request for DICOMweb brings a share link's cookie and nothing else to come in with."""
    return (
        blueprint in ("dicomweb", "datastores") and name in READS and "Authorization" not in request.headers and not session.held()
        and bool(held())
    )


def authenticate() -> Subject:
    """Return who opened the link.

    Raises:
        Unauthenticated: nobody, or the link or its session has ended. NotFound: another datastore.
        CrossSite: the cookie came with a request from another site.
    """
    word = held()
    if not word:
        message = "the link is not open"
        raise Unauthenticated(message, remedy="open the link again that you were given, or ask for a new one")
    if (request.blueprint in ("dicomweb", "datastores") or request.method not in SAFE_METHODS) and not same_origin():
        raise CrossSite
    visit: Visit = node().share_door.visit(word, address=address(), user_agent=request.headers.get("User-Agent", ""))
    if request.view_args and request.view_args.get("datastore", visit.datastore) != visit.datastore:
        message = "there is no such datastore"
        raise NotFound(message)
    g.visit = visit
    return visit.subject


def visit() -> Visit:
    """Return what the page says of the link; only endpoints of shares may call this."""
    found: Visit = g.visit
    return found


def held() -> str:
    """Return the word the browser brings along, whatever it is worth."""
    word = request.cookies.get(_name(), "")
    return word if len(word) <= CREDENTIAL_BYTES else ""


def set_cookie(response: Response, word: str) -> None:
    """Hand the browser its session."""
    response.set_cookie(_name(), word, path="/", secure=session.secure(archive().config), httponly=True, samesite="Strict")


def clear_cookie(response: Response) -> None:
    """Take it away."""
    response.delete_cookie(_name(), path="/", secure=session.secure(archive().config), httponly=True, samesite="Strict")


def _name() -> str:
    return HOST_COOKIE if session.secure(archive().config) else PLAIN_COOKIE
