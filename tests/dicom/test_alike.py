"""alike: a header that is known says what it would have said gone through from its beginning, whatever was changed in it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from archive.dicom import alike
from archive.dicom.alike import Alike
from archive.dicom.part10 import DEFAULT_LIMITS, Limits, Scanned, scan
from archive.dicom.stream import StreamScanner
from archive.errors import ArchiveError
from tests.dicom.conftest import dataset, el, item, part10, pixels, sequence

Outcome = Scanned | tuple[str, str]


def scanned(data: bytes, known: Alike | None, limits: Limits = DEFAULT_LIMITS, *, piece: int = 1 << 30, character_set: str = "") -> Outcome:
    scanner = StreamScanner(limits, alike=known, character_set=character_set)
    try:
        for at in range(0, len(data), piece):
            scanner.feed(memoryview(bytearray(data[at : at + piece])))
        return scanner.finish()
    except ArchiveError as error:
        return type(error).__name__, error.message


@pytest.fixture
def hits(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each header that was looked up was known."""
    asked: list[bool] = []
    find = Alike.find

    def counted(self: Alike, *arguments: Any) -> alike.Found | None:
        found = find(self, *arguments)
        asked.append(found is not None)
        return found

    monkeypatch.setattr(Alike, "find", counted)
    return asked


def taught(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Alike:
    known = Alike()
    scanned(data, known, limits)
    return known


def changed(data: bytes, chance: random.Random, start: int, stop: int) -> bytes:
    """Change a few bytes, mostly to others of the same kind, as the next slice would."""
    new = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 6))):
        at = chance.randrange(start, stop)
        old = new[at]
        if chr(old).isdigit() and chance.random() < 0.8:
            new[at] = chance.randrange(0x30, 0x3A)
        else:
            new[at] = chance.randrange(256) if chance.random() < 0.5 else old ^ 1 << chance.randrange(8)
    return bytes(new)


def test_every_byte_of_a_header_changed(hostile: Path, hits: list[bool]) -> None:
    data = (hostile / "00-good.dcm").read_bytes()
    known = taught(data)
    good = scan(data)
    for at in range(good.dataset_offset, min(len(data), good.head_bytes + 40)):
        for new in (data[at] ^ 0x01, data[at] ^ 0x80, 0x00, 0xFF, 0x5C, 0x31):
            other = data[:at] + bytes([new]) + data[at + 1 :]
            assert scanned(other, known) == scanned(other, None), (at, new)
    assert hits.count(True) > len(hits) / 4


def test_files_of_all_kinds_with_bytes_changed(corpus_files: list[Path], hits: list[bool]) -> None:
    chance = random.Random(20261122)
    for path in corpus_files:
        data = path.read_bytes()
        if len(data) > 3_000_000:
            continue
        known = taught(data)
        try:
            whole = scan(data)
        except ArchiveError:
            continue
        assert scanned(data, known) == whole, path.name
        stop = min(len(data), whole.head_bytes + 16)
        for _ in range(7):
            other = changed(data, chance, min(whole.dataset_offset, stop - 1), stop)
            piece = chance.choice((1 << 30, 1 << 30, 1 << 17, 4096, 300))
            assert scanned(other, known, piece=piece) == scanned(other, None, piece=piece), path.name
    assert hits.count(True) > 170


def test_one_memory_for_many_senders_files(corpus_files: list[Path]) -> None:
    """Headers of other files, encodings and lengths are never taken for one another."""
    known = Alike()
    known._to_learn = 1e9
    for path in [*corpus_files, *corpus_files]:
        data = path.read_bytes()
        if len(data) < 3_000_000:
            assert scanned(data, known) == scanned(data, None), path.name


def image(elements: dict[int, bytes]) -> bytes:
    return part10(dataset(pixels(2, 2, b"abcd") | elements))


def slices(count: int) -> list[bytes]:
    found = []
    for number in range(count):
        position = el(0x00200032, "DS", b"-120.5\\-98.25\\%07.2f " % (number * 1.25))
        uid = el(0x00080018, "UI", b"1.2.826.0.1.3680043.2.1125.%05d" % (number + 10000))
        found.append(image({0x00080018: uid, 0x00200013: el(0x00200013, "IS", b"%04d" % number), 0x00200032: position}))
    return found


