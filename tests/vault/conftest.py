"""A vault on disk and one in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from archive.vault.keystore import StudyKey
from archive.vault.memory import MemorySegments
from archive.vault.segments import DiskSegments
from archive.vault.vault import Vault
from tests.vault.fakes import FakeKeystore


@pytest.fixture
def keystore() -> FakeKeystore:
    return FakeKeystore()


@pytest.fixture
def key(keystore: FakeKeystore) -> StudyKey:
    return keystore.new()


@pytest.fixture(params=["disk", "memory"])
def vault(request: pytest.FixtureRequest, tmp_path: Path, keystore: FakeKeystore) -> Iterator[Vault]:
    """A vault over each store in turn."""
    if request.param == "disk":
        segments: DiskSegments | MemorySegments = DiskSegments(tmp_path / "segments", reserve="0B", first_bytes=1 << 20, grow_bytes=2 << 20)
    else:
        segments = MemorySegments()
    opened = Vault(segments, keystore, tmp_path / "cache")  # type: ignore[arg-type]
    yield opened
    opened.close()
