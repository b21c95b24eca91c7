"""Who asks for a function they lack is refused, and the refusal is in the ledger."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from archive.errors import Forbidden
from archive.ledger.log import AuditFilter
from archive.node import Node
from archive.services.audit_export import Span
from archive.services.store import Source
from tests.services import archives

ASKED: dict[str, Callable[[Node, object], object]] = {
    "store": lambda node, eve: node.store.open(eve, "clinical", Source("stow")),  # type: ignore[arg-type]
    "import": lambda node, eve: node.imports.run(eve, [Path(".")], "clinical", report=io.StringIO()),  # type: ignore[arg-type]
    "imports": lambda node, eve: node.imports.list(eve),  # type: ignore[arg-type]
    "import file names": lambda node, eve: node.imports.show(eve, 1),  # type: ignore[arg-type]
    "reconcile list": lambda node, eve: node.reconcile.list(eve),  # type: ignore[arg-type]
    "reconcile show": lambda node, eve: node.reconcile.show(eve, 1),  # type: ignore[arg-type]
    "reconcile accept": lambda node, eve: node.reconcile.accept(eve, 1, reason="test"),  # type: ignore[arg-type]
    "audit": lambda node, eve: node.oversight.search(eve),  # type: ignore[arg-type]
    "prove": lambda node, eve: node.oversight.prove(eve, "0"),  # type: ignore[arg-type]
    "keys": lambda node, eve: node.keys.list(eve),  # type: ignore[arg-type]
    "verify": lambda node, eve: node.verify.run(eve, "quick"),  # type: ignore[arg-type]
    "grants": lambda node, eve: node.accounts.list_grants(eve),  # type: ignore[arg-type]
    "rules": lambda node, eve: node.arrival_rules.list(eve),  # type: ignore[arg-type]
    "rules tried": lambda node, eve: node.arrival_rules.test(eve, "1.2.3"),  # type: ignore[arg-type]
    "reviews": lambda node, eve: node.reviews.list(eve),  # type: ignore[arg-type]
    "audit lines": lambda node, eve: node.audit_export.lines(eve, Span()),  # type: ignore[arg-type]
    "replay": lambda node, eve: node.ledger_replay.at(eve, size=1),  # type: ignore[arg-type]
    "peers": lambda node, eve: node.peers.list(eve),  # type: ignore[arg-type]
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> object:
    with archives.opened(archives.made(tmp_path_factory.mktemp("denials"))) as node:
        node.accounts.add_user(archives.the_console(node), "eve", roles=["referrer"])
        yield node


@pytest.mark.parametrize("what", ASKED)
def test_a_refusal_is_an_event(node: Node, what: str) -> None:
    eve = archives.user(node, "eve")

    def denied() -> int:
        with node.core.database.read() as tx:
            found = node.core.ledger.search(tx, AuditFilter(principal_id=eve.principal_id))
        return sum(event.kind == "denied" and event.outcome == 8 for event in found)

    before = denied()
    with pytest.raises(Forbidden):
        ASKED[what](node, eve)
    assert denied() == before + 1


def test_names_in_the_queue_are_shown_only_with_an_event(node: Node) -> None:
    archives.store(node, archives.instance(1, study="1.2.60", PatientID="ONE"))
    assert archives.store(node, archives.instance(2, study="1.2.60", PatientID="TWO")).status == "held"
    console = archives.the_console(node)
    assert [row["patient_id"] for row in node.reconcile.list(console)] == ["TWO"]
    with node.core.database.read() as tx:
        event = node.core.ledger.search(tx, AuditFilter(limit=1))[0]
    assert (event.kind, event.principal_id, event.instances) == ("read", console.principal_id, 1)
    assert event.body is not None
    assert event.body["objects"] == [["patient", "TWO"]]
