"""frames: the pieces of each frame joined are what pydicom cuts out, for every file and every way of fragmenting."""

from __future__ import annotations

import io
import json
import struct
import warnings
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.encaps import generate_frames

from archive.dicom.frames import RLE, FrameTable, Shape
from archive.dicom.part10 import inflate, scan
from archive.dicom.transfer import DEFLATED_FRAMES
from archive.errors import InvalidInstance, NotFound
from tests.dicom.conftest import dataset, el, item, part10, pixels, us

J2K = "1.2.840.10008.1.2.4.90"


def joined(data: bytes, table: FrameTable, n: int) -> bytes:
    return b"".join(data[offset : offset + length] for offset, length in table.pieces(n))


def test_frames_of_the_corpus_equal_pydicoms(corpus_files: list[Path]) -> None:
    native = encapsulated = 0
    for path in corpus_files:
        data = path.read_bytes()
        try:
            scanned = scan(data)
        except InvalidInstance:
            continue
        table = scanned.frames
        if table is None:
            continue
        assert FrameTable.from_json(json.loads(json.dumps(table.to_json()))) == table
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = pydicom.dcmread(io.BytesIO(data))
        element = next((theirs[tag] for tag in (0x7FE00010, 0x7FE00008, 0x7FE00009) if tag in theirs), None)
        if element is None:
            assert path.name in {"GH1339.dcm", "emri_small_jpeg_2k_lossless_too_short.dcm"}
            continue
        whole = inflate(data, scanned)
        if table.kind == "encapsulated":
            frames = list(generate_frames(element.value, number_of_frames=int(theirs.get("NumberOfFrames", 1))))
            assert [joined(whole, table, n) for n in range(table.count)] == frames, path.name
            encapsulated += 1
        else:
            bits = table.frame_bits
            for n in range(table.count):
                first, last = n * bits // table.word_bits, -(-(n + 1) * bits // table.word_bits)
                width = table.word_bits // 8
                assert joined(whole, table, n) == element.value[first * width : last * width], path.name
                assert table.bit_offset(n) == n * bits % table.word_bits
            native += 1
    assert native > 90
    assert encapsulated == 40


def image(
    fragments: list[bytes], *, frames: int, table: bytes = b"", extended: bytes = b"", lengths: bytes = b"", transfer_syntax_uid: str = J2K
):
    elements = pixels(2, 2, b"") | {0x00280008: el(0x00280008, "IS", str(frames))}
    content = item(table) + b"".join(item(fragment) for fragment in fragments) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    elements[0x7FE00010] = el(0x7FE00010, "OB", content, length=0xFFFFFFFF)
    if extended:
        elements[0x7FE00001] = el(0x7FE00001, "OV", extended)
    if lengths:
        elements[0x7FE00002] = el(0x7FE00002, "OV", lengths)
    data = part10(dataset(elements), transfer_syntax_uid)
    return data, scan(data)


EOI = b"\xff\xd9"


@pytest.mark.parametrize(
    ("fragments", "frames", "table", "expected"),
    [
        ([b"aa", b"bb"], 1, b"", [b"aabb"]),
        ([b"aa", b"bb"], 2, b"", [b"aa", b"bb"]),
        ([b"aa" + EOI, b"bb", b"cc" + EOI], 2, b"", [b"aa" + EOI, b"bbcc" + EOI]),
        ([b"aaaa", b"bb", b"cc"], 2, struct.pack("<II", 0, 12), [b"aaaa", b"bbcc"]),
        ([b"aaaa", b"bb", b"cc"], 2, struct.pack("<II", 0, 22), [b"aaaabb", b"cc"]),
        ([b"aa", b"", b"bb"], 1, b"", [b"aabb"]),
        ([b"aa", b"bb", b""], 2, b"", [b"aa", b"bb"]),
        ([b"aa" + EOI, b"", b"bb", b"cc" + EOI, b""], 2, b"", [b"aa" + EOI, b"bbcc" + EOI]),
    ],
)
def test_boundaries(fragments: list[bytes], frames: int, table: bytes, expected: list[bytes]) -> None:
    data, scanned = image(fragments, frames=frames, table=table)
    assert scanned.findings == ()
    assert scanned.frames is not None
    assert [joined(data, scanned.frames, n) for n in range(scanned.frames.count)] == expected


def test_the_extended_offset_table_counts_where_no_other_says_otherwise() -> None:
    for table in (b"", struct.pack("<II", 0, 20), struct.pack("<II", 0, 7), struct.pack("<I", 0)):
        data, scanned = image([b"aa", b"bb", b"cc"], frames=2, extended=struct.pack("<QQ", 0, 20), table=table)
        assert scanned.frames is not None
        assert [joined(data, scanned.frames, n) for n in range(2)] == [b"aabb", b"cc"]


