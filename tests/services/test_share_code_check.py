"""A code of a share link that was slipped in, counts again or longer, or is gone behind the archive's back is found; none in order is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.access.grants import Target
from archive.db.tables import share_code
from archive.errors import Forbidden
from archive.node import Node
from archive.services.shares import Wanted
from tests.services import archives
from tests.services.test_rebuild import lose, rebuild

DESK: dict[str, Any] = {"address": "192.0.2.9", "user_agent": "x"}
_C = share_code.c


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with archives.opened(archives.made(tmp_path)) as opened:
        links(opened)
        yield opened


def links(node: Node) -> None:
    """Link 1: a code that was used, then one that waits, tried once. Link 2: two codes, the second waits. Link 3: revoked."""
    console = archives.the_console(node)
    archives.store(node, archives.instance(1))
    node.accounts.add_user(console, "doc", password=archives.PASSWORD)
    node.accounts.add_grant(console, to="doc", role="radiologist", target=Target("study", "1.2.3"))
    doc = archives.user(node, "doc")
    first, second, third = (node.shares.create(doc, Wanted(studies=["1.2.3"])) for _ in range(3))
    word = str(first["url"]).partition("#")[2]
    node.share_door.enter(word, first["code"], **DESK)
    node.shares.new_code(doc, first["id"])
    with pytest.raises(Forbidden):
        node.share_door.enter(word, "no code", **DESK)
    node.shares.new_code(doc, second["id"])
    node.shares.revoke(doc, third["id"])


def found(node: Node) -> list[str]:
    checked = node.verify.run(archives.the_console(node), "quick").findings
    assert {one.code for one in checked} <= {"V12"}
    return [one.detail for one in checked]


def _slipped_in(tx: sa.Connection) -> None:
    row = tx.execute(sa.select(share_code).where(_C.id == 2)).mappings().one()
    tx.execute(sa.insert(share_code).values({name: value for name, value in row.items() if name != "id"} | {
        "created_at": row["created_at"] + timedelta(seconds=1)
    }))


def _set(number: int, **values: Any) -> Callable[[sa.Connection], Any]:
    return lambda tx: tx.execute(sa.update(share_code).where(_C.id == number).values(values))


@pytest.mark.parametrize(("edit", "said"), [
    (_slipped_in, ["a code of link 2 was drawn by no event"]),
    (_set(1, ended_at=None), ["a code of link 1 counts again"]),
    (_set(2, ended_at=None), ["a code of link 2 counts again"]),
    (_set(3, ended_at=None), ["a code of link 3 counts again"]),
    (_set(4, tries=0), ["a code of link 1 was tried otherwise than it says"]),
    (_set(5, not_after=sa.cast(_C.not_after, sa.BigInteger) + 1), ["a code of link 2 is not the one that was drawn"]),
    (_set(5, ended_at=_C.created_at), ["a code of link 2 was ended by no event"]),
    (_set(5, share_id=3), ["a code of link 3 was drawn by no event", "a code of link 2 is gone"]),
    (lambda tx: tx.execute(sa.delete(share_code).where(_C.id == 5)), ["a code of link 2 is gone"]),
])  # fmt: skip
def test_a_code_edited_behind_our_back(node: Node, edit: Callable[[sa.Connection], Any], said: list[str]) -> None:
    assert found(node) == []
    with node.core.database.begin() as tx:
        edit(tx)
    assert found(node) == said


def test_after_a_lost_index_no_code_is_missed(tmp_path: Path) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config, role="serve") as node:
        links(node)
        node.upkeep.finish()
    lose(config)
    rebuild(config)
    with archives.opened(config) as node:
        assert [one for one in found(node) if "code" in one] == []
        assert [row["id"] for row in node.shares.list(archives.user(node, "doc"))] == [3, 2, 1]
        node.shares.new_code(archives.user(node, "doc"), 2)
        assert [one for one in found(node) if "code" in one] == []


def test_codes_that_were_mailed_or_are_forgotten_are_none(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node.share_door._mail, "send", lambda *_, **__: None)
    link = node.shares.create(archives.user(node, "doc"), Wanted(studies=["1.2.3"], email="otto@praxis.example"))
    if link["code"] is None:
        assert node.share_door.ask(str(link["url"]).partition("#")[2]).sent
    assert found(node) == []
