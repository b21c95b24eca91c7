"""What the keystore remembers of the ledger's head."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

from archive.config import Config
from archive.node import open_node
from archive.services import heads
from archive.services.clock import utc_now
from tests.services import archives


def test_the_head_is_signed_again_in_time_after_the_clock_was_set_back(tmp_path: Path) -> None:
    ahead = [timedelta(hours=30)]
    with archives.opened(archives.made(tmp_path), clock=lambda: utc_now() + ahead[0]) as node:
        while heads.sign(node.core):
            pass
        assert not heads.sign(node.core)
        ahead[0] = timedelta()
        assert heads.sign(node.core)
        assert not heads.sign(node.core)
        ahead[0] = timedelta(minutes=node.core.config.ledger.heartbeat_minutes)
        assert heads.sign(node.core)


def take(config: Config, to: Path) -> None:
    """Copy the index and the ledger's folder, not the keystore."""
    to.mkdir()
    for path in config.storage_dir.glob("index.db*"):
        shutil.copy(path, to)
    shutil.copytree(config.ledger_dir, to / "ledger")


def put_back(config: Config, kept: Path) -> None:
    for path in config.storage_dir.glob("index.db*"):
        path.unlink()
    for path in kept.glob("index.db*"):
        shutil.copy(path, config.storage_dir)
    shutil.rmtree(config.ledger_dir)
    shutil.copytree(kept / "ledger", config.ledger_dir)


def signed_and_taken(folder: Path) -> Config:
    """An archive with a checkpoint, and a copy of it as it was then under `first`."""
    config = archives.made(folder)
    with archives.opened(config) as node:
        node.upkeep.checkpoint()
    take(config, folder / "first")
    return config


def test_a_rollback_after_one_that_was_acknowledged_is_noticed(tmp_path: Path) -> None:
    config = signed_and_taken(tmp_path)
    with archives.opened(config) as node:
        for _ in range(40):  # of what was stored a start would make events again
            node.oversight.search(archives.the_console(node), limit=1)
        node.upkeep.checkpoint()
        largest = node.core.keystore.anchor("checkpoint")
        assert largest is not None
    put_back(config, tmp_path / "first")

    node = open_node(config)
    assert "V14" in node.start()
    kept = node.core.keystore.anchor("checkpoint")
    assert kept == largest, "nobody has acknowledged it yet"
    node.oversight.acknowledge(archives.the_console(node), reason="put back")
    node.close()
    with archives.opened(config) as node:
        node.upkeep.checkpoint()
        kept = node.core.keystore.anchor("checkpoint")
        assert kept is not None
        assert kept.size < largest.size
    take(config, tmp_path / "second")
    with archives.opened(config) as node:
        node.accounts.add_user(archives.the_console(node), "ada")
        node.upkeep.checkpoint()
    put_back(config, tmp_path / "second")
    node = open_node(config)
    try:
        assert "V14" in node.start()
    finally:
        node.close()


def test_a_note_gives_way_only_to_one_that_covers_the_acknowledgement(tmp_path: Path) -> None:
    config = signed_and_taken(tmp_path)
    with archives.opened(config) as node:
        archives.store(node, archives.instance(1))
        node.upkeep.checkpoint()
        largest = node.core.keystore.anchor("checkpoint")
    put_back(config, tmp_path / "first")
    node = open_node(config)
    try:
        node.start()
        node.oversight.acknowledge(archives.the_console(node), reason="put back")
        heads.publish(node.core)  # what was signed before is written once more
        assert node.core.keystore.anchor("checkpoint") == largest
    finally:
        node.close()
