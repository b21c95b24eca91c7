"""Running archives for the journeys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.journeys.running import RunningArchive


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningArchive]:
    """An archive with the demo studies, shared by a module's tests."""
    folder: Path = tmp_path_factory.mktemp("demo")
    with RunningArchive(folder, "--demo") as archive:
        yield archive
