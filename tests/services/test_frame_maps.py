"""What is kept of instances says where their frames lie and nothing of the patient, stays small, and never names another record."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import sqlalchemy as sa

from archive.access import policy
from archive.db.location import Location, RecordRef
from archive.db.tables import instance
from archive.dicom.frames import FrameTable
from archive.dicom.part10 import Scanned, scan
from archive.errors import NotFound, SealBroken
from archive.node import Node
from archive.services import frame_maps, packs
from archive.services.frame_maps import FrameMaps
from archive.services.retrieve import FramesAnswer, Retrieve
from archive.vault.vault import Vault
from tests.services import archives

STUDY = "1.2.3"
SERIES = f"{STUDY}.1"
FRAMES = 5


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with archives.opened(archives.made(tmp_path_factory.mktemp("frames"))) as opened:
        for number in (1, 2):
            archives.store(opened, several(number))
        yield opened


def several(number: int, **more: Any) -> bytes:
    frames = [bytes([number * 16 + frame]) * 8 * 8 * 2 for frame in range(FRAMES)]
    return archives.instance(
        number, study=STUDY, rows=8, PatientName="Canary^Hidden", NumberOfFrames=FRAMES, Rows=8, Columns=8, BitsAllocated=16, BitsStored=16,
        HighBit=15, PixelData=b"".join(frames), **more,
    )


def ask(retrieve: Retrieve, node: Node, number: int, sop: str = f"{STUDY}.1.1") -> FramesAnswer:
    return retrieve.frames(archives.user(node), "clinical", STUDY, SERIES, sop, [number])


def test_frames_are_the_same_from_what_is_kept(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """META is read once and the head once, however many frames are asked for."""
    read: list[str] = []
    sections, head_of = Vault.sections, packs.head_of
    monkeypatch.setattr(Vault, "sections", lambda self, ref: read.append("META") or sections(self, ref))
    monkeypatch.setattr(packs, "head_of", lambda *given: read.append("head") or head_of(*given))
    kept, plain = Retrieve(node.core), [Retrieve(node.core) for _ in range(FRAMES)]
    for number in range(1, FRAMES + 1):
        wanted = bytes([16 + number - 1]) * 128
        for retrieve in (plain[number - 1], kept):
            answer = ask(retrieve, node, number)
            assert (answer.stored(number), answer.explicit_le(number)) == (wanted, wanted)
    assert read.count("META") == FRAMES + 1
    assert read.count("head") == FRAMES + 1


def test_what_lacks_a_frame_lacks_it_still(node: Node) -> None:
    retrieve = Retrieve(node.core)
    for _ in range(2):
        for number in (FRAMES + 1, 10_000):
            with pytest.raises(NotFound):
                ask(retrieve, node, number)
        assert ask(retrieve, node, FRAMES).stored(FRAMES)


@pytest.mark.parametrize("column", ["sop_class_uid", "transfer_syntax_uid", "dataset_offset"])
def test_a_row_that_was_edited_is_found_out_also_by_what_is_kept(node: Node, column: str) -> None:
    retrieve = Retrieve(node.core)
    assert ask(retrieve, node, 1).stored(1)
    which = instance.c.sop_instance_uid == f"{STUDY}.1.1"

    def edit(value: object) -> Any:
        with node.core.database.begin() as tx:
            before = policy.run_as(tx, policy.system("verify"), sa.select(instance.c[column]).where(which)).scalar_one()
            policy.run_as(tx, policy.system("verify"), sa.update(instance).where(which).values({column: value}))
            return before

    before = edit(7 if column == "dataset_offset" else "1.2.840.10008.1.2")
    try:
        with pytest.raises(SealBroken) as told:
            ask(retrieve, node, 1)
    finally:
        edit(before)
    assert told.value.verdict == "V10"
    assert ask(retrieve, node, 1).stored(1)


def test_nothing_of_the_patient_is_kept(node: Node) -> None:
    retrieve = Retrieve(node.core)
    ask(retrieve, node, 1).explicit_le(1)
    (kept,) = retrieve._maps._kept.values()
    assert kept.layout is not None
    assert not kept.scanned.attributes
    assert "Canary" not in repr(kept)
    assert {field.name for field in fields(kept)} == {"scanned", "layout"}


def ref(number: int) -> RecordRef:
    return RecordRef(Location(bytes(16), number, 1), bytes(16), number.to_bytes(16, "big"), bytes(16), 1, 1)


def scanned(table: FrameTable | None) -> Scanned:
    return replace(scan(several(9)), frames=table)


def test_how_much_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_maps, "MOST_INSTANCES", 3)
    monkeypatch.setattr(frame_maps, "MOST_FRAGMENTS", 40)
    maps, native = FrameMaps(), FrameTable("native", 2, 0, 8)
    for number in range(5):
        maps.keep(ref(number), scanned(native))
    assert [number for number in range(5) if maps.find(ref(number))] == [2, 3, 4]
    assert maps.find(ref(2)) is not None  # used last now
    maps.keep(ref(5), scanned(native))
    assert [number for number in range(6) if maps.find(ref(number))] == [2, 4, 5]

    coded = FrameTable("encapsulated", 10, fragments=((0, 1),) * 10, first=tuple(range(10)))
    for number in range(6, 12):
        for _ in range(3):  # again is no more
            maps.keep(ref(number), scanned(coded))
    assert maps._fragments == 30
    monkeypatch.setattr(frame_maps, "MOST_INSTANCES", 100)
    for number in range(20, 30):
        maps.keep(ref(number), scanned(coded))
    assert maps._fragments == sum(len(one.scanned.frames.fragments) for one in maps._kept.values() if one.scanned.frames) == 40


@pytest.mark.parametrize("table", [
    None, FrameTable("native", 1, 0, 8), FrameTable("encapsulated", 2, fragments=((0, 1),) * 11, first=(0, 1)),
])
def test_what_is_not_kept(table: FrameTable | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_maps, "MOST_FRAGMENTS", 40)
    maps = FrameMaps()
    maps.keep(ref(1), scanned(table))
    assert maps.find(ref(1)) is None


def test_the_right_is_asked_for_each_time(node: Node) -> None:
    """What is kept opens nothing: who may not see the instance gets none of it."""
    retrieve, console = Retrieve(node.core), archives.the_console(node)
    assert ask(retrieve, node, 1).stored(1)
    node.accounts.add_user(console, "nobody", roles=["radiologist"], password=archives.PASSWORD)
    with pytest.raises(NotFound):
        retrieve.frames(archives.user(node, "nobody"), "clinical", STUDY, SERIES, f"{STUDY}.1.1", [1])
