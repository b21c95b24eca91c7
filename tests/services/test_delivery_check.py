"""What waits to be delivered, edited, slipped in or taken away behind the archive's back: found as far as events say what is to go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.db.tables import commitment, delivery
from archive.node import Node
from archive.services.commitments import Reference
from tests.services import archives, everything
from tests.services.test_rebuild import lose, rebuild

_D, _C = delivery.c, commitment.c
GONE = "is gone, or was taken by no event"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with archives.opened(archives.made(tmp_path)) as opened:
        everything.filled(opened)
        promised(opened)
        yield opened


def promised(node: Node) -> None:
    """Two promises more: of the first the report was taken, of the second it waits."""
    for number in (1, 2):
        reference = Reference(archives.CT, f"1.2.3.1.{number}")
        made = node.commitments.request(everything.device(node), "clinical", f"1.2.8.90{number}", [reference], calling_ae_title="CT1")
        assert node.commitments.check(made) is not None
        if number == 1:
            node.commitments.reported(made)


def found(node: Node) -> list[str]:
    checked = node.verify.run(archives.the_console(node), "quick").findings
    assert {one.code for one in checked} <= {"V12"}
    return [one.detail for one in checked]


def _report(number: int) -> Any:
    return _D.commitment_id == sa.select(_C.id).where(_C.transaction_uid == f"1.2.8.90{number}").scalar_subquery()


def _forward() -> Any:
    return _D.id == sa.select(sa.func.min(_D.id)).where(_D.kind == "forward").scalar_subquery()


def _set(which: Callable[[], Any], **values: Any) -> Callable[[sa.Connection], Any]:
    return lambda tx: tx.execute(sa.update(delivery).where(which()).values(values))


def _slipped_in(kind: str) -> Callable[[sa.Connection], Any]:
    def act(tx: sa.Connection) -> Any:
        row = dict(tx.execute(sa.select(delivery).where(_D.kind == kind).limit(1)).mappings().one())
        return tx.execute(sa.insert(delivery).values(row | {"id": None, "peer_id": 1000, "instance_pk": row["instance_pk"]}))

    return act


@pytest.mark.parametrize(("edit", "said"), [
    (_set(lambda: _report(2), state="done"), GONE),
    (_set(lambda: _report(2), peer_id=1000), "goes to another than asked for it"),
    (_set(lambda: _report(2), ae_title="EVE"), "goes to another than asked for it"),
    (_set(lambda: _report(2), commitment_id=None), "1 deliveries report nothing that was promised"),
    (_set(lambda: _report(2), kind="other"), "1 deliveries report nothing that was promised"),
    (_set(lambda: _report(1), state="waiting"), "waits again, although it was taken"),
    (lambda tx: tx.execute(sa.delete(delivery).where(_report(2))), GONE),
    (lambda tx: tx.execute(sa.delete(commitment).where(_C.transaction_uid == "1.2.8.902")), GONE),
    (lambda tx: tx.execute(sa.update(commitment).where(_C.transaction_uid == "1.2.8.902").values(reported_at=_C.created_at)), GONE),
    (lambda tx: tx.execute(sa.update(commitment).where(_C.transaction_uid == "1.2.8.902").values(leaf=1)), "was promised by no event"),
    (_slipped_in("report"), "goes to another than asked for it"),
    (_set(_forward, rule_id=None), "1 deliveries are to be forwarded by no rule, or nothing"),
    (_set(_forward, state="sent"), "1 deliveries are to be forwarded by no rule, or nothing"),
])  # fmt: skip
def test_a_delivery_edited_behind_our_back(node: Node, edit: Callable[[sa.Connection], Any], said: str) -> None:
    assert found(node) == []
    with node.core.database.begin() as tx:
        assert edit(tx).rowcount
    details = found(node)
    assert any(one.endswith(said) for one in details), details


@pytest.mark.parametrize("edit", [
    _set(_forward, peer_id=1000), _set(_forward, state="done"), _slipped_in("forward"),
    lambda tx: tx.execute(sa.delete(delivery).where(_forward())),
])  # fmt: skip
def test_what_a_rule_queued_is_in_no_event(node: Node, edit: Callable[[sa.Connection], Any]) -> None:
    """docs/tamper.md says so: it goes where its rule says, or not at all."""
    with node.core.database.begin() as tx:
        assert edit(tx).rowcount
    assert found(node) == []


def test_one_that_was_asked_again_needs_no_report_of_the_first(node: Node) -> None:
    again = node.commitments.request(
        everything.device(node), "clinical", "1.2.8.902", [Reference(archives.CT, "1.2.3.1.2")], calling_ae_title="CT1"
    )
    with node.core.database.read() as tx:
        first = tx.execute(sa.select(sa.func.min(_C.id)).where(_C.transaction_uid == "1.2.8.902")).scalar_one()
    assert node.commitments.check(again) is not None
    assert node.commitments.report(first) is None
    with node.core.database.begin() as tx:
        tx.execute(sa.delete(delivery).where(_D.commitment_id == first))
    assert found(node) == []


def test_after_a_lost_index_every_report_is_there(tmp_path: Path) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config, role="serve") as node:
        everything.filled(node)
        node.upkeep.finish()
        promised(node)
        node.upkeep.checkpoint()
    lose(config)
    rebuild(config)
    with archives.opened(config) as node:
        assert [one for one in found(node) if "report" in one or "delivery" in one] == []


def test_what_was_done_in_order_is_no_finding_on_either_engine(engine: dict[str, Any], tmp_path: Path) -> None:
    with archives.opened(archives.made(tmp_path, **engine)) as node:
        everything.filled(node)
        promised(node)
        assert found(node) == []
