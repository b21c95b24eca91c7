"""Records in and out, over a disk and over memory."""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archive.errors import KeyShredded, SealBroken
from archive.vault.container import Kind, Opener
from archive.vault.disk import BLOCK, O_DIRECT, padded
from archive.vault.keystore import StudyKey
from archive.vault.memory import MemorySegments
from archive.vault.refs import RecordRef
from archive.vault.segments import DiskSegments
from archive.vault.vault import Vault
from tests.vault.fakes import DATASTORE, FakeKeystore

MIB = 1 << 20
CHUNK = 1 << 18


def put(vault: Vault, key: StudyKey, data: bytes, at: datetime, *, meta: bytes = b'{"x":1}') -> RecordRef:
    writer = vault.writer(key, DATASTORE, kind=1, at=at)
    for start in range(0, len(data), 70_000):
        writer.write(memoryview(data)[start : start + 70_000])
    assert writer.part10_bytes == len(data)
    assert writer.sha256 == hashlib.sha256(data).digest()
    ref = writer.finish(meta, b"statement")
    assert ref.object_id == writer.object_id
    return ref


def whole(vault: Vault, ref: RecordRef) -> bytes:
    return b"".join(bytes(view) for view in vault.read(ref))


@pytest.mark.parametrize("size", [
    0, 1, 4000, CHUNK - 200, CHUNK, CHUNK + 1, 528_000, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 5 * MIB + 17, 6 * MIB - 4096, 6 * MIB,
    20 * MIB + 3,
])
def test_what_went_in_comes_out(vault: Vault, key: StudyKey, now: datetime, size: int) -> None:
    data = random.Random(size).randbytes(size)
    before = len(vault.segments.files())
    ref = put(vault, key, data, now)
    assert whole(vault, ref) == data
    assert ref.part10_bytes == size
    sections = vault.check(ref)
    assert sections.meta == b'{"x":1}'
    assert sections.statement == b"statement"
    assert sections.sha256 == hashlib.sha256(data).digest()
    for once in (False, True):
        with vault.outline(ref, once=once) as (again, first):
            assert again == sections
            for count in {0, 1, 300, CHUNK - 1, CHUNK, CHUNK + 1, size - 1, size, size + 1}:
                assert first(max(count, 0)) == data[: max(count, 0)]
    vault.probe(ref)
    vault.settle(ref.location)
    # Large ones have a segment of their own, closed at once.
    assert vault.in_use(ref.location.segment_id) == (size <= 4 * MIB)
    assert len(vault.segments.files()) == before + 1
    found = list(vault.scan(ref.location.segment_id))
    assert [one.ref for one in found] == [ref]  # type: ignore[union-attr]
    assert found[0].sha256 == hashlib.sha256(data).digest()  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [528_000, 5 * MIB])
def test_bytes_hashed_elsewhere_are_not_hashed_again(vault: Vault, key: StudyKey, now: datetime, size: int) -> None:
    data, digest = random.Random(size).randbytes(size), hashlib.sha256()
    writer = vault.writer(key, DATASTORE, kind=1, at=now)
    writer.hashed_by(digest)
    for start in range(0, size, 70_000):
        digest.update(data[start : start + 70_000])
        writer.write(data[start : start + 70_000])
    ref = writer.finish(b"", b"")
    assert vault.check(ref).sha256 == hashlib.sha256(data).digest() == writer.sha256
    late = vault.writer(key, DATASTORE, kind=1, at=now)
    late.write(b"x")
    with pytest.raises(ValueError, match="hashed here"):
        late.hashed_by(digest)
    late.abort()


def test_sections_too_long_for_the_buffer(vault: Vault, key: StudyKey, now: datetime) -> None:
    meta = os.urandom(5 * MIB).hex().encode()
    ref = put(vault, key, b"dicom", now, meta=meta)
    assert vault.sections(ref).meta == meta
    assert whole(vault, ref) == b"dicom"


