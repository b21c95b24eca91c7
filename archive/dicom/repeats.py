"""Elements that stand in one data set as they stood in the one before it are not read again: most of a series' headers are equal.

What the top-level element of some bytes is read as depends on these bytes alone, on the encoding and on the character set, as long as
reading it did not run into the end of the data set. Whatever took more than that (an address, PixelRepresentation) is not remembered.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from archive.dicom.charsets import Text
from archive.dicom.runs import READ
from archive.dicom.values import Element

KEPT_BYTES = 1 << 20
"""A series whose elements are never the same twice takes no more; then it begins anew."""
_CHARSET = 0x00080005


class _Read(NamedTuple):
    raw: bytes
    spelt: tuple[str, str]
    name: str
    element: Element


class Repeats:
    """Remembers the elements of data sets that are read one after the other; used by one thread."""

    def __init__(self) -> None:
        """Remember none."""
        self.more = 0
        """Counts what was read from more than the bytes of an element; whoever reads counts."""
        self._coding: tuple[bool, bool, int] | None = None
        self._known: dict[int, _Read] = {}
        self._bytes = 0
        self._reading: tuple[int, int, int, tuple[str, str], str] | None = None

    def begin(self, implicit: bool, little: bool, inline_bytes: int) -> None:
        """Another data set begins."""
        coding = implicit, little, inline_bytes
        if coding != self._coding or self._bytes > KEPT_BYTES:
            self._coding, self._known, self._bytes = coding, {}, 0
        self._head = READ["<" if little else ">"][0]
        self._reading = None

    def past(self, buffer: bytes, position: int, document: dict[str, Any], text: Text) -> int:
        """Put known elements from `position` on into the document, and return where the first lies that has to be read.

        At least 8 bytes are left at `position`. The element returned last time, which has been read since, is remembered.
        """
        if self._reading is not None:
            self._note(buffer, position, document)
        spelt = text.codec, text.likely
        known, head, last = self._known, self._head, len(buffer) - 8
        while position <= last:
            group, element = head(buffer, position)
            tag = group << 16 | element
            found = known.get(tag)
            if found is None or found.spelt != spelt or found.name in document or not buffer.startswith(found.raw, position):
                name = f"{group:04X}{element:04X}"
                if tag != _CHARSET and name not in document:
                    self._reading = position, tag, self.more, spelt, name
                return position
            document[found.name] = found.element
            position += len(found.raw)
        return position

    def _note(self, buffer: bytes, position: int, document: dict[str, Any]) -> None:
        assert self._reading is not None
        start, tag, more, spelt, name = self._reading
        self._reading = None
        element = document.get(name)
        if element is None or self.more != more:
            return
        if (before := self._known.get(tag)) is not None:
            self._bytes -= len(before.raw)
        raw = buffer[start:position]
        self._known[tag] = _Read(raw, spelt, name, element)
        self._bytes += len(raw)