def test_slices_of_a_series_are_known(hits: list[bool]) -> None:
    known = Alike()
    for data in slices(40):
        assert scanned(data, known) == scan(data)
    assert hits == [False] + [True] * 39


def test_what_changes_in_a_sequence_that_is_indexed_makes_another_header(hits: list[bool]) -> None:
    def of(text: bytes) -> bytes:
        return image({0x00400275: sequence(0x00400275, item(el(0x00400007, "LO", text)))})

    known = Alike()
    for text in (b"ONE ", b"TWO ", b"ONE "):
        assert scanned(of(text), known) == scan(of(text))
    assert hits == [False, False, True]


def test_what_changes_in_any_other_sequence_does_not(hits: list[bool]) -> None:
    def of(uid: bytes, text: bytes, *, undefined: bool) -> bytes:
        inner = sequence(0x0040A170, item(el(0x00080100, "SH", text), undefined=undefined), undefined=undefined)
        outer = item(el(0x00081155, "UI", uid) + inner + el(0x00080005, "CS", text), undefined=undefined)
        return image({0x00081140: sequence(0x00081140, outer, undefined=undefined)})

    for undefined in (False, True):
        known = Alike()
        for uid, text in ((b"1.2.3.4.10", b"AB"), (b"1.2.3.4.11", b"AB"), (b"1.2.3.4.12", b"CD")):
            data = of(uid, text, undefined=undefined)
            assert scanned(data, known) == scan(data)
    assert hits == [False, True, True] * 2


def test_the_character_set_makes_another_header(hits: list[bool]) -> None:
    name = el(0x00100010, "PN", "Müller^X".encode("iso8859_1"))
    known = Alike()
    for code in (b"ISO_IR 100", b"ISO_IR 101", b"ISO_IR 100"):
        data = image({0x00080005: el(0x00080005, "CS", code), 0x00100010: name})
        assert scanned(data, known) == scan(data)
    assert hits == [False, False, True]
    late = image({0x00100010: name}) + el(0x00080005, "CS", "ISO_IR 100")
    assert scanned(late, known) == scan(late), "its character set comes last"
    known = taught(image({0x00100010: el(0x00100010, "PN", b"Muller^X")}))
    assert scanned(late, known) == scan(late)
    assert hits[-1]
    bare = image({0x00100010: el(0x00100010, "PN", b"Muller^X")})
    for character_set in ("ISO_IR 100", "ISO_IR 192"):
        assert scanned(bare, known, character_set=character_set) == scanned(bare, None, character_set=character_set)
        assert hits[-1] is False


def test_what_lies_behind_the_pixel_data_is_read(hits: list[bool]) -> None:
    known = taught(slices(1)[0])
    for data in slices(6):
        late = data + el(0x7FE00020, "OB", b"12") + el(0x00200011, "IS", b"7 ")
        assert scanned(late, known) == scan(late)
        assert scanned(data[:-5], known) == scanned(data[:-5], None), "cut short"
        assert scanned(data + b"trailing", known) == scan(data + b"trailing")
    assert all(hits[1:])


def test_limits_are_those_of_the_one_that_was_learnt() -> None:
    data = slices(1)[0]
    known = taught(data)
    few = Limits(elements=3)
    assert scanned(data, known, few) == scanned(data, None, few) == ("InvalidInstance", "the data set has more elements than the limit")


def test_a_header_that_comes_in_parts_is_gone_through(hits: list[bool]) -> None:
    known = taught(slices(1)[0])
    for data in slices(3):
        assert scanned(data, known, piece=50) == scan(data)
    assert hits == [False] * 4


def test_who_sends_nothing_alike_is_not_learnt_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    known, learnt = Alike(), []
    learn = Alike.learn
    monkeypatch.setattr(Alike, "learn", lambda self, *given: (learnt.append(1), learn(self, *given)))
    for number in range(60):
        data = image({0x00081030: el(0x00081030, "LO", b"x" * (number * 2 % 62 + 2))})
        assert scanned(data, known) == scan(data)
    assert len(learnt) == alike._TO_LEARN
    assert len(known._headers) <= alike.KEPT
