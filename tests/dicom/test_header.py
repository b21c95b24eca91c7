"""header: what one frame's functional groups say, found without reading everyone's, is what reading them all says."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from archive.dicom import header
from archive.dicom.part10 import inflate, scan
from tests.dicom.conftest import dataset, el, im, item, part10, pixels, sequence, us
from tests.dicom.test_pixels import images

TAGS = ("00281050", "00281051", "00281056", "00281052", "00281053", "00280120", "00281101", "20500020", "00181164")


def same(head: bytes, scanned: object, index: int) -> None:
    ours, whole = header.read(head, scanned, index), header.read_whole(head, scanned, index)  # type: ignore[arg-type]
    for tag in TAGS:
        assert ours.values(tag) == whole.values(tag)
        assert ours.word(tag) == whole.word(tag)
    assert ours.item("00283010") == whole.item("00283010")
    assert {path: value for path, value in whole.binary.items() if not path.startswith("52009230")} == ours.binary


def test_the_frames_of_the_corpus(corpus_files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "FEW_FRAMES", 0)
    alone = 0
    for _, data, scanned in images(corpus_files):
        assert scanned.frames is not None
        head = inflate(data, scanned)[: scanned.head_bytes if not scanned.deflated else None]
        for index in {0, scanned.frames.count // 2, scanned.frames.count - 1, scanned.frames.count}:
            same(head, scanned, index)
            alone += header.read(head, scanned, index).own is not None
    assert alone > 60


def voi(center: str, *, undefined: bool) -> bytes:
    window = item(el(0x00281050, "DS", center) + el(0x00281051, "DS", "2"), undefined=undefined)
    return item(sequence(0x00289132, window, undefined=undefined), undefined=undefined)


def enhanced(*, undefined: bool, frames: int = 20, before: dict[int, bytes] | None = None) -> bytes:
    elements = pixels(1, 2, struct.pack("<2H", 1, 2) * frames, bits=16) | {0x00280008: el(0x00280008, "IS", str(frames))} | (before or {})
    elements[0x52009230] = sequence(0x52009230, *(voi(str(n), undefined=undefined) for n in range(frames)), undefined=undefined)
    return part10(dataset(elements))


@pytest.mark.parametrize("undefined", [False, True])
def test_each_frame_has_its_own(undefined: bool) -> None:
    inner = sequence(0x00081140, item(us(0x00280010, 3), undefined=True), undefined=True)
    nested = sequence(0x00081140, item(inner, undefined=True), undefined=True)
    data = enhanced(undefined=undefined, before={0x00081140: nested, 0x00281050: el(0x00281050, "DS", "99")})
    scanned = scan(data)
    for n in range(20):
        found = header.read(data[: scanned.head_bytes], scanned, n)
        assert found.own is not None
        assert found.values("00281050") == [n]
        assert found.first("00280010") == 1
    beyond = header.read(data[: scanned.head_bytes], scanned, 20)
    assert beyond.values("00281050") == [99]


def test_what_is_odd_is_read_the_careful_way() -> None:
    for odd in (el(0x00091001, "UN", struct.pack("<HHI", 0xFFFE, 0xE0DD, 0), length=0xFFFFFFFF), el(0x00091001, "QQ", b"ab"),
                im(0x00091001, b"abcd")):
        data = enhanced(undefined=False, before={0x00091001: odd})
        scanned = scan(data)
        assert scanned.frames is not None
        for n in (0, 7, 19):
            same(data[: scanned.head_bytes], scanned, n)


def test_every_cut_of_a_header_is_read_without_an_error() -> None:
    data = enhanced(undefined=True)
    scanned = scan(data)
    for end in range(scanned.dataset_offset, scanned.head_bytes, 3):
        header.read(data[:end], scanned, 5)
