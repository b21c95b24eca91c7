"""Share links and albums behind the archive's back and after a loss: what was edited is found, what ended stays ended."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.access.grants import Target
from archive.db.tables import album, album_item, album_share, boundary_item, grants, principal, share_code, share_link, share_session
from archive.errors import NotFound
from archive.node import Node
from archive.services import snapshot
from archive.services.admitted import admitted
from archive.services.retrace import granted
from archive.services.shares import Wanted
from tests.services import archives
from tests.services.test_rebuild import rebuild

ONE, TWO = "1.2.3", "1.2.4"
BROWSER: dict[str, Any] = {"address": "192.0.2.9", "user_agent": "x"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Doc's link, open, another that was revoked, an album shared with ann, and one that ended."""
    folder = tmp_path_factory.mktemp("sharing")
    with archives.opened(archives.made(folder)) as node:
        console = archives.the_console(node)
        archives.store(node, archives.instance(1))
        archives.store(node, archives.instance(1, study=TWO, PatientID="P2"))
        for name in ("doc", "ann", "eve"):
            node.accounts.add_user(console, name, password=archives.PASSWORD)
        for study in (ONE, TWO):
            node.accounts.add_grant(console, to="doc", role="radiologist", target=Target("study", study))
        doc = archives.user(node, "doc")
        link = node.shares.create(doc, Wanted(studies=[ONE], email="otto@praxis.example", max_views=3))
        ended = node.shares.create(doc, Wanted(studies=[TWO]))
        word = str(link["url"]).partition("#")[2]
        node.share_door.enter(word, link["code"], **BROWSER)
        node.shares.revoke(doc, ended["id"])
        (folder / "word").write_text(word)
        for name in ("board", "old"):
            key = node.albums.create(doc, name)["id"]
            node.albums.add(doc, key, studies=[ONE, TWO])
            node.albums.share(doc, key, "ann")
        node.albums.remove(doc, 1, "study", TWO)
        node.albums.end(doc, 2)
        node.upkeep.checkpoint()
        assert node.verify.run(console, "quick").findings == []
    return folder


@pytest.fixture
def node(tmp_path: Path, made: Path) -> Iterator[Node]:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    with archives.opened(archives.configured(tmp_path)) as node:
        yield node


def sees(node: Node, name: str, study: str) -> bool:
    try:
        node.retrieve.metadata(archives.user(node, name), "clinical", study)
    except NotFound:
        return False
    return True


_EVE = sa.select(principal.c.id).where(principal.c.name == "eve").scalar_subquery()
_ALBUM_GRANT = sa.and_(grants.c.kind == "shared", grants.c.revoked_at.is_(None))
EDITS = {
    "a link lasts longer": sa.update(share_link).values(not_after=share_link.c.not_after + sa.literal(1, sa.BigInteger())),
    "a revoked link counts again": sa.update(share_link).where(share_link.c.id == 2).values(revoked_at=None),
    "a link lets take files": sa.update(share_link).where(share_link.c.id == 1).values(permissions=share_link.c.permissions.bitwise_or(8)),
    "a link is another's": sa.update(share_link).where(share_link.c.id == 1).values(owner_id=_EVE),
    "codes go elsewhere": sa.update(share_link).where(share_link.c.id == 1).values(recipient_email="eve@elsewhere.example"),
    "a link opens more often": sa.update(share_link).where(share_link.c.id == 1).values(max_views=None),
    "a link opens by another word": sa.update(share_link).where(share_link.c.id == 1).values(token_hmac=bytes(32)),
    "a link is about another study": sa.update(boundary_item).where(boundary_item.c.boundary_id == 1).values(
        scope_key=sa.select(boundary_item.c.scope_key).where(boundary_item.c.boundary_id == 2).scalar_subquery()),
    "a session of a link is another's": sa.update(share_session).values(token_sha256=bytes(32)),
    "a session of a link lasts longer": sa.update(share_session).values(
        absolute_until=share_session.c.absolute_until + sa.literal(1, sa.BigInteger())),
    "an album is another's": sa.update(album).where(album.c.id == 1).values(owner_id=_EVE),
    "an ended album goes on": sa.update(album).where(album.c.id == 2).values(ended_at=None),
    "an album is shared with another": sa.update(album_share).where(album_share.c.id == 1).values(principal_id=_EVE),
    "somebody manages an album": sa.update(album_share).where(album_share.c.id == 1).values(rights="manage"),
    "an ended share counts again": sa.update(album_share).where(album_share.c.id == 2).values(revoked_at=None),
    "what was taken out is in again": sa.update(album_item).where(album_item.c.id == 2).values(removed_at=None),
    "an item is another's": sa.update(album_item).where(album_item.c.id == 1).values(added_by=_EVE),
    "a shared grant stands on another's right": sa.update(grants).where(_ALBUM_GRANT).values(granted_by=_EVE),
    "a shared grant is a standing one": sa.update(grants).where(_ALBUM_GRANT).values(kind="standing"),
    "a shared grant covers more": sa.update(grants).where(_ALBUM_GRANT).values(permissions=grants.c.permissions.bitwise_or(8)),
}


