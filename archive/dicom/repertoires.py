"""Unicode to the text of a data set, in a character set that somebody else has chosen; the way back from charsets.py.

Source: PS3.3 C.12.1.1.2, PS3.5 6.1 and 6.2.1.2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from archive.dicom.charsets import repertoire

UTF_8 = b"ISO_IR 192"

_TERM = re.compile(r"ISO(?: 2022 |_)IR (\d{1,3})")
_DELIMITERS = re.compile(r"([\\^=\r\n\t\f])")
# Term -> escape sequence, codec, whether it is designated to G0 (two bytes a character) or G1. PS3.3 tables C.12-3 and C.12-4.
_EXTENSIONS: dict[str, tuple[bytes, str, bool]] = {
    "13": (b"\x1b)I", "shift_jis", False),
    "58": (b"\x1b$)A", "gb2312", False),
    "87": (b"\x1b$B", "iso2022_jp", True),
    "100": (b"\x1b-A", "iso8859_1", False),
    "101": (b"\x1b-B", "iso8859_2", False),
    "109": (b"\x1b-C", "iso8859_3", False),
    "110": (b"\x1b-D", "iso8859_4", False),
    "126": (b"\x1b-F", "iso8859_7", False),
    "127": (b"\x1b-G", "iso8859_6", False),
    "138": (b"\x1b-H", "iso8859_8", False),
    "144": (b"\x1b-L", "iso8859_5", False),
    "148": (b"\x1b-M", "iso8859_9", False),
    "149": (b"\x1b$)C", "euc_kr", False),
    "159": (b"\x1b$(D", "iso2022_jp_2", True),
    "166": (b"\x1b-T", "iso8859_11", False),
    "203": (b"\x1b-b", "iso8859_15", False),
}
_TO_ASCII = b"\x1b(B"


@dataclass(frozen=True, slots=True)
class _Extension:
    escape: bytes
    codec: str
    in_g0: bool

    def bytes_of(self, character: str) -> bytes:
        """Return a character's bytes behind the escape sequence, none when the set has it not."""
        made = _bytes(character, self.codec)
        if self.in_g0:
            return made[len(self.escape) : -len(_TO_ASCII)] if made.startswith(self.escape) else b""
        return b"" if self.codec == "shift_jis" and len(made) != 1 else made


def encoded(text: str, declared: bytes, *, name: bool = False) -> bytes | None:
    """Return the text in the repertoire that this value of (0008,0005) names, None when it has not all of it.

    What is returned reads as the same text again.
    """
    if text.isascii():
        return text.encode("ascii")
    made = _made(text, declared)
    return made if made is not None and repertoire(declared).decode(made, name=name) == text else None


def _made(text: str, declared: bytes) -> bytes | None:
    if b"\\" in declared or b"2022" in declared:
        return _extended(text, declared)
    codec = repertoire(declared).codec
    try:
        made = text.encode(codec or "ascii")
    except UnicodeEncodeError:
        return None
    # ISO_IR 13 alone has one byte a character; Python's codec knows the kanji besides.
    return None if codec == "shift_jis" and len(made) != len(text) else made


def _extended(text: str, declared: bytes) -> bytes | None:
    """Encode with code extensions; each component and value begins in the initial repertoire, and ends in it."""
    extensions = _extensions(declared)
    initial = repertoire(declared).codec
    initial = "" if initial == "shift_jis" else initial  # its katakana take the escape sequence: harmless, and plain
    pieces = [_piece(piece, initial, extensions) for piece in _DELIMITERS.split(text)]
    return None if None in pieces else b"".join(piece for piece in pieces if piece is not None)


def _piece(text: str, initial: str, extensions: tuple[_Extension, ...]) -> bytes | None:
    out = bytearray()
    designated = [b"", b""]  # to G1 and G0
    for character in text:
        if character.isascii():
            out += _TO_ASCII if designated[1] else b""
            designated[1] = b""
            out += character.encode("ascii")
        elif initial and not designated[0] and (plain := _bytes(character, initial)):
            out += plain
        else:
            found = next(((one, made) for one in extensions if (made := one.bytes_of(character))), None)
            if found is None:
                return None
            one, made = found
            if designated[one.in_g0] != one.escape:
                out += one.escape
                designated[one.in_g0] = one.escape
            out += made
    return bytes(out + _TO_ASCII) if designated[1] else bytes(out)


@lru_cache(maxsize=64)
def _extensions(declared: bytes) -> tuple[_Extension, ...]:
    found = []
    for term in declared.decode("ascii", "replace").split("\\"):
        match = _TERM.fullmatch(term.strip(" \0"))
        number = match[1] if match else ""
        if number in _EXTENSIONS:
            found.append(_Extension(*_EXTENSIONS[number]))
    return tuple(found)


def _bytes(character: str, codec: str) -> bytes:
    try:
        return character.encode(codec)
    except UnicodeEncodeError:
        return b""