def frames_of(fragments: list[bytes], **said: Any) -> list[bytes]:
    """The frames, and that something was found wrong."""
    data, scanned = image(fragments, **said)
    assert scanned.frames is not None
    assert "7FE00010" in {finding.tag for finding in scanned.findings}
    return [joined(data, scanned.frames, n) for n in range(scanned.frames.count)]


def offsets(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def long_offsets(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def test_of_two_offset_tables_that_contradict_each_other_none_is_believed() -> None:
    parts = [b"aa", b"bb", b"cc", b"dd"]
    assert frames_of(parts, frames=2, extended=long_offsets(0, 10), table=offsets(0, 20)) == []
    assert frames_of(parts, frames=4, extended=long_offsets(0, 10), table=offsets(0, 20)) == parts
    assert frames_of(parts, frames=3, extended=long_offsets(0, 10), table=offsets(0, 20)) == []
    # What agrees with NumberOfFrames counts, and so does what the code streams say.
    assert frames_of(parts, frames=2, extended=long_offsets(0, 10, 20), table=offsets(0, 20)) == [b"aabb", b"ccdd"]
    marked = [b"aa", b"bb" + EOI, b"cc", b"dd" + EOI]
    assert frames_of(marked, frames=2, extended=long_offsets(0, 10), table=offsets(0, 22)) == [b"aabb" + EOI, b"ccdd" + EOI]


@pytest.mark.parametrize("wrong", [(0, 10), (0, 32)])
@pytest.mark.parametrize("extended", [False, True])
def test_an_offset_table_that_cuts_through_images_is_not_believed(wrong: tuple[int, int], extended: bool) -> None:
    marked = [b"aa", b"bb" + EOI, b"cc", b"dd" + EOI]
    said = {"extended": long_offsets(*wrong)} if extended else {"table": offsets(*wrong)}
    assert frames_of(marked, frames=2, **said) == [b"aabb" + EOI, b"ccdd" + EOI]
    assert frames_of(marked, frames=3, **said) == []
    assert frames_of(marked, frames=1, **said) == []


@pytest.mark.parametrize("said", [1, 3, 5])
def test_an_offset_table_and_a_number_of_frames_that_contradict_each_other_give_none(said: int) -> None:
    assert frames_of([b"aa", b"bb", b"cc", b"dd"], frames=said, table=offsets(0, 20)) == []
    # Where a frame is a fragment, or ends as an image does, the number is wrong.
    assert frames_of([b"aa", b"bb"], frames=said, table=offsets(0, 10)) == [b"aa", b"bb"]
    marked = [b"aa", b"bb" + EOI, b"cc", b"dd" + EOI]
    assert frames_of(marked, frames=said, table=offsets(0, 22)) == [b"aabb" + EOI, b"ccdd" + EOI]


def test_a_single_frame_is_whole_whatever_an_offset_table_of_one_frame_says() -> None:
    assert frames_of([b"aa", b"bb"], frames=1, table=offsets(8)) == [b"aabb"]
    assert frames_of([b"aa", b"bb"], frames=1, table=offsets(0, 7)) == []  # of several: it, or NumberOfFrames as well
    marked = [b"aa" + EOI, b"bb", b"cc"]
    assert frames_of(marked, frames=5, table=offsets(0, 12, 22)) == [b"aa" + EOI, b"bb", b"cc"]
    marked = [b"aa" + EOI, b"bb", b"cc", b"dd"]
    assert frames_of(marked, frames=5, table=offsets(0, 12, 22)) == []  # the last boundary is the table's word alone


def test_an_extended_offset_table_whose_lengths_say_otherwise_is_not_believed() -> None:
    parts = [b"aa", b"bb", b"cc"]
    for wrong in (long_offsets(4, 4), long_offsets(2, 2), long_offsets(4), long_offsets(4, 2, 0)):
        assert frames_of(parts, frames=2, extended=long_offsets(0, 20), lengths=wrong) == []
    for right in (long_offsets(4, 2), long_offsets(3, 1)):  # a fragment is padded, its frame is not
        _, scanned = image(parts, frames=2, extended=long_offsets(0, 20), lengths=right)
        assert scanned.findings == ()


def test_a_lying_offset_table_is_left_and_said() -> None:
    data, scanned = image([b"aa", b"bb"], frames=2, table=struct.pack("<II", 0, 7))
    assert scanned.frames is not None
    assert [joined(data, scanned.frames, n) for n in range(2)] == [b"aa", b"bb"]
    assert [finding.tag for finding in scanned.findings] == ["7FE00010"]


def test_an_offset_table_of_the_first_frame_alone_is_left_and_said() -> None:
    for tables in ({"table": struct.pack("<I", 0)}, {"extended": struct.pack("<Q", 0)}):
        data, scanned = image([b"aa", b"bb", b"cc"], frames=3, **tables)
        assert scanned.frames is not None
        assert [joined(data, scanned.frames, n) for n in range(scanned.frames.count)] == [b"aa", b"bb", b"cc"]
        assert [finding.tag for finding in scanned.findings] == ["7FE00010"]


@pytest.mark.parametrize("fragments", [
    [b"aa" + EOI[:1], EOI[1:] + b"\0", b"bb", b"cc" + EOI, b"dd" + EOI],  # a marker in two fragments
    [b"aa" + EOI, b"aa" + EOI, b"bb" + EOI, b"bb", b"cc" + EOI],  # what looks like one
])
def test_where_the_boundaries_are_not_known_no_frame_passes_for_another(fragments: list[bytes]) -> None:
    _, scanned = image(fragments, frames=3)
    assert scanned.frames is not None
    assert scanned.frames.count == 0
    assert [finding.tag for finding in scanned.findings] == ["7FE00010"]


@pytest.mark.parametrize(("fragments", "expected"), [
    ([b"aa", b"bb" + EOI, b"cc" + EOI], [b"aabb" + EOI, b"cc" + EOI]),
    ([b"aa" + EOI, b"bb" + EOI, b"cc"], [b"aa" + EOI, b"bb" + EOI, b"cc"]),
    ([b"aa", b"bb", b"cc"], []),
    ([b"aa"], [b"aa"]),
])
def test_of_fewer_fragments_than_frames_no_part_passes_for_a_frame(fragments: list[bytes], expected: list[bytes]) -> None:
    data, scanned = image(fragments, frames=9)
    assert scanned.frames is not None
    assert [joined(data, scanned.frames, n) for n in range(scanned.frames.count)] == expected
    assert [finding.tag for finding in scanned.findings] == ["7FE00010"]
    for syntax in (RLE, DEFLATED_FRAMES):  # no such marker in those: a frame is a fragment
        assert len(image(fragments, frames=9, transfer_syntax_uid=syntax)[1].frames.first) == len(fragments)


def test_more_images_than_are_said_to_be_there_are_frames() -> None:
    data, scanned = image([b"aa" + EOI, b"bb" + EOI, b"cc" + EOI], frames=2)
    assert scanned.frames is not None
    assert [joined(data, scanned.frames, n) for n in range(scanned.frames.count)] == [b"aa" + EOI, b"bb" + EOI, b"cc" + EOI]


def test_a_video_is_one_frame() -> None:
    data, scanned = image([b"aa", b"bb"], frames=900, transfer_syntax_uid="1.2.840.10008.1.2.4.102")
    assert scanned.frames is not None
    assert scanned.frames.count == 1
    assert joined(data, scanned.frames, 0) == b"aabb"


def test_frames_that_lie_make_no_huge_table(hostile: Path) -> None:
    table = scan((hostile / "frames-lie.dcm").read_bytes()).frames
    assert table is not None
    assert table.count == 1
    for n in (-1, 1, 999_999):
        with pytest.raises(NotFound):
            table.pieces(n)


def test_short_native_data_gives_the_frames_that_are_there() -> None:
    elements = pixels(2, 2, b"aaaabbbbcc") | {0x00280008: el(0x00280008, "IS", "3")}
    data = part10(dataset(elements))
    scanned = scan(data)
    assert scanned.frames is not None
    assert scanned.frames.count == 2
    assert joined(data, scanned.frames, 1) == b"bbbb"
    assert [finding.tag for finding in scanned.findings] == ["7FE00010"]


def test_one_bit_frames_share_bytes() -> None:
    elements = pixels(3, 3, b"\x12\x34\x56\x78", bits=1) | {0x00280008: el(0x00280008, "IS", "3")}
    table = scan(part10(dataset(elements))).frames
    assert table is not None
    start = table.offset
    assert [table.pieces(n) for n in range(3)] == [((start, 2),), ((start + 1, 2),), ((start + 2, 2),)]
    assert [table.bit_offset(n) for n in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(("rows", "bits"), [(None, 8), (0, 8), (2, None), (-1, 8)])
def test_no_frames_without_a_shape(rows: int | None, bits: int | None) -> None:
    assert Shape(rows, 2, 1, bits, 1).frame_bits == 0


def test_pixels_without_rows_are_kept() -> None:
    elements = pixels(2, 2, b"abcd")
    del elements[0x00280010]
    scanned = scan(part10(dataset(elements)))
    assert scanned.frames is None
    assert [finding.tag for finding in scanned.findings] == ["7FE00010"]


def test_encapsulated_and_native_where_the_transfer_syntax_says_otherwise() -> None:
    _, scanned = image([b"aa"], frames=1, transfer_syntax_uid="1.2.840.10008.1.2.1")
    assert scanned.findings
    native = scan(part10(dataset(pixels(2, 2, b"abcd") | {0x00280006: us(0x00280006, 0)}), J2K))
    assert native.frames is None
    assert native.findings
