"""The least an archive does: each level takes instances over a real socket, and keeps what it says."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import sqlcipher3.dbapi2 as sqlcipher

from archive.db.pages import PRESENT
from benchmarks import bare
from benchmarks.instances import series
from benchmarks.sender import Scp, send


@pytest.mark.parametrize("level", bare.LEVELS)
def test_a_level(tmp_path: Path, level: str) -> None:
    with subprocess.Popen([sys.executable, "-m", "benchmarks.bare", str(tmp_path), level], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            uids = send(Scp("127.0.0.1", port, "BARE"), series("MR", level), 7, associations=3)
        finally:
            process.terminate()
    written = b"".join(path.read_bytes()[: 1 << 21] for path in tmp_path.glob("segment-*"))
    assert bool(written.strip(b"\0")) == (level != "received")
    assert b"Bench^Anna" not in written
    with closing(sqlcipher.connect(str(tmp_path / "index.db"))) as index:
        PRESENT.unlock(index, bare._KEY)
        found = {row[0] for row in index.execute("SELECT uid FROM instance")}
    assert found == (set(uids) if level == "committed" else set())
