"""Unicode to text in a chosen character set: what comes out reads as the same text, or is said not to go."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archive.dicom.charsets import repertoire
from archive.dicom.repertoires import encoded

# PS3.5 annexes H, I, J, K and PS3.3 C.12.1.1.2; the bytes are the standard's where it prints them.
EXAMPLES = [
    ("Yamada^Tarou=山田^太郎=やまだ^たろう", rb"\ISO 2022 IR 87",
     b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B"),
    ("Hong^Gildong=洪^吉洞=홍^길동", rb"\ISO 2022 IR 149",
     b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf"),
    ("Wang^XiaoDong=王^小东", b"GB18030", b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab"),
    ("Wang^XiaoDong=王^小東=", b"ISO_IR 192", "Wang^XiaoDong=王^小東=".encode()),
    ("Buc^Jérôme", b"ISO_IR 100", b"Buc^J\xe9r\xf4me"), ("Äneas^Rüdiger", b"ISO_IR 100", b"\xc4neas^R\xfcdiger"),
    ("Διονυσιος", b"ISO_IR 126", b"\xc4\xe9\xef\xed\xf5\xf3\xe9\xef\xf2"), ("Люкceмбypг", b"ISO_IR 144", b"\xbb\xee\xdace\xdc\xd1yp\xd3"),
    ("שרון^דבורה", b"ISO_IR 138", b"\xf9\xf8\xe5\xef^\xe3\xe1\xe5\xf8\xe4"), ("Zhang^XiaoDong=张^小东", rb"\ISO 2022 IR 58",
     b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "declared", "expected"), EXAMPLES)
def test_the_standards_examples(text: str, declared: bytes, expected: bytes) -> None:
    assert encoded(text, declared, name=True) == expected


@pytest.mark.parametrize(("text", "declared"), [
    ("山田", b""), ("山田", b"ISO_IR 100"), ("Ж", b"ISO_IR 100"), ("홍", rb"\ISO 2022 IR 87"), ("ü", b"ISO_IR 144"), ("山", b"ISO_IR 13"),
    ("ü", b"NO SUCH SET"), ("😀", rb"ISO 2022 IR 6\ISO 2022 IR 87\ISO 2022 IR 159"), ("ü", b"\xff\xfe"),
])
def test_what_a_set_has_not(text: str, declared: bytes) -> None:
    assert encoded(text, declared, name=True) is None


_SETS = st.sampled_from([
    b"", b"ISO_IR 100", b"ISO_IR 101", b"ISO_IR 109", b"ISO_IR 110", b"ISO_IR 126", b"ISO_IR 127", b"ISO_IR 138", b"ISO_IR 144",
    b"ISO_IR 148", b"ISO_IR 166", b"ISO_IR 13", b"ISO_IR 192", b"GB18030", b"GBK", rb"\ISO 2022 IR 87", rb"ISO 2022 IR 13\ISO 2022 IR 87",
    rb"\ISO 2022 IR 149", rb"\ISO 2022 IR 58", rb"ISO 2022 IR 100\ISO 2022 IR 144", rb"ISO 2022 IR 6\ISO 2022 IR 87\ISO 2022 IR 159", b"?",
])  # fmt: skip
_TEXT = st.text(st.sampled_from("aZ^= \\~üßЖ山田太郎やﾔ홍길동东é€שΔ\n\x1b😀𠮷"), max_size=12)


@given(declared=_SETS, text=_TEXT, name=st.booleans())
@settings(max_examples=400, deadline=None)
def test_what_is_encoded_reads_as_it_was(declared: bytes, text: str, name: bool) -> None:
    made = encoded(text, declared, name=name)
    if made is not None and not text.isascii():
        assert repertoire(declared).decode(made, name=name) == text
