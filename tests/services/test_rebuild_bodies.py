"""An index that is damaged, and a body of its ledger with it: that one is taken from the ledger's files, or told, and the rest is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.db.tables import audit_event, membership
from archive.node import Node
from archive.services import lost
from tests.services import archives
from tests.services.test_rebuild import rebuild


def spoilt(node: Node, kind: str, how: str) -> None:
    """Spoil the newest such event's body, and lose a table of access, so that a snapshot is taken in its place."""
    with node.core.database.begin() as tx:
        n, body = tx.execute(sa.select(audit_event.c.n, audit_event.c.body).where(audit_event.c.kind == kind).order_by(
            audit_event.c.n.desc()).limit(1)).one()
        body = bytearray(body)
        body[5 if how == "its key is another" else -1] ^= 1
        mine = audit_event.c.n == n
        tx.execute(sa.delete(audit_event).where(mine) if how == "its row is gone" else sa.update(audit_event).where(mine).values(
            body=None if how == "it is gone" else bytes(body)
        ))
        membership.drop(tx)


@pytest.mark.parametrize(("how", "there"), [
    ("a bit is turned", True), ("a bit is turned", False), ("its key is another", True), ("its key is another", False),
    ("it is gone", True), ("it is gone", False), ("its row is gone", False),
])
def test_a_damaged_body_ends_no_rebuild(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, there: bool) -> None:
    """`there`: the ledger's files have it."""
    config = archives.made(tmp_path)
    with archives.opened(config, role="serve") as node:
        console = archives.the_console(node)
        for name in ("mia", "ben"):
            node.accounts.add_user(console, name, password=archives.PASSWORD)
        archives.store(node, archives.instance(1))
        node.upkeep.finish()
        node.accounts.disable_user(console, "ben")
        node.accounts.disable_user(console, "mia")
        if there:
            node.upkeep.checkpoint()
        spoilt(node, "user-changed", how)
        node.core.database.checkpoint()
    monkeypatch.setattr(lost, "is_sound", lambda database: "index" not in str(database.engine.url))
    report = rebuild(config)
    monkeypatch.undo()
    assert report.lost
    assert report.instances == 1
    assert any("do not open any more" in one for one in report.problems) is not there
    with archives.opened(config) as node:
        enabled = {row["name"]: row["enabled"] for row in node.accounts.list_users(archives.the_console(node))}
    assert enabled["ben"] is False, "what other events took away counts"
    assert enabled["mia"] is not there
