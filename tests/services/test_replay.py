"""A crash between any two steps of a store: what was acknowledged is there, nothing is half visible, a second start changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.db.tables import ledger_leaf, segment
from archive.errors import DatabaseUnavailable, OutOfSpace
from archive.node import Node
from tests.services import archives


class PowerCut(BaseException):
    """Stands for the process ending here."""


def visible(node: Node) -> list[bytes]:
    admin = archives.user(node)
    try:
        found = node.retrieve.instances(admin, "clinical", "1.2.3")
    except Exception:  # noqa: BLE001 # nothing there
        return []
    return [b"".join(bytes(view) for view in node.retrieve.open(admin, one)) for one in found]


def leaves(node: Node) -> int:
    with node.core.database.read() as tx:
        return int(tx.execute(sa.select(sa.func.count()).select_from(ledger_leaf)).scalar_one())


def abandon(node: Node) -> None:
    """What the kernel does for a killed process: descriptors close, nothing else happens."""
    node.core.vault.segments._on_close = lambda _segment, _used: None  # type: ignore[attr-defined]
    for name in ("_shut", "roll"):
        setattr(node.core.vault.segments, name, lambda *_args: None)
    one = getattr(node.core.vault.segments, "_open", None)
    if one is not None:
        import os

        os.close(one.fd)
    node.core.database.close()
    node.core.keystore.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    archives.made(tmp_path)
    return tmp_path


def test_a_record_whose_commit_never_came_is_adopted_at_the_next_start(folder: Path) -> None:
    config = archives.configured(folder)
    node = archives.open_node(config)
    node.start()
    first, second = archives.instance(1), archives.instance(2)
    archives.store(node, first)

    def die(_tx: Any) -> None:
        raise PowerCut

    node.core.database.before_commit = die
    node.core.vault.forget = lambda _refs: None  # type: ignore[method-assign] # a dead process frees nothing
    with pytest.raises(PowerCut):
        archives.store(node, second)
    abandon(node)

    with archives.opened(config) as node:
        assert visible(node) == [first, second]
        count = leaves(node)
        assert node.verify.run(archives.the_console(node), "full").findings == []
        assert archives.store(node, second).status == "duplicate"
    with archives.opened(config) as node:
        assert visible(node) == [first, second]
        assert leaves(node) >= count


def test_a_second_start_changes_nothing(folder: Path) -> None:
    config = archives.configured(folder)
    with archives.opened(config) as node:
        archives.store(node, archives.instance(1))

    def state(node: Node) -> list[Any]:
        with node.core.database.read() as tx:
            return [tuple(row) for row in tx.execute(sa.select(segment.c.name, segment.c.state, segment.c.used, segment.c.replay_from))]

    with archives.opened(config) as node:
        once = state(node)
    with archives.opened(config) as node:
        assert state(node) == once
        assert visible(node) == [archives.instance(1)]


def test_a_torn_record_is_ignored_and_acknowledged_ones_stay(folder: Path) -> None:
    config = archives.configured(folder)
    node = archives.open_node(config)
    node.start()
    archives.store(node, archives.instance(1))
    ref = node.retrieve.instances(archives.user(node), "clinical", "1.2.3")[0].row.ref
    path = config.segments_dir / f"{ref.location.segment_id.hex()}.seg"
    end = ref.location.offset + ref.location.record_bytes
    abandon(node)
    with path.open("r+b") as file:
        file.seek(-(-end // 4096) * 4096)
        file.write(b"\x89SRM\r\n\x1a\n" + bytes(range(200)) * 15)  # what a write that never finished can look like
    with archives.opened(config) as node:
        assert visible(node) == [archives.instance(1)]


@pytest.mark.parametrize("failure", [DatabaseUnavailable("x"), OutOfSpace("x")])
def test_a_commit_that_fails_is_answered_as_failure_and_leaves_nothing(folder: Path, failure: Exception) -> None:
    config = archives.configured(folder)
    with archives.opened(config) as node:
        calls = []

        def refuse(_tx: Any) -> None:
            calls.append(1)
            raise failure

        archives.store(node, archives.instance(1))
        before = node.core.database.before_commit
        node.core.database.before_commit = refuse
        with pytest.raises(type(failure)):
            archives.store(node, archives.instance(2))
        node.core.database.before_commit = before
        assert calls
        assert visible(node) == [archives.instance(1)]
        assert archives.store(node, archives.instance(2)).status == "stored"
    with archives.opened(config) as node:
        assert visible(node) == [archives.instance(1), archives.instance(2)]
        assert node.verify.run(archives.the_console(node), "full").findings == []


def test_an_unacknowledged_rejection_is_swept(folder: Path) -> None:
    config = archives.configured(folder)
    node = archives.open_node(config)
    node.start()
    archives.store(node, archives.instance(1))

    def die(_tx: Any) -> None:
        raise PowerCut

    node.core.database.before_commit = die
    node.core.vault.forget = lambda _refs: None  # type: ignore[method-assign]
    with pytest.raises(PowerCut):
        node.remove.reject(archives.the_console(node), "clinical", "study", "1.2.3", reason="test")
    abandon(node)
    with archives.opened(config) as node:
        assert visible(node) == [archives.instance(1)]
        assert node.verify.run(archives.the_console(node), "full").findings == []
