"""charsets: every defined term, ISO 2022 with and without the escapes writers forget, and no byte that makes it raise."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.charset import decode_bytes

from archive.dicom.charsets import repertoire

# The examples of PS3.5 annexes H, I, J and K, per component group.
NAMES = [
    (
        b"\\ISO 2022 IR 87",
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
        "Yamada^Tarou=山田^太郎=やまだ^たろう",
    ),
    (
        b"ISO 2022 IR 13\\ISO 2022 IR 87",
        b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J=\x1b$B$d$^$@\x1b(J^\x1b$B$?$m$&\x1b(J",
        "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
    ),
    (
        b"\\ISO 2022 IR 149",
        b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
        "Hong^Gildong=洪^吉洞=홍^길동",
    ),
    (b"\\ISO 2022 IR 58", b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=", "Zhang^XiaoDong=张^小东="),
    (b"\\ISO 2022 IR 58", b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\xd0\xa1\xb6\xab=", "Zhang^XiaoDong=张^小东="),  # the escape forgotten after ^
    (b"\\ISO 2022 IR 149", b"Hong^Gildong=\xfb\xf3^\xd1\xce\xd4\xd7", "Hong^Gildong=洪^吉洞"),  # and altogether
    (b"ISO_IR 192", "Wang^XiaoDong=王^小東".encode(), "Wang^XiaoDong=王^小東"),
    (b"GB18030", "Wang^XiaoDong=王^小东".encode("gb18030"), "Wang^XiaoDong=王^小东"),
    (b"GBK", "Wang=王".encode("gbk"), "Wang=王"),
    (b"ISO_IR 100", "Äneas^Rüdiger".encode("latin-1"), "Äneas^Rüdiger"),
    (b"ISO_IR 144", "Люкceмбypг".encode("iso8859_5"), "Люкceмбypг"),
    (b"ISO_IR 126", "Διονυσιος".encode("iso8859_7"), "Διονυσιος"),
    (b"ISO_IR 127", "قباني^لنزار".encode("iso8859_6"), "قباني^لنزار"),
    (b"ISO_IR 138", "שרון^דבורה".encode("iso8859_8"), "שרון^דבורה"),
    (b"ISO_IR 166", "ไทย".encode("iso8859_11"), "ไทย"),
    (b"ISO_IR 203", "€".encode("iso8859_15"), "€"),
    (b"ISO 2022 IR 100\\ISO 2022 IR 144", b"\xc4neas=\x1b-L\xbb\xee", "Äneas=Лю"),
    (b"ISO-IR 100", b"\xc4", "Ä"),  # a real file spells it so
    (b"", b"Plain^Name", "Plain^Name"),
]


@pytest.mark.parametrize(("term", "raw", "text"), NAMES)
def test_names_of_the_standard(term: bytes, raw: bytes, text: str) -> None:
    assert repertoire(term).decode(raw, name=True) == text


@pytest.mark.parametrize(
    "term", ["ISO_IR 101", "ISO_IR 109", "ISO_IR 110", "ISO_IR 148", "ISO_IR 13", "ISO_IR 100", "ISO_IR 126", "ISO_IR 144"]
)
def test_single_byte_terms_agree_with_pydicom(term: str) -> None:
    raw = bytes(code for code in range(0xA1, 0xDF) if code not in (0xA4, 0xA5, 0xAA, 0xAE, 0xBE, 0xC3, 0xD0, 0xD2))
    from pydicom.charset import convert_encodings

    assert repertoire(term.encode()).decode(raw) == decode_bytes(raw, convert_encodings([term]), set())


def test_a_backslash_inside_a_japanese_character_is_no_delimiter() -> None:
    # 0x5C is the second byte of this one.
    raw = b"\x1b$B" + "噂".encode("iso2022_jp")[3:5] + b"\x1b(B"
    assert repertoire(b"\\ISO 2022 IR 87").decode(raw) == "噂"
    assert repertoire(b"GB18030").decode("蘚\\a".encode("gb18030")) == "蘚\\a"


def test_unknown_terms_and_bad_bytes_are_said() -> None:
    unknown = repertoire(b"KLINGON")
    assert unknown.decode(b"caf\xe9") == "café"
    assert unknown.faults == {"an unknown character set", "text beyond ASCII without a character set"}
    bad = repertoire(b"ISO_IR 192")
    assert bad.decode(b"\xff\xfeA\xc3(") == "\ufffd\ufffdA\ufffd("
    assert bad.faults == {"bytes outside the declared character set"}


def test_utf8_without_a_declaration_is_read_as_such() -> None:
    text = repertoire(None)
    assert text.decode("Müller".encode()) == "Müller"
    assert text.faults


TERMS = [b"", b"x", b"GB18030", b"ISO_IR 192", *(term for term, _, _ in NAMES if b"2022" in term)]


@given(st.sampled_from(TERMS), st.binary())
def test_nothing_makes_it_raise_and_no_escape_survives(term: bytes, raw: bytes) -> None:
    decoded = repertoire(term).decode(raw, name=True)
    decoded.encode("utf-8")
    if term.startswith((b"\\", b"ISO 2022")):
        assert "\x1b" not in decoded


@pytest.mark.parametrize("name", [False, True])
def test_values_without_number_are_read_in_the_time_of_their_bytes(name: bool) -> None:
    began = time.process_time()
    assert repertoire(b"ISO 2022 IR 100").decode(b"\x1b(B" + b"\\" * 200_000, name=name) == "\\" * 200_000
    assert time.process_time() - began < 5
