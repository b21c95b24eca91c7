"""Segments, record by record and byte by byte: what was flipped, cut, swapped, copied or replayed is refused, and named by verify.

A sample of it here; ARCHIVE_TEST_TAMPER_ALL=1 does every byte of every section and every pair of records.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.db.tables import held
from archive.errors import ArchiveError
from archive.index.locate import InstanceRow
from archive.node import Node
from archive.vault.container import HEADER_BYTES, TAG_BYTES, TRAILER_BYTES
from archive.vault.disk import padded
from tests.services import archives
from tests.services.crowd import every
from tests.tamper import world
from tests.tamper.world import ALL, World

BLOCK = 4096


@dataclass(frozen=True)
class Bench:
    """An opened archive, its one segment, and every record the owner can ask for."""

    node: Node
    path: Path
    original: bytes
    given: dict[str, bytes]
    rows: dict[str, InstanceRow]

    def write(self, data: bytes | bytearray) -> None:
        """Put these bytes in the segment's place, in place: readers keep the file open."""
        with self.path.open("r+b") as file:
            file.truncate(len(data))
            file.write(data)

    def changed(self, at: int, data: bytes) -> None:
        """Overwrite some bytes."""
        with self.path.open("r+b") as file:
            file.seek(at)
            file.write(data)

    def read(self, uid: str) -> bytes | None:
        """What a retrieve gives for an instance; None when it is refused, and then nothing else may have been taken."""
        row, data = self.rows[uid], b""
        try:
            for view in self.node.core.vault.read(row.ref):
                data += bytes(view)
        except ArchiveError:
            assert self.given[uid].startswith(data), "wrong bytes before the error"
            return None
        return data

    def said(self, uid: str) -> set[str]:
        """The verdict on the record of one instance, opened whole as `verify --full` does."""
        try:
            self.node.core.vault.check(self.rows[uid].ref)
        except ArchiveError as error:
            return {error.verdict}
        return set()

    def glanced(self, uid: str) -> set[str]:
        """The verdict without a chunk opened, as `verify --quick` does."""
        try:
            self.node.core.vault.probe(self.rows[uid].ref)
        except ArchiveError as error:
            return {error.verdict}
        return set()


