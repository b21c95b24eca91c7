"""The frozen vectors: records of every release open for ever, and broken ones fail as they always did."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from datetime import datetime
from pathlib import Path

import pytest

from archive.errors import SealBroken
from archive.vault import container
from archive.vault.container import PACK_KINDS, PICTURE_KINDS, Kind
from archive.vault.keystore import StudyKey
from archive.vault.memory import MemorySegments
from archive.vault.refs import Damage
from archive.vault.segment_store import head_block
from archive.vault.vault import Vault
from tests.vault.fakes import FakeKeystore

FOLDER = Path(__file__).parents[1] / "vectors" / "container"
CASES = sorted(FOLDER.glob("*.json"))


def test_the_vectors_are_all_there() -> None:
    assert len(CASES) == 60


def opened(study_key: bytes, record: bytes) -> bytes:
    header, plaintext = container.open(study_key, record)
    return container.split(header, plaintext)[1]


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_vector(path: Path) -> None:
    case = json.loads(path.read_text())
    study_key, record = base64.b64decode(case["study_key"]), base64.b64decode(case["record"])
    if case["expect"] == "ok":
        assert hashlib.sha256(opened(study_key, record)).hexdigest() == case["part10_sha256"]
        return
    if case["expect"] == "key":
        keystore = FakeKeystore()
        with pytest.raises(SealBroken) as caught:
            keystore.open(container.parse_header(record).key_id)
    else:
        with pytest.raises(SealBroken) as caught:
            opened(study_key, record)
    assert caught.value.verdict == case["verdict"]
    if case["expect"] == "chunk":
        named = re.match(r"chunk (\d+) \(bytes (\d+)\.\.(\d+) ", caught.value.message)
        assert named is not None
        assert int(named[1]) == case["chunk"]
        assert int(named[2]) == 160 + case["chunk"] * (4096 + 16)


@pytest.mark.parametrize(("name", "kinds", "others"), [
    ("cached_pack", PACK_KINDS, PICTURE_KINDS), ("cached_picture", PICTURE_KINDS, PACK_KINDS),
])
def test_cached_objects_open_as_what_they_are(name: str, kinds: frozenset[Kind], others: frozenset[Kind]) -> None:
    case = json.loads((FOLDER / f"{name}.json").read_text())
    study_key, record = base64.b64decode(case["study_key"]), base64.b64decode(case["record"])
    assert hashlib.sha256(container.open(study_key, record, kinds)[1]).hexdigest() == case["part10_sha256"]
    with pytest.raises(SealBroken) as caught:
        container.open(study_key, record, others)
    assert caught.value.verdict == "V04"
    renamed = record[:96] + bytes([next(iter(others))]) + record[97:]
    with pytest.raises(SealBroken) as caught:
        container.open(study_key, renamed, others)
    assert caught.value.verdict == "V06"


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_scan_comes_to_the_same_verdict(path: Path, now: datetime) -> None:
    case = json.loads(path.read_text())
    study_key, record = base64.b64decode(case["study_key"]), base64.b64decode(case["record"])
    keystore = FakeKeystore()
    if case["expect"] != "key":
        keystore.held[record[16:32]] = StudyKey(record[16:32], study_key)
    segments = MemorySegments()
    segment_id = bytes(16)
    segments.held[segment_id] = bytearray(head_block(segment_id, now) + record)
    found = list(Vault(segments, keystore).scan(segment_id))  # type: ignore[arg-type]
    if case["expect"] == "ok" or path.stem == "size_extended":  # padding follows a record, so one byte more is not seen
        assert [type(one).__name__ for one in found] == ["FoundRecord"]
        return
    assert len(found) == 1
    assert isinstance(found[0], Damage)
    assert found[0].verdict == case["verdict"]
    assert found[0].offset == 4096
