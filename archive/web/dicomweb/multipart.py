"""multipart/related, both ways, in bounded memory (RFC 2046 5.1, RFC 2387).

The reader takes what clients send: a line break before the first boundary or none, LF instead of CRLF, text before and after, no
line break after the last boundary, quoted or bare boundaries of odd characters, parts without headers.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from archive.errors import InvalidRequest
from archive.web.body import Dropped

BOUNDARY_CHARACTERS = 256
PREAMBLE_BYTES = 64 << 10
HEADER_BYTES = 16 << 10
HEADER_LINES = 64
PART_HEADER_BYTES = 1000
"""dcmjs-based clients never answer when a part's headers are longer."""

_AFTER = re.compile(rb"(?P<last>--)|[ \t]*(?P<line>\r?\n)|(?:-|[ \t]*\r?)\Z").match
"""What may follow a boundary: the end of the body, that of a line, or something that the next block shows to be one of these."""


class Malformed(InvalidRequest):
    """A body that is not what its Content-Type says."""

    code = "malformed-multipart"


class Reader:
    """The parts of a body that comes in blocks; each part must be read, or skipped, before the next."""

    def __init__(self, read: Callable[[], bytes], boundary: str) -> None:
        """`read` returns the next block, b"" at the end.

        Raises:
            Malformed: the boundary is empty or too long.
        """
        if not boundary or len(boundary) > BOUNDARY_CHARACTERS:
            message = "the multipart boundary is missing or too long"
            raise Malformed(message)
        self._read = read
        self._dash = b"--" + boundary.encode("latin-1", "replace")
        self._delimiter = b"\r\n" + self._dash
        self._buffer = b""
        self._at = 0  # how far of the buffer is read
        self._in_part = False
        self._closed = False

    def __iter__(self) -> Iterator[Part]:
        """Yield the parts.

        Raises:
            Malformed: no boundary at all, or headers beyond bounds.
            Dropped: the body ended before the closing boundary.
        """
        self._preamble()
        while not self._closed:
            headers = self._headers()
            self._in_part = True
            yield Part(headers, self._content)
            for _ in self._content():
                pass  # what the caller left unread

    def _content(self) -> Iterator[memoryview]:
        """Yield the bytes of the current part up to its delimiter; all state is in the reader, so it can be taken up again."""
        while self._in_part:
            at = start = self._at
            after = None
            while after is None and (found := self._buffer.find(self._delimiter, start)) >= 0:
                after, start = self._after(found + len(self._delimiter)), found + 1  # data may only look like it
            whole = self._buffer
            if after is not None:
                self._at, self._in_part = after, False
                if found > at:
                    yield memoryview(whole)[at:found]
                continue
            stop = max(at, len(whole) - len(self._delimiter) + 1)
            self._at = stop
            self._forget()
            if stop > at:
                yield memoryview(whole)[at:stop]
            self._more()

    # ------------------------------------------------------------------------------------------------------------------------------

    def _more(self) -> None:
        block = self._read()
        if not block:
            raise Dropped
        self._buffer += block

    def _forget(self) -> None:
        """Keep only what is not read: once a block, not once a part, of which a block may hold thousands."""
        self._buffer, self._at = self._buffer[self._at :], 0

    def _preamble(self) -> None:
        """Go to the first delimiter line, which also tells how this client ends its lines."""
        start = 0
        while True:
            found = self._buffer.find(self._dash, start)
            if found < 0:
                start = max(start, len(self._buffer) - len(self._dash))
                if len(self._buffer) > PREAMBLE_BYTES + len(self._dash):
                    message = "the body does not begin with its boundary"
                    raise Malformed(message)
                block = self._read()
                if not block:
                    message = "the body holds no part"
                    raise Malformed(message)
                self._buffer += block
                continue
            after = self._after(found + len(self._dash)) if found == 0 or self._buffer[found - 1 : found] == b"\n" else None
            if after is None:
                start = found + 1
                continue
            if not self._closed and self._buffer[after - 2 : after] != b"\r\n":
                self._delimiter = b"\n" + self._dash
            self._at = after
            return

    def _after(self, end: int) -> int | None:
        """Return where the line of a delimiter ends (`end`: where its boundary does); None when it is not a delimiter after all."""
        while True:
            found = _AFTER(self._buffer, end)
            if found is None or found.end() - end > HEADER_BYTES:
                return None
            if found["last"]:
                self._closed = True
                return len(self._buffer)
            if found["line"]:
                return found.end()
            self._more()

    def _headers(self) -> dict[str, str]:
        """Consume the header lines of a part and the blank line after them."""
        lines: list[bytes] = []
        start = self._at
        while True:
            end = self._buffer.find(b"\n", start)
            if end < 0:
                if len(self._buffer) - self._at > HEADER_BYTES:
                    break
                start -= self._at
                self._forget()
                self._more()
                continue
            line, start = self._buffer[start:end].removesuffix(b"\r"), end + 1
            if start - self._at > HEADER_BYTES or (line and len(lines) >= HEADER_LINES):
                break
            if not line:
                self._at = start
                return _fields(lines)
            lines.append(line)
        message = "the headers of a part are too long"
        raise Malformed(message)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One part: its headers (names in lower case), and its bytes, once.

    `chunks` yields them, each view valid until the next; called again it goes on where it stopped. It raises Dropped when the body
    ends before the part does.
    """

    headers: dict[str, str]
    chunks: Callable[[], Iterator[memoryview]]


def _fields(lines: list[bytes]) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in lines:
        text = line.decode("latin-1")
        if text[:1] in " \t":
            if name:
                fields[name] += " " + text.strip()  # a folded line
            continue
        name, colon, value = text.partition(":")
        name = name.strip().lower() if colon else ""
        if name:
            fields.setdefault(name, value.strip())
    return fields


@lru_cache(maxsize=64)
def _field_name(name: str) -> str:
    return name.replace("_", "-").title()


class Writer:
    """A multipart/related body with a boundary nobody can guess: clients look for it and nothing else."""

    def __init__(self, part_type: str) -> None:
        """`part_type` is the media type of its parts."""
        self.boundary = secrets.token_hex(20)
        self.content_type = f'multipart/related; type="{part_type}"; boundary={self.boundary}'

    def part_head(self, **headers: str) -> bytes:
        """Return the boundary and headers of the next part; names are written with dashes."""
        lines = [f"--{self.boundary}", *[f"{_field_name(name)}: {value}" for name, value in headers.items()], "\r\n"]
        return "\r\n".join(lines).encode("latin-1")

    @property
    def part_tail(self) -> bytes:
        """What stands between a part and the next boundary."""
        return b"\r\n"

    @property
    def end(self) -> bytes:
        """The closing boundary."""
        return f"--{self.boundary}--\r\n".encode("latin-1")
