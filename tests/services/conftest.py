"""Fixtures of the use cases."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from archive.config import Config
from archive.db.engine import Database
from archive.keys.keyring import Keyring
from tests.access import rows
from tests.services.office import Office


@pytest.fixture(scope="session")
def access_keyring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    """A keyring of this run."""
    config = msgspec.structs.replace(Config(), base=str(tmp_path_factory.mktemp("keys")))
    config.storage_dir.mkdir(mode=0o700)
    return Keyring.create(config, at=datetime.fromisoformat("2026-01-01T00:00:00+00:00"))


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings of a whole archive, its index on each engine in turn."""
    return {} if request.param == "sqlite" else {"database": {"url": request.getfixturevalue("postgresql_url")}}


@pytest.fixture
def usually(request: pytest.FixtureRequest) -> dict[str, Any]:
    """As `engine`, SQLite alone where a test does not name others: `parametrize("usually", [...], indirect=True)`."""
    name = getattr(request, "param", os.environ.get("ARCHIVE_TEST_USUALLY", "sqlite"))
    return {} if name == "sqlite" else {"database": {"url": request.getfixturevalue("postgresql_url")}}


@pytest.fixture
def office(database: Database, now: datetime, access_keyring: Keyring, tmp_path: Path) -> Office:
    """The archive on each engine."""
    return Office(rows.build(database, now), access_keyring, tmp_path)
