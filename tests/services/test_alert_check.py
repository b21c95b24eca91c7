"""An alert that is taken away or closed in the database is found by verify; one that was acknowledged in order is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.db.tables import alert
from archive.ledger.audit import Event, Kind
from archive.node import Node
from tests.services import archives
from tests.services.test_rebuild import lose, rebuild


def raised(node: Node) -> list[int]:
    """Two alerts, the second of which is acknowledged."""
    console = archives.the_console(node)
    node.alerts.tick()
    for _ in range(2):
        with node.core.database.begin() as tx:
            found = Event(Kind.VERIFIED, outcome=8, detail={"mode": "quick", "checked": 1, "findings": ["V01:1"]})
            node.core.ledger.record(tx, found, at=node.core.clock())
        node.alerts.tick()
        first = [row["id"] for row in node.alerts.list(console)]
        if len(first) == 1 and _ == 0:
            node.alerts.acknowledge(console, first[0], note="a disk was exchanged")
    return [row["id"] for row in node.alerts.list(console, every=True)]


def found(node: Node) -> list[str]:
    checked = node.verify.run(archives.the_console(node), "quick").findings
    return [one.detail for one in checked if "alert" in one.detail]


@pytest.mark.parametrize(("edit", "said"), [
    (lambda: sa.delete(alert).where(alert.c.acknowledged_at.is_(None)), "is gone"),
    (lambda: sa.update(alert).where(alert.c.acknowledged_at.is_(None)).values(acknowledged_at=alert.c.raised_at), "closed by no event"),
    (lambda: sa.update(alert).where(alert.c.acknowledged_at.is_(None)).values(rule="spraying"), "closed by no event"),
])
def test_an_alert_edited_behind_our_back(tmp_path: Path, edit: Callable[[], Any], said: str) -> None:
    with archives.opened(archives.made(tmp_path)) as node:
        assert len(raised(node)) == 2
        assert found(node) == []
        with node.core.database.begin() as tx:
            tx.execute(edit())
        (one,) = found(node)
    assert said in one


def test_after_a_lost_index_those_that_wait_are_there(tmp_path: Path) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config, role="serve") as node:
        raised(node)
        node.upkeep.finish()
    lose(config)
    rebuild(config)
    with archives.opened(config) as node:
        assert len(node.alerts.list(archives.the_console(node))) == 1
        assert found(node) == []
