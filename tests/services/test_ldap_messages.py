"""LDAP as bytes: what others wrote is read, what nobody should write is refused."""

from __future__ import annotations

import random

import pytest

from archive.services import ldap_messages as messages
from archive.services.ldap_messages import Malformed

# RFC 4511 B.1-like, by hand: a search entry of "uid=mia,dc=x" with mail of two values, one of which is no text.
ENTRY = bytes.fromhex(
    "3034020103642f040c7569643d6d69612c64633d78301f301d04044d61696c311504096d6961406e2e632e78"
    "0402fffe040462406363"
)
BOUND = bytes.fromhex("300c02010161070a010004000400")


def test_what_others_wrote_is_read() -> None:
    assert messages.read(BOUND) == messages.Message(1, messages.BIND_RESPONSE, bytes.fromhex("0a010004000400"))
    assert messages.read(BOUND).result == messages.SUCCESS
    found = messages.entry(messages.read(ENTRY))
    assert found.dn == "uid=mia,dc=x"
    assert found.attributes == {"mail": ["mia@n.c.x", "b@cc"]}


def test_what_is_written_is_what_the_standard_says() -> None:
    assert messages.bind(1, "cn=a", "pw").hex() == "3012020101600d0201030404636e3d6180027077"
    assert messages.unbind(3).hex() == "30050201034200"
    assert messages.start_tls(1).hex() == "301d02010177188016" + messages.START_TLS.encode().hex()
    assert messages.both(messages.equal("a", "*"), messages.present("b")).hex() == "a00ba30604016104012a870162"
    assert messages.read(messages.bind(127, "a" * 200, "b" * 70_000)).number == 127
    assert messages.read(messages.unbind(128)).number == 128


@pytest.mark.parametrize(("dn", "password"), [("", "x"), ("x", ""), ("", "")])
def test_a_bind_without_a_name_or_a_password_is_never_sent(dn: str, password: str) -> None:
    with pytest.raises(ValueError, match="needs"):
        messages.bind(1, dn, password)


def test_how_much_a_message_takes_is_known_before_it_is_there() -> None:
    assert [messages.needed(ENTRY[:count]) for count in range(4)] == [0, 0, 54, 54]
    long = messages.bind(1, "a", "b" * 300)
    assert [messages.needed(long[:count]) for count in range(5)] == [0, 0, 0, 0, len(long)]
    for wrong in (b"\x31\x00", b"\x30\x80", b"\x30\x85\x00\x00\x00\x00\x01", b"\x30\x84\x7f\xff\xff\xff", b"HTTP/1.1"):
        with pytest.raises(Malformed):
            messages.needed(wrong)


def test_no_bytes_do_more_than_be_refused() -> None:
    """Every cut, and many changes, of two messages: read as something else, or Malformed."""
    draw = random.Random(11)
    wrong = [data[:count] for data in (ENTRY, BOUND) for count in range(len(data))]
    for _ in range(3000):
        data = bytearray(draw.choice((ENTRY, BOUND)))
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        wrong.append(bytes(data))
    for data in wrong:
        try:
            messages.needed(data)
            found = messages.read(data)
            assert isinstance(found.result, int)
            messages.entry(found)
        except Malformed:
            pass


@pytest.mark.parametrize(("value", "escaped"), [
    ("mia", "mia"), ("a,b", "a\\,b"), ("a+b=c", "a\\+b\\=c"), ('"<>;\\#', '\\"\\<\\>\\;\\\\\\#'), (" a ", "\\ a\\ "), ("\0", "\\00"),
    (",ou=admins", "\\,ou\\=admins"), ("ä", "ä"),
])
def test_a_name_stays_one_part_of_a_distinguished_name(value: str, escaped: str) -> None:
    assert messages.escaped(value) == escaped
