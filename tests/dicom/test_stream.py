"""stream: splitting never matters, memory stays bounded, and what file meta and wrapping say."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archive.dicom.part10 import Limits, Scanned, meta, scan
from archive.dicom.stream import StreamScanner
from archive.dicom.transfer import EXPLICIT_LE
from archive.errors import InvalidInstance
from tests.dicom.conftest import CT, UIDS, dataset, el, item, part10, pixels, sequence, us
from tests.dicom.test_scan import refusal

# --- splitting


def outcome(feed: list[bytes]) -> Scanned | tuple[str, str]:
    scanner = StreamScanner()
    try:
        for piece in feed:
            scanner.feed(memoryview(bytearray(piece)))
        return scanner.finish()
    except InvalidInstance as error:
        return error.reason, error.message


def test_splitting_at_every_byte_changes_nothing(hostile: Path) -> None:
    data = (hostile / "00-good.dcm").read_bytes()
    whole = scan(data)
    for at in range(len(data) + 1):
        assert outcome([data[:at], data[at:]]) == whole, at


def test_one_byte_at_a_time_changes_nothing(hostile: Path, corpus: Path) -> None:
    files = [*hostile.glob("*.dcm"), corpus / "dcmjs-org__dcmjs" / "sample-op.dcm", *corpus.rglob("sr_document*.dcm")]
    for path in files:
        data = path.read_bytes()
        if len(data) > 100_000:
            continue
        assert outcome([data[at : at + 1] for at in range(len(data))]) == outcome([data]), path.name


def test_random_pieces_change_nothing(corpus_files: list[Path]) -> None:
    random.seed(7)
    for path in corpus_files:
        data = path.read_bytes()
        cuts = sorted(random.randrange(len(data) + 1) for _ in range(random.choice((3, 40))))
        pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        assert outcome(pieces) == outcome([data]), path.name


_DELIMITERS = st.sampled_from([struct.pack("<HHI", 0xFFFE, number, 0) for number in (0xE000, 0xE00D, 0xE0DD)])


@st.composite
def _broken(draw: st.DrawFn, depth: int = 0) -> bytes:
    """The content of an item whose lengths may say less or more than there is, and whose delimiters may be missing."""
    parts = [el(0x00080100, "SH", "A")]
    for _ in range(draw(st.integers(1, 2))):
        kind = draw(st.sampled_from(["sequence", "fragments", "element", "delimiter"]))
        if kind == "delimiter":
            parts.append(draw(_DELIMITERS))
        elif kind == "element":
            parts.append(el(0x00081030, "LO", b"VALUE ", length=6 + draw(st.sampled_from([0, 0, 2, 40]))))
        elif kind == "fragments":
            raw = item(b"") + item(draw(st.sampled_from([b"", b"abcd", el(0x00080104, "ST", "x" * 8)]))) + draw(_DELIMITERS)
            parts.append(el(0x00091010, "OB", raw, length=0xFFFFFFFF))
        else:
            inner = draw(_broken(depth + 1)) if depth < 2 else b""
            length = draw(st.sampled_from([0xFFFFFFFF, len(inner)]))
            raw = struct.pack("<HHI", 0xFFFE, 0xE000, length) + inner + draw(st.one_of(st.just(b""), _DELIMITERS))
            short = draw(st.sampled_from([0, 0, 1, 2, 4, 6, 8, 12, 16]))
            length = draw(st.sampled_from([0xFFFFFFFF, max(0, len(raw) - short)]))
            parts.append(el(0x00081140, "SQ", raw + draw(st.one_of(st.just(b""), _DELIMITERS)), length=length))
    return b"".join(parts)


@settings(max_examples=60, deadline=None)
@given(_broken(), st.sampled_from([0x00080120, 0x00400275]), st.sampled_from([0, 2, 4, 8, 12]), st.booleans())
def test_splitting_a_broken_sequence_changes_nothing(content: bytes, tag: int, short: int, pixel: bool) -> None:
    raw = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + content
    hidden = el(0x00291010, "LT", el(0x00100020, "LO", "HIDDEN") + el(0x00100021, "LO", ""))
    late = {0x00291010: hidden} | (pixels(2, 2, bytes(4)) if pixel else {})
    data = part10(dataset({0x00080050: el(0x00080050, "SH", "1"), tag: el(tag, "SQ", raw, length=max(0, len(raw) - short)), **late}))
    whole = outcome([data])
    for at in range(132, len(data) + 1):
        assert outcome([data[:at], data[at:]]) == whole, at
    assert outcome([data[at : at + 1] for at in range(len(data))]) == whole


@pytest.mark.parametrize("level", [1, 6, 9])
def test_a_deflated_data_set_comes_out_whole_whatever_is_left_in_zlib(level: int) -> None:
    """All input may be taken while what comes of it did not fit into the last step; the limit counts that too."""
    step = 256 << 10
    for more in range(-100, 102, 2):
        body = dataset() + el(0x00291010, "OB", bytes(step + more - len(dataset()) - 12))
        packer = zlib.compressobj(level, wbits=-15)
        packed = part10(packer.compress(body) + packer.flush(), "1.2.840.10008.1.2.1.99")
        assert scan(packed).findings == (), more
        assert outcome([packed[:-1], packed[-1:]]) == scan(packed), more
        assert bool(scan(packed, Limits(inflated_bytes=step)).findings) == (more > 0), more


def test_cut_short_anywhere_it_is_refused_or_its_rest_is_missing_only(hostile: Path) -> None:
    data = (hostile / "00-good.dcm").read_bytes()
    for at in range(len(data)):
        result = outcome([data[:at]])
        # Cut between two elements behind the last UID, nothing shows that more was to come.
        assert not isinstance(result, Scanned) or result.frames is None


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bytes_never_raise_anything_else(data: st.DataObject) -> None:
    body = bytearray(part10(dataset({0x00081032: sequence(0x00081032, item(el(0x00080100, "SH", "X"))), **pixels(2, 2, bytes(4))})))
    for _ in range(data.draw(st.integers(1, 6))):
        body[data.draw(st.integers(132, len(body) - 1))] = data.draw(st.integers(0, 255))
    outcome([bytes(body)])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_after_the_meta_are_read_or_refused(body: bytes) -> None:
    for uid in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.70"):
        outcome([part10(dataset() + body, uid), b""])
        outcome([part10(body, uid)])


# --- memory


def test_three_hundred_megabytes_need_no_memory() -> None:
    rows, columns, frames = 1000, 1000, 300
    head = part10(
        dataset(
            {
                0x00090010: el(0x00090010, "LO", "ACME"),
                0x00091001: el(0x00091001, "OB", b"", length=50_000_000),
            }
        )
    )
    at = head.index(struct.pack("<I", 50_000_000)) + 4
    before, after = head[:at], head[at:]
    tail = b"".join(
        value
        for tag, value in sorted((pixels(rows, columns, b"") | {0x00280008: el(0x00280008, "IS", str(frames))}).items())
        if tag != 0x7FE00010
    )
    tail += el(0x7FE00010, "OB", b"", length=rows * columns * frames)
    chunk = bytearray(1 << 20)
    scanner = StreamScanner()
    tracemalloc.start()
    try:
        scanner.feed(before)
        for _ in range(50):
            scanner.feed(memoryview(chunk)[:1_000_000])
        scanner.feed(after + tail)
        assert scanner.head is not None
        assert scanner.head.frames is None
        for _ in range(frames):
            scanner.feed(memoryview(chunk)[: rows * columns])
        scanned = scanner.finish()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20
    assert scanned.frames is not None
    assert scanned.frames.count == frames
    assert scanned.frames.pieces(299) == ((len(before) + 50_000_000 + len(after) + len(tail) + 299_000_000, 1_000_000),)


def test_a_long_data_set_without_pixels_is_known_before_its_end() -> None:
    scanner = StreamScanner()
    scanner.feed(part10(dataset()) + el(0x0040A730, "SQ", b"", length=0xFFFFFFFF))
    assert scanner.head is None
    piece = item(el(0x0040A160, "UT", "x" * 5000)) * 100
    for _ in range(3):
        scanner.feed(piece)
    assert scanner.head is not None
    assert scanner.head.study_instance_uid == UIDS[0x0020000D]


def test_fragments_in_a_sequence_that_is_wanted_are_not_kept() -> None:
    fragments = el(0x00091010, "OB", item(b"") + struct.pack("<HHI", 0xFFFE, 0xE000, 100 << 20), length=0xFFFFFFFF)
    opened = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + fragments
    scanner = StreamScanner()
    scanner.feed(part10(dataset()) + el(0x00400275, "SQ", opened, length=0xFFFFFFFF))
    tracemalloc.start()
    try:
        for _ in range(20):
            scanner.feed(bytes(1 << 20))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_an_endless_sequence_that_is_wanted_is_not_kept() -> None:
    opening = part10(dataset()) + el(0x00400275, "SQ", b"", length=0xFFFFFFFF)
    scanner = StreamScanner()
    scanner.feed(opening)
    piece = item(el(0x00321060, "LO", "x" * 60)) * 1000
    tracemalloc.start()
    try:
        for _ in range(20):
            scanner.feed(piece)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
    scanner.feed(struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))
    scanned = scanner.finish()
    assert "00400275" not in scanned.attributes
    assert "00400275" in {finding.tag for finding in scanned.findings}


def peak_of(scanner: StreamScanner, piece: bytes, times: int) -> int:
    """The memory it takes to feed the same piece again and again."""
    view = memoryview(piece)
    tracemalloc.start()
    try:
        for _ in range(times):
            scanner.feed(view)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_pieces_without_a_byte_need_no_memory() -> None:
    scanner = StreamScanner()
    scanner.feed(part10(dataset()) + b"\x08\0\x30")
    assert peak_of(scanner, b"", 100_000) < 10_000


def test_a_value_in_small_pieces_needs_no_more_memory_than_its_bytes() -> None:
    scanner = StreamScanner()
    scanner.feed(part10(dataset()) + el(0x7FE00001, "OV", b"", length=400_000))
    assert peak_of(scanner, b"ab", 199_999) < 1_000_000


def test_a_deflate_bomb_inflates_no_further_than_the_limit(hostile: Path) -> None:
    data = (hostile / "deflate-bomb-128M.dcm").read_bytes()
    tracemalloc.start()
    try:
        scanned = scan(data, Limits(inflated_bytes=4 << 20))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 << 20
    assert scanned.frames is None
    assert refusal(data, Limits(inflated_bytes=100)) == "too-large"


# --- file meta and wrapping


def test_the_data_sets_own_uid_counts_when_the_meta_differs() -> None:
    scanned = scan(part10(dataset(), sop="1.2.3.99"))
    assert scanned.sop_instance_uid == "1.2.3.4"
    assert [finding.tag for finding in scanned.findings] == ["00020003"]


def test_a_meta_group_length_that_lies_or_is_missing_does_not_matter() -> None:
    data = part10(dataset())
    lying = data[:140] + struct.pack("<I", 7) + data[144:]
    missing = data[:132] + data[144:]
    assert scan(lying).attributes == scan(data).attributes == scan(missing).attributes
    assert scan(missing).dataset_offset == scan(data).dataset_offset - 12


@pytest.mark.parametrize("elements", [el(0x00020102, "OB", bytes(800_000)), el(0x00020100, "UI", "") * 100_000], ids=["long", "many"])
def test_a_long_meta_in_small_pieces_takes_no_longer_than_its_bytes(elements: bytes) -> None:
    def seconds(before: bytes) -> float:
        scanner = StreamScanner()
        scanner.feed(before)
        view = memoryview(elements)
        started = time.thread_time()
        for at in range(0, len(view), 2):
            scanner.feed(view[at : at + 2])
        return time.thread_time() - started

    whole = part10(dataset())
    # In a data set the same pieces are gone through once.
    assert seconds(whole[:144]) < 5 * seconds(whole + el(0x7FE00010, "OB", b"", length=len(elements)))


def test_no_transfer_syntax_in_the_meta_is_guessed_and_said() -> None:
    data = part10(dataset())
    uid = el(0x00020010, "UI", "1.2.840.10008.1.2.1")
    scanned = scan(data.replace(uid, b""))
    assert scanned.transfer_syntax_uid == "1.2.840.10008.1.2.1"
    assert [finding.tag for finding in scanned.findings] == ["00020010"]


def test_wrapped_data_sets_have_the_offsets_of_the_file_they_become() -> None:
    body = dataset(pixels(2, 2, b"abcd"))
    scanner = StreamScanner(wrap=(CT, "1.2.3.4", "1.2.840.10008.1.2.1"))
    scanner.feed(body)
    assert scanner.finish() == scan(part10(body))


@pytest.mark.parametrize(("wrap", "reason"), [((CT, "1.2.3.5"), "uid-mismatch"), ((CT + ".1", "1.2.3.4"), "class-mismatch")])
def test_a_data_set_of_another_instance_than_its_request_says(wrap: tuple[str, str], reason: str) -> None:
    scanner = StreamScanner(wrap=(*wrap, "1.2.840.10008.1.2.1"))
    with pytest.raises(InvalidInstance) as caught:
        scanner.feed(dataset(pixels(2, 2, bytes(4))))
    assert caught.value.reason == reason
    with pytest.raises(InvalidInstance):
        scanner.finish()


def test_a_bad_uid_is_said_before_the_pixels_come() -> None:
    head = dataset({**pixels(2, 2, b""), 0x7FE00010: b""}, uids=UIDS | {0x0020000D: "../etc"})
    scanner = StreamScanner()
    with pytest.raises(InvalidInstance) as caught:
        scanner.feed(part10(head) + el(0x7FE00010, "OW", b"", length=1 << 30))
    assert caught.value.reason == "bad-uid"
    assert "etc" not in str(caught.value)


def test_text_that_is_not_utf8_is_kept_and_said() -> None:
    charset = el(0x00080005, "CS", "ISO_IR 192")
    scanned = scan(part10(dataset({0x00080005: charset, 0x00100010: el(0x00100010, "PN", b"\xff\xfe\xc3(^\xed\xa0\x80Ca")})))
    assert "\ufffd" in scanned.text("PatientName")
    assert [finding.tag for finding in scanned.findings] == ["00080005"]


def test_a_tiff_preamble_is_told_apart() -> None:
    data = part10(dataset())
    assert scan(b"II*\0" + data[4:]).preamble == "tiff"
    assert scan(b"<htm" + data[4:]).preamble == "other"


def test_wanted_sequences_and_empty_elements_are_json() -> None:
    code = el(0x00080100, "SH", "CHEST") + el(0x00080104, "LO", b"Br\xfcste")
    scanned = scan(
        part10(
            dataset(
                {
                    0x00080005: el(0x00080005, "CS", "ISO_IR 100"),
                    0x00081030: el(0x00081030, "LO", ""),
                    0x00081032: sequence(0x00081032, item(code, undefined=True), undefined=True),
                    0x00280010: us(0x00280010, 5),
                }
            )
        )
    )
    assert scanned.attributes["00081030"] == {"vr": "LO"}
    assert scanned.attributes["00280010"] == {"vr": "US", "Value": [5]}
    assert scanned.attributes["00081032"] == {
        "vr": "SQ",
        "Value": [{"00080100": {"vr": "SH", "Value": ["CHEST"]}, "00080104": {"vr": "LO", "Value": ["Brüste"]}}],
    }


@pytest.mark.parametrize("uids", [(CT, "1.2.3.4", EXPLICIT_LE), (CT, "1.2.3.5", EXPLICIT_LE), (CT, "1.2.3.4", ""), ("", "", EXPLICIT_LE)])
@pytest.mark.parametrize("before", [b"", el(0x00020010, "UI", "1.2.840.10008.1.2")])
@pytest.mark.parametrize("piece", [1 << 20, 8, 7, 1])
def test_file_meta_made_here_is_as_good_as_read(uids: tuple[str, str, str], before: bytes, piece: int) -> None:
    """Also where a peer sends file meta information in its data set, or fewer bytes at once than tell that."""
    made = meta(*uids)

    def said(body: bytes, *, begun: bool) -> Scanned | tuple[str, str]:
        scanner = StreamScanner()
        try:
            if begun:
                scanner.begin(made, uids)
            else:
                scanner.feed(made)
            for at in range(0, len(body), piece):
                scanner.feed(memoryview(body[at : at + piece]))
            return scanner.finish()
        except InvalidInstance as error:
            return error.reason, error.message

    for body in (before + dataset(), before + dataset()[:5], before):
        assert said(body, begun=True) == said(body, begun=False)
