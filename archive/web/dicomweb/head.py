"""The first bytes of a part: is its Part 10 prefix there, and what does its file meta call it.

A failed part must be reported under the UIDs it came with, also when nothing else of it could be understood; and one client leaves
out preamble and prefix, which are put back.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from archive.web.dicomweb import urls

PREFIX = bytes(128) + b"DICM"
_META_BYTES = 8192
_LONG_LENGTH = frozenset({b"OB", b"OW", b"UN", b"UT", b"SQ", b"OF", b"OD", b"OL", b"OV", b"UC", b"UR", b"SV", b"UV"})
_CLASS, _INSTANCE = 0x0002, 0x0003


class Head:
    """Looks at the bytes of one part as they pass."""

    def __init__(self) -> None:
        """Start before the first byte."""
        self._held = b""
        self._passed = False
        self._meta = b""
        self.wrapped = False

    def feed(self, chunk: memoryview) -> Iterator[bytes | memoryview]:
        """Yield what the store gets for `chunk`; nothing while the prefix cannot be judged yet."""
        if self._passed:
            if len(self._meta) < _META_BYTES:
                self._meta += bytes(chunk[: _META_BYTES - len(self._meta)])
            yield chunk
            return
        self._held += bytes(chunk)
        if len(self._held) >= len(PREFIX):
            yield from self.rest()

    def rest(self) -> Iterator[bytes]:
        """Yield what is still held back, and the prefix before it when it is missing."""
        if self._passed:
            return
        self._passed = True
        start, self._held = self._held, b""
        if start[128:132] != b"DICM" and start[:2] == b"\x02\x00" and start[4:6].isalpha() and start[4:6].isupper():
            self.wrapped = True
            yield PREFIX
            self._meta = start[:_META_BYTES]
        else:
            self._meta = start[len(PREFIX) : len(PREFIX) + _META_BYTES]
        if start:
            yield start

    @property
    def uids(self) -> tuple[str, str]:
        """SOP Class UID and SOP Instance UID as the file meta gives them; "" for what is absent, or is no UID."""
        found: dict[int, str] = {}
        meta, at = self._meta, 0
        while at + 8 <= len(meta):
            group, element = struct.unpack_from("<HH", meta, at)
            if group != 2:
                break
            if meta[at + 4 : at + 6] in _LONG_LENGTH:
                if at + 12 > len(meta):
                    break
                length, value_at = struct.unpack_from("<I", meta, at + 8)[0], at + 12
            else:
                length, value_at = struct.unpack_from("<H", meta, at + 6)[0], at + 8
            if element in {_CLASS, _INSTANCE}:
                found[element] = meta[value_at : value_at + length].decode("latin-1").rstrip("\0 ")
            at = value_at + length
        sop_class, sop_instance = found.get(_CLASS, ""), found.get(_INSTANCE, "")
        return sop_class if urls.is_uid(sop_class) else "", sop_instance if urls.is_uid(sop_instance) else ""
