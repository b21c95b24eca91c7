"""Holds: nothing of a study on hold is deleted by anyone; every setting and release is in the ledger; they outlive the index."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from archive.access.grants import Target
from archive.access.subject import Subject
from archive.errors import InvalidRequest, NotFound, StateConflict
from archive.node import Node
from archive.services import holds as holds_module
from archive.services import snapshot
from tests.services import archives


@pytest.fixture
def node(tmp_path: Path, engine: dict[str, Any]) -> Iterator[Node]:
    with archives.opened(archives.made(tmp_path, **engine)) as node:
        for study in ("1.2.3", "1.2.4"):
            for number in (1, 2):
                archives.store(node, archives.instance(number, study=study, PatientID=f"P{study}"))
        yield node


@pytest.fixture
def console(node: Node) -> Subject:
    return archives.the_console(node)


def live(node: Node) -> int:
    return len(node.retrieve.instances(archives.user(node), "clinical", "1.2.3"))


def kinds(node: Node) -> list[str]:
    return [row["kind"] for row in node.oversight.search(archives.the_console(node), study="1.2.3", limit=1000)]


LEVELS = [("study", "1.2.3"), ("series", "1.2.3.1"), ("instance", "1.2.3.1.1")]


def test_nothing_of_a_study_on_hold_is_deleted(node: Node, console: Subject) -> None:
    number = node.holds.add(console, "clinical", "1.2.3", reason="case 7")
    for level, uid in LEVELS:
        with pytest.raises(StateConflict):
            node.remove.reject(console, "clinical", level, uid, reason="test")  # type: ignore[arg-type]
    assert live(node) == 2
    assert node.remove.reject(console, "clinical", "study", "1.2.4", reason="another study") == 2
    node.holds.remove(console, number, reason="closed")
    assert node.remove.reject(console, "clinical", "study", "1.2.3", reason="test") == 2
    assert [kind for kind in reversed(kinds(node)) if kind in ("hold-added", "hold-removed", "rejected")] == [
        "hold-added", "hold-removed", "rejected"]
    assert node.verify.run(console, "full").findings == []


def test_each_of_several_holds_counts(node: Node, console: Subject) -> None:
    first, second = (node.holds.add(console, "clinical", "1.2.3", reason=reason) for reason in ("one", "two"))
    node.holds.remove(console, first, reason="done")
    with pytest.raises(StateConflict):
        node.remove.reject(console, "clinical", "study", "1.2.3", reason="test")
    assert [(row["id"], row["reason"], row["in_force"]) for row in node.holds.list(console)] == [(second, "two", True)]
    with pytest.raises(NotFound):
        node.holds.remove(console, first, reason="again")


def test_a_retention_time_ends_by_itself(node: Node, console: Subject) -> None:
    at = node.core.clock()
    node.holds.add(console, "clinical", "1.2.3", reason="retention", until=at + timedelta(days=1))
    with node.core.database.read() as tx:
        with pytest.raises(StateConflict):
            holds_module.require_none(tx, 1, "1.2.3", at + timedelta(hours=23))
        holds_module.require_none(tx, 1, "1.2.3", at + timedelta(hours=25))
    with pytest.raises(InvalidRequest):
        node.holds.add(console, "clinical", "1.2.3", reason="over", until=at - timedelta(days=1))


def test_what_was_deleted_before_comes_back_under_a_hold(node: Node, console: Subject) -> None:
    node.remove.reject(console, "clinical", "instance", "1.2.3.1.1", reason="test")
    node.holds.add(console, "clinical", "1.2.3", reason="case")
    assert node.remove.restore(console, "clinical", "instance", "1.2.3.1.1", reason="test") == 1


def test_a_hold_set_while_a_delete_is_under_way_counts(node: Node, console: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """The delete asks again inside its transaction; what it did there, and its sealed event, leave nothing behind."""
    put_event = node.core.vault.put_event

    def late(*given: Any, **named: Any) -> Any:
        node.holds.add(console, "clinical", "1.2.3", reason="just now")
        return put_event(*given, **named)

    monkeypatch.setattr(node.core.vault, "put_event", late)
    with pytest.raises(StateConflict):
        node.remove.reject(console, "clinical", "study", "1.2.3", reason="test")
    assert live(node) == 2
    assert "rejected" not in kinds(node)
    assert node.verify.run(console, "full").findings == []


def test_who_may(node: Node, console: Subject) -> None:
    """A grant with the permission is needed; what is hidden and what is not there are one."""
    node.accounts.add_user(console, "mia", roles=["technologist"], password=archives.PASSWORD)
    node.accounts.add_grant(console, to="mia", role="researcher", target=Target("study", "1.2.3"))
    number = node.holds.add(console, "clinical", "1.2.3", reason="case")
    mia = archives.user(node, "mia")
    messages = set()
    for uid in ("1.2.3", "1.2.4", "1.2.5"):
        with pytest.raises(NotFound) as refusal:
            node.holds.add(mia, "clinical", uid, reason="mine")
        messages.add(refusal.value.message)
    for one in (number, number + 1):
        with pytest.raises(NotFound) as refusal:
            node.holds.remove(mia, one, reason="mine")
        messages.add(refusal.value.message)
    assert len(messages) == 1
    assert node.holds.list(mia) == []
    assert len(node.holds.list(console)) == 1


def test_a_reason_is_asked_for(node: Node, console: Subject) -> None:
    number = node.holds.add(console, "clinical", "1.2.3", reason="case")
    for reason in ("", "  "):
        with pytest.raises(InvalidRequest):
            node.holds.add(console, "clinical", "1.2.4", reason=reason)
        with pytest.raises(InvalidRequest):
            node.holds.remove(console, number, reason=reason)
    assert [row["id"] for row in node.holds.list(console)] == [number]


def test_a_snapshot_of_access_has_them_and_an_older_one_is_read_without(node: Node, console: Subject) -> None:
    node.holds.add(console, "clinical", "1.2.3", reason="case", until=node.core.clock() + timedelta(days=1))
    path = snapshot.Snapshots(node.core).write()
    kept = snapshot.read(node.core.keyring, path).tables["hold"]
    assert [(row["study_instance_uid"], row["reason"]) for row in kept] == [("1.2.3", "case")]
    with node.core.database.read() as tx:
        body = snapshot._body(tx, node.core.clock())
    del body["tables"]["hold"]
    assert snapshot._parsed(body).tables["hold"] == []
