"""What every segment store does: on disk past the page cache, on disk through it, in memory."""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from archive.errors import ArchiveError, DatabaseUnavailable, SealBroken
from archive.vault.buffers import aligned_copy
from archive.vault.disk import BLOCK, padded
from archive.vault.memory import MemorySegments
from archive.vault.refs import Location
from archive.vault.segment_store import SegmentStore, check_head
from archive.vault.segments import DiskSegments
from tests.vault.fakes import FaultyDisk

SEGMENT = 1 << 20


class Heard:
    """What the three callbacks were told, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, bytes, object]] = []
        self.positions: dict[bytes, int] = {}
        self.fail: ArchiveError | None = None

    def opened(self, segment_id: bytes, name: str) -> None:
        if self.fail is not None:
            raise self.fail
        self.events.append(("open", segment_id, name))

    def closed(self, segment_id: bytes, used: int, replay_from: int) -> None:
        self.events.append(("close", segment_id, used))
        self.positions[segment_id] = replay_from

    def dropped(self, segment_id: bytes) -> None:
        self.events.append(("drop", segment_id, None))

    def names(self, segment_id: bytes) -> list[str]:
        return [what for what, which, _ in self.events if which == segment_id]


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture(params=["direct", "buffered", "refused at open", "refused at write", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, heard: Heard) -> Iterator[SegmentStore]:
    calls = {"on_open": heard.opened, "on_close": heard.closed, "on_drop": heard.dropped}
    made: SegmentStore
    if request.param == "memory":
        made = MemorySegments(segment_bytes=SEGMENT, **calls)  # type: ignore[arg-type]
    else:
        disk = FaultyDisk()
        disk.refuse_direct = {"refused at open": "open", "refused at write": "write"}.get(request.param, "")
        made = DiskSegments(
            tmp_path / "segments", disk=disk, direct=request.param != "buffered", reserve="0B", first_bytes=SEGMENT, segment_bytes=SEGMENT,
            grow_bytes=SEGMENT, **calls,  # type: ignore[arg-type]
        )
    yield made
    if request.param.startswith("refused") and heard.events:
        assert not made.direct
    made.close()


def block(data: bytes) -> memoryview:
    return aligned_copy(data.ljust(padded(len(data)), b"\0"))


def put(store: SegmentStore, data: bytes, at: datetime) -> Location:
    return store.append(block(data), len(data), at=at)


def get(store: SegmentStore, location: Location) -> bytes:
    view = memoryview(bytearray(location.record_bytes))
    assert store.read_into(location.segment_id, location.offset, view) == len(view)
    return bytes(view)


def test_records_come_back(store: SegmentStore, now: datetime) -> None:
    kept = [(put(store, data, now), data) for data in (b"a", os.urandom(BLOCK), os.urandom(100_001), os.urandom(2 * BLOCK - 1))]
    for location, data in kept:
        assert location.offset % BLOCK == 0
        assert location.record_bytes == len(data)
        assert get(store, location) == data
    head = memoryview(bytearray(BLOCK))
    store.read_into(kept[0][0].segment_id, 0, head)
    check_head(bytes(head), kept[0][0].segment_id)


def test_records_that_become_durable_together(store: SegmentStore, heard: Heard, now: datetime) -> None:
    data = [os.urandom(SEGMENT // 3) for _ in range(4)]  # the last two go to the next segment
    kept = [store.append(block(one), len(one), at=now, durable=False) for one in data]
    assert [get(store, location) for location in kept] == data
    store.sync(kept)
    store.sync(kept)  # harmless
    store.close()
    used = {which: length for what, which, length in heard.events if what == "close"}
    assert used == {kept[0].segment_id: kept[1].offset + padded(len(data[1])), kept[2].segment_id: kept[3].offset + padded(len(data[3]))}
    assert heard.positions == {kept[0].segment_id: kept[0].offset, kept[2].segment_id: kept[2].offset}


def test_nothing_is_opened_before_the_first_record(store: SegmentStore, heard: Heard) -> None:
    assert store.open_segment() is None
    assert store.files() == []
    store.close()
    assert heard.events == []


def test_a_segment_is_announced_before_its_first_record(store: SegmentStore, heard: Heard, now: datetime) -> None:
    heard.fail = DatabaseUnavailable("no")
    with pytest.raises(DatabaseUnavailable):
        put(store, b"x", now)
    assert store.files() == []
    assert store.open_segment() is None
    heard.fail = None
    location = put(store, b"x", now)
    assert heard.events == [("open", location.segment_id, f"{location.segment_id.hex()}.seg")]
    assert [file.segment_id for file in store.files()] == [location.segment_id]


def test_a_full_segment_is_cut_and_followed(store: SegmentStore, heard: Heard, now: datetime) -> None:
    data = os.urandom(300_000)
    places = [put(store, data, now) for _ in range(4)]
    assert len({place.segment_id for place in places[:3]}) == 1
    assert places[3].segment_id != places[0].segment_id
    used = BLOCK + 3 * padded(300_000)
    assert ("close", places[0].segment_id, used) in heard.events
    assert {file.segment_id: file.file_bytes for file in store.files()}[places[0].segment_id] == used
    assert all(get(store, place) == data for place in places)
    assert store.digest(places[0].segment_id) == hashlib.sha256(read_all(store, places[0].segment_id)).digest()


def read_all(store: SegmentStore, segment_id: bytes) -> bytes:
    view = memoryview(bytearray(4 * SEGMENT))
    return bytes(view[: store.read_into(segment_id, 0, view)])


def test_a_segment_lives_a_day(store: SegmentStore, now: datetime) -> None:
    first = put(store, b"1", now)
    assert put(store, b"2", now + timedelta(hours=23)).segment_id == first.segment_id
    assert put(store, b"3", now + timedelta(hours=25)).segment_id != first.segment_id


def test_closing_cuts_to_the_used_length(store: SegmentStore, heard: Heard, now: datetime) -> None:
    location = put(store, b"x" * 5000, now)
    assert store.in_use(location.segment_id)
    assert not store.finish_segment(location.segment_id, 0)
    store.close()
    assert not store.in_use(location.segment_id)
    assert heard.events[-1] == ("close", location.segment_id, 3 * BLOCK)
    assert store.files()[0].file_bytes == 3 * BLOCK
    assert get(store, location) == b"x" * 5000


def test_a_closed_segment_is_in_use_while_something_of_it_waits_for_its_rows(store: SegmentStore, now: datetime) -> None:
    """Who finds it not in use may take in or sweep what has no rows: nobody alive is about to commit them."""
    one, two, three = (put(store, bytes([n]) * 10, now) for n in range(3))
    store.roll()
    for settled in (lambda: store.settle(one), lambda: store.remove(two)):
        assert store.in_use(one.segment_id)
        assert not store.finish_segment(one.segment_id, 0)
        settled()
    assert store.in_use(one.segment_id)
    store.settle(three)
    assert not store.in_use(one.segment_id)
    assert store.finish_segment(one.segment_id, three.offset + BLOCK)
    assert get(store, three) == b"\2" * 10


def test_replay_position(store: SegmentStore, now: datetime) -> None:
    one, two, three = (put(store, bytes([n]) * 10, now) for n in range(3))
    low = lambda *besides: store.replay_from(one.segment_id, besides=besides)  # noqa: E731
    assert low() == one.offset == BLOCK
    store.settle(two)
    assert low() == one.offset
    assert low(one) == three.offset
    store.settle(one)
    assert low() == three.offset
    store.roll()  # closing changes nothing: rows still wait
    assert low() == three.offset
    store.settle(three)
    assert low() == three.offset + BLOCK
    assert store.replay_from(os.urandom(16)) is None


def test_the_replay_position_is_noted_at_the_end(store: SegmentStore, heard: Heard, now: datetime) -> None:
    one, two, three = (put(store, b"x", now) for _ in range(3))
    store.settle(one)
    assert store.replay_due(two) is None  # not worth a write yet
    store.settle(two)
    store.roll()
    assert heard.positions[one.segment_id] == three.offset
    assert store.replay_due(three) == three.offset + BLOCK
    store.settle(three)
    assert store.replay_due(Location(os.urandom(16), BLOCK, 1)) is None


def test_a_removed_record_is_zeros_and_its_neighbours_stay(store: SegmentStore, now: datetime) -> None:
    places = [put(store, bytes([n]) * 9000, now) for n in range(1, 4)]
    store.remove(places[1])
    store.remove(places[1])
    assert get(store, places[1]) == bytes(9000)
    assert get(store, places[0]) == b"\1" * 9000
    assert get(store, places[2]) == b"\3" * 9000
    store.settle(places[0])
    assert store.replay_from(places[0].segment_id) == places[2].offset


def test_a_record_alone_takes_its_segment_with_it(store: SegmentStore, heard: Heard, now: datetime) -> None:
    location = put(store, b"x", now)
    store.roll()
    store.remove(location)
    assert store.files() == []
    assert heard.names(location.segment_id) == ["open", "close", "drop"]
    store.remove(location)
    with pytest.raises(SealBroken) as caught:
        get(store, location)
    assert caught.value.verdict == "V01"


def test_a_large_record_grows_in_a_segment_of_its_own(store: SegmentStore, heard: Heard, now: datetime) -> None:
    small = put(store, b"small", now)
    data = os.urandom(int(2.5 * SEGMENT))
    large = store.begin_large(at=now)
    first, rest = data[:BLOCK], data[BLOCK:]
    step = 64 * BLOCK
    for at in range(0, len(rest), step):
        large.write(BLOCK + at, block(rest[at : at + step]))
    (segment_id,) = {file.segment_id for file in store.files()} - {small.segment_id}
    seen = memoryview(bytearray(BLOCK))
    store.read_into(segment_id, BLOCK, seen)
    assert bytes(seen) == bytes(BLOCK)  # no record yet
    assert store.replay_from(segment_id) == BLOCK
    location = large.finish(block(first), len(data))
    assert location == Location(segment_id, BLOCK, len(data))
    assert get(store, location) == data
    assert heard.events[-1] == ("close", segment_id, BLOCK + padded(len(data)))
    assert store.in_use(segment_id)
    assert store.replay_from(segment_id) == BLOCK
    store.settle(location)
    assert not store.in_use(segment_id)
    assert store.replay_from(segment_id) == BLOCK + padded(len(data))
    large.abort()  # harmless now
    assert get(store, location) == data
    assert put(store, b"next", now).segment_id == small.segment_id
    store.remove(location)
    assert [file.segment_id for file in store.files()] == [small.segment_id]


def test_an_aborted_large_record_leaves_nothing(store: SegmentStore, heard: Heard, now: datetime) -> None:
    large = store.begin_large(at=now)
    large.write(BLOCK, block(os.urandom(SEGMENT)))
    large.abort()
    large.abort()
    assert store.files() == []
    assert [what for what, _, _ in heard.events] == ["open", "drop"]


def test_eight_threads(store: SegmentStore, now: datetime) -> None:
    kept: list[tuple[Location, bytes]] = []
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for n in range(12):
                data = bytes([seed]) * (BLOCK * (n % 5) + seed * 100 + 1)
                kept.append((put(store, data, now), data))
        except BaseException as error:  # noqa: BLE001 # seen by the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(kept) == 96
    assert all(get(store, location) == data for location, data in kept)
    spans = sorted((place.segment_id, place.offset, place.offset + padded(place.record_bytes)) for place, _ in kept)
    assert all(a[2] <= b[1] for a, b in itertools.pairwise(spans) if a[0] == b[0])


def test_skipping_holes(store: SegmentStore, now: datetime) -> None:
    places = [put(store, b"x" * 200_000, now) for _ in range(3)]
    store.remove(places[0])
    found = store.next_data(places[0].segment_id, BLOCK)
    assert found is not None
    assert BLOCK <= found <= places[1].offset
    assert store.next_data(places[1].segment_id, places[1].offset) == places[1].offset
    assert store.next_data(places[0].segment_id, 1 << 40) is None


def test_unknown_segments(store: SegmentStore) -> None:
    absent = os.urandom(16)
    for ask in (lambda: store.read_into(absent, 0, memoryview(bytearray(1))), lambda: store.digest(absent)):  # type: Callable[[], object]
        with pytest.raises(SealBroken) as caught:
            ask()
        assert caught.value.verdict == "V01"
    assert store.finish_segment(absent, 0)
    assert not store.in_use(absent)
    store.settle(Location(absent, BLOCK, 1))
    store.remove(Location(absent, BLOCK, 1))


def test_an_erased_record_takes_an_empty_segment_with_it(store: SegmentStore, heard: Heard, now: datetime) -> None:
    places = [put(store, bytes([n]) * 9000, now) for n in range(1, 4)]
    store.erase(places[1])
    assert get(store, places[1]) == bytes(9000)
    assert get(store, places[0]) == b"\1" * 9000
    store.roll()
    for place in (places[0], places[0], places[2]):
        assert store.files() != []
        store.erase(place)
    assert store.files() == []
    assert heard.names(places[0].segment_id)[-1] == "drop"
    store.erase(places[2])
