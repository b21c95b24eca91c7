"""The JSON API: what programs manage, beside DICOMweb. Errors are application/problem+json (RFC 9457)."""

from __future__ import annotations

from flask import Blueprint, Flask

from archive.web.api import changes, devices, grants, holdings, openapi, oversight, own, people, webhooks, worklist
from archive.web.permissions import declare

OPERATIONS = (
    *people.OPERATIONS, *grants.OPERATIONS, *devices.OPERATIONS, *holdings.OPERATIONS, *worklist.OPERATIONS, *changes.OPERATIONS,
    *webhooks.OPERATIONS, *oversight.OPERATIONS, *own.OPERATIONS,
)
ROUTES = tuple((one.method, one.path, one.name, one) for one in OPERATIONS)
RULES = {f"api.{one.name}": one.rule for one in OPERATIONS} | openapi.RULES


def register(app: Flask) -> None:
    """Add the API to the application."""
    api = Blueprint("api", "archive.web", url_prefix="/api")
    for method, path, name, view in ROUTES:
        api.add_url_rule(path, name, view, methods=[method])
    api.add_url_rule("/openapi.json", "openapi", openapi.answering(OPERATIONS))
    declare(RULES)
    app.register_blueprint(api)
