"""A record that is fetched in one piece: the same bytes, the same refusals, fewer calls."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from unittest import mock

import pytest

from archive.errors import KeyShredded, SealBroken
from archive.vault.container import HEADER_BYTES
from archive.vault.keystore import StudyKey
from archive.vault.reading import AT_ONCE_BYTES
from archive.vault.refs import RecordRef
from archive.vault.segments import DiskSegments
from archive.vault.vault import Vault
from tests.vault.fakes import DATASTORE, FakeKeystore

CHUNK = 1 << 18


@pytest.fixture
def kept(tmp_path: Path, keystore: FakeKeystore) -> Iterator[Vault]:
    segments = DiskSegments(tmp_path / "segments", reserve="0B", first_bytes=4 << 20)
    vault = Vault(segments, keystore)  # type: ignore[arg-type]
    yield vault
    vault.close()


def put(vault: Vault, key: StudyKey, data: bytes, at: datetime) -> RecordRef:
    writer = vault.writer(key, DATASTORE, kind=1, at=at)
    writer.write(data)
    return writer.finish(b"{}", b"statement")


def damage(tmp_path: Path, ref: RecordRef, at: int) -> None:
    path = tmp_path / "segments" / f"{ref.location.segment_id.hex()}.seg"
    with path.open("r+b") as file:
        place = ref.location.offset + at
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("size", [1, 4000, CHUNK - 300, CHUNK, 528_000, 4 * CHUNK - 1000, 4 * CHUNK])
def test_from_any_byte_to_the_end(kept: Vault, key: StudyKey, now: datetime, size: int) -> None:
    data = random.Random(size).randbytes(size)
    ref = put(kept, key, data, now)
    for start in {0, 1, size // 3, CHUNK - 1, CHUNK, CHUNK + 1, size - 1} & set(range(size)):
        assert b"".join(map(bytes, kept.read(ref, start))) == data[start:]
        assert b"".join(map(bytes, kept.read(ref, start, size))) == data[start:]


@pytest.mark.parametrize(("size", "calls"), [(528_000, 1), (AT_ONCE_BYTES, 3)])
def test_how_often_the_segment_is_read(kept: Vault, key: StudyKey, now: datetime, size: int, calls: int) -> None:
    ref = put(kept, key, bytes(size), now)
    with mock.patch.object(kept.segments, "read_into", wraps=kept.segments.read_into) as read:
        assert sum(len(view) for view in kept.read(ref)) == size
    assert read.call_count == calls


def test_nothing_of_a_broken_chunk_leaves_and_others_are_not_asked_for(tmp_path: Path, kept: Vault, key: StudyKey, now: datetime) -> None:
    data = random.Random(1).randbytes(528_000)
    ref = put(kept, key, data, now)
    damage(tmp_path, ref, HEADER_BYTES + 5)
    assert b"".join(map(bytes, kept.read(ref, CHUNK))) == data[CHUNK:], "the first chunk is not touched"
    for start in (0, CHUNK - 1):
        views = kept.read(ref, start)  # the header is right
        with pytest.raises(SealBroken) as caught:
            next(views)
        assert caught.value.verdict == "V07"
    other = put(kept, key, data, now)
    damage(tmp_path, other, other.location.record_bytes - 1)
    views = kept.read(other)
    with pytest.raises(SealBroken) as caught:
        next(views)
    assert caught.value.verdict == "V07", "not even what stands before it"


def test_the_header_is_verified_before_anything_is_returned(tmp_path: Path, kept: Vault, key: StudyKey, now: datetime) -> None:
    ref = put(kept, key, bytes(5000), now)
    damage(tmp_path, ref, 140)
    with pytest.raises(SealBroken) as caught:
        kept.read(ref)
    assert caught.value.verdict == "V06"


@pytest.mark.parametrize("by", [-1, 1, 100_000])
def test_an_index_that_names_another_size_is_not_believed(kept: Vault, key: StudyKey, now: datetime, by: int) -> None:
    data = random.Random(2).randbytes(300_000)
    ref = put(kept, key, data, now)
    put(kept, key, bytes(200_000), now)
    told = replace(ref, location=replace(ref.location, record_bytes=ref.location.record_bytes + by))
    assert b"".join(map(bytes, kept.read(told))) == data


@pytest.mark.parametrize(("left", "verdict"), [(100, "V02"), (300_000, "V02")])
def test_a_segment_cut_short(tmp_path: Path, kept: Vault, key: StudyKey, now: datetime, left: int, verdict: str) -> None:
    ref = put(kept, key, bytes(528_000), now)
    kept.segments.roll()  # type: ignore[attr-defined]
    os.truncate(tmp_path / "segments" / f"{ref.location.segment_id.hex()}.seg", ref.location.offset + left)
    with pytest.raises(SealBroken) as caught:
        next(kept.read(ref))
    assert caught.value.verdict == verdict


def test_a_shredded_key_says_so_also_where_the_segment_is_gone(
    tmp_path: Path, kept: Vault, keystore: FakeKeystore, key: StudyKey, now: datetime
) -> None:
    ref = put(kept, key, bytes(5000), now)
    kept.segments.roll()  # type: ignore[attr-defined]
    (tmp_path / "segments" / f"{ref.location.segment_id.hex()}.seg").unlink()
    with pytest.raises(SealBroken) as caught:
        kept.read(ref)
    assert caught.value.verdict == "V01"
    keystore.shredded.add(ref.key_id)
    with pytest.raises(KeyShredded):
        kept.read(ref)
