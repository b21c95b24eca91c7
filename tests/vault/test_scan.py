"""Finding records in segments that crashed, were damaged, or were forged."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from datetime import datetime

import pytest

from archive.vault.container import MAGIC
from archive.vault.disk import BLOCK, padded
from archive.vault.keystore import StudyKey
from archive.vault.memory import MemorySegments
from archive.vault.refs import Damage, FoundRecord, RecordRef
from archive.vault.vault import Vault
from tests.vault.fakes import DATASTORE, FakeKeystore


@pytest.fixture
def segments() -> MemorySegments:
    return MemorySegments(segment_bytes=1 << 30)


@pytest.fixture
def scanned(segments: MemorySegments, keystore: FakeKeystore) -> Iterator[Vault]:
    return Vault(segments, keystore)  # type: ignore[arg-type]


def put(vault: Vault, key: StudyKey, size: int, at: datetime) -> RecordRef:
    writer = vault.writer(key, DATASTORE, kind=1, at=at)
    writer.write(os.urandom(size))
    return writer.finish(b"{}", b"s")


def look(vault: Vault, segment_id: bytes, start: int = 0, **more: bool) -> list[RecordRef | tuple[int, int, str]]:
    return [
        one.ref if isinstance(one, FoundRecord) else (one.offset, one.length, one.verdict) for one in vault.scan(segment_id, start, **more)
    ]


def test_all_are_found_from_any_start(scanned: Vault, key: StudyKey, now: datetime) -> None:
    refs = [put(scanned, key, size, now) for size in (10, 5000, 3 << 20, 1 << 20, 4096, 77, 2 << 20)]
    segment_id = refs[0].location.segment_id
    assert look(scanned, segment_id) == refs
    assert look(scanned, segment_id, verify=False) == refs
    for number, ref in enumerate(refs):
        assert look(scanned, segment_id, ref.location.offset) == refs[number:]
    assert look(scanned, segment_id, refs[-1].location.offset + padded(refs[-1].location.record_bytes)) == []


def test_holes_and_free_space_are_skipped(scanned: Vault, segments: MemorySegments, key: StudyKey, now: datetime) -> None:
    refs = [put(scanned, key, 1 << 20, now) for _ in range(5)]
    scanned.forget([refs[0], refs[3]])
    segments.held[refs[0].location.segment_id] += bytes(3 << 20)
    assert look(scanned, refs[0].location.segment_id) == [refs[1], refs[2], refs[4]]


def test_damage_hides_nothing_behind_it(scanned: Vault, segments: MemorySegments, key: StudyKey, now: datetime) -> None:
    refs = [put(scanned, key, 20_000, now) for _ in range(6)]
    held = segments.held[refs[0].location.segment_id]
    size = padded(refs[0].location.record_bytes)
    held[refs[0].location.offset] ^= 1  # magic
    held[refs[1].location.offset + 140] ^= 1  # commitment
    held[refs[2].location.offset + 9000] ^= 1  # chunk
    held[refs[3].location.offset + 11] = 99  # structure
    held[refs[4].location.offset : refs[4].location.offset + BLOCK] = bytes(BLOCK)  # first block never written
    assert look(scanned, refs[0].location.segment_id) == [
        (refs[0].location.offset, size, "V04"),
        (refs[1].location.offset, size, "V06"),
        (refs[2].location.offset, size, "V07"),
        (refs[3].location.offset, size, "V04"),
        (refs[4].location.offset + BLOCK, size - BLOCK, "V04"),
        refs[5],
    ]
    keyless = [(offset, verdict) for _name, offset, verdict in scanned.walk_keyless()]
    # Without a key, structure is all that can be judged; a hole is free space.
    assert [verdict for _, verdict in keyless] == ["V04", "", "", "V04", "V04", ""]


def test_a_torn_record_does_not_count(scanned: Vault, segments: MemorySegments, key: StudyKey, now: datetime) -> None:
    ref = put(scanned, key, 600_000, now)
    held = segments.held[ref.location.segment_id]
    original = bytes(held)
    for at in range(ref.location.offset, ref.location.offset + padded(ref.location.record_bytes), 16 * BLOCK):
        held[at : at + BLOCK] = bytes(BLOCK)
        assert not any(isinstance(one, FoundRecord) for one in scanned.scan(ref.location.segment_id))
        held[:] = original
    del held[ref.location.offset + 300_000 :]
    (damage,) = scanned.scan(ref.location.segment_id)
    assert isinstance(damage, Damage)
    assert damage.verdict == "V02"
    assert [verdict for _, _, verdict in scanned.walk_keyless()] == ["V02"]


def test_records_of_lost_and_shredded_keys(scanned: Vault, keystore: FakeKeystore, key: StudyKey, now: datetime) -> None:
    lost, gone = keystore.new(), keystore.new()
    refs = [put(scanned, one, 9000, now) for one in (lost, gone, key)]
    del keystore.held[lost.key_id]
    keystore.shredded.add(gone.key_id)
    first, second, third = scanned.scan(refs[0].location.segment_id)
    assert isinstance(first, Damage)
    assert isinstance(second, Damage)
    assert (first.verdict, first.key_id, first.shredded) == ("V05", lost.key_id, False)
    assert (second.verdict, second.key_id, second.shredded) == ("V05", gone.key_id, True)
    assert isinstance(third, FoundRecord)


def test_a_forged_length_does_not_jump_over_others(scanned: Vault, segments: MemorySegments, key: StudyKey, now: datetime) -> None:
    refs = [put(scanned, key, 9000, now) for _ in range(3)]
    held = segments.held[refs[0].location.segment_id]
    held[refs[0].location.offset + 112 : refs[0].location.offset + 120] = (1 << 20).to_bytes(8, "big")
    assert look(scanned, refs[0].location.segment_id)[1:] == refs[1:]


def test_noise_with_magic_at_every_block(scanned: Vault, segments: MemorySegments, key: StudyKey, now: datetime) -> None:
    ref = put(scanned, key, 100, now)
    noise = bytearray(random.Random(3).randbytes(300 * BLOCK))
    for at in range(0, len(noise), BLOCK):
        noise[at : at + 16] = MAGIC + b"\0\1\1\x12" + bytes(4)
        noise[at + 16 : at + 32] = key.key_id
        noise[at + 96 : at + 128] = b"\1" + bytes(15) + (at + 1).to_bytes(8, "big") + bytes(8)
    held = segments.held[ref.location.segment_id]
    held += noise
    found = list(scanned.scan(ref.location.segment_id))
    assert isinstance(found[0], FoundRecord)
    assert len(found) == 301
    assert {one.verdict for one in found[1:] if isinstance(one, Damage)} == {"V06"}


def test_a_damaged_head_is_named_and_records_still_found(scanned: Vault, segments: MemorySegments, key: StudyKey, now: datetime) -> None:
    ref = put(scanned, key, 100, now)
    segments.held[ref.location.segment_id][20] ^= 1
    assert look(scanned, ref.location.segment_id) == [(0, BLOCK, "V04"), ref]
    assert look(scanned, ref.location.segment_id, BLOCK) == [ref]


def test_finishing_a_segment_that_a_dead_process_left(scanned: Vault, segments: MemorySegments, key: StudyKey, now: datetime) -> None:
    ref = put(scanned, key, 10_000, now)
    assert scanned.finish_segment(ref.location.segment_id) is None  # someone writes it
    segments.roll()
    assert scanned.finish_segment(ref.location.segment_id) is None  # rows of it may come
    segments.close()
    segments.held[ref.location.segment_id] += bytes(5 << 20)
    used = scanned.finish_segment(ref.location.segment_id)
    assert used == ref.location.offset + padded(ref.location.record_bytes)
    assert len(segments.held[ref.location.segment_id]) == used
    assert look(scanned, ref.location.segment_id) == [ref]


def test_between_records_that_are_known_lie_the_others(
    scanned: Vault, segments: MemorySegments, key: StudyKey, now: datetime
) -> None:
    refs = [put(scanned, key, size, now) for size in (100, 5000, 90_000, 1, 200_000, 4096, 10, 70_000)]
    segment_id = refs[0].location.segment_id
    segments.remove(refs[3].location)
    segments.held[segment_id][refs[5].location.offset + 8] ^= 1
    everything = {offset: type(found) for offset, found in scanned.headers(segment_id)}
    assert len(everything) == 7
    for chosen in range(1 << len(refs)):
        known = [one.location for number, one in enumerate(refs) if chosen >> number & 1]
        ends = [(one.offset, one.offset + padded(one.record_bytes)) for one in known]

        def past(offset: int, ends: list[tuple[int, int]] = ends) -> int:
            return next((end for start, end in ends if start <= offset < end), offset)

        found = {offset: type(one) for offset, one in scanned.between(segment_id, past)}
        assert found == {offset: kind for offset, kind in everything.items() if past(offset) == offset}
