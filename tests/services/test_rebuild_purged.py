"""What a purge leaves is what a rebuild makes, and what was purged last is not missed."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.access.grants import Target
from archive.db.tables import instance
from tests.services import archives, catalogs
from tests.services.test_purge import ONE, rows, sound, uids
from tests.services.test_rebuild import lose, rebuild


@pytest.mark.parametrize("whole", [False, True], ids=["a part", "a study with its key"])
def test_what_was_purged_after_the_last_checkpoint_is_not_missed(tmp_path: Path, whole: bool) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config, role="serve") as node:
        console = archives.the_console(node)
        for number in (1, 2):
            archives.store(node, archives.instance(number))
        archives.store(node, archives.instance(1, study="1.2.4", PatientID="P2"))
        node.upkeep.finish()
        gone = ONE if whole else f"{ONE}.1.1"
        node.remove.reject(console, "clinical", "study" if whole else "instance", gone, reason="test")
        node.purge.run(console, study=ONE, reason="test")
    lose(config)
    report = rebuild(config)
    assert report.ok, report.problems
    with archives.opened(config) as node:
        assert uids(node) == (set() if whole else {f"{ONE}.1.2"})
        assert len(rows(node, sa.select(instance.c.id))) == (1 if whole else 2)
        sound(node)


@pytest.mark.parametrize("lost", [False, True])
def test_what_waits_though_what_it_contradicted_is_purged_waits_as_it_did(tmp_path: Path, lost: bool) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config) as node:
        console = archives.the_console(node)
        for number in (1, 2):
            archives.store(node, archives.instance(number))
        assert archives.store(node, archives.instance(1, PatientID="P9")).status == "conflict"
        node.remove.reject(console, "clinical", "instance", f"{ONE}.1.1", reason="test")
        assert node.purge.run(console, study=ONE, reason="test").instances == 1
        node.upkeep.finish()
        before = catalogs.catalog(node, without=("reason",))["held"]
    if lost:
        lose(config)
    assert rebuild(config).ok
    with archives.opened(config) as node:
        assert catalogs.catalog(node, without=("reason",))["held"] == before
        sound(node)
