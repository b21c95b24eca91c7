"""A record longer than memory may hold, in a process whose memory is watched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import hashlib, sys
from datetime import UTC, datetime
from pathlib import Path
from archive.vault.segments import DiskSegments
from archive.vault.vault import Vault
from tests.memory import peak_bytes
from tests.vault.fakes import DATASTORE, FakeKeystore

total = int(sys.argv[2])
def pieces():  # made as they are asked for; no two alike
    for number in range(total // 65536):
        yield number.to_bytes(8, "big") * 8192

def peak_mb():
    return peak_bytes() >> 20

keystore = FakeKeystore()
vault = Vault(DiskSegments(Path(sys.argv[1]), reserve="0B", direct=sys.argv[3] == "direct"), keystore)
writer = vault.writer(keystore.new(), DATASTORE, kind=1, at=datetime(2026, 1, 2, tzinfo=UTC))
for piece in pieces():
    writer.write(piece)
ref = writer.finish(b"{}", b"statement")
written = peak_mb()
digest = hashlib.sha256()
for view in vault.read(ref):
    assert len(view) <= 1 << 20
    digest.update(view)
assert digest.digest() == writer.sha256 == vault.check(ref).sha256
assert ref.part10_bytes == total
assert [found.ref for found in vault.scan(ref.location.segment_id)] == [ref]
print(written, peak_mb())
vault.close()
"""


@pytest.mark.parametrize("mode", ["direct", "buffered"])
def test_memory_does_not_grow_with_the_record(tmp_path: Path, mode: str) -> None:
    total = 256 << 20
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "s"), str(total), mode], cwd=ROOT, capture_output=True, text=True, timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written, read = (int(word) for word in done.stdout.split())
    assert written < 150
    assert read < 150
    (path,) = (tmp_path / "s").glob("*.seg")
    assert total < path.stat().st_size < total + (1 << 20)
    path.unlink()
