"""multipart/related, both ways, in bounded memory (RFC 2046 5.1, RFC 2387).

The reader takes what clients send: a line break before the first boundary or none, LF instead of CRLF, text before and after, no
line break after the last boundary, quoted or bare boundaries of odd characters, parts without headers.
"""

from __future__ import annotations

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
        start = 0
        while self._in_part:
            found = self._buffer.find(self._delimiter, start)
            if found < 0:
                keep = len(self._delimiter) - 1
                whole = self._buffer
                if len(whole) > keep:
                    self._buffer = whole[-keep:]
                    yield memoryview(whole)[:-keep]
                start = 0
                self._more()
                continue
            after = self._after(found + len(self._delimiter))
            if after is None:
                start = found + 1  # data that only looks like it
                continue
            whole, self._buffer = self._buffer, self._buffer[after:]
            self._in_part = False
            if found:
                yield memoryview(whole)[:found]

    # ------------------------------------------------------------------------------------------------------------------------------

    def _more(self) -> None:
        block = self._read()
        if not block:
            raise Dropped
        self._buffer += block

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
            self._buffer = self._buffer[after:]
            return

    def _after(self, end: int) -> int | None:
        """Return where the line of a delimiter ends (`end`: where its boundary does); None when it is not a delimiter after all."""
        while True:
            rest = self._buffer[end : end + HEADER_BYTES]
            if rest.startswith(b"--"):
                self._closed = True
                return len(self._buffer)
            padding = len(rest) - len(rest.lstrip(b" \t"))
            told = rest[padding : padding + 2]
            if told == b"\r\n":
                return end + padding + 2
            if told[:1] == b"\n":
                return end + padding + 1
            if len(rest) == HEADER_BYTES or (told not in {b"", b"\r"} and rest != b"-"):
                return None
            self._more()

    def _headers(self) -> dict[str, str]:
        """Consume the header lines of a part and the blank line after them."""
        lines: list[bytes] = []
        used_bytes = 0
        while True:
            end = self._buffer.find(b"\n")
            if end < 0:
                if len(self._buffer) + used_bytes > HEADER_BYTES:
                    break
                self._more()
                continue
            line, self._buffer = self._buffer[:end], self._buffer[end + 1 :]
            used_bytes += end + 1
            line = line.removesuffix(b"\r")
            if not line:
                return _fields(lines)
            if len(lines) >= HEADER_LINES or used_bytes > HEADER_BYTES:
                break
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
