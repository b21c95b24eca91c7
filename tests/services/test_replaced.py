"""An instance that was let in gives its place to the next that is let in, as one that was stored does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.db.tables import purged
from archive.node import Node
from tests.services import archives, catalogs
from tests.services.test_purge import ONE, rows, sound
from tests.services.test_rebuild import lose, rebuild

FIRST = f"{ONE}.1.1"


def sent(node: Node, description: str, patient: str = "P1") -> None:
    """Send the instance with other content, and let it in."""
    console = archives.the_console(node)
    archives.store(node, archives.instance(1, StudyDescription=description, PatientID=patient))
    for row in node.reconcile.list(console):
        node.reconcile.accept(console, row["id"], reason=description)


def shown(node: Node) -> list[tuple[str, str]]:
    return [(row["kind"], row["state"]) for row in node.reconcile.list(archives.the_console(node), every=True)]


@pytest.mark.parametrize("lost", [False, True])
def test_what_was_let_in_is_replaced_by_what_is_let_in_next(tmp_path: Path, engine: dict[str, Any], lost: bool) -> None:
    config = archives.made(tmp_path, **engine)
    with archives.opened(config) as node:
        console, seen = archives.the_console(node), []
        for description in ("first", "second", "third"):
            sent(node, description)
            seen.append((node.core.clock(), catalogs.visible(node, "admin", ONE)[FIRST]))
        assert len({data for _, data in seen}) == 3
        assert sorted(shown(node)) == [("conflict", "accepted"), ("conflict", "rejected"), ("conflict", "rejected")]
        assert archives.store(node, archives.instance(1, StudyDescription="second")).decided
        for at, _data in seen:
            assert node.ledger_replay.at(console, when=at, study_instance_uid=ONE)["instances"] == 1
        sound(node)
        before, held = catalogs.catalog(node), shown(node)
        node.upkeep.finish()
    if lost:
        lose(config)
    assert rebuild(config).ok
    with archives.opened(config) as node:
        assert (catalogs.catalog(node), shown(node)) == (before, held)
        assert catalogs.visible(node, "admin", ONE) == {FIRST: seen[-1][1]}
        sound(node)


def test_all_that_had_the_place_goes_with_the_last(tmp_path: Path) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config) as node:
        console = archives.the_console(node)
        for description in ("first", "second", "third"):
            sent(node, description)
        node.remove.reject(console, "clinical", "study", ONE, reason="test")
        done = node.purge.run(console, study=ONE, reason="test")
        assert (done.instances, done.keys) == (3, 1)
        assert len(rows(node, sa.select(purged.c.object_id))) == 3
        assert shown(node) == []
        sound(node)
        node.upkeep.finish()
    lose(config)
    assert rebuild(config).ok
    with archives.opened(config) as node:
        assert len(rows(node, sa.select(purged.c.object_id))) == 3
        assert shown(node) == []
        sound(node)
