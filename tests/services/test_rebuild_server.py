"""An index that is made again on a server's database: what that does not take costs nothing else."""

from __future__ import annotations

import random
import string
from pathlib import Path

from tests.services import archives, crowd
from tests.services.test_rebuild import lose, rebuild

LONG = "".join(random.Random(1).choices(string.ascii_letters, k=20_000))
"""Longer than an index of PostgreSQL takes, which compresses what repeats itself."""
MANY = "\\".join(LONG[at : at + 16] for at in range(0, len(LONG), 16))
"""Values that are each as long as they may be."""


def test_a_value_no_index_takes_ends_no_rebuild(tmp_path: Path, postgresql_url: str) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config, role="serve") as node:
        console = archives.the_console(node)
        archives.store(node, archives.instance(1))
        archives.store(node, archives.instance(1, study="1.7", PatientID=LONG))
        for number, of in enumerate(("PatientID", "AccessionNumber", "Modality")):
            archives.store(node, archives.instance(1, study=f"1.8.{number}", **{of: MANY}))
        archives.store(node, archives.instance(2, PatientID=LONG))  # held
        archives.store(node, archives.instance(2))
        node.remove.reject(console, "clinical", "study", "1.7", reason="test")
        node.upkeep.finish()
    kept = {path: path.read_bytes() for path in config.segments_dir.iterdir()}
    lose(config)
    (tmp_path / "database-url").write_text(postgresql_url)
    server = archives.configured(tmp_path)
    report = rebuild(server)
    assert report.instances == 2
    assert [one for one in report.problems if "longer" in one]
    for _ in range(2):
        with archives.opened(server) as node:
            assert set(crowd.part10(node, "1.2.3")) == {"1.2.3.1.1", "1.2.3.1.2"}
    for path, data in kept.items():
        assert path.read_bytes()[:len(data)] == data, "what it does not take is kept"
    (tmp_path / "database-url").unlink()
    assert rebuild(config).ok
    with archives.opened(config) as node:
        assert len(crowd.part10(node, "1.2.3")) == 2
        assert node.reconcile.list(archives.the_console(node))
