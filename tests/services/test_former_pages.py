"""An archive whose databases were made in the former way of pages is served, backed up, re-keyed and rebuilt like any other."""

from __future__ import annotations

from pathlib import Path

import pytest

from archive.config import Config
from archive.db import pages
from archive.db.pages import PRESENT, WAYS, Pages
from archive.keys.keyring import Keyring
from archive.services import index_key
from archive.services.clock import utc_now
from tests.services import archives
from tests.services.test_backup import back_up, put_back
from tests.services.test_rebuild import lived, lose, rebuild, seen, state

FORMER = WAYS[1]


def ways(config: Config) -> tuple[Pages, Pages]:
    """Of index and keystore."""
    ring = Keyring.open(config)
    return pages.of(config.index_path, ring.index_key), pages.of(config.keystore_path, ring.keystore_key)


@pytest.fixture
def former(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    with monkeypatch.context() as then:
        then.setattr(pages, "PRESENT", FORMER)
        config = archives.made(tmp_path, own_keys=True)
    assert ways(config) == (FORMER, FORMER)
    with archives.opened(config) as node:
        lived(node)
    assert ways(config) == (FORMER, FORMER)
    return config


def test_it_is_backed_up_and_restored_as_it_is(former: Config, tmp_path: Path) -> None:
    with archives.opened(former) as node:
        before, saw = state(node), seen(node)
        back_up(node, tmp_path / "backup", keys=True)
    fresh, report = put_back(tmp_path / "backup", tmp_path / "new")
    assert report.ok, report.findings
    assert ways(fresh) == (FORMER, FORMER)
    with archives.opened(fresh) as node:
        assert (state(node), seen(node)) == (before, saw)
        assert archives.store(node, archives.instance(9)).status == "stored"


def test_a_new_key_of_the_index_makes_it_of_the_present_way(former: Config) -> None:
    old = Keyring.open(former).index_key
    with archives.opened(former) as node:
        before, saw = state(node), seen(node)
    index_key.replace(former, Keyring.open(former), at=utc_now())
    assert Keyring.open(former).index_key != old
    assert ways(former) == (PRESENT, FORMER)
    with archives.opened(former) as node:
        assert (state(node), seen(node)) == (before, saw)
        assert node.verify.run(archives.the_console(node), "full").findings == []
        assert archives.store(node, archives.instance(9)).status == "stored"


def test_a_lost_index_is_rebuilt_in_the_present_way(former: Config) -> None:
    with archives.opened(former) as node:
        node.upkeep.tick()
    with archives.opened(former) as node:
        before = state(node)
    lose(former)
    assert rebuild(former).ok
    assert ways(former) == (PRESENT, FORMER)
    with archives.opened(former) as node:
        assert state(node)["catalog"] == before["catalog"]
        assert node.verify.run(archives.the_console(node), "full").findings == []