@pytest.fixture(scope="module")
def bench(pristine: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = pristine.copy(tmp_path_factory.mktemp("bench"))
    with _opened(made) as one:
        yield one


@contextmanager
def _opened(made: World) -> Iterator[Bench]:
    with world.opened(made.config) as (node, why):
        assert why == ""
        admin = archives.user(node)
        rows = {
            found.sop_instance_uid: found.row for study in world.STUDIES for found in node.retrieve.instances(admin, "clinical", study)
        }
        assert rows.keys() == made.given.keys()
        (path,) = [made.config.segments_dir / f"{segment.hex()}.seg" for segment in {row.ref.location.segment_id for row in rows.values()}]
        yield Bench(node, path, path.read_bytes(), made.given, rows)


def _sections(row: InstanceRow, bench: Bench) -> dict[str, range]:
    """Where the sealed bytes of each section lie in the record; of several chunks each with its tag."""
    trailer = bench.node.core.vault.sections(row.ref).trailer
    size, chunk = 1 << 18, (1 << 18) + TAG_BYTES

    def at(plain: int) -> int:
        return HEADER_BYTES + plain // size * chunk + plain % size

    meta, statement = trailer.part10_bytes, trailer.part10_bytes + trailer.meta_bytes
    tail = statement + trailer.statement_bytes
    return {
        "header": range(HEADER_BYTES), "P10": range(HEADER_BYTES, at(meta)), "META": range(at(meta), at(statement)),
        "STMT": range(at(statement), at(tail)), "TRAILER": range(at(tail), at(tail + TRAILER_BYTES)),
        "tag": range(row.ref.location.record_bytes - TAG_BYTES, row.ref.location.record_bytes),
    }


def _sample(found: range, count: int) -> list[int]:
    step = max(1, len(found) // (10_000 if ALL else count))
    return sorted({*found[::step], found[-1]})


EXPECTED = {"header": {"V04", "V05", "V06"}, "P10": {"V07"}, "META": {"V07"}, "STMT": {"V07"}, "TRAILER": {"V07"}, "tag": {"V07"}}


@pytest.mark.parametrize("section", EXPECTED)
@pytest.mark.parametrize("uid", ["1.2.3.1.1", "1.2.5.1.1"])
def test_a_flipped_byte(bench: Bench, uid: str, section: str) -> None:
    row = bench.rows[uid]
    start = row.ref.location.offset
    places = _sample(_sections(row, bench)[section], 160 if section == "header" else 24)
    for at in places:
        for bit in (0x01, 0x80) if section == "header" or not ALL else (0x20,):
            before = bench.original[start + at]
            bench.changed(start + at, bytes([before ^ bit]))
            found = bench.said(uid)
            assert found, at
            assert found <= EXPECTED[section], (at, found)
            if section == "header":
                assert bench.glanced(uid) == found
            if at in (places[0], places[-1]):
                assert found <= world.codes(bench.node, "full") <= found | {"V03"}
            served = bench.read(uid)
            # META, STMT and the trailer of a record of several chunks are not read with its images: what is served is whole all the same
            assert served is None or (section != "header" and served == bench.given[uid])
            bench.changed(start + at, bytes([before]))
    assert bench.path.read_bytes() == bench.original
    assert (bench.said(uid), bench.read(uid)) == (set(), bench.given[uid])


def test_flipped_padding_is_nothing_a_reader_sees(bench: Bench) -> None:
    row = bench.rows["1.2.3.1.1"]
    end = row.ref.location.offset + row.ref.location.record_bytes
    for at in _sample(range(end, padded(end)), 16):
        bench.changed(at, b"\x20")
        assert bench.read("1.2.3.1.1") == bench.given["1.2.3.1.1"]
        bench.changed(at, bench.original[at : at + 1])
    assert bench.path.read_bytes() == bench.original


def test_a_cut_at_every_boundary(bench: Bench) -> None:
    """Of a segment that ends early no record beyond the cut is served, and every one before it still is."""
    cuts = {0, 1, BLOCK - 1, BLOCK}
    for row in bench.rows.values():
        start = row.ref.location.offset
        edges = {found.start for found in _sections(row, bench).values()} | {found.stop for found in _sections(row, bench).values()}
        cuts |= {start + edge + off for edge in edges for off in (-1, 0, 1)}
    if ALL:
        cuts |= set(range(0, len(bench.original), 509))
    try:
        for cut in sorted(one for one in cuts if one < len(bench.original)):
            bench.write(bench.original[:cut])
            for uid, row in bench.rows.items():
                whole = cut >= row.ref.location.offset + row.ref.location.record_bytes
                served = bench.read(uid)
                assert served == bench.given[uid] if whole else served is None, (cut, uid)
                assert bench.said(uid) <= (set() if whole else {"V02"})
    finally:
        bench.write(bench.original)


def _spans(bench: Bench) -> dict[str, slice]:
    found = {}
    for uid, row in bench.rows.items():
        start = row.ref.location.offset
        found[uid] = slice(start, padded(start + row.ref.location.record_bytes))
    return found


def _pairs(bench: Bench) -> list[tuple[str, str]]:
    return list(itertools.combinations(sorted(bench.rows), 2))


def test_every_pair_of_records_swapped(bench: Bench) -> None:
    """The same study and others, the same length and others: each is refused under the other's place."""
    spans = _spans(bench)
    lengths = [row.ref.location.record_bytes for row in bench.rows.values()]
    assert len(set(lengths)) > 1
    for a, b in _pairs(bench):
        data = bytearray(bench.original)
        one, other = bytes(data[spans[a]]), bytes(data[spans[b]])
        for span, record in ((spans[a], other), (spans[b], one)):
            room = span.stop - span.start
            data[span] = record[:room].ljust(room, b"\0")
        bench.write(data)
        for uid in (a, b):
            assert bench.read(uid) is None
            assert bench.said(uid) & {"V04", "V06"}
    bench.write(bench.original)


def test_a_record_copied_over_every_other(bench: Bench) -> None:
    spans = _spans(bench)
    for a, b in itertools.permutations(sorted(bench.rows), 2) if ALL else _pairs(bench):
        room = spans[b].stop - spans[b].start
        bench.changed(spans[b].start, bench.original[spans[a]][:room].ljust(room, b"\0"))
        assert bench.read(b) is None
        assert bench.said(b) & {"V04", "V06"}
        assert bench.read(a) == bench.given[a]
        bench.changed(spans[b].start, bench.original[spans[b]])
    assert bench.path.read_bytes() == bench.original


def test_a_chunk_of_one_record_in_another(bench: Bench) -> None:
    """Behind a header that is whole: chunks of the same record moved, and of another record of the same study."""
    big = bench.rows["1.2.5.1.1"]
    start, size = big.ref.location.offset + HEADER_BYTES, (1 << 18) + TAG_BYTES
    bench.changed(start, bench.original[start + size : start + size + 4096])
    assert (bench.read("1.2.5.1.1"), bench.said("1.2.5.1.1")) == (None, {"V07"})
    bench.changed(start, bench.original[start : start + 4096])
    one, other = (bench.rows[uid].ref.location for uid in ("1.2.3.1.1", "1.2.3.1.2"))
    length = min(one.record_bytes, other.record_bytes) - HEADER_BYTES
    bench.changed(one.offset + HEADER_BYTES, bench.original[other.offset + HEADER_BYTES : other.offset + HEADER_BYTES + length])
    assert (bench.read("1.2.3.1.1"), bench.said("1.2.3.1.1")) == (None, {"V07"})
    bench.write(bench.original)


def test_an_old_record_in_the_place_of_the_one_that_replaced_it(bench: Bench) -> None:
    """The bytes that were stored first under a SOP Instance UID, and replaced by decision, do not come back."""
    (old,) = every(bench.node, sa.select(held).where(held.c.sop_instance_uid == "1.2.4.1.2", held.c.state == "rejected"))
    now = bench.rows["1.2.4.1.2"].ref.location
    room = padded(now.record_bytes)
    record = bench.original[old.record_offset : old.record_offset + old.record_bytes]
    bench.changed(now.offset, record[:room].ljust(room, b"\0"))
    assert bench.read("1.2.4.1.2") is None
    assert bench.said("1.2.4.1.2") == {"V04"}
    bench.write(bench.original)
