"""Rows of principals, memberships and role assignments that no event made are found by every level of verify."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.db.tables import membership, principal, role_assignment
from tests.services import archives

EDITS = {
    "an assignment added": sa.text(
        "insert into role_assignment (principal_id, role_id, not_before, not_after, created_at) select p.id, r.id, a.not_before, "
        "a.not_after, a.created_at from principal p, role r, role_assignment a where p.name='bob' and r.name='owner' limit 1"
    ),
    "an assignment brought back": sa.update(role_assignment).values(revoked_at=None),
    "a user enabled again": sa.update(principal).where(principal.c.name == "carol").values(enabled=True),
    "a membership moved": sa.update(membership).values(
        principal_id=sa.select(principal.c.id).where(principal.c.name == "admin").scalar_subquery()
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_standing_edited_behind_our_back(tmp_path: Path, edit: str) -> None:
    with archives.opened(archives.made(tmp_path)) as node:
        console = archives.the_console(node)
        for name in ("bob", "carol"):
            node.accounts.add_user(console, name, password=archives.PASSWORD, roles=["technologist"])
        node.accounts.disable_user(console, "carol")
        node.accounts.withdraw_role(console, "bob", "technologist")
        node.accounts.add_group(console, "ward")
        node.accounts.join_group(console, "ward", "bob")
        assert node.verify.run(console, "quick").findings == []
        with node.core.database.begin() as tx:
            assert tx.execute(EDITS[edit]).rowcount
        assert {found.code for found in node.verify.run(console, "quick").findings} == {"V12"}
