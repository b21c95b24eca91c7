"""The JSON API: what programs manage, beside DICOMweb. Errors are application/problem+json (RFC 9457)."""

from __future__ import annotations

from flask import Blueprint, Flask

from archive.web.api import changes, webhooks, worklist
from archive.web.permissions import declare

ROUTES = (*worklist.ROUTES, *changes.ROUTES, *webhooks.ROUTES)
RULES = {**worklist.RULES, **changes.RULES, **webhooks.RULES}


def register(app: Flask) -> None:
    """Add the API to the application."""
    api = Blueprint("api", "archive.web", url_prefix="/api")
    for method, path, name, view in ROUTES:
        api.add_url_rule(path, name, view, methods=[method])
    declare(RULES)
    app.register_blueprint(api)