class _Undo(Exception):  # not an error
    pass


def test_every_edit_is_found(node: Node) -> None:
    console = archives.the_console(node)
    assert node.verify.run(console, "quick").findings == []
    for what, edit in EDITS.items():
        with suppress(_Undo), node.core.database.begin() as tx:
            assert tx.execute(edit).rowcount >= 1, what
            found = [*admitted(node.core, tx), *granted(node.core, tx)]
            assert "V12" in {code for code, _, _ in found}, what
            raise _Undo


def test_an_index_that_is_made_anew_knows_links_and_albums_and_not_what_ended_since(tmp_path: Path, made: Path) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    config = archives.configured(tmp_path)
    word = (tmp_path / "word").read_text()
    with archives.opened(config) as node:
        node.upkeep.snapshot()
        console, doc = archives.the_console(node), archives.user(node, "doc")
        assert sees(node, "ann", ONE)
        later = node.shares.create(doc, Wanted(studies=[TWO]))
        node.shares.revoke(doc, 1)
        node.albums.unshare(doc, 1, "ann")
        for file in (config.ledger_dir / snapshot.FOLDER).iterdir():
            (tmp_path / "kept").mkdir(exist_ok=True)
            shutil.copy(file, tmp_path / "kept")
        node.upkeep.checkpoint()
    _lose(config, tmp_path)
    with archives.opened(config) as node:
        console = archives.the_console(node)
        listed = {row["id"]: row["state"] for row in node.shares.list(console)}
        assert listed == {1: "revoked", 2: "revoked"}
        assert later["id"] not in listed
        assert not sees(node, "ann", ONE)
        assert [row["name"] for row in node.albums.list(console)] == ["board"]
        shown = node.albums.show(archives.user(node, "doc"), 1)
        assert [one["uid"] for one in shown["items"]] == [ONE]
        assert shown["shared_with"] == []
        node.albums.share(archives.user(node, "doc"), 1, "ann")
        assert sees(node, "ann", ONE)
        made_anew = node.shares.create(archives.user(node, "doc"), Wanted(studies=[ONE]))
        assert made_anew["id"] == later["id"]
        with node.core.database.read() as tx:
            assert tx.execute(sa.select(sa.func.count()).select_from(share_session)).scalar_one() == 0
            assert tx.execute(sa.select(sa.func.count()).select_from(share_code)).scalar_one() == 1
        assert node.verify.run(console, "quick").findings == []
        assert word


def _lose(config: Any, folder: Path) -> None:
    """The index is gone, and of the snapshots those that were there before the last changes are left."""
    for file in config.storage_dir.rglob("index.db*"):
        file.unlink()
    there = config.ledger_dir / snapshot.FOLDER
    for file in there.iterdir():
        if not (folder / "kept" / file.name).exists():
            file.unlink()
    assert rebuild(config).lost
