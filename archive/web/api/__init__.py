"""The JSON API: what programs manage, beside DICOMweb. Errors are application/problem+json (RFC 9457)."""

from __future__ import annotations

from flask import Blueprint, Flask

from archive.web.api import (
    access_requests,
    albums,
    approvals,
    break_glass,
    changes,
    collector,
    devices,
    grants,
    holdings,
    identities,
    ledger,
    openapi,
    oversight,
    own,
    people,
    policy,
    reviews,
    roles,
    rules,
    shares,
    studies,
    tokens,
    webhooks,
    worklist,
)
from archive.web.permissions import declare

OPERATIONS = (
    *people.OPERATIONS, *identities.OPERATIONS, *roles.OPERATIONS, *policy.OPERATIONS, *approvals.OPERATIONS,
    *grants.OPERATIONS, *tokens.OPERATIONS, *shares.OPERATIONS, *albums.OPERATIONS,
    *access_requests.OPERATIONS, *break_glass.OPERATIONS,
    *devices.OPERATIONS, *holdings.OPERATIONS, *studies.OPERATIONS, *rules.OPERATIONS, *reviews.OPERATIONS,
    *worklist.OPERATIONS, *changes.OPERATIONS, *webhooks.OPERATIONS, *oversight.OPERATIONS, *ledger.OPERATIONS,
    *collector.OPERATIONS, *own.OPERATIONS,
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
    ledger.register(app)
