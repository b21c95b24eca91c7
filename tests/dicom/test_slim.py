"""slim: a header without its long binary values says what the whole one says."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from archive.dicom import bulk, header
from archive.dicom import slim as slimming
from archive.dicom.metadata import encoding, to_json
from archive.dicom.part10 import Scanned, scan
from archive.dicom.pixels import stored_layout
from archive.dicom.slim import drawn, slim
from archive.dicom.transfer import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE
from archive.errors import InvalidInstance, NotAcceptable
from tests.dicom import mangled
from tests.dicom.conftest import UIDS, dataset, el, im, item, part10, pixels, sequence
from tests.dicom.test_bulk import Counted

INLINE = 8
CASES = 3000
LONG_BYTES = 3 << 20


def same(data: bytes, scanned: Scanned, name: str) -> int:
    """Compare what is read of a slim header with the same of the whole one; return how many bytes are not there."""
    length = scanned.head_bytes
    counted = Counted(data)
    thin = slim(counted.read, length, scanned, INLINE, INLINE + 2)
    whole = to_json(data[:length], scanned, lambda path: path, INLINE)
    assert to_json(thin, scanned, lambda path: path, INLINE) == whole, name
    none = slim(counted.read, length, scanned, header.LONGEST_VALUE_BYTES)
    for index in (0, 1):
        assert header.read(none, scanned, index) == header.read(data[:length], scanned, index), name
    if scanned.frames is not None:
        assert _layout(none, scanned) == _layout(thin, scanned) == _layout(data, scanned), name
    return length - len(thin)


def _layout(head: bytes, scanned: Scanned) -> object:
    try:
        return stored_layout(head, scanned)
    except NotAcceptable as error:
        return error.reason


def test_every_header_of_the_corpus(corpus_files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "LONGEST_VALUE_BYTES", 64)
    shorter = 0
    for path in corpus_files:
        data = path.read_bytes()
        try:
            scanned = scan(data)
        except InvalidInstance:
            continue
        if not scanned.deflated and scanned.head_bytes < 1 << 20:
            shorter += same(data, scanned, path.name) > 0
    assert shorter > 30


def test_headers_of_every_kind_and_damaged_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "LONGEST_VALUE_BYTES", 16)
    monkeypatch.setattr(bulk, "WINDOW_BYTES", 64)
    shorter = taken = 0
    for seed in range(CASES):
        data = mangled.instance(seed)
        try:
            scanned = scan(data)
        except InvalidInstance:
            continue
        taken += 1
        shorter += same(data, scanned, str(seed)) > 0
    assert taken > CASES // 10
    assert shorter > 30


@pytest.mark.parametrize("syntax", [EXPLICIT_LE, IMPLICIT_LE, EXPLICIT_BE])
def test_what_is_long_is_not_read(syntax: str) -> None:
    order = ">" if syntax == EXPLICIT_BE else "<"
    value, tags = bytes(LONG_BYTES), (0x00091001, 0x00420011, 0x00431001)
    if syntax == IMPLICIT_LE:
        elements = {tag: im(tag, uid + "\0" * (len(uid) & 1)) for tag, uid in UIDS.items()} | {tag: im(tag, value) for tag in tags}
        elements[0x7FE00010] = im(0x7FE00010, b"abcd")
    else:
        elements = {tag: el(tag, "UI", uid, order=order) for tag, uid in UIDS.items()}
        elements |= {tag: el(tag, "OB", value, order=order) for tag in tags}
        elements[0x7FE00010] = el(0x7FE00010, "OB", b"abcd", order=order)
    data = part10(b"".join(value for _, value in sorted(elements.items())), syntax)
    scanned, counted = scan(data), Counted(data)
    assert encoding(data, scanned) == (syntax == IMPLICIT_LE, syntax != EXPLICIT_BE)
    assert len(slim(counted.read, scanned.head_bytes, scanned, 4096, 4098)) < 4 * 4098
    assert counted.read_bytes < LONG_BYTES // 2
    assert same(data, scanned, syntax) > 3 * LONG_BYTES - 100


@pytest.mark.parametrize("odd", [
    sequence(0x00081140, item(el(0x00081155, "UI", "1.2"), undefined=True), item(b""), undefined=True),
    sequence(0x00081140, item(sequence(0x00081199, item(el(0x00081155, "UI", "1.2")), undefined=True), undefined=True), undefined=True),
    el(0x00081140, "UN", item(im(0x00081155, "1.2 ")) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0), length=0xFFFFFFFF),
    el(0x00091010, "OB", item(b"") + item(b"abcd") + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0), length=0xFFFFFFFF),
    im(0x00091010, "implicit"),
], ids=["sequence", "nested", "unknown", "fragments", "implicit"])
def test_behind_what_is_not_simple_everything_is_there(odd: bytes) -> None:
    long = el(0x00420011, "OB", bytes(4000))
    data = part10(dataset({0x00081140: odd, 0x00080019: el(0x00080019, "OB", bytes(4000)), 0x00420011: long} | pixels(2, 2, b"abcd")))
    assert same(data, scan(data), "odd") >= 3990


_SYNTAXES = [EXPLICIT_LE, IMPLICIT_LE, EXPLICIT_BE]


def many(syntax: str, extra: dict[int, bytes]) -> bytes:
    """An image with values that are not long by themselves."""
    order = ">" if syntax == EXPLICIT_BE else "<"

    def written(tag: int, vr: str, value: bytes) -> bytes:
        return im(tag, value) if syntax == IMPLICIT_LE else el(tag, vr, value, order=order)

    shape = struct.pack(order + "H", 2)
    elements = {tag: written(tag, "UI", uid.encode() + b"\0" * (len(uid) & 1)) for tag, uid in UIDS.items()}
    elements |= {tag: written(tag, "US", shape) for tag in (0x00280010, 0x00280011)}
    elements[0x00281050] = written(0x00281050, "DS", b"40")
    elements[0x00281201] = written(0x00281201, "OW", bytes(5000))
    for tag, vr, count in ((0x00091001, "OB", 5000), (0x00091002, "LT", 6000), (0x00420012, "UT", 7000), (0x00741202, "LO", 8000)):
        elements[tag] = written(tag, vr, b"x" * count)
    elements |= extra | {0x7FE00010: written(0x7FE00010, "OB", b"abcd")}
    return part10(b"".join(value for _, value in sorted(elements.items())), syntax)


@pytest.mark.parametrize("syntax", _SYNTAXES)
def test_what_says_nothing_of_how_a_frame_is_drawn_is_left_out_of_what_draws_it(syntax: str) -> None:
    data = many(syntax, {})
    scanned, counted = scan(data), Counted(data)
    head = drawn(counted.read, scanned.head_bytes, scanned, header.LONGEST_VALUE_BYTES)
    assert scanned.head_bytes - len(head) == 5000 + 6000 + 7000 + 8000
    thin, whole = header.read(head, scanned, 0), header.read(data[: scanned.head_bytes], scanned, 0)
    assert thin.document.keys() == whole.document.keys()
    assert (thin.binary["00281201"], thin.first("00281050")) == (bytes(5000), 40)
    assert _layout(head, scanned) == _layout(data, scanned)


def test_long_sequences_are_left_out_but_for_those_of_frames() -> None:
    long = item(el(0x00420011, "OB", bytes(5000)), undefined=True)
    lut = sequence(0x00283010, item(el(0x00283006, "OW", bytes(6000))))
    for undefined in (False, True):
        data = part10(dataset(pixels(2, 2, b"abcd") | {
            0x00081140: sequence(0x00081140, long, long, undefined=undefined), 0x00283010: lut,
            0x52009229: sequence(0x52009229, long, undefined=undefined),
        }))
        scanned, counted = scan(data), Counted(data)
        read = header.read(drawn(counted.read, scanned.head_bytes, scanned, header.LONGEST_VALUE_BYTES), scanned, 0)
        assert read.document["00081140"] == {"vr": "SQ"}
        assert len(read.binary["00283010/1/00283006"]) == 6000
        assert read.document["52009229"]["Value"]


def test_what_is_long_even_so_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slimming, "MOST_DRAWN_BYTES", 50_000)
    monkeypatch.setattr(bulk, "WINDOW_BYTES", 64)
    tables = {0x00281300 + n: el(0x00281300 + n, "OW", bytes(6000)) for n in range(20)}
    for extra in (tables, {0x00091010: im(0x00091010, "implicit"), 0x00420011: el(0x00420011, "OB", bytes(60_000))}):
        data = part10(dataset(pixels(2, 2, b"abcd") | extra))
        scanned, counted = scan(data), Counted(data)
        with pytest.raises(NotAcceptable) as refused:
            drawn(counted.read, scanned.head_bytes, scanned, header.LONGEST_VALUE_BYTES)
        assert refused.value.reason == "too-large"
        assert counted.read_bytes < 60_000
