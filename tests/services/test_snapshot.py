"""Access snapshots: written soon after every change, opened by nobody else, never more than they say."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

from archive.access.grants import Target
from archive.errors import SealBroken
from archive.node import Node
from archive.services import snapshot
from archive.services.clock import utc_now
from archive.services.snapshot import KEPT, LATEST, Snapshots
from tests.services import archives


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = utc_now()

    def __call__(self) -> object:
        return self.now

    def later(self, by: timedelta) -> None:
        self.now += by


def count(node: Node) -> int:
    return len(snapshot.files(node.config.ledger_dir))


def test_a_change_of_access_has_its_snapshot_within_a_minute_and_nothing_else_makes_one(tmp_path: Path) -> None:
    config, clock = archives.made(tmp_path), Clock()
    with archives.opened(config, role="serve", clock=clock) as node:
        snapshots, console = Snapshots(node.core), archives.the_console(node)
        assert snapshots.tick()  # the first
        assert not snapshots.tick()
        archives.store(node, archives.instance(1))
        clock.later(LATEST * 2)
        assert not snapshots.tick()
        changes = (
            lambda: node.accounts.add_user(console, "reader", password=archives.PASSWORD),
            lambda: node.accounts.add_grant(console, to="reader", role="radiologist", target=Target("everything")),
            lambda: node.accounts.revoke_grant(console, 2),
            lambda: node.accounts.create_token(console, owner="reader"),
            lambda: node.accounts.add_group(console, "ward"),
            lambda: node.accounts.disable_user(console, "reader"),
            lambda: node.accounts.reset_password(console, "reader"),
            lambda: node.peers.add(console, "CT1", ae_titles=["CT1"], networks=["10.0.0.0/24"]),
        )
        for change in changes:
            change()
            assert snapshots.tick()
            assert not snapshots.tick()
            clock.later(LATEST)
        clock.later(timedelta(days=1))
        assert snapshots.tick()  # daily
        assert count(node) == KEPT  # the older ones are gone
        again = Snapshots(node.core)  # another process goes on where this one was
        node.accounts.enable_user(console, "reader")
        clock.later(LATEST)
        assert again.tick()


def test_a_quick_row_of_changes_makes_few(tmp_path: Path) -> None:
    config, clock = archives.made(tmp_path), Clock()
    with archives.opened(config, role="serve", clock=clock) as node:
        snapshots, console = Snapshots(node.core), archives.the_console(node)
        made = 0
        for number in range(30):
            node.accounts.add_group(console, f"ward{number}")
            clock.later(timedelta(seconds=5))
            made += snapshots.tick()
        assert 3 <= made <= 7
        clock.later(LATEST)
        snapshots.tick()
        newest, broken = snapshot.newest(node.keyring, config.ledger_dir, 1 << 40)
        assert broken == []
        assert newest is not None
        assert len([row for row in newest.tables["principal"] if row["kind"] == "group"]) == 30


def test_a_snapshot_that_was_changed_or_renamed_is_not_taken(tmp_path: Path) -> None:
    config, clock = archives.made(tmp_path), Clock()
    with archives.opened(config, role="serve", clock=clock) as node:
        first = Snapshots(node.core).write()
        node.accounts.add_group(archives.the_console(node), "ward")
        path = Snapshots(node.core).write()
        good = path.read_bytes()
        assert path.stat().st_mode & 0o777 == 0o600
        for word in (b"ward", b"admin", b"$argon2", b"owner"):
            assert word not in good
        for at in range(0, len(good), max(1, len(good) // 97)):
            path.write_bytes(good[:at] + bytes([good[at] ^ 0x80]) + good[at + 1 :])
            with pytest.raises(SealBroken):
                snapshot.read(node.keyring, path)
        for cut in (0, 7, 8, 20, len(good) - 1):
            path.write_bytes(good[:cut])
            with pytest.raises(SealBroken):
                snapshot.read(node.keyring, path)
        found, broken = snapshot.newest(node.keyring, config.ledger_dir, 1 << 40)
        assert found is not None
        assert (found.leaves, broken) == (int(first.name), [path.name])
        os.replace(first, path)  # an older one under a newer name
        with pytest.raises(SealBroken):
            snapshot.read(node.keyring, path)
        path.write_bytes(good)
        assert snapshot.newest(node.keyring, config.ledger_dir, int(path.name) - 1)[0] is None  # it knows more than that log


def test_another_archives_snapshot_does_not_open(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    config, other = archives.made(tmp_path), archives.made(tmp_path / "other", own_keys=True)
    with archives.opened(config) as node, archives.opened(other) as stranger:
        path = Snapshots(stranger.core).write()
        with pytest.raises(SealBroken):
            snapshot.read(node.keyring, path)
