"""What the archive says of itself: starts, keys opened, configurations, stops."""

from __future__ import annotations

from pathlib import Path

from archive.node import Node
from tests.services import archives


def kinds(node: Node) -> list[str]:
    rows = node.oversight.search(archives.the_console(node), limit=1000)
    return [row["kind"] for row in reversed(rows) if row["kind"] in {"started", "stopped", "key-used", "configured"}]


def test_a_start_names_the_keyring_and_a_changed_configuration(tmp_path: Path) -> None:
    config = archives.made(tmp_path)
    path = tmp_path / "config.toml"
    path.write_text("# first\n", encoding="utf-8")
    with archives.opened(config) as node:
        assert kinds(node) == ["configured", "started", "key-used", "configured"]
        node.upkeep.finish()
    with archives.opened(config) as node:
        assert kinds(node)[-3:] == ["stopped", "started", "key-used"]
    path.write_text("# second\n", encoding="utf-8")
    with archives.opened(config) as node:
        assert kinds(node)[-3:] == ["started", "key-used", "configured"]


def test_the_last_checkpoint_covers_the_stop(tmp_path: Path) -> None:
    with archives.opened(archives.made(tmp_path)) as node:
        node.upkeep.finish()
        found = node.oversight.search(archives.the_console(node), kinds=["stopped"])
        assert node.oversight.prove(archives.the_console(node), str(found[0]["id"]))
