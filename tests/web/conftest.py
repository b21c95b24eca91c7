"""The application around an archive in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.routing import Rule

from archive.web.app import create_app
from tests.web.fakes import FakeNode, config_of

_compile_builder = Rule._compile_builder
_builders: dict[tuple[str, ...], Callable[..., tuple[str, str]]] = {}


def _compile_builder_once(rule: Any, append_unknown: bool = True) -> Callable[..., tuple[str, str]]:
    """What builds the URLs of a route is Python that werkzeug writes and compiles: most of the time that making an application takes."""
    key = (rule.rule, repr(rule._trace), repr(rule.defaults), repr(append_unknown))
    if key not in _builders:
        _builders[key] = _compile_builder(rule, append_unknown)
    return _builders[key]


Rule._compile_builder = _compile_builder_once  # type: ignore[method-assign]


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    """An empty archive that says it is at https://pacs.example:8443."""
    return FakeNode(config_of(tmp_path, archive={"public_url": "https://pacs.example:8443"}))


@pytest.fixture
def app(node: FakeNode) -> Flask:
    """The application."""
    return create_app(node)


class Client(FlaskClient):
    """Sends mia's token unless told otherwise."""

    def open(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
        headers = dict(kwargs.pop("headers", None) or {})  # type: ignore[call-overload]
        if kwargs.pop("anonymous", False) is False:
            headers.setdefault("Authorization", "Bearer mia-token")
        return super().open(*args, headers={k: v for k, v in headers.items() if v is not None}, **kwargs)  # type: ignore[arg-type]


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """A client with mia's token; `anonymous=True` sends none."""
    app.test_client_class = Client
    return app.test_client(use_cookies=False)


@pytest.fixture
def accepting(client: FlaskClient) -> Callable[..., object]:
    """`accepting(path, accept)`: GET with an Accept header, None for none."""
    return lambda path, accept=None: client.get(path, headers={"Accept": accept})
