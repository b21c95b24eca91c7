"""The messages of LDAP that a sign-in needs, written and read: bind, search, StartTLS, unbind.

A filter is built of values, never of text, so no name can be read as one. Every length is looked at before what it counts.

Source: RFC 4511; X.690 8 (BER, definite lengths alone, as RFC 4511 5.1 has it); RFC 4514 2.4 (distinguished names).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

SUCCESS, TIME_LIMIT_EXCEEDED, SIZE_LIMIT_EXCEEDED, REFERRAL, NO_SUCH_OBJECT, INVALID_CREDENTIALS = 0, 3, 4, 10, 32, 49
BIND_RESPONSE, SEARCH_ENTRY, SEARCH_DONE, SEARCH_REFERENCE, EXTENDED_RESPONSE = 0x61, 0x64, 0x65, 0x73, 0x78
START_TLS = "1.3.6.1.4.1.1466.20037"
NO_ATTRIBUTES = "1.1"
MOST_BYTES = 4 << 20
_INTEGER, _OCTETS, _ENUMERATED, _SEQUENCE, _SET, _BOOLEAN = 0x02, 0x04, 0x0A, 0x30, 0x31, 0x01
_BASE_OBJECT, _WHOLE_SUBTREE, _NEVER_DEREFERENCE = 0, 2, 0


class Malformed(Exception):
    """Bytes that are no message of LDAP."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message: its number, the tag of its operation, and what that holds."""

    number: int
    tag: int
    body: bytes

    @property
    def result(self) -> int:
        """The result code of a response."""
        for tag, value in parts(self.body):
            if tag != _ENUMERATED:
                break
            return int.from_bytes(value, "big")
        raise Malformed


@dataclass(frozen=True, slots=True)
class Entry:
    """What a search found; attributes by their name in lower case."""

    dn: str
    attributes: Mapping[str, list[str]]


# --- writing ---


def bind(number: int, dn: str, password: str) -> bytes:
    """Return a simple bind; a password is never empty, for a bind without one succeeds and proves nothing (RFC 4513 5.1.2).

    Raises:
        ValueError: an empty name or password.
    """
    if not dn or not password:
        message = "a bind needs a name and a password"
        raise ValueError(message)
    return _message(number, 0x60, _integer(3) + _octets(dn) + _tlv(0x80, password.encode("utf-8", "surrogatepass")))


def start_tls(number: int) -> bytes:
    """Return the request to go on over TLS."""
    return _message(number, 0x77, _tlv(0x80, START_TLS.encode()))


def search(
    number: int, base: str, wanted: bytes, attributes: Sequence[str], *, only: bool = False, limit: int = 2, seconds: int = 5
) -> bytes:
    """Return a search below `base`, or with `only` of that entry alone; aliases are not followed."""
    scope = _BASE_OBJECT if only else _WHOLE_SUBTREE
    return _message(number, 0x63, b"".join((
        _octets(base), _tlv(_ENUMERATED, bytes((scope,))), _tlv(_ENUMERATED, bytes((_NEVER_DEREFERENCE,))), _integer(limit),
        _integer(seconds), _tlv(_BOOLEAN, b"\x00"), wanted, _tlv(_SEQUENCE, b"".join(map(_octets, attributes))),
    )))


def unbind(number: int) -> bytes:
    """Return the farewell."""
    return _message(number, 0x42, b"")


def equal(attribute: str, value: str) -> bytes:
    """Return the filter that an attribute has a value."""
    return _tlv(0xA3, _octets(attribute) + _octets(value))


def present(attribute: str) -> bytes:
    """Return the filter that an attribute is there."""
    return _tlv(0x87, attribute.encode())


def both(*filters: bytes) -> bytes:
    """Return the filter that all hold."""
    return _tlv(0xA0, b"".join(filters))


def either(*filters: bytes) -> bytes:
    """Return the filter that one holds."""
    return _tlv(0xA1, b"".join(filters))


def escaped(value: str) -> str:
    """Return a value as it stands in a distinguished name."""
    out = "".join("\\" + character if character in '"+,;<>\\=#' else "\\00" if character == "\0" else character for character in value)
    if out.endswith(" "):
        out = out[:-1] + "\\ "
    return "\\" + out if out.startswith(" ") else out


def _message(number: int, tag: int, body: bytes) -> bytes:
    return _tlv(_SEQUENCE, _integer(number) + _tlv(tag, body))


def _octets(text: str) -> bytes:
    return _tlv(_OCTETS, text.encode("utf-8", "surrogatepass"))


def _integer(value: int) -> bytes:
    return _tlv(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _tlv(tag: int, value: bytes) -> bytes:
    count = len(value)
    if count < 0x80:
        return bytes((tag, count)) + value
    length = count.to_bytes((count.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + value


# --- reading ---


def needed(held: bytes | bytearray) -> int:
    """Return how many bytes the message that begins in `held` has, 0 when that cannot be told yet.

    Raises:
        Malformed: it begins with something else, or is longer than any message here.
    """
    if held and held[0] != _SEQUENCE:
        raise Malformed
    if len(held) < 2:
        return 0
    first = held[1]
    if first < 0x80:
        return 2 + first
    octets = first & 0x7F
    if not 1 <= octets <= 4:
        raise Malformed
    if len(held) < 2 + octets:
        return 0
    count = 2 + octets + int.from_bytes(held[2:2 + octets], "big")
    if count > MOST_BYTES:
        raise Malformed
    return count


def read(data: bytes) -> Message:
    """Return a whole message.

    Raises:
        Malformed.
    """
    outer = list(parts(data))
    if len(outer) != 1 or outer[0][0] != _SEQUENCE:
        raise Malformed
    inner = list(parts(outer[0][1]))
    if len(inner) < 2 or inner[0][0] != _INTEGER or len(inner[0][1]) > 4:
        raise Malformed
    return Message(int.from_bytes(inner[0][1], "big"), inner[1][0], inner[1][1])


def entry(message: Message) -> Entry:
    """Return the entry of a search's answer; a value that is no text is left out.

    Raises:
        Malformed.
    """
    held = list(parts(message.body))
    if len(held) != 2 or held[0][0] != _OCTETS or held[1][0] != _SEQUENCE:
        raise Malformed
    attributes: dict[str, list[str]] = {}
    for tag, one in parts(held[1][1]):
        pair = list(parts(one))
        if tag != _SEQUENCE or len(pair) != 2 or pair[0][0] != _OCTETS or pair[1][0] != _SET:
            raise Malformed
        values = [_text(value) for _, value in parts(pair[1][1])]
        attributes[(_text(pair[0][1]) or "").lower()] = [value for value in values if value is not None]
    dn = _text(held[0][1])
    if dn is None:
        raise Malformed
    return Entry(dn, attributes)


def parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and value of each element that follow each other.

    Raises:
        Malformed: a tag of several bytes, a length without an end, or one that leads beyond the data.
    """
    place = 0
    while place < len(data):
        if len(data) - place < 2 or data[place] & 0x1F == 0x1F:
            raise Malformed
        tag, count = data[place], data[place + 1]
        place += 2
        if count >= 0x80:
            octets = count & 0x7F
            if not 1 <= octets <= 4 or len(data) - place < octets:
                raise Malformed
            count = int.from_bytes(data[place:place + octets], "big")
            place += octets
        if count > len(data) - place:
            raise Malformed
        yield tag, data[place:place + count]
        place += count


def _text(value: bytes) -> str | None:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return None
