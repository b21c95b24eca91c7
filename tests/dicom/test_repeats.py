"""repeats: a document made with what the one before was read as is the document made without it, whatever the bytes are."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archive.dicom import metadata, repeats
from archive.dicom.metadata import to_json
from archive.dicom.part10 import Scanned, scan
from archive.dicom.repeats import Repeats
from archive.dicom.transfer import IMPLICIT_LE
from archive.errors import InvalidInstance
from tests.dicom.conftest import dataset, el, im, item, part10, pixels, sequence, us

Case = tuple[Scanned, bytes]


def read(data: bytes) -> Case:
    scanned = scan(data)
    return scanned, data if scanned.deflated else data[: scanned.head_bytes]


def text_of(case: Case, known: Repeats | None, *, base: str = "") -> str:
    scanned, head = case
    return json.dumps(to_json(head, scanned, lambda path: f"{base}/{path}", repeats=known))


def agree(cases: Sequence[Case], known: Repeats | None = None) -> None:
    known = known or Repeats()
    for number, case in enumerate(cases):
        base = f"/{number}"
        assert text_of(case, known, base=base) == text_of(case, None, base=base), number


def changed(head: bytes, start: int, chance: random.Random) -> bytes:
    """The head with a few bytes changed, put in, taken out or cut off."""
    raw = bytearray(head)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(start, len(raw)) if len(raw) > start else len(raw)
        kind = chance.random()
        if kind < 0.6 and at < len(raw):
            raw[at] = chance.choice((0, 1, 0xFF, 0xFE, 0x20, chance.randrange(256), raw[at] ^ 1 << chance.randrange(8)))
        elif kind < 0.75:
            raw[at:at] = chance.choice((b"\0\0", b"A ", el(0x00100010, "PN", "B"), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)))
        elif kind < 0.9:
            del raw[at : at + 2 * chance.randint(1, 6)]
        else:
            del raw[at:]
    return bytes(raw)


def test_every_file_after_every_other_and_after_itself(corpus_files: list[Path], hostile: Path) -> None:
    chance, known, compared = random.Random(11), Repeats(), 0
    for path in [*corpus_files, *hostile.glob("*.dcm")]:
        try:
            scanned, head = read(path.read_bytes())
        except InvalidInstance:
            continue
        if scanned.deflated or len(head) > 1 << 20:
            agree([(scanned, head)] * 2, known)
            continue
        start = min(scanned.dataset_offset + 8, len(head))  # the first element tells the encoding
        others = [(scanned, changed(head, start, chance)) for _ in range(12)]
        agree([(scanned, head), (scanned, head), *others, (scanned, head)], known)
        compared += 1
    assert compared > 150


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_data_sets_of_odd_and_nested_elements(seed: int, undefined: bool) -> None:
    chance = random.Random(seed)

    def element(depth: int, tag: int) -> bytes:
        kind = chance.randrange(9 if depth < 3 else 6)
        if kind >= 6:
            items = [item(elements(depth + 1), undefined=chance.random() < 0.5) for _ in range(chance.randrange(3))]
            return sequence(tag, *items, undefined=undefined)
        if kind == 5:
            return el(tag, "UN", chance.choice((b"", b"\1\2", item(im(0x00080100, "A")))))
        vr = ("LO", "PN", "DS", "US", "OB")[kind]
        return el(tag, vr, chance.choice((b"", b"1 ", b"2\\3 ", b"\xe4\xf6", b"12345678")))

    def elements(depth: int = 0) -> bytes:
        tags = sorted(chance.sample(range(0x00091001, 0x00091010), chance.randrange(6)))
        if chance.random() < 0.2:
            chance.shuffle(tags)
        return b"".join(element(depth, tag) for tag in tags)

    scanned, _ = read(part10(dataset()))
    pieces = [elements() for _ in range(4)]
    cases = []
    for _ in range(8):
        body = b"".join(chance.choice(pieces) for _ in range(3))
        if chance.random() < 0.3:
            body = changed(body, 0, chance)
        if chance.random() < 0.5:
            body = el(0x00080005, "CS", chance.choice(("ISO_IR 100", "ISO_IR 192", ""))) + body
        cases.append((scanned, part10(el(0x00080001, "LO", "first") + body)))
    agree(cases)


def count_read(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What values are read from now on."""
    seen: list[bytes] = []
    usual = metadata.usual_json

    def noted(vr: str, raw: bytes, *more: Any) -> Any:
        seen.append(raw)
        return usual(vr, raw, *more)

    monkeypatch.setattr(metadata, "usual_json", noted)
    return seen


def test_only_what_is_another_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def one(number: str) -> Case:
        nested = sequence(0x00081140, item(el(0x00081150, "UI", "1.2.3")), undefined=True)
        elements = {0x00081140: nested, 0x00100010: el(0x00100010, "PN", "A^B"), 0x00200013: el(0x00200013, "IS", number)}
        return read(part10(dataset(elements)))

    known = Repeats()
    text_of(one("7"), known)
    seen = count_read(monkeypatch)
    assert '"00200013": {"vr": "IS", "Value": [4711]}' in text_of(one("4711"), known)
    assert seen == [b"4711"]


