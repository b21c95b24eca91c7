"""What only segments on a disk do: preallocation, O_DIRECT, group sync, sizes."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest

import archive.vault
from archive.errors import SealBroken, VaultUnavailable
from archive.vault.buffers import aligned_copy
from archive.vault.disk import BLOCK, O_DIRECT, Disk
from archive.vault.open_segment import Remembered
from archive.vault.refs import Location
from archive.vault.segment_store import check_head, head_block
from archive.vault.segments import DiskSegments
from tests.vault.fakes import FaultyDisk

MIB = 1 << 20


def put(store: DiskSegments, at: datetime, size: int = BLOCK) -> Location:
    return store.append(aligned_copy(os.urandom(size)), size, at=at)


def test_only_disk_py_changes_the_disk() -> None:
    calls = re.compile(r"os\.(pwritev?|write|fdatasync|fsync|posix_fallocate|ftruncate|truncate|rename|replace|unlink|remove)\b"
                       r"|\.(replace|rename|unlink|write_bytes|write_text)\((?!id=)")
    folder = Path(archive.vault.__file__).parent
    for path in folder.glob("*.py"):
        found = [line for line in path.read_text().splitlines() if calls.search(line) and "_disk." not in line]
        assert (found != []) == (path.name == "disk.py"), (path.name, found)


def test_sizes_double_up_to_the_limit(tmp_path: Path, now: datetime) -> None:
    store = DiskSegments(tmp_path / "s", reserve="0B", first_bytes=MIB, segment_bytes=4 * MIB)
    sizes = []
    for _ in range(4):
        put(store, now)
        opened = store.open_segment()
        assert opened is not None
        sizes.append(opened.file_bytes)
        store.roll()
    assert sizes == [MIB, 2 * MIB, 4 * MIB, 4 * MIB]
    store.close()
    again = DiskSegments(tmp_path / "s", reserve="0B", first_bytes=MIB, segment_bytes=4 * MIB)
    put(again, now, 5 * MIB)
    assert again.open_segment().file_bytes == 5 * MIB + BLOCK  # type: ignore[union-attr] # a longer record gets what it needs
    again.close()


def test_space_is_reserved_ahead(tmp_path: Path, now: datetime) -> None:
    store = DiskSegments(tmp_path / "s", reserve="0B", first_bytes=8 * MIB)
    put(store, now)
    path = next((tmp_path / "s").glob("*.seg"))
    assert path.stat().st_size == 8 * MIB
    assert path.stat().st_blocks * 512 >= 8 * MIB
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    store.close()
    assert path.stat().st_size == 2 * BLOCK


def test_a_hole_gives_its_space_back(tmp_path: Path, now: datetime) -> None:
    store = DiskSegments(tmp_path / "s", reserve="0B", first_bytes=8 * MIB)
    location = put(store, now, 4 * MIB)
    put(store, now)
    store.roll()
    path = next((tmp_path / "s").glob("*.seg"))
    before = path.stat().st_blocks
    store.remove(location)
    assert path.stat().st_size == 4 * MIB + 2 * BLOCK
    assert before - path.stat().st_blocks >= 4 * MIB // 512
    store.close()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no tmpfs on this system")
def test_on_a_file_system_in_memory(now: datetime) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        store = DiskSegments(Path(folder) / "s", reserve="0B", first_bytes=MIB)
        kept = [put(store, now, n * BLOCK) for n in range(1, 6)]
        store.remove(kept[1])
        large = store.begin_large(at=now)
        large.write(BLOCK, aligned_copy(os.urandom(MIB)))
        large.abort()
        view = memoryview(bytearray(BLOCK))
        assert store.read_into(kept[1].segment_id, kept[1].offset, view) == BLOCK
        assert bytes(view) == bytes(BLOCK)
        store.close()


@pytest.mark.skipif(not O_DIRECT, reason="no O_DIRECT on this system")
def test_direct_is_tried_and_given_up_once(tmp_path: Path, now: datetime) -> None:
    disk = FaultyDisk()
    disk.refuse_direct = "open"
    store = DiskSegments(tmp_path / "s", disk=disk, reserve="0B", first_bytes=MIB)
    assert store.direct
    put(store, now)
    store.roll()
    put(store, now)
    assert not store.direct
    assert len(list((tmp_path / "s").glob("*.seg"))) == 2
    assert "unlink" in disk.names
    store.close()


def test_threads_share_one_sync(tmp_path: Path, now: datetime) -> None:
    """Eight threads behind a slow disk: fewer syncs than records, and each record is synced after it was written."""
    synced_upto: list[int] = []
    written: list[int] = []

    class Slow(FaultyDisk):
        def pwrite(self, fd: int, data: memoryview, offset: int) -> None:
            super().pwrite(fd, data, offset)
            written.append(offset)

        def fdatasync(self, fd: int) -> None:
            before = set(written)
            time.sleep(0.005)
            super().fdatasync(fd)
            synced_upto[:] = sorted(before | set(synced_upto))

    disk = Slow()
    store = DiskSegments(tmp_path / "s", disk=disk, reserve="0B", first_bytes=8 * MIB)
    errors: list[str] = []

    def work() -> None:
        for _ in range(20):
            location = put(store, now)
            if location.offset not in synced_upto:
                errors.append("returned before it was synced")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert disk.names.count("pwrite") == 161
    assert disk.names.count("fdatasync") < 120  # of some 50 to 70, by who runs when
    store.close()


def test_a_sync_that_fails_fails_all_that_waited_for_it(tmp_path: Path, now: datetime) -> None:
    class Failing(FaultyDisk):
        """Fails once, when all have written; the next sync of the same file would claim success, as Linux does."""

        broken = False
        writes = 0

        def pwrite(self, fd: int, data: memoryview, offset: int) -> None:
            super().pwrite(fd, data, offset)
            self.writes += 1

        def fdatasync(self, fd: int) -> None:
            if self.broken:
                self.broken = False
                until = time.monotonic() + 10
                while self.writes < 2 + 6 and time.monotonic() < until:
                    time.sleep(0.001)
                time.sleep(0.02)
                raise OSError(5, "Input/output error")
            super().fdatasync(fd)

    disk = Failing()
    store = DiskSegments(tmp_path / "s", disk=disk, reserve="0B", first_bytes=MIB)
    good = put(store, now)
    disk.broken = True
    outcomes: list[str] = []

    def work() -> None:
        try:
            put(store, now)
        except VaultUnavailable:
            outcomes.append("refused")

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == ["refused"] * 6
    assert put(store, now).segment_id != good.segment_id
    left = (tmp_path / "s" / f"{good.segment_id.hex()}.seg").read_bytes()
    assert len(left) == 2 * BLOCK
    store.close()


def test_a_record_that_failed_is_wiped_from_between_others(tmp_path: Path, now: datetime) -> None:
    """Its bytes reached the disk whole before the error; a later record of the same segment keeps the segment."""
    after = threading.Event()

    class Failing(FaultyDisk):
        def pwrite(self, fd: int, data: memoryview, offset: int) -> None:
            super().pwrite(fd, data, offset)
            if offset == 2 * BLOCK:
                after.wait(60)
                raise OSError(5, "Input/output error")

    store = DiskSegments(tmp_path / "s", disk=Failing(), reserve="0B", first_bytes=MIB)
    first = put(store, now)
    refused: list[VaultUnavailable] = []

    def work() -> None:
        try:
            put(store, now)
        except VaultUnavailable as error:
            refused.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    until = time.monotonic() + 10
    while store._open is None or store._open.tail < 3 * BLOCK:
        assert time.monotonic() < until
        time.sleep(0.001)
    third = put(store, now)
    after.set()
    thread.join()
    assert len(refused) == 1
    assert third == Location(first.segment_id, 3 * BLOCK, BLOCK)
    view = memoryview(bytearray(3 * BLOCK))
    assert store.read_into(first.segment_id, BLOCK, view) == 3 * BLOCK
    assert bytes(view[BLOCK : 2 * BLOCK]) == bytes(BLOCK)
    assert any(view[2 * BLOCK :])
    assert put(store, now).segment_id != first.segment_id
    store.close()


@pytest.mark.parametrize("operation", ["truncate", "fdatasync", "unlink", "sync_folder"])
def test_what_cannot_be_closed_or_removed_keeps_its_row(tmp_path: Path, now: datetime, operation: str) -> None:
    """Told as closed it would have another length than its row says; what is told as gone and comes back without a row is empty."""
    told: list[str] = []
    failing: list[str] = []

    class Failing(Disk):
        def _step(self, name: str) -> int | None:
            if name in failing:
                raise OSError(5, "Input/output error")
            return super()._step(name)

    store = DiskSegments(
        tmp_path / "s", disk=Failing(), reserve="0B", grow_bytes=MIB, on_close=lambda *_: told.append("closed"),
        on_drop=lambda _: told.append("dropped"),
    )
    place = put(store, now)
    large = store.begin_large(at=now)
    large.write(0, aligned_copy(b"x" * BLOCK))
    failing.append(operation)
    store.roll()
    large.abort()
    failing.clear()
    assert told == ([] if operation in {"truncate", "fdatasync"} else ["closed", "dropped"])
    left = [file.file_bytes for file in store.files() if file.segment_id != place.segment_id]
    assert left == {"unlink": [BLOCK], "sync_folder": []}.get(operation, left)
    assert not store.finish_segment(place.segment_id, place.offset + place.record_bytes)  # its rows may come yet
    store.settle(place)
    assert store.finish_segment(place.segment_id, place.offset + place.record_bytes)
    store.close()


def test_no_more_locks_are_kept_than_descriptors_may_be_spent_on(tmp_path: Path, now: datetime) -> None:
    """A re-keying settles a whole study at once."""
    store = DiskSegments(tmp_path / "s", reserve="0B", first_bytes=4 * BLOCK, segment_bytes=4 * BLOCK)
    before, places = len(os.listdir("/proc/self/fd")), []
    for _ in range(Remembered.LOCKED + 20):
        places.append(put(store, now))
        store.roll()
    assert len(os.listdir("/proc/self/fd")) - before <= Remembered.LOCKED + 2
    assert store.in_use(places[-1].segment_id)
    for place in places:
        store.settle(place)
    assert len(os.listdir("/proc/self/fd")) <= before
    store.close()


def test_large_records_that_are_given_up_are_forgotten(tmp_path: Path, now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Remembered, "KEPT", 2)
    store = DiskSegments(tmp_path / "s", reserve="0B", grow_bytes=4 * BLOCK)
    for _ in range(6):
        store.begin_large(at=now).abort()
    assert len(store._progress) <= 2 + 1
    store.close()


def test_one_that_is_forgotten_while_it_is_closed_is_noted_all_the_same(tmp_path: Path, now: datetime) -> None:
    """Nothing in it waits, so another thread that makes a segment may forget it."""
    closed: list[tuple[int, int]] = []

    class Watched(Disk):
        def truncate(self, fd: int, length: int) -> None:
            super().truncate(fd, length)
            store._progress.pop(place.segment_id)

    store = DiskSegments(tmp_path / "s", disk=Watched(), reserve="0B", on_close=lambda _id, used, low: closed.append((used, low)))
    place = put(store, now)
    store.settle(place)
    store.roll()
    assert closed == [(2 * BLOCK, 2 * BLOCK)]
    store.close()


def test_a_segment_that_somebody_looks_at_while_it_is_made_is_made_all_the_same(tmp_path: Path, now: datetime) -> None:
    looking: list[threading.Timer] = []

    class Watched(Disk):
        def create(self, path: Path, *, direct: bool) -> int:
            fd, other = super().create(path, direct=direct), os.open(path, os.O_RDWR)
            fcntl.flock(other, fcntl.LOCK_EX)
            looking.append(threading.Timer(0.05, os.close, (other,)))
            looking[-1].start()
            return fd

    store = DiskSegments(tmp_path / "s", disk=Watched(), reserve="0B")
    place = put(store, now)
    assert looking
    assert store.in_use(place.segment_id)
    store.close()


@pytest.mark.parametrize("name", ["open", "flock"])
def test_whether_a_segment_is_in_use_is_not_guessed(tmp_path: Path, now: datetime, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Who cannot ask for the lock does not know."""
    store = DiskSegments(tmp_path / "s", reserve="0B")
    place = put(store, now)

    def refused(*_args: object) -> int:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with monkeypatch.context() as patched:
        patched.setattr(os if name == "open" else fcntl, name, refused)
        with pytest.raises(VaultUnavailable):
            store.in_use(place.segment_id)
    assert store.in_use(place.segment_id)
    assert not store.in_use(bytes(16)), "there is no such file"
    store.close()


