"""Rejecting and restoring: out of sight for everyone at once, and back again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from archive.access.grants import Target
from archive.errors import InvalidRequest, NotFound, StateConflict
from archive.node import Node
from tests.services import archives


@pytest.fixture
def node(tmp_path: Path, engine: dict[str, Any]) -> Iterator[Node]:
    with archives.opened(archives.made(tmp_path, **engine)) as node:
        for number in (1, 2):
            archives.store(node, archives.instance(number))
        yield node


def seen(node: Node) -> set[str]:
    try:
        return {one.sop_instance_uid for one in node.retrieve.instances(archives.user(node), "clinical", "1.2.3")}
    except NotFound:
        return set()


def test_a_rejected_instance_is_gone_and_comes_back(node: Node) -> None:
    console = archives.the_console(node)
    assert node.remove.reject(console, "clinical", "instance", "1.2.3.1.1", reason="wrong side") == 1
    assert seen(node) == {"1.2.3.1.2"}
    assert node.remove.restore(console, "clinical", "instance", "1.2.3.1.1", reason="it was right") == 1
    assert seen(node) == {"1.2.3.1.1", "1.2.3.1.2"}
    assert node.verify.run(console, "full").findings == []


@pytest.mark.parametrize("level", ["study", "series"])
def test_a_study_or_series_goes_as_a_whole(node: Node, level: str) -> None:
    console = archives.the_console(node)
    uid = "1.2.3" if level == "study" else "1.2.3.1"
    assert node.remove.reject(console, "clinical", level, uid, reason="test") == 2  # type: ignore[arg-type]
    assert seen(node) == set()
    with pytest.raises(NotFound):
        node.remove.reject(console, "clinical", level, uid, reason="test")  # type: ignore[arg-type]


def test_sending_it_again_brings_it_back(node: Node) -> None:
    node.remove.reject(archives.the_console(node), "clinical", "study", "1.2.3", reason="test")
    assert archives.store(node, archives.instance(1)).status == "duplicate"
    assert seen(node) == {"1.2.3.1.1"}
    assert node.verify.run(archives.the_console(node), "full").findings == []


def test_a_reason_is_asked_for(node: Node) -> None:
    with pytest.raises(InvalidRequest):
        node.remove.reject(archives.the_console(node), "clinical", "study", "1.2.3", reason=" ")


def test_what_a_user_may_not_delete_is_not_there(node: Node) -> None:
    console = archives.the_console(node)
    node.accounts.add_user(console, "reader", roles=["referrer"], password=archives.PASSWORD)
    node.accounts.add_grant(console, to="reader", role="referrer", target=Target("everything"))
    reader = archives.user(node, "reader")
    with pytest.raises(NotFound):
        node.remove.reject(reader, "clinical", "study", "1.2.3", reason="test")
    assert node.remove.reject(archives.user(node), "clinical", "study", "1.2.3", reason="test") == 2


def test_a_study_goes_as_a_whole_or_not_at_all(node: Node) -> None:
    """Who sees all of it and may delete a part deletes that part by its own UID only."""
    console = archives.the_console(node)
    archives.store(node, archives.instance(1, series="1.2.3.2"))
    node.accounts.add_user(console, "tech", roles=["technologist"], password=archives.PASSWORD)
    node.accounts.add_grant(console, to="tech", role="referrer", target=Target("everything"))
    node.accounts.add_grant(console, to="tech", role="owner", target=Target("series", "1.2.3.2"))
    tech = archives.user(node, "tech")
    with pytest.raises(NotFound):
        node.remove.reject_at(tech, "clinical", "1.2.3", None, None, reason="test")
    with pytest.raises(NotFound):
        node.remove.reject_at(tech, "clinical", "1.2.3", "1.2.3.1", None, reason="test")
    assert len(seen(node)) == 3
    assert node.remove.reject_at(tech, "clinical", "1.2.3", "1.2.3.2", None, reason="test") == 1


@pytest.mark.parametrize("undo", [False, True])
def test_a_right_that_ends_while_the_event_is_sealed_counts(node: Node, monkeypatch: pytest.MonkeyPatch, *, undo: bool) -> None:
    """The right is asked for again inside the transaction; what was sealed for it leaves nothing behind."""
    console, remove = archives.the_console(node), node.remove
    node.accounts.add_user(console, "dm", password=archives.PASSWORD)
    grant = node.accounts.add_grant(console, to="dm", role="data-manager", target=Target("everything"))
    if undo:
        assert remove.reject(console, "clinical", "instance", "1.2.3.1.1", reason="test") == 1
    before = seen(node)
    _meanwhile(node, monkeypatch, lambda: node.accounts.revoke_grant(console, grant["id"]))
    with pytest.raises(NotFound):
        (remove.restore if undo else remove.reject)(archives.user(node, "dm"), "clinical", "instance", "1.2.3.1.1", reason="test")
    assert seen(node) == before
    assert node.verify.run(console, "full").findings == []


def test_what_became_hidden_meanwhile_keeps_the_whole(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deny of deleting a part hides that part from the deletion alone: all of what is seen, or nothing."""
    console = archives.the_console(node)
    archives.store(node, archives.instance(1, series="1.2.3.2"))
    node.accounts.add_role(console, "deletes", ["delete"])
    node.accounts.add_user(console, "dm", password=archives.PASSWORD)
    node.accounts.add_grant(console, to="dm", role="data-manager", target=Target("everything"))
    _meanwhile(node, monkeypatch, lambda: node.accounts.add_grant(
        console, to="dm", role="deletes", target=Target("series", "1.2.3.2"), deny=True
    ))
    with pytest.raises(NotFound):
        node.remove.reject_at(archives.user(node, "dm"), "clinical", "1.2.3", None, None, reason="test")
    assert len(seen(node)) == 3


def test_what_comes_or_goes_meanwhile_is_told(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    console = archives.the_console(node)
    _meanwhile(node, monkeypatch, lambda: archives.store(node, archives.instance(3)))
    with pytest.raises(StateConflict, match="changed meanwhile"):
        node.remove.reject(console, "clinical", "study", "1.2.3", reason="test")
    assert len(seen(node)) == 3
    assert node.remove.reject(console, "clinical", "study", "1.2.3", reason="test") == 3


def _meanwhile(node: Node, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Let something happen once, when the next event is about to be sealed."""
    put_event, waiting = node.core.vault.put_event, [act]

    def late(*given: Any, **named: Any) -> Any:
        if waiting:
            waiting.pop()()
        return put_event(*given, **named)

    monkeypatch.setattr(node.core.vault, "put_event", late)