def test_an_address_is_made_for_each_instance() -> None:
    long = {0x00091001: el(0x00091001, "OB", bytes(5000)), 0x00091002: sequence(0x00091002, item(el(0x00091003, "OB", bytes(5000))))}
    case = read(part10(dataset(long | pixels(2, 2, bytes(4)))))
    known = Repeats()
    assert text_of(case, known, base="/a").count("/a/") == 3
    assert text_of(case, known, base="/b").count("/b/") == 3


def test_a_value_depends_on_the_character_set() -> None:
    def one(charset: str) -> Case:
        named = {0x00080005: el(0x00080005, "CS", charset)} if charset else {}
        return read(part10(dataset({**named, 0x00100010: el(0x00100010, "PN", b"M\xfcller")})))

    agree([one("ISO_IR 100"), one("ISO_IR 144"), one("ISO_IR 100"), one(""), one("ISO_IR 192"), one("ISO_IR 100")])


def test_a_value_depends_on_pixel_representation() -> None:
    def one(signed: int) -> Case:
        elements = {0x00280103: im(0x00280103, struct.pack("<H", signed)), 0x00280106: im(0x00280106, b"\xff\xff")}
        inside = struct.pack("<HHI", 0x0028, 0x3010, 22) + item(im(0x00283002, b"\1\0\xff\xff\1\0"))
        body = b"".join((*(im(tag, value) for tag, value in IDS.items()), *elements.values(), inside))
        return read(part10(body, IMPLICIT_LE))

    agree([one(0), one(1), one(0), one(1)])
    assert '"00280106": {"vr": "SS", "Value": [-1]}' in text_of(one(1), None)


IDS = {0x00080016: "1.2.840.10008.5.1.4.1.1.2\0", 0x00080018: "1.2.3.4\0", 0x0020000D: "1.2.3.1\0", 0x0020000E: "1.2.3.2\0"}


def test_what_stands_twice_counts_the_first_time() -> None:
    scanned, _ = read(part10(dataset()))
    a, b = el(0x00091001, "LO", "A"), el(0x00091001, "LO", "B")
    agree([(scanned, part10(body + us(0x00091002, 1))) for body in (a, b, a + b, b + a, a + a, b)])
    short, long = el(0x00091001, "OB", b"AB"), el(0x00091001, "OB", bytes(5000))
    agree([(scanned, part10(body + us(0x00091002, 1))) for body in (short, long + short, short)])


@pytest.mark.parametrize("tag", [0x00091010, 0x00291010])
def test_fragments_end_where_no_item_follows(tag: int) -> None:
    """Without their delimiter they are longer where another fragment follows, though the bytes before it are the same."""
    fragments = item(b"abcd") + item(b"efgh")
    longer = dataset({tag: el(tag, "OB", fragments, length=0xFFFFFFFF), 0x00321060: el(0x00321060, "LO", "A")})
    shorter = dataset({tag: el(tag, "OB", fragments[:12], length=0xFFFFFFFF), 0x00321060: el(0x00321060, "LO", "A")})
    for cases in ([shorter, longer], [longer, shorter, longer]):
        agree([read(part10(case)) for case in cases])


def test_what_runs_into_the_end_is_not_remembered() -> None:
    scanned, _ = read(part10(dataset()))
    cut = el(0x00091001, "SQ", item(el(0x00091002, "LO", "A")), length=500)
    whole = cut + el(0x00091003, "LO", "B")
    agree([(scanned, part10(body)) for body in (cut, whole, cut, whole + bytes(600), whole)])


def test_another_encoding_begins_anew() -> None:
    explicit = read(part10(dataset({0x00091001: el(0x00091001, "LO", "A")})))
    implicit = read(part10(b"".join(im(tag, value) for tag, value in IDS.items()) + im(0x00091001, "A "), IMPLICIT_LE))
    agree([explicit, implicit, explicit, implicit])

    scanned, _ = read(part10(dataset()))
    head = part10(el(0x00091001, "OB", bytes(50)) + us(0x00091002, 1))
    known = Repeats()
    for limit in (4096, 10, 4096):
        assert to_json(head, scanned, str, limit, repeats=known) == to_json(head, scanned, str, limit)


def test_it_does_not_grow_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "KEPT_BYTES", 10_000)
    known, scanned = Repeats(), read(part10(dataset()))[0]
    for number in range(200):
        tags = range(0x00091001 + 16 * number, 0x00091011 + 16 * number)
        again = el(0x00091000, "LO", "x" * (number % 50))
        text_of((scanned, part10(again + b"".join(el(tag, "LO", "x" * 40) for tag in tags) + us(0x7FDF0001, 1))), known)
        assert known._bytes == sum(len(one.raw) for one in known._known.values()) <= 11_000
