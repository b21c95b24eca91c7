"""A SIGHUP: the archive goes on with the keys it holds where keyring.json is out of reach, and stops writing where it must."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from archive.config import Config
from archive.errors import KeysUnavailable
from archive.keys.keyring import Keyring
from archive.ledger import witnessed
from archive.node import open_node
from archive.serve import start
from archive.serve.handover import Handover
from archive.services.clock import utc_now
from tests.services import archives

Again = Callable[[], Handover]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return archives.made(tmp_path)


def hung_up(config: Config, monkeypatch: pytest.MonkeyPatch, work: Callable[[Again], None]) -> None:
    """Call `work` with what a SIGHUP makes the supervisor do."""

    class Supervisor:
        def __init__(self, _config: Config, _handover: Handover, sockets: Any, *, again: Again, **_options: Any) -> None:
            self.sockets, self.again = sockets, again

        def run(self) -> None:
            try:
                work(self.again)
            finally:
                self.sockets.close()

    monkeypatch.setattr(start.supervisor, "Supervisor", Supervisor)
    start._supervise(config, Keyring.open(config), "", lambda _status: None)


@pytest.mark.parametrize("how", ["away", "unreadable"])
def test_it_goes_on_with_the_keys_it_holds_and_takes_the_new_ones_later(
    config: Config, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    path = config.keys_dir / "keyring.json"

    def work(again: Again) -> None:
        before = again()
        Keyring.open(config).rotate_audit_key(at=utc_now())
        aside = shutil.move(path, config.keys_dir / "aside")
        if how == "unreadable":
            path.mkdir()
        with pytest.raises(KeysUnavailable, match=r"keyring\.json"):  # the supervisor says so, and tries again
            again()
        if how == "unreadable":
            path.rmdir()
        shutil.move(aside, path)
        after = again()
        assert (after.generation, after.read_only) == (before.generation + 1, "")

    hung_up(config, monkeypatch, work)


def test_what_speaks_against_the_ledger_does_not_wait_for_it(
    config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = config.keys_dir / "keyring.json"

    def work(again: Again) -> None:
        before = again()
        path.rename(config.keys_dir / "aside")
        witnessed.hold_claim(config.ledger_dir, "nas", 1_000_000)
        after = again()
        assert before.read_only == ""
        assert "V14" in after.read_only
        assert (Keyring.from_bytes(after.keyring).index_key, after.generation) == (held.index_key, before.generation)

    held = Keyring.open(config)
    with caplog.at_level(logging.ERROR):
        hung_up(config, monkeypatch, work)
    assert "the keyring was not taken again" in caplog.text


def test_nobody_writes_again_before_a_start_has_caught_up_with_what_was_acknowledged(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(again: Again) -> None:
        witnessed.hold_claim(config.ledger_dir, "nas", 1_000_000)
        assert "V14" in again().read_only
        with closing(open_node(config)) as node:
            node.oversight.acknowledge(archives.the_console(node), reason="a disk from yesterday")
        assert "V14" in again().read_only

    hung_up(config, monkeypatch, work)
    with archives.opened(config):
        pass  # which says that nothing is held against it


def test_a_second_name_of_a_private_key_that_an_earlier_release_left_goes_at_a_start(config: Config) -> None:
    """Whoever has that file has the key, and who takes the key away from its place does not see it."""
    start.prepare(config, Keyring.open(config), lambda _node: None)
    kept = [config.key_file, config.tls_dir / "server.key"]
    for path in kept:
        path.with_name(f".{path.name}.0123456789ab").hardlink_to(path)
    start.prepare(config, Keyring.open(config), lambda _node: None)
    assert [path.stat().st_nlink for path in kept] == [1, 1]
    assert not [left for path in kept for left in path.parent.glob(".*")]
