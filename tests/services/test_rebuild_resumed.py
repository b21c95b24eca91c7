"""A rebuild that was cut short goes on from what the first attempt left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from archive.db import migrate
from archive.services import lost
from archive.services.clock import utc_now
from archive.services.rebuild import Rebuild
from archive.services.snapshot import Snapshots
from tests.services import archives, crowd
from tests.services.test_rebuild import lose, rebuild
from tests.services.test_replay import abandon


def _cut_off(where: Any, name: str, after: int, *, first: bool = False) -> Any:
    """What ends the process at the `after`th call of it, before or behind what it does."""
    whole, calls = getattr(where, name), iter(range(10_000))

    def call(*args: Any, **options: Any) -> Any:
        number = next(calls)
        if first and number == after:
            raise KeyboardInterrupt
        done = whole(*args, **options)
        if number == after:
            raise KeyboardInterrupt
        return done

    return call


@pytest.mark.parametrize(("where", "name", "after", "first"), [
    (lost, "_move", 0, False), (migrate, "upgrade", 0, True), (Rebuild, "_record", 0, False),
])
def test_a_rebuild_of_a_damaged_index_that_is_cut_short_reads_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, after: int, first: bool
) -> None:
    """What came after the last snapshot and checkpoint is in that file alone."""
    config = archives.made(tmp_path)
    with archives.opened(config) as node:
        archives.store(node, archives.instance(1))
        node.upkeep.checkpoint()
        Snapshots(node.core).write()
        node.core.database.checkpoint()
        node.accounts.add_user(archives.the_console(node), "later")
        events = crowd.check_ledger(node)
        abandon(node)  # what is newest is in the log beside the file
    with config.index_path.open("r+b") as file:
        file.seek(-64, 2)
        file.write(bytes(64))
    with monkeypatch.context() as patched:
        patched.setattr(where, name, _cut_off(where, name, after, first=first))
        with pytest.raises(KeyboardInterrupt):
            rebuild(config)
    report = rebuild(config)
    assert report.lost
    with archives.opened(config) as node:
        assert "later" in {row["name"] for row in node.accounts.list_users(archives.the_console(node))}
        assert crowd.check_ledger(node) > events
        crowd.check_sound(node)
        node.accounts.add_user(archives.the_console(node), "last")
        Snapshots(node.core).write()
        node.upkeep.checkpoint()
    lose(config)  # the file that was moved aside is still there, and older than what lies beside the index
    assert rebuild(config).lost
    with archives.opened(config) as node:
        assert {"later", "last"} <= {row["name"] for row in node.accounts.list_users(archives.the_console(node))}
        crowd.check_sound(node)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_the_log_of_a_damaged_index_follows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Opened without its log an index is older than it was; a log beside a new index would be removed."""
    config = archives.configured(tmp_path)
    config.storage_dir.mkdir()
    names = ("index.db", "index.db-wal", "index.db-shm")
    for name in names:
        (config.storage_dir / name).write_text(name)
    with monkeypatch.context() as patched:
        patched.setattr(lost, "_move", _cut_off(lost, "_move", after))
        with pytest.raises(KeyboardInterrupt):
            lost._aside(config, utc_now())
    lost._follow(config)
    there = {path.read_text(): path.name for path in config.storage_dir.iterdir()}
    (aside,) = config.storage_dir.glob("index-damaged-*.db")
    assert there == {name: name.replace("index.db", aside.name) for name in names}