def test_buffers_used_again_leak_nothing(tmp_path: Path, keystore: FakeKeystore, key: StudyKey, now: datetime) -> None:
    """Padding and aborted records: the next record's blocks hold nothing of the one before."""
    segments = MemorySegments()
    vault = Vault(segments, keystore)  # type: ignore[arg-type]
    aborted = vault.writer(key, DATASTORE, kind=1, at=now)
    aborted.write(b"CANARY" * 50_000)
    aborted.abort()
    ref = put(vault, key, b"x" * 10, now)
    held = bytes(segments.held[ref.location.segment_id])
    assert b"CANARY" not in held
    end = ref.location.offset + ref.location.record_bytes
    assert held[end:] == bytes(padded(end) - end)


def test_nothing_is_written_or_sealed_before_finish(vault: Vault, key: StudyKey, keystore: FakeKeystore, now: datetime) -> None:
    writer = vault.writer(key, DATASTORE, kind=1, at=now)
    writer.write(os.urandom(3 * MIB))
    assert vault.segments.files() == []
    assert not writer.large
    other = keystore.new()
    writer.key, writer.kind = other, Kind.HELD
    ref = writer.finish(b"", b"")
    assert (ref.key_id, ref.kind) == (other.key_id, 2)
    assert len(whole(vault, ref)) == 3 * MIB
    assert vault.sections(ref).meta == b""
    with pytest.raises(ValueError, match="finished"):
        writer.write(b"more")
    writer.abort()
    assert len(whole(vault, ref)) == 3 * MIB


def test_a_large_record_is_fixed_and_an_abort_removes_it(vault: Vault, key: StudyKey, keystore: FakeKeystore, now: datetime) -> None:
    small = put(vault, key, b"x" * 9000, now)  # leaves a sound header in the buffer used next
    writer = vault.writer(key, DATASTORE, kind=1, at=now)
    for _ in range(9):
        writer.write(os.urandom(MIB))
    assert writer.large
    (segment_id,) = {file.segment_id for file in vault.segments.files()} - {small.location.segment_id}
    first_block = memoryview(bytearray(b"?" * BLOCK))
    assert vault.segments.read_into(segment_id, BLOCK, first_block) == BLOCK
    assert bytes(first_block) == bytes(BLOCK)
    with pytest.raises(ValueError, match="reseal"):
        writer.key = keystore.new()
    with pytest.raises(ValueError, match="reseal"):
        writer.kind = Kind.HELD
    assert [one for one in vault.scan(segment_id) if type(one).__name__ == "FoundRecord"] == []
    writer.abort()
    assert [file.segment_id for file in vault.segments.files()] == [small.location.segment_id]


def test_events(vault: Vault, key: StudyKey, now: datetime) -> None:
    ref = vault.put_event(key, DATASTORE, b'{"change":"rejected"}', at=now)
    assert ref.kind == Kind.EVENT
    assert vault.read_range(ref, 0, 100) == b'{"change":"rejected"}'
    assert vault.sections(ref).statement == b""


@pytest.mark.parametrize("size", [1000, 5 * MIB])
def test_resealing_keeps_contents_and_object(vault: Vault, key: StudyKey, keystore: FakeKeystore, now: datetime, size: int) -> None:
    data = os.urandom(size)
    old = put(vault, key, data, now)
    new = vault.reseal(old, keystore.new(), kind=2, at=now)
    assert (new.object_id, new.kind, new.part10_bytes) == (old.object_id, 2, size)
    assert new.key_id != old.key_id
    assert whole(vault, old) == whole(vault, new) == data
    assert vault.check(new).statement == b"statement"
    vault.forget([old])
    vault.forget([old])
    with pytest.raises(SealBroken):
        vault.read(old)
    assert whole(vault, new) == data


