"""Preamble and file meta information as they arrive, and what a data set's first bytes say about its encoding.

Source: PS3.10 7.1, PS3.5 A.
"""

from __future__ import annotations

import struct
from typing import Literal

from archive.dicom.dictionary import vr_of
from archive.dicom.transfer import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE, TRANSFER_SYNTAXES
from archive.dicom.values import LONG, SHORT
from archive.errors import InvalidInstance, UnsupportedClass

MAX_META = 1 << 20
"""The longest file meta information."""
_KNOWN = SHORT | LONG
_NO_PREAMBLE = bytes(128)
_GROUP = b"\2\0"
_READ = (0x0002, 0x0003, 0x0010)
_TOO_LONG = "the file meta information is longer than the limit"


class FileMeta:
    """Reads preamble and group 2; wrong or missing group lengths do not matter."""

    def __init__(self) -> None:
        """Nothing has come yet."""
        self.preamble: Literal["zero", "tiff", "other"] = "zero"
        self.values: dict[int, str] = {}  # SOP class, SOP instance and transfer syntax UID by element number
        self.end = 132  # how far it is read; in the end where the data set begins
        self._held = bytearray()
        self._want = 132
        self._made = b""

    def begin(self, made: bytes, uids: tuple[str, str, str]) -> None:
        """Take what `part10.meta` made of these UIDs (SOP class, SOP instance, transfer syntax) as read; before anything is fed."""
        self._made = made
        self.values = dict(zip(_READ, (uid.encode("ascii", "replace").decode("ascii").strip(" \0") for uid in uids), strict=True))
        self.end = len(made)

    def feed(self, data: memoryview, *, last: bool = False) -> memoryview | None:
        """Take bytes; return those of the data set once its first 8 are there (or `last`), None before.

        Raises:
            InvalidInstance: no Part 10 file, or one that ends inside its meta.
        """
        if self._made:
            if len(data) < 8 or data[:2] == _GROUP:
                # Not as it always is: read from the beginning.
                self._held, self._made = bytearray(self._made), b""
                self.values, self.end = {}, 132
            else:
                return data
        if len(self._held) + len(data) < self._want and not last:
            self._held += data
            return None
        view = data
        if self._held:
            self._held += data
            view = memoryview(self._held)
        if self.end == 132:
            self._check_start(view)
        done = self._walk(view)
        if done or (last and len(view) - self.end < 8 and self._want == self.end + 8):
            self._held = bytearray()
            return view[self.end :]
        if last:
            raise InvalidInstance("the file ends inside of its file meta information")
        if len(view) > MAX_META:
            raise InvalidInstance(_TOO_LONG, reason="too-large")
        if self._held:
            view.release()  # or nothing could be added
        else:
            self._held += data
        return None

    def _check_start(self, view: memoryview) -> None:
        if len(view) < 132 or bytes(view[128:132]) != b"DICM":
            if len(view) >= 132 or bytes(view[:2]) in (b"\2\0", b"\0\2", b"\x08\0", b"\0\x08"):
                raise InvalidInstance("there is no preamble with DICM at the beginning", reason="no-meta")
            raise InvalidInstance("the file ends before its file meta information")
        if view[:128] != _NO_PREAMBLE:
            self.preamble = "tiff" if bytes(view[:4]) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+") else "other"

    def _walk(self, view: memoryview) -> bool:
        """Go on reading elements; say whether the data set is reached."""
        while True:
            self._want = self.end + 8
            if len(view) < self._want:
                return False
            group, number, code, length = struct.unpack_from("<HH2sH", view, self.end)
            if group != 2:
                return True
            start = self.end + 8
            if code not in SHORT:
                self._want = self.end + 12
                if len(view) < self._want:
                    return False
                start = self.end + 12 if code in LONG else start
                length = struct.unpack_from("<I", view, start - 4)[0]
            if length > MAX_META:
                raise InvalidInstance(_TOO_LONG, reason="too-large")
            self._want = start + length
            if len(view) < self._want:
                return False
            if number in _READ:
                self.values.setdefault(number, bytes(view[start : self._want]).decode("ascii", "replace").strip(" \0"))
            self.end = self._want


def sniff(first: bytes, transfer_syntax_uid: str) -> tuple[bool, bool, str]:
    """Return whether a data set that begins with these 8 bytes is in implicit VR and in little endian, and what contradicts its meta.

    Raises:
        InvalidInstance: the other byte order than its transfer syntax says.
        UnsupportedClass: an unknown transfer syntax that is not in explicit VR little endian.
    """
    declared_little = transfer_syntax_uid != EXPLICIT_BE
    implicit = transfer_syntax_uid == IMPLICIT_LE
    if len(first) < 8:
        return implicit, declared_little, ""
    group_little, element = struct.unpack_from("<HH", first)
    group_big = group_little >> 8 | (group_little & 0xFF) << 8
    if group_little != group_big and (group_little < group_big) != declared_little:
        raise InvalidInstance("the data set is in the other byte order than its transfer syntax says")
    code = first[4:6]
    tag = (group_little << 16 | element) if declared_little else int.from_bytes(first[:4], "big")
    explicit = code in _KNOWN
    if transfer_syntax_uid not in TRANSFER_SYNTAXES and not explicit:
        raise UnsupportedClass("an unknown transfer syntax whose data set is not in explicit VR little endian")
    if implicit and explicit and vr_of(tag) in {code.decode("ascii"), "UN"}:
        return False, True, "the data set is in explicit VR, its transfer syntax says implicit"
    if not implicit and not explicit and declared_little and vr_of(tag) != "UN" and not (code.isalpha() and code.isupper()):
        length = struct.unpack_from("<I", first, 4)[0]
        if length < 0x10000:
            return True, True, "the data set is in implicit VR, its transfer syntax says explicit"
    return implicit, declared_little, ""


def guess(first: bytes) -> str | None:
    """Return the transfer syntax that the first 8 bytes of a data set look like, None when like none."""
    if len(first) < 8:
        return None
    little, big = struct.unpack_from("<H", first)[0], struct.unpack_from(">H", first)[0]
    if big < little:
        return EXPLICIT_BE if first[4:6] in _KNOWN else None
    if first[4:6] in _KNOWN:
        return EXPLICIT_LE
    tag = little << 16 | struct.unpack_from("<H", first, 2)[0]
    length = struct.unpack_from("<I", first, 4)[0]
    return IMPLICIT_LE if vr_of(tag) != "UN" and length < 0x10000 else None
