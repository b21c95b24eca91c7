"""The database's own disk fills up: what was acknowledged stays, what was not is refused with the reason, and with room it goes on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import own_postgresql
from tests.dimse.fakes import eventually
from tests.dimse.rawpeer import AC, CT, EXPLICIT
from tests.journeys import disks, doors
from tests.journeys.instances import dataset_bytes
from tests.journeys.running import RunningArchive
from tests.web.samples import STUDY, instance

DISK_BYTES = 160 << 20
LEFT_BYTES = 128 << 10
MOST = 65  # more than what is left holds


@pytest.fixture
def disk() -> Iterator[Path]:
    """The database's disk, with a short path that PostgreSQL may enter."""
    with tempfile.TemporaryDirectory(prefix="srdisk") as folder, disks.mounted(Path(folder), DISK_BYTES, "0755") as mounted:
        if not mounted:
            pytest.skip("mounting a small disk needs root; tests/services/test_database_crash.py covers a server that is gone")
        yield Path(folder)


def test_postgresql_without_room(disk: Path, tmp_path: Path) -> None:
    with own_postgresql(disk) as url, RunningArchive(tmp_path, settings=f'[database]\nurl = "{url}postgres"\n') as archive:
        asker = doors.session(archive, archive.token("admin"))
        acknowledged = set()
        with doors.connect(archive, doors.enrol(archive)) as peer:
            assert peer.associate([(CT, [EXPLICIT])]) == AC
            for number in range(1, MOST):
                if number == 4:
                    disks.fill(disk / "filler", LEFT_BYTES)
                status, stored, _failed = doors.stow(archive, asker, [instance(number)])
                acknowledged.update(stored)
                assert (status == 200) == bool(stored)
                if status != 200:
                    break
            assert (status, number > 3) == (507, True)
            last = f"{STUDY}.1.1.{MOST}"
            assert peer.store(1, CT, last, dataset_bytes(instance(MOST))) == 0xA700
            (disk / "filler").unlink()
            assert eventually(lambda: doors.stow(archive, asker, [instance(number)])[0] == 200)
            assert peer.store(1, CT, last, dataset_bytes(instance(MOST))) == 0
            acknowledged |= {f"{STUDY}.1.1.{number}", last}
            peer.release()
        answer = asker.get(f"{archive.url}/dicomweb/studies/{STUDY}.1/instances?limit={MOST}", timeout=30)
        assert {row["00080018"]["Value"][0] for row in answer.json()} == acknowledged
        report = archive.json("verify", "--full")
        assert report["ok"], report["findings"]
        assert report["checked"] == len(acknowledged)
