"""What asks for deliveries is led by an index, however many wait for other destinations or are of the other kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.db.tables import delivery, delivery_destination
from archive.node import Node
from archive.services import deliveries
from archive.services.deliveries import Claimed
from tests.services import archives

DEAD, ALIVE = 1, 2


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """An archive on SQLite, whose plans do not hang on what it counted."""
    with archives.opened(archives.made(tmp_path)) as made:
        yield made


@contextmanager
def asked(node: Node) -> Iterator[list[tuple[str, Any]]]:
    """Collect the statements that speak of deliveries."""
    found: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
        if " delivery" in statement:
            found.append((statement, values))

    sa.event.listen(node.core.database.engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        sa.event.remove(node.core.database.engine, "before_cursor_execute", note)


def plans(node: Node, work: Callable[[], object]) -> list[str]:
    """Return how SQLite comes to the deliveries that something asks for."""
    with asked(node) as found:
        work()
    assert found
    with node.core.database.read() as tx:
        steps = [row.detail for statement, values in found for row in tx.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)]
    return [step for step in steps if "delivery" in step and "delivery_destination" not in step]


def test_a_tick_looks_up_what_is_due_for_one_destination(node: Node) -> None:
    at = node.core.clock()
    with node.core.database.begin() as tx:
        tx.execute(sa.insert(delivery_destination), [{"peer_id": one, "leased_by": "", "reason": ""} for one in (DEAD, ALIVE)])
        tx.execute(sa.insert(delivery), [
            {"kind": "forward", "peer_id": DEAD, "state": "waiting", "instance_pk": n, "run_at": at - timedelta(hours=1), "created_at": at}
            for n in range(10)
        ])
    led = "SEARCH delivery USING INDEX ix_delivery_next (peer_id=? AND kind=? AND state=? AND run_at<?)"
    assert [step.replace("COVERING ", "").replace("EXISTS ", "") for step in plans(node, node.deliveries.claim)] == [led]
    for kind in (deliveries.REPORT, deliveries.FORWARD):
        assert plans(node, lambda kind=kind: node.deliveries.due(Claimed(DEAD, "x"), kind, limit=10)) == [led]  # type: ignore[misc]