def test_object_ids_follow_the_clock_and_differ_within_a_millisecond(vault: Vault, key: StudyKey, now: datetime) -> None:
    times = [now + timedelta(milliseconds=number // 50) for number in range(200)]
    ids = [put(vault, key, b"x", at).object_id for at in times]
    assert {len(one) for one in ids} == {16}
    assert len(set(ids)) == 200
    assert [one[:6] for one in ids] == [int(at.timestamp() * 1000).to_bytes(6, "big") for at in times]


def test_a_range_opens_only_the_chunks_it_touches(vault: Vault, key: StudyKey, now: datetime) -> None:
    data = random.Random(7).randbytes(20 * CHUNK)
    ref = put(vault, key, data, now)
    for start, length, chunks in (
        (0, 1, 1), (CHUNK - 1, 1, 1), (CHUNK - 1, 2, 2), (5 * CHUNK, CHUNK, 1), (5 * CHUNK + 1, CHUNK, 2), (100, 0, 0),
        (0, 20 * CHUNK, 21),  # up to the end also the trailer's
        (20 * CHUNK - 5, 100, 2), (21 * CHUNK, 5, 0),
    ):
        with mock.patch.object(Opener, "chunk", autospec=True, side_effect=Opener.chunk) as opened:
            assert vault.read_range(ref, start, length) == data[start : start + length]
        assert opened.call_count == chunks


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(pieces=st.lists(st.integers(0, 700_000), max_size=12), seed=st.integers(0, 99))
def test_any_split_gives_the_same(keystore: FakeKeystore, key: StudyKey, now: datetime, pieces: list[int], seed: int) -> None:
    vault = Vault(MemorySegments(), keystore, large_from=MIB)  # type: ignore[arg-type]
    data = random.Random(seed).randbytes(sum(pieces))
    writer = vault.writer(key, DATASTORE, kind=1, at=now)
    at = 0
    for piece in pieces:
        writer.write(data[at : at + piece])
        at += piece
    ref = writer.finish(b"{}", b"s")
    assert whole(vault, ref) == data
    start = random.Random(seed + 1).randint(0, len(data))
    assert vault.read_range(ref, start, 300_000) == data[start : start + 300_000]


# --- what an attacker on the disk can do -------------------------------------------------------------------------------------------


@pytest.fixture
def on_disk(tmp_path: Path, keystore: FakeKeystore) -> Vault:
    return Vault(DiskSegments(tmp_path / "s", reserve="0B", first_bytes=4 * MIB), keystore)  # type: ignore[arg-type]


def path_of(tmp_path: Path, ref: RecordRef) -> Path:
    return tmp_path / "s" / f"{ref.location.segment_id.hex()}.seg"


def change(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def verdict_of(vault: Vault, ref: RecordRef) -> str:
    with pytest.raises(SealBroken) as caught:
        whole(vault, ref)
    with pytest.raises(SealBroken) as again, vault.outline(ref, once=True) as (_, first):
        first(ref.part10_bytes)
    assert again.value.verdict == caught.value.verdict
    return caught.value.verdict


def test_every_verdict(tmp_path: Path, on_disk: Vault, keystore: FakeKeystore, key: StudyKey, now: datetime) -> None:
    refs = [put(on_disk, key, random.Random(n).randbytes(CHUNK + 1000), now) for n in range(4)]
    on_disk.segments.roll()
    path = path_of(tmp_path, refs[0])
    content = path.read_bytes()
    first, second = refs[0], refs[1]

    def restore() -> None:
        path.write_bytes(content)

    # V04: another record lies there, or its own with another identity in the index
    change(path, first.location.offset, content[second.location.offset : second.location.offset + second.location.record_bytes])
    assert verdict_of(on_disk, first) == "V04"
    restore()
    for field, value in (("object_id", bytes(16)), ("datastore", bytes(16)), ("plaintext_bytes", first.plaintext_bytes + 1), ("kind", 2)):
        assert verdict_of(on_disk, replace(first, **{field: value})) == "V04"
    wrong = replace(first, part10_bytes=first.part10_bytes + 1)
    with pytest.raises(SealBroken) as caught:
        on_disk.sections(wrong)
    assert caught.value.verdict == "V04"
    with pytest.raises(SealBroken) as caught, on_disk.outline(wrong, once=True):
        pass
    assert caught.value.verdict == "V04"
    # V04: a hole
    change(path, first.location.offset, bytes(BLOCK))
    assert verdict_of(on_disk, first) == "V04"
    restore()
    # V05 and shredded
    assert verdict_of(on_disk, replace(first, key_id=bytes(16))) == "V05"
    keystore.shredded.add(key.key_id)
    with pytest.raises(KeyShredded):
        on_disk.read(first)
    keystore.shredded.clear()
    # V06
    change(path, first.location.offset + 150, b"\0\0")
    assert verdict_of(on_disk, first) == "V06"
    restore()
    # V07: the first chunk is served, the broken one is not
    change(path, first.location.offset + 160 + CHUNK + 16 + 5, b"\0\0\0")
    assert on_disk.read_range(first, 0, CHUNK) == random.Random(0).randbytes(CHUNK + 1000)[:CHUNK]
    with pytest.raises(SealBroken, match=rf"bytes {160 + CHUNK + 16}\.\.{first.location.record_bytes - 1} of the record") as caught:
        on_disk.read_range(first, CHUNK, 1)
    assert caught.value.verdict == "V07"
    on_disk.probe(first)
    restore()
    # V02, V01
    last = max(refs, key=lambda ref: ref.location.offset)
    with path.open("r+b") as file:
        file.truncate(last.location.offset + last.location.record_bytes - 1)
    assert verdict_of(on_disk, last) == "V02"
    with pytest.raises(SealBroken):
        on_disk.probe(last)
    with path.open("r+b") as file:
        file.truncate(last.location.offset + 100)
    assert verdict_of(on_disk, last) == "V02"
    path.unlink()
    on_disk.segments._readers.close()  # type: ignore[attr-defined]
    assert verdict_of(on_disk, last) == "V01"


def test_of_a_damaged_record_what_is_sound_can_be_read(tmp_path: Path, on_disk: Vault, key: StudyKey, now: datetime) -> None:
    data = random.Random(3).randbytes(2 * CHUNK + 1000)
    ref = put(on_disk, key, data, now)
    change(path_of(tmp_path, ref), ref.location.offset + 160 + CHUNK + 16 + 5, b"\0\0\0")
    with on_disk.outline(ref, once=True) as (sections, first):
        assert sections.statement == b"statement"
        assert first(CHUNK) == data[:CHUNK]
        with pytest.raises(SealBroken) as caught:
            first(CHUNK + 1)
    assert caught.value.verdict == "V07"


def test_who_reads_once_leaves_the_page_cache_alone(on_disk: Vault, key: StudyKey, now: datetime) -> None:
    ref = put(on_disk, key, random.Random(4).randbytes(60_000), now)
    opening, direct = os.open, []

    def noted(path: Path, how: int, mode: int = 0o777) -> int:
        direct.append(bool(how & O_DIRECT))
        return opening(path, how, mode)

    with mock.patch("os.open", noted):
        for once in (False, True):
            with on_disk.outline(ref, once=once):
                pass
            assert any(direct) == (once and on_disk.segments.direct)


def test_a_length_in_the_index_that_is_wrong_hides_nothing(on_disk: Vault, key: StudyKey, now: datetime) -> None:
    data = random.Random(5).randbytes(60_000)
    ref = put(on_disk, key, data, now)
    wrong = replace(ref, location=replace(ref.location, record_bytes=8192))
    assert whole(on_disk, wrong) == data
    with on_disk.outline(wrong, once=True) as (sections, first):
        assert (sections.statement, first(60_000)) == (b"statement", data)


def test_the_digest_is_compared_when_asked(on_disk: Vault, key: StudyKey, now: datetime) -> None:
    """V08 means the seal is right and the bytes are not: only a writer at fault makes that."""
    writer = on_disk.writer(key, DATASTORE, kind=1, at=now)
    writer.write(b"one")
    writer._digest = hashlib.sha256(b"two")
    ref = writer.finish(b"", b"")
    assert whole(on_disk, ref) == b"one"
    with pytest.raises(SealBroken) as caught:
        on_disk.check(ref)
    assert caught.value.verdict == "V08"
    (found,) = on_disk.scan(ref.location.segment_id)
    assert found.verdict == "V08"  # type: ignore[union-attr]


def test_nothing_readable_lies_on_the_disk(tmp_path: Path, on_disk: Vault, key: StudyKey, now: datetime) -> None:
    for size in (100, 2 * MIB, 9 * MIB):
        data = (b"CANARY^PATIENT " * (size // 15 + 1))[:size]
        put(on_disk, key, data, now, meta=b'{"00100010":"CANARY"}')
    on_disk.put_event(key, DATASTORE, b"CANARY", at=now)
    on_disk.close()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"CANARY" not in content
            assert key.key not in content


# --- cache -------------------------------------------------------------------------------------------------------------------------


def test_cached_objects(tmp_path: Path, vault: Vault, key: StudyKey, keystore: FakeKeystore, now: datetime) -> None:
    payload = os.urandom(700_000)
    object_id = vault.seal_blob(payload, key, DATASTORE, at=now)
    path = tmp_path / "cache" / object_id.hex()[:2] / object_id.hex()
    assert path.stat().st_mode & 0o777 == 0o600
    assert vault.open_blob(object_id, key.key_id, DATASTORE) == payload
    other = vault.seal_blob(b"other", key, DATASTORE)
    content = path.read_bytes()
    path.write_bytes((tmp_path / "cache" / other.hex()[:2] / other.hex()).read_bytes())
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    for verdict, damaged in (("V04", path.read_bytes()), ("V07", flipped), ("V02", content[:-1]), ("V04", b"")):
        path.write_bytes(damaged)
        with pytest.raises(SealBroken) as caught:
            vault.open_blob(object_id, key.key_id, DATASTORE)
        assert caught.value.verdict == verdict
    path.write_bytes(content)
    with pytest.raises(SealBroken):
        vault.open_blob(object_id, key.key_id, bytes(16))
    vault.drop_blob(object_id)
    vault.drop_blob(object_id)
    with pytest.raises(SealBroken) as caught:
        vault.open_blob(object_id, key.key_id, DATASTORE)
    assert caught.value.verdict == "V01"
    keystore.shredded.add(key.key_id)
    with pytest.raises(KeyShredded):
        vault.open_blob(other, key.key_id, DATASTORE)
    assert [one.suffix for one in tmp_path.rglob("*.tmp")] == []


def test_cached_pictures(tmp_path: Path, vault: Vault, key: StudyKey, keystore: FakeKeystore) -> None:
    picture, name = os.urandom(300_000), os.urandom(16)
    assert vault.open_picture(name, key.key_id, DATASTORE) is None
    assert vault.trim_pictures(0) == 0
    vault.seal_picture(picture, key, DATASTORE, name)
    vault.seal_picture(picture, key, DATASTORE, name)
    path = tmp_path / "cache" / "pictures" / name.hex()[:2] / name.hex()
    assert path.stat().st_mode & 0o777 == 0o600
    assert vault.open_picture(name, key.key_id, DATASTORE) == picture
    pack = vault.seal_blob(b"pack", key, DATASTORE)
    content = path.read_bytes()
    another = (tmp_path / "cache" / pack.hex()[:2] / pack.hex()).read_bytes()
    for damaged in (another, content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b""):
        path.write_bytes(damaged)
        with pytest.raises(SealBroken):
            vault.open_picture(name, key.key_id, DATASTORE)
    path.write_bytes(content)
    elsewhere = os.urandom(16)
    other = path.parents[1] / elsewhere.hex()[:2] / elsewhere.hex()
    other.parent.mkdir(exist_ok=True)
    other.write_bytes(content)
    with pytest.raises(SealBroken):
        vault.open_picture(elsewhere, key.key_id, DATASTORE)
    with pytest.raises(SealBroken):
        vault.open_picture(name, key.key_id, bytes(16))
    os.utime(other, (1, 1))
    assert vault.trim_pictures(400_000) <= 400_000
    assert path.exists()
    assert not other.exists()
    assert vault.trim_pictures(0) == 0
    assert vault.open_picture(name, key.key_id, DATASTORE) is None
    assert vault.open_blob(pack, key.key_id, DATASTORE) == b"pack"
    keystore.shredded.add(key.key_id)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(KeyShredded):
        vault.open_picture(name, key.key_id, DATASTORE)
    assert list(tmp_path.rglob("*.tmp")) == []
