"""Verify beside a serving archive: what is purged, re-keyed or signed with new keys meanwhile is no finding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import sqlalchemy as sa

from archive.access import policy
from archive.db.tables import instance
from archive.errors import InvalidInstance
from archive.node import Node, open_node
from archive.services import oversight
from archive.services.verify import Mode, Verify
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


@pytest.fixture
def beside(node: Node, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What another process finds each time a segment gets or loses its row, before and after."""
    told: list[tuple[str, str]] = []
    other = open_node(node.config)

    def around(name: str) -> None:
        real = getattr(node.core.vault.segments, name)

        def looked_at(*arguments: Any) -> None:
            told.extend(found(other, "keyless"))
            real(*arguments)
            told.extend(found(other, "keyless"))
            told.append(("", name))

        monkeypatch.setattr(node.core.vault.segments, name, looked_at)

    for name in ("_on_open", "_on_drop"):
        around(name)
    return told


def test_a_segment_that_is_made_or_taken_away_meanwhile(node: Node, beside: list[tuple[str, str]]) -> None:
    """However long it takes until its row comes or goes."""
    console = archives.the_console(node)
    node.core.vault.segments.roll()
    archives.store(node, archives.instance(1, study="1.2.5", rows=1600))  # a segment of its own
    with pytest.raises(InvalidInstance):
        archives.store(node, archives.instance(1, study="1.2.6", rows=1600)[:-8])  # begun and given up
    for study in ("1.2.3", "1.2.4", "1.2.5"):
        node.remove.reject(console, "clinical", "study", study, reason="sent by mistake")
    for study in ("1.2.3", "1.2.4", "1.2.5"):
        node.purge.run(console, "clinical", study=study, reason="for good")
    assert [what for code, what in beside if not code].count("_on_drop") >= 2
    assert [one for one in beside if one[0]] == []


def test_what_is_put_among_the_segments(node: Node) -> None:
    """But for what is as empty as one that is just being made."""
    folder, other = node.config.segments_dir, b"o" * 16
    path = folder / f"{other.hex()}.seg"
    for data, told in ((b"", []), (bytes(4096), []), (b"x", ["V15"]), (bytes(4096) + b"x", ["V15"])):
        path.write_bytes(data)
        assert [code for code, _ in found(node, "quick")] == told
    path.write_bytes(b"")
    (folder / f"{other.hex().upper()}.seg").write_bytes(b"x")
    assert [code for code, _ in found(node, "quick")] == ["V15"]


def test_what_named_the_patient_is_purged_meanwhile(node: Node, once: Once) -> None:
    console = archives.the_console(node)
    for number, patient in ((1, None), (2, "P5")):
        archives.store(node, archives.instance(number, study="1.2.5", PatientID=patient))
    node.remove.reject(console, "clinical", "instance", "1.2.5.1.2", reason="sent by mistake")
    once(Verify, "_pages", lambda: node.purge.run(console, "clinical", study="1.2.5", reason="for good"))
    assert found(node) == []


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
