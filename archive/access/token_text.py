"""The text of an API token: `sr_<prefix8>_<secret43>_<crc6>`, shown once, kept as an HMAC under the pepper.

Every part is letters and digits, so that secret scanners and a double click find the whole; the last part is a CRC-32 of what
stands before it, so that a mistyped token is told from a wrong one without a look into the tables.
"""

from __future__ import annotations

import hmac
import re
import secrets
import string
import zlib

from archive.keys.keyring import Keyring

_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_FORM = re.compile(r"sr_([0-9A-Za-z]{8})_([0-9A-Za-z]{43})_([0-9A-Za-z]{6})")


def drawn() -> tuple[str, str]:
    """Return a new prefix and secret."""
    return _word(8), _word(43)


def written(prefix: str, secret: str) -> str:
    """Return the text of a token."""
    return f"sr_{prefix}_{secret}_{check(prefix, secret)}"


def parts(text: str) -> tuple[str, str] | None:
    """Return prefix and secret of a token's text, or None when it is none."""
    found = _FORM.fullmatch(text)
    if found is None or not hmac.compare_digest(check(found[1], found[2]), found[3]):
        return None
    return found[1], found[2]


def mac(keyring: Keyring, prefix: str, secret: str) -> bytes:
    """Return what the table keeps of a token."""
    return keyring.pseudonym("api-token", f"{prefix}_{secret}")


def right(keyring: Keyring, prefix: str, secret: str, kept: bytes) -> bool:
    """Whether the secret is the one that is kept, under the pepper of now or an earlier one."""
    return any(hmac.compare_digest(made, kept) for made in keyring.pseudonyms("api-token", f"{prefix}_{secret}"))


def check(prefix: str, secret: str) -> str:
    """Return the last part of a token's text."""
    number = zlib.crc32(f"sr_{prefix}_{secret}".encode())
    text = ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        text = _ALPHABET[digit] + text
    return text


def _word(characters: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(characters))
