"""What granian calls, in each of its workers.

    from archive.web.wsgi import application
    granian.serve(target_loader=lambda: application(open_node(config)), wrap_loader=False)

This room cannot open the archive itself (imports flow the other way), so it is handed an opened one.
"""

from __future__ import annotations

from flask import Flask

from archive.web import pages
from archive.web.app import create_app
from archive.web.context import Node


def application(node: Node) -> Flask:
    """Return the WSGI application of an opened archive."""
    app = create_app(node)
    pages.register(app)
    return app
