"""runs and usual: what is taken quickly is what the careful way makes of the same bytes."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archive.dicom import metadata, stream
from archive.dicom.attributes import SCANNED
from archive.dicom.charsets import Text, repertoire
from archive.dicom.conformity import faults_of
from archive.dicom.metadata import to_json
from archive.dicom.part10 import Limits, Scanned
from archive.dicom.runs import Level
from archive.dicom.structure import Structure
from archive.dicom.usual import READERS, is_uid, usual_json
from archive.dicom.values import element_json
from archive.errors import InvalidInstance
from tests.dicom.conftest import dataset, el, im, item, part10, pixels, sequence

Outcome = tuple[str, ...]


class Careful(Structure):
    """The parser as it is without runs."""

    def _run(self, position: int, last: int) -> tuple[int, int]:
        return position, last

    def _run_item(self, position: int, level: Level) -> int:
        return position


def outcome(pieces: list[bytes], limits: Limits) -> Outcome:
    """Everything the scanner says, or its refusal."""
    scanner = stream.StreamScanner(limits)
    try:
        for piece in pieces:
            scanner.feed(memoryview(bytearray(piece)))
        scanned: Scanned = scanner.finish()
    except InvalidInstance as error:
        return type(error).__name__, error.reason, error.message
    return (repr(scanned), repr(to_json(b"".join(pieces), scanned, str)))


@pytest.fixture
def carefully(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[bytes], Limits], Outcome]:
    def scan(pieces: list[bytes], limits: Limits) -> Outcome:
        with monkeypatch.context() as patched:
            patched.setattr(stream, "Structure", Careful)
            patched.setattr(stream, "READERS", {tag: (vr, name, None) for tag, (vr, name, _) in READERS.items()})
            patched.setattr(metadata, "usual_json", element_json)
            return outcome(pieces, limits)

    return scan


Carefully = Callable[[list[bytes], Limits], Outcome]


def cut(data: bytes, chance: random.Random) -> list[bytes]:
    if chance.random() < 0.05 and len(data) < 6000:
        return [data[at : at + 1] for at in range(len(data))]
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.choice((0, 0, 1, 3, 40))))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def damaged(data: bytes, chance: random.Random) -> bytes:
    body = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        at = chance.randrange(132, max(133, min(len(body), chance.choice((400, 3000, 1 << 30)))))
        kind = chance.randrange(6)
        if kind == 0:
            body[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            del body[at : at + chance.choice((1, 2, 4, 8, 30))]
        elif kind == 2:
            body[at:at] = chance.randbytes(chance.choice((1, 2, 4, 8)))
        elif kind == 3:
            delimiters = (b"\xfe\xff\x00\xe0", b"\xfe\xff\r\xe0", b"\xfe\xff\xdd\xe0")
            body[at : at + 4] = chance.choice((b"\xff" * 4, *delimiters, bytes(4), b"\x1b$B "))
        elif kind == 4:
            body[at : at + 2] = chance.choice((b"UN", b"SQ", b"OB", b"??", b"US", b"\\ ", b" \\"))
        else:
            other = chance.randrange(len(body))
            body[at:at] = body[other : other + chance.choice((8, 20, 60, 300))]
    return bytes(body)


def test_every_file_whole_and_in_pieces(corpus_files: list[Path], carefully: Carefully) -> None:
    chance = random.Random(1)
    for path in corpus_files:
        data = path.read_bytes()
        expected = carefully([data], Limits())
        assert outcome([data], Limits()) == expected, path.name
        assert outcome(cut(data, chance), Limits()) == expected, path.name


def test_damaged_and_truncated_files(corpus_files: list[Path], carefully: Carefully) -> None:
    chance = random.Random(2)
    small = [path for path in corpus_files if 140 < path.stat().st_size < 40_000]
    for n in range(1500):
        data = chance.choice(small).read_bytes()
        data = data[: chance.randrange(len(data))] if chance.random() < 0.3 else damaged(data, chance)
        limits = Limits(elements=chance.choice((20, 60, 300)), nesting=chance.choice((1, 2, 64))) if chance.random() < 0.2 else Limits()
        pieces = cut(data, chance)  # which of two faults is met first depends on them
        assert outcome(pieces, limits) == carefully(pieces, limits), n


@pytest.mark.parametrize(
    "content",
    [
        el(0x00081090, "LO", "A" * 64) + el(0x00081080, "LO", "B") + el(0x00081090, "LO", "twice"),
        el(0x00081111, "SQ", el(0x00081150, "UI", "1.2")),
        el(0x00081032, "SQ", item(el(0x00080100, "SH", "X"), undefined=True) + item(el(0x00080104, "UC", "Y" * 70_000))),
        sequence(0x00081032, item(el(0x00080100, "SH", "X", length=9))),
        sequence(0x00081032, item(el(0x00080100, "SH", "X", length=900)), undefined=True),
        sequence(0x00081032, item(el(0x00080100, "OB", bytes(70_000))), undefined=True),
        el(0x00081032, "UN", item(im(0x00080100, "X ")) + item(el(0x00080104, "LO", "Y"))),
        el(0x00091001, "OB", bytes(70_000)) + el(0x00104000, "LT", "c" * 65_534) + el(0x00204000, "LT", "c" * 65_530),
        el(0x00080008, "OB", b"x" * 70_000),
        im(0x00080060, "CT") + im(0x00080070, "ACME"),
        el(0x7FDF0010, "LO", "last before the pixels") + el(0x00070010, "LO", "out of order"),
    ],
)
@pytest.mark.parametrize("limits", [Limits(), Limits(elements=9), Limits(nesting=1)])
def test_what_is_not_ordinary(content: bytes, limits: Limits, carefully: Carefully) -> None:
    whole = dataset({0x00080021: content, **pixels(2, 2, bytes(4))})
    for data in (part10(whole), part10(whole + content), part10(content + whole), part10(whole[:-3])):
        expected = carefully([data], limits)
        assert outcome([data], limits) == expected
        pieces = [data[at : at + 77] for at in range(0, len(data), 77)]
        assert outcome(pieces, limits) == carefully(pieces, limits)


# --- values

_PIECES = st.sampled_from(
    [b"1", b"-1", b"0", b".5", b"12.50", b"1e3", b"20260131", b"101112.5", b"1.2.840", b"1..2", b"CT", b"A^B", b"=", b"\\", b" ", b"\0",
     b"\x1b$B", b"\xb1", b"\n", b"Smith", b"9" * 14, b"064Y", b"+", b"x" * 16, b"X" * 17, b"\xc3\xa9", b"00"]
)  # fmt: skip


@settings(max_examples=1000, deadline=None)
@given(st.sampled_from(sorted(SCANNED)), st.one_of(st.lists(_PIECES, max_size=6).map(b"".join), st.binary(max_size=8)))
def test_a_reader_says_what_the_careful_way_says(tag: int, raw: bytes) -> None:
    vr, name, reader = READERS[tag]
    attribute = SCANNED[tag]
    assert (vr, name) == (attribute.vr, attribute.tag_hex)
    if vr == "SQ":
        assert reader is None
        return
    for charset in (None, b"ISO_IR 13", b"\\ISO 2022 IR 87", b"ISO_IR 192"):
        text = repertoire(charset)
        expected = element_json(vr, raw, True, text)
        value = reader(raw) if reader is not None else None
        if value is not None:
            assert repr({"vr": vr, "Value": value}) == repr(expected)  # repr: 1 and 1.0 are told apart
            assert faults_of(attribute, expected) == []
            assert not text.faults
        assert repr(usual_json(vr, raw, True, repertoire(charset))) == repr(expected)
        assert repr(usual_json(vr, raw, False, repertoire(charset))) == repr(element_json(vr, raw, False, repertoire(charset)))


@pytest.mark.parametrize(
    ("vr", "raw", "value"),
    [
        ("US", struct.pack("<H", 513), [513]),
        ("DS", b"-250\\.5 ", [-250, 0.5]),
        ("DS", b"1.10", [1.1]),
        ("IS", b"+7", [7]),
        ("CS", b"ORIGINAL\\PRIMARY ", ["ORIGINAL", "PRIMARY"]),
        ("PN", b"Doe^Jane", [{"Alphabetic": "Doe^Jane"}]),
        ("UI", b"1.2.840\0", ["1.2.840"]),
        ("LO", b" leading", [" leading"]),
        ("TM", b"101112.5", ["101112.5"]),
    ],
)
def test_usual_values(vr: str, raw: bytes, value: list[object]) -> None:
    assert repr(usual_json(vr, raw, True, Text())) == repr({"vr": vr, "Value": value})


def test_a_declared_repertoire_is_not_shared_between_data_sets() -> None:
    first = repertoire(b"ISO_IR 100")
    first.faults.add("said once")
    assert repertoire(b"ISO_IR 100").faults == set()


@pytest.mark.parametrize("text", [b"1", b"1.2", b"0.0", b"1" * 64, b"1.00"])
def test_uids(text: bytes) -> None:
    assert is_uid(text)


@pytest.mark.parametrize("text", [b"", b".", b"1.", b".1", b"1..2", b"1" * 65, b"1.a", b"1.2 ", b"1.2\n", b"1.\xb2", "1.٣".encode()])
def test_no_uids(text: bytes) -> None:
    assert not is_uid(text)
