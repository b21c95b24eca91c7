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


def spoilt(node: Node, kind: str) -> None:
    """Turn a bit of the newest such event's body, and lose a table of access, so that a snapshot is taken in its place."""
    with node.core.database.begin() as tx:
        n, body = tx.execute(sa.select(audit_event.c.n, audit_event.c.body).where(audit_event.c.kind == kind).order_by(
            audit_event.c.n.desc()).limit(1)).one()
        body = bytearray(body)
        body[-1] ^= 1
        tx.execute(sa.update(audit_event).where(audit_event.c.n == n).values(body=bytes(body)))
        membership.drop(tx)


@pytest.mark.parametrize("there", [True, False], ids=["the files have it", "they do not"])
def test_a_damaged_body_ends_no_rebuild(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
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
        spoilt(node, "user-changed")
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
