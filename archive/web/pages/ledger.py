"""The page to print and file: the newest checkpoint of the ledger, with its QR code."""

from __future__ import annotations

import base64

from flask import Response, make_response, render_template

from archive.web.context import node, subject


def page() -> Response:
    """Show it."""
    found = node().printed.page(subject())
    picture = "data:image/svg+xml;base64," + base64.b64encode(found["picture"].encode()).decode()
    return make_response(render_template("ledger_page.html", page=found, picture=picture, user=subject().name))
