"""The disk fills up at any moment of a backup, a restore, a re-keying or a rebuild: with space again it works, and nothing is lost."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from archive.config import Config
from archive.errors import ArchiveError
from archive.services import manifest
from archive.services.restore import Restored, restore
from tests.services import archives, crowd
from tests.services.test_backup import back_up, elsewhere, way
from tests.services.test_rebuild import lose, rebuild
from tests.services.test_rekey import ONE

DISK_BYTES = 96 << 20
LEFT_BYTES = (0, 150_000, 2_000_000)
"""What the disk takes before it is full."""


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False, timeout=60).returncode:
        pytest.skip("no file system may be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True, timeout=60)


def filled(folder: Path, left: int) -> Path:
    """Leave only so many bytes of a disk."""
    ballast = folder / "ballast"
    with ballast.open("wb") as file, suppress(OSError):
        while True:
            size = min(1 << 20, shutil.disk_usage(folder).free - left)
            if size < 4096:
                break
            file.write(bytes(size - size % 4096))
            file.flush()
    return ballast


def until_it_works(folder: Path, work: Callable[[], object]) -> int:
    """Give the disk more and more space, then all of it; return how often it did not do."""
    failed = 0
    for left in LEFT_BYTES:
        ballast = filled(folder, left)
        try:
            work()
        except ArchiveError:
            failed += 1
        finally:
            ballast.unlink()
    work()
    return failed


def made(folder: Path) -> Config:
    config = archives.made(folder)
    with archives.opened(config, role="background") as node:
        for number in (1, 2, 3):
            archives.store(node, archives.instance(number, series=f"{ONE}.1", rows=400))
        node.remove.reject(archives.the_console(node), "clinical", "instance", f"{ONE}.1.3", reason="x")
        archives.store(node, archives.instance(1, study="1.2.9", PatientID="P9", rows=1600))
        node.upkeep.checkpoint()
        node.upkeep.snapshot()
        node.core.vault.segments.roll()
        for _ in range(3):
            node.upkeep.tick()
    return config


def saw(config: Config) -> list[dict[str, bytes]]:
    with archives.opened(config, role="background") as node:
        crowd.check_sound(node)
        return [crowd.part10(node, study) for study in (ONE, "1.2.9")]


def test_of_a_backup(tmp_path: Path, small: Path) -> None:
    config, target = made(tmp_path / "archive"), small / "backup"
    before = saw(config)
    with archives.opened(config, role="background") as node:
        assert until_it_works(small, lambda: back_up(node, target, keys=True)) >= 2
        for file in manifest.verified(manifest.current(target), node.keyring)[0].files:
            manifest.require(file, manifest.hashed(manifest.current(target) / file.path))
        archives.store(node, archives.instance(1, study="1.2.10"))

        def again() -> None:
            try:
                back_up(node, target, keys=True)
            finally:
                manifest.verified(manifest.current(target), node.keyring)  # there is always one

        assert until_it_works(small, again) >= 1
    other = elsewhere(tmp_path / "other")
    assert restore(target, other, way(mode="full")).findings == []
    assert saw(other) == before


def test_of_a_restore(tmp_path: Path, small: Path) -> None:
    config, target = made(tmp_path / "archive"), tmp_path / "backup"
    before = saw(config)
    with archives.opened(config, role="background") as node:
        back_up(node, target, keys=True)
    other = elsewhere(small / "other")
    done: list[Restored] = []

    def once() -> None:
        if not done:
            done.append(restore(target, other, way(mode="full")))

    assert until_it_works(small, once) >= 2
    assert done[0].findings == []
    assert saw(other) == before


def test_of_a_rekeying(small: Path) -> None:
    config = made(small)
    with archives.opened(config, role="background") as node:
        console = archives.the_console(node)
        node.remove.restore(console, "clinical", "instance", f"{ONE}.1.3", reason="x")
    before = saw(config)

    def rekeyed() -> None:
        with archives.opened(config, role="background") as node:
            node.rekey.study(archives.the_console(node), ONE)

    assert until_it_works(small, rekeyed) >= 2
    assert saw(config) == before


@pytest.mark.parametrize("lost", [False, True])
def test_of_a_rebuild(small: Path, lost: bool) -> None:
    config = made(small)
    before = saw(config)
    if lost:
        lose(config)
    assert until_it_works(small, lambda: rebuild(config)) >= 2
    assert saw(config) == before
