"""Verify beside a serving archive: what is purged, re-keyed or signed with new keys meanwhile is no finding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import sqlalchemy as sa

from archive.access import policy
from archive.db.tables import instance
from archive.node import Node, open_node
from archive.services import oversight
from archive.services.verify import Mode
from tests.services import archives

Once = Callable[[Any, str, Callable[[], object]], None]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with archives.opened(archives.made(tmp_path)) as node:
        archives.store(node, archives.instance(1))
        archives.store(node, archives.instance(1, study="1.2.4", PatientID="P2"))
        yield node


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> Once:
    """Lets something happen before the first call of a method."""

    def put(where: Any, name: str, happens: Callable[[], object]) -> None:
        real, waiting = getattr(where, name), [happens]

        def first(*arguments: Any, **options: Any) -> Any:
            if waiting:
                waiting.pop()()
            return real(*arguments, **options)

        monkeypatch.setattr(where, name, first)

    return put


def found(node: Node, mode: Mode = "standard") -> list[tuple[str, str]]:
    return [(one.code, one.detail) for one in node.verify.run(archives.the_console(node), mode).findings]


def opens(mode: Mode) -> str:
    return "probe" if mode == "quick" else "sections"


@pytest.mark.parametrize("mode", ["quick", "standard", "full"])
def test_a_study_re_keyed_meanwhile(node: Node, once: Once, mode: Mode) -> None:
    once(node.core.vault, opens(mode), lambda: node.rekey.study(archives.the_console(node), "1.2.4"))
    assert found(node, mode) == []


@pytest.mark.parametrize("mode", ["quick", "standard", "full"])
def test_a_study_purged_meanwhile(node: Node, once: Once, mode: Mode) -> None:
    console = archives.the_console(node)
    node.remove.reject(console, "clinical", "study", "1.2.4", reason="sent by mistake")
    once(node.core.vault, opens(mode), lambda: node.purge.run(console, "clinical", study="1.2.4", reason="for good"))
    assert found(node, mode) == []


def test_a_segment_freed_while_it_is_looked_at(node: Node, once: Once) -> None:
    console, studies = archives.the_console(node), ("1.2.3", "1.2.4")
    node.core.vault.segments.roll()
    for _ in range(8):
        node.upkeep.tick()  # until it is closed and hashed
    for study in studies:
        node.remove.reject(console, "clinical", "study", study, reason="sent by mistake")

    def freed() -> None:
        for study in studies:
            node.purge.run(console, "clinical", study=study, reason="for good")
        node.upkeep.tick()

    once(Path, "open", freed)
    assert found(node, "keyless") == []


def test_what_is_wrong_with_the_row_as_it_is_now_is_told(node: Node, once: Once) -> None:
    def happens() -> None:
        node.rekey.study(archives.the_console(node), "1.2.4")
        one = sa.update(instance).where(instance.c.sop_instance_uid == "1.2.4.1.1")
        with node.core.database.begin() as tx:
            policy.run_as(tx, policy.system("verify"), one.values(sha256=bytes(32)))

    once(node.core.vault, "sections", happens)
    assert ("V10", "the index says otherwise than the signed statement: sha256") in found(node)


@pytest.mark.parametrize("which", ["signing", "log"])
def test_a_key_rotated_meanwhile(node: Node, once: Once, which: Literal["signing", "log"]) -> None:
    """A check at the console is a process of its own: it opened the keyring before."""
    node.upkeep.checkpoint()

    def happens() -> None:
        node.keys.replace(archives.the_console(node), which)
        archives.store(node, archives.instance(1, study="1.2.9"))
        node.upkeep.checkpoint()

    other = open_node(node.config)
    try:
        once(other.verify, "_segments", happens)
        assert found(other) == []
    finally:
        other.close()


def test_a_key_rotated_once_the_ledger_is_checked(node: Node, once: Once) -> None:
    def happens() -> None:
        node.keys.replace(archives.the_console(node), "log")
        node.upkeep.checkpoint()

    other = open_node(node.config)
    try:
        once(oversight, "_anchors", happens)
        assert oversight.verify_ledger(other.core).findings == []
    finally:
        other.close()


def test_a_key_rotated_once_the_records_are_opened(node: Node, once: Once) -> None:
    console = archives.the_console(node)

    def happens() -> None:
        node.keys.replace(console, "signing")
        node.rekey.study(console, "1.2.4")

    other = open_node(node.config)
    try:
        once(other.core.vault, "sections", happens)
        assert found(other) == []
    finally:
        other.close()