def test_the_lock_of_a_file_that_may_only_be_read_is_asked_for(tmp_path: Path, now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    store, really = DiskSegments(tmp_path / "s", reserve="0B"), os.open
    place = put(store, now)

    def opened(path: Path, flags: int) -> int:
        if flags & os.O_RDWR:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return really(path, flags)

    monkeypatch.setattr(os, "open", opened)
    assert store.in_use(place.segment_id)
    store.settle(place)
    store.close()
    assert not store.in_use(place.segment_id)


def test_a_read_only_folder_is_said_so(tmp_path: Path, now: datetime) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.raises(VaultUnavailable):
        DiskSegments(blocked / "s")
    store = DiskSegments(tmp_path / "s", reserve="0B", disk=FaultyDisk(0, 30))
    with pytest.raises(VaultUnavailable, match="read-only") as caught:
        put(store, now)
    assert caught.value.remedy
    assert store.files() == []


def test_many_segments_are_read_with_few_descriptors(tmp_path: Path, now: datetime) -> None:
    store = DiskSegments(tmp_path / "s", reserve="0B", first_bytes=16 * BLOCK, segment_bytes=16 * BLOCK)
    places = []
    for _ in range(80):
        places.append(put(store, now))
        store.roll()
    view = memoryview(bytearray(BLOCK))
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    for place in places * 2:
        assert store.read_into(place.segment_id, place.offset, view) == BLOCK
    if before:
        assert len(os.listdir("/proc/self/fd")) - before <= 64
    store.close()
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before


def test_a_damaged_head_is_refused(now: datetime) -> None:
    segment_id = os.urandom(16)
    block = head_block(segment_id, now)
    check_head(block, segment_id)
    with pytest.raises(SealBroken):
        check_head(block, os.urandom(16))
    for at in range(BLOCK):
        changed = bytearray(block)
        changed[at] ^= 1
        with pytest.raises(SealBroken) as caught:
            check_head(bytes(changed), segment_id)
        assert caught.value.verdict == "V04"
    with pytest.raises(SealBroken):
        check_head(block[:-1], segment_id)


def test_taking_nothing_out_of_a_segment_somebody_writes_is_nothing(tmp_path: Path) -> None:
    segments, segment_id = DiskSegments(tmp_path), os.urandom(16)
    path = tmp_path / f"{segment_id.hex()}.seg"
    path.write_bytes(bytes(BLOCK))
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        segments.remove(Location(segment_id, BLOCK, 0))
    assert path.read_bytes() == bytes(BLOCK)
