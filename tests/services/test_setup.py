"""Databases that are missing or not ours are refused by name, and never made anew in their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from archive.errors import DatabaseUnavailable
from archive.keys.keyring import Keyring
from archive.services import setup
from tests.services import archives


@pytest.mark.parametrize("name", ["index", "keystore"])
@pytest.mark.parametrize("work", [setup.make_databases, setup.check_databases])
def test_a_missing_database_is_not_made_anew(tmp_path: Path, name: str, work: object) -> None:
    config = archives.made(tmp_path)
    path = config.index_path if name == "index" else config.keystore_path
    path.unlink()
    with pytest.raises(DatabaseUnavailable, match=f"the {name} is missing") as refused:
        work(config, Keyring.open(config))  # type: ignore[operator]
    assert "backup" in refused.value.remedy
    assert not path.exists()


@pytest.mark.parametrize("name", ["index", "keystore"])
def test_a_database_that_does_not_open_is_named(tmp_path: Path, name: str) -> None:
    config = archives.made(tmp_path)
    path = config.index_path if name == "index" else config.keystore_path
    path.write_bytes(bytes(8192))
    with pytest.raises(DatabaseUnavailable, match=f"^{name} .*does not open with this key") as refused:
        setup.check_databases(config, Keyring.open(config))
    assert str(path) in refused.value.message
    assert "backup" in refused.value.remedy
