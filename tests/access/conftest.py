"""The archive of a test, and a keyring."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import msgspec
import pytest

from archive.config import Config
from archive.db.engine import Database
from archive.keys.keyring import Keyring
from tests.access import rows


@pytest.fixture
def place(database: Database, now: datetime) -> rows.Place:
    """A small archive on each engine."""
    return rows.build(database, now)


@pytest.fixture(scope="session")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    """A keyring of this run."""
    base: Path = tmp_path_factory.mktemp("keys")
    config = msgspec.structs.replace(Config(), base=str(base))
    config.storage_dir.mkdir(mode=0o700)
    return Keyring.create(config, at=datetime.fromisoformat("2026-01-01T00:00:00+00:00"))
