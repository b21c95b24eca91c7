"""Text of a data set to Unicode; never raises.

Code extensions (ISO 2022) are decoded here rather than by pydicom: it leaves escape sequences in some names. Bytes that the declared
repertoire cannot hold become U+FFFD; `Text.faults` then says so.

Source: PS3.3 C.12.1.1.2, PS3.5 6.1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

_SINGLE = {
    "6": "",
    "13": "shift_jis",
    "14": "shift_jis",
    "100": "iso8859_1",
    "101": "iso8859_2",
    "109": "iso8859_3",
    "110": "iso8859_4",
    "126": "iso8859_7",
    "127": "iso8859_6",
    "138": "iso8859_8",
    "144": "iso8859_5",
    "148": "iso8859_9",
    "166": "iso8859_11",
    "192": "utf_8",
    "203": "iso8859_15",
}
_MULTI = {"58": "gb2312", "87": "", "149": "euc_kr", "159": ""}
_TERM = re.compile(r"ISO[ _-]?(2022)?[ _-]?IR[ _-]?(\d{1,3})")
_ALIASES = {"GB18030": "gb18030", "GBK": "gbk", "UTF8": "utf_8", "UTF-8": "utf_8", "ISO_IR192": "utf_8", "LATIN1": "iso8859_1"}


def terms() -> list[str]:
    """Return the defined terms that are read, without and with code extensions."""
    ordered = sorted({**_SINGLE, **_MULTI}, key=int)
    extended = [f"ISO 2022 IR {number}" for number in ordered if number != "192"]
    return [*(f"ISO_IR {number}" for number in ordered if number not in _MULTI), "GB18030", "GBK", *extended]


# Escape sequence (after ESC) -> (0 for G0 or 1 for G1, codec, bytes a character). PS3.3 tables C.12-3 and C.12-4.
_ESCAPES: dict[bytes, tuple[int, str, int]] = {
    b"(B": (0, "ascii", 1),
    b"(J": (0, "shift_jis", 1),
    b")I": (1, "shift_jis", 1),
    b"-A": (1, "iso8859_1", 1),
    b"-B": (1, "iso8859_2", 1),
    b"-C": (1, "iso8859_3", 1),
    b"-D": (1, "iso8859_4", 1),
    b"-F": (1, "iso8859_7", 1),
    b"-G": (1, "iso8859_6", 1),
    b"-H": (1, "iso8859_8", 1),
    b"-L": (1, "iso8859_5", 1),
    b"-M": (1, "iso8859_9", 1),
    b"-T": (1, "iso8859_11", 1),
    b"-b": (1, "iso8859_15", 1),
    b"$B": (0, "iso2022_jp", 2),
    b"$@": (0, "iso2022_jp", 2),
    b"$(B": (0, "iso2022_jp", 2),
    b"$(D": (0, "iso2022_jp_2", 2),
    b"$)C": (1, "euc_kr", 2),
    b"$)A": (1, "gb2312", 2),
}
_ANY_ESCAPE = re.compile(rb"[ -/]+[0-~]")
_SHIFT_IN = {"iso2022_jp": b"\x1b$B", "iso2022_jp_2": b"\x1b$(D"}
_HIGH_ONLY = {"gb2312", "euc_kr"}
_RUN = re.compile(rb"\x1b|[\x00-\x1a\x1c-\x1f]|[\x20-\x7e]+|[\x7f-\xff]+")


@dataclass(slots=True)
class Text:
    """The repertoire of one data set or item, and what went wrong while decoding with it."""

    codec: str = ""  # of bytes before any escape sequence; empty: the default repertoire, ASCII
    likely: str = ""  # of high bytes when `codec` is empty and no escape sequence came
    faults: set[str] = field(default_factory=set)

    def decode(self, raw: bytes, *, name: bool = False) -> str:
        """Return the text, padding kept; `name` resets code extensions at ^ and = too."""
        if raw.isascii() and b"\x1b" not in raw:
            return raw.decode("ascii")
        if b"\x1b" in raw and self.codec not in {"utf_8", "gb18030", "gbk"}:
            return self._decode_extended(raw, b"\\^=" if name else b"\\")
        if not self.codec:
            return self._decode_undeclared(raw)
        try:
            return raw.decode(self.codec)
        except UnicodeDecodeError:
            self.faults.add("bytes outside the declared character set")
            return raw.decode(self.codec, "replace")

    def _decode_undeclared(self, raw: bytes) -> str:
        # PS3.5 6.1.2.1 allows ASCII only here. Valid UTF-8 beyond ASCII is hardly ever anything else.
        self.faults.add("text beyond ASCII without a character set")
        for codec in (self.likely, "utf_8") if self.likely else ("utf_8",):
            try:
                return raw.decode(codec)
            except UnicodeDecodeError:
                continue
        return raw.decode("iso8859_1")

    def _decode_extended(self, raw: bytes, delimiters: bytes) -> str:  # noqa: C901 # one state machine
        initial1 = self.codec
        g0, width0, g1 = "ascii", 1, initial1
        if self.codec == "shift_jis":
            g0 = "shift_jis"
        out: list[str] = []
        at = 0
        while at < len(raw):
            byte = raw[at]
            if byte == 0x1B:
                known = next((code for code in (raw[at + 1 : at + 4], raw[at + 1 : at + 3]) if code in _ESCAPES), None)
                if known is None:
                    other = _ANY_ESCAPE.match(raw, at + 1)
                    at = other.end() if other else at + 1
                    self.faults.add("an unknown escape sequence")
                    continue
                at += 1 + len(known)
                side, codec, width = _ESCAPES[known]
                if side:
                    g1 = codec
                else:
                    g0, width0 = codec, width
                continue
            run = _RUN.match(raw, at)
            piece = run.group() if run else raw[at : at + 1]
            if byte < 0x20:
                out.append(chr(byte))
                g0, width0, g1 = ("shift_jis" if self.codec == "shift_jis" else "ascii"), 1, initial1 or g1
            elif byte < 0x7F and width0 == 1:
                if any(code in piece for code in delimiters):
                    # A G1 set stays when the first value names none: writers forget to repeat the escape after ^ and =.
                    g1 = initial1 or g1
                out.append(piece.decode("ascii"))
            elif byte < 0x7F:
                even = len(piece) & ~1
                out.append(self._piece(_SHIFT_IN[g0] + piece[:even] + b"\x1b(B", g0))
                if even != len(piece):
                    self.faults.add("half a character")
            else:
                out.append(self._piece(piece, g1))
            at += len(piece)
        return "".join(out)

    def _piece(self, piece: bytes, codec: str) -> str:
        if not codec:
            return self._decode_undeclared(piece)
        try:
            return piece.decode(codec)
        except UnicodeDecodeError:
            self.faults.add("bytes outside the declared character set")
            return piece.decode(codec, "replace")


def repertoire(raw: bytes | None) -> Text:
    """Return the decoder that a value of (0008,0005) asks for; None or empty means ASCII."""
    if raw is None:
        return Text()
    codec, likely, faults = (_declared if len(raw) <= 64 else _declared.__wrapped__)(raw)
    return Text(codec, likely, set(faults))


@lru_cache(maxsize=256)
def _declared(raw: bytes) -> tuple[str, str, frozenset[str]]:
    faults: set[str] = set()
    terms = [term.strip(b" \0").decode("ascii", "replace").upper() for term in raw.split(b"\\")]
    codecs = [_codec(term, faults) for term in terms]
    # The usual "\ISO 2022 IR 149": high bytes without an escape sequence can only be meant in it.
    likely = next((codec for codec in codecs if codec in _HIGH_ONLY), "")
    return "" if codecs[0] in _HIGH_ONLY else codecs[0], likely, frozenset(faults)


def _codec(term: str, faults: set[str]) -> str:
    """Return Python's codec for a defined term, empty for the default repertoire and for what is unknown."""
    found = _TERM.fullmatch(term)
    number = found[2] if found else ""
    if number in _SINGLE:
        if term not in {f"ISO_IR {number}", f"ISO 2022 IR {number}"}:
            faults.add("a misspelt character set")
        return _SINGLE[number]
    if number in _MULTI:
        return _MULTI[number]
    if term and term not in _ALIASES:
        faults.add("an unknown character set")
    return _ALIASES.get(term, "")
