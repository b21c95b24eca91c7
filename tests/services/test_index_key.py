"""The index under a new key: whichever key opens the file counts, whenever the process that changed it ended."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import msgspec
import pytest

from archive.config import Config, DatabaseSection
from archive.db import rekey
from archive.errors import DatabaseUnavailable, InvalidRequest
from archive.keys.keyring import Keyring
from archive.services import index_key
from archive.services.clock import utc_now
from tests.services import archives, crowd

CHILD = textwrap.dedent("""
    import sys
    from pathlib import Path
    from archive.services import index_key
    from archive.services.clock import utc_now
    from archive.keys.keyring import Keyring
    from tests.services import archives
    config = archives.configured(Path(sys.argv[1]))
    print("begins", flush=True)
    index_key.replace(config, Keyring.open(config), at=utc_now())
""")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return archives.made_with_one(tmp_path)


def check(config: Config) -> Keyring:
    """What a command does first, then everything is there under the one key that is left."""
    ring = Keyring.open(config)
    index_key.settle(config, ring, at=utc_now())
    assert ring.waiting() == frozenset()
    assert rekey.opens(config.index_path, ring.index_key)
    with archives.opened(config) as node:
        assert set(crowd.part10(node, "1.2.3")) == {"1.2.3.1.1"}
        assert node.verify.run(archives.the_console(node), "quick").findings == []
    return ring


def test_the_old_key_opens_nothing_any_more(config: Config) -> None:
    old = Keyring.open(config).index_key
    index_key.replace(config, Keyring.open(config), at=utc_now())
    ring = check(config)
    assert ring.index_key != old
    assert not rekey.opens(config.index_path, old)
    assert not [entry for entry in ring._entries if entry.secret == old]


def test_a_key_that_does_not_open_it_is_an_answer_and_no_error(config: Config, capfd: pytest.CaptureFixture[str]) -> None:
    assert not rekey.opens(config.index_path, os.urandom(32))
    assert rekey.opens(config.index_path, Keyring.open(config).index_key)
    assert capfd.readouterr() == ("", "")


def test_cut_short_before_and_after_the_file_changed(config: Config) -> None:
    ring = Keyring.open(config)
    old = ring.index_key
    ring.prepare(["index"], at=utc_now())
    assert check(config).index_key == old
    ring = Keyring.open(config)
    ring.prepare(["index"], at=utc_now())
    coming = ring.coming("index")
    assert coming is not None
    rekey.rekey(config.index_path, old, coming.secret)
    assert check(config).index_key == coming.secret
    ring = Keyring.open(config)
    ring.prepare(["index"], at=utc_now())
    coming = ring.coming("index")
    assert coming is not None
    rekey.rekey(config.index_path, ring.index_key, coming.secret)
    ring.activate(["index"])
    assert check(config).index_key == coming.secret


def test_killed_at_any_moment(config: Config, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)}, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "begins\n"
    time.sleep(random.random() * 0.1)  # a moment, not a secret
    child.send_signal(signal.SIGKILL)
    child.wait(30)
    child.stdout.close()
    check(config)


def test_one_that_is_in_use_stays_as_it_is(config: Config) -> None:
    ring = Keyring.open(config)
    old = ring.index_key
    with archives.opened(config) as node, node.core.database.read():
        with pytest.raises(DatabaseUnavailable, match="in use"):
            index_key.replace(config, ring, at=utc_now())
        assert archives.store(node, archives.instance(2)).status == "stored"
        node.remove.reject(archives.the_console(node), "clinical", "instance", "1.2.3.1.2", reason="x")
    assert check(config).index_key == old


def test_a_server_looks_after_its_own(config: Config) -> None:
    elsewhere = msgspec.structs.replace(config, database=DatabaseSection(url="postgresql+psycopg://nowhere/x"))
    with pytest.raises(InvalidRequest, match="server"):
        index_key.replace(elsewhere, Keyring.open(config), at=utc_now())


def test_neither_key_opens(config: Config) -> None:
    ring = Keyring.open(config)
    ring.prepare(["index"], at=utc_now())
    config.index_path.write_bytes(os.urandom(8192))
    with pytest.raises(DatabaseUnavailable, match="neither"):
        index_key.settle(config, Keyring.open(config), at=utc_now())
