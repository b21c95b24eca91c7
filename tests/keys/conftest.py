"""An archive's configuration with nothing in it yet, and one with a keyring."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from archive.config import Archive, Config
from archive.keys.keyring import Keyring


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(archive=Archive(storage=str(tmp_path / "storage")))


@pytest.fixture
def keyring(config: Config, now: datetime) -> Keyring:
    return Keyring.create(config, at=now)
