"""What a request needs: the opened archive behind the application, and who asks."""

from __future__ import annotations

from typing import Any, Protocol, cast

from flask import current_app, g

from archive.access.subject import Subject
from archive.config import Config
from archive.services.download import Download
from archive.services.factors import Factors
from archive.services.pictures import Pictures
from archive.services.query import Query
from archive.services.remove import Remove
from archive.services.retrieve import Retrieve
from archive.services.sessions import Sessions
from archive.services.signin import SignIn
from archive.services.store import Store
from archive.web.body import Slots

KEY = "strongroom"
SLOTS = "strongroom-slots"


class Health(Protocol):
    """What the probes ask."""

    def ready(self) -> bool:
        """Return whether requests can be answered now."""


class Node(Protocol):
    """The part of an opened archive that this room and its pages use."""

    @property
    def config(self) -> Config:
        """The configuration."""

    @property
    def signin(self) -> SignIn:
        """Who asks."""

    @property
    def factors(self) -> Factors:
        """How else a user shows who it is."""

    @property
    def sessions(self) -> Sessions:
        """Who is signed in where."""

    @property
    def store(self) -> Store:
        """Instances in."""

    @property
    def query(self) -> Query:
        """Searches."""

    @property
    def retrieve(self) -> Retrieve:
        """Instances, metadata, frames and bulk data out."""

    @property
    def download(self) -> Download:
        """Studies and series as files."""

    @property
    def remove(self) -> Remove:
        """Instances out of sight."""

    @property
    def pictures(self) -> Pictures:
        """Frames as PNG and JPEG."""

    @property
    def health(self) -> Health:
        """Readiness."""


def node() -> Any:
    """Return the opened archive; a page may use services beyond `Node`."""
    return current_app.extensions[KEY]


def archive() -> Node:
    """Return the opened archive as this room uses it."""
    return cast("Node", current_app.extensions[KEY])


def slots() -> Slots:
    """Return how many threads may wait for request bodies."""
    return cast("Slots", current_app.extensions[SLOTS])


def subject() -> Subject:
    """Return who asks; only endpoints that need a credential may call this."""
    found: Subject | None = g.get("subject")
    assert found is not None, "a public endpoint asked for a subject"
    return found
