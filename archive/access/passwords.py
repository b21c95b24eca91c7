"""Passwords: Argon2id in PHC strings, few at a time, refused when everybody would guess them.

Source: RFC 9106; NIST SP 800-63B 5.1.1 (length and a list, no composition rules, no forced change).
"""

from __future__ import annotations

import os
import re
import threading
import unicodedata
from functools import lru_cache
from importlib import resources
from itertools import pairwise

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from archive.errors import InvalidRequest, Unauthenticated

MIN_CHARACTERS = 12
MAX_CHARACTERS = 1024
_LONGEST_TYPED = 4 * MAX_CHARACTERS  # in decomposed letters; longer ones are nobody's, and take the square of their length to compose
MEMORY_KIB, ITERATIONS, LANES = 19456, 2, 1
_PARAMETERS = re.compile(r"\$argon2id\$v=19\$m=(\d+),t=(\d+),p=(\d+)\$")
_EDGES = "0123456789!?.,;:#*+-_$%&=@ "

# Two at once: a flood of sign-ins must not take every core from the clinic.
_TURNS = threading.BoundedSemaphore(2)


def seal(password: str) -> str:
    """Return the PHC string to keep."""
    with _TURNS:
        return Argon2id(
            salt=os.urandom(16), length=32, iterations=ITERATIONS, lanes=LANES, memory_cost=MEMORY_KIB
        ).derive_phc_encoded(_bytes(password))


def verify(password: str, phc: str | None) -> None:
    """Check a password; None (no such account) costs the same work and fails the same.

    Raises:
        Unauthenticated.
    """
    if len(password) > _LONGEST_TYPED:
        password, phc = "-", None
    with _TURNS:
        try:
            Argon2id.verify_phc_encoded(_bytes(password), phc or _nobody())
        except (InvalidKey, ValueError):  # a damaged row lets nobody in
            pass
        else:
            if phc is not None:
                return
    message = "the name or the password is wrong"
    raise Unauthenticated(message)


def outdated(phc: str) -> bool:
    """Whether a PHC string was made with other parameters than today's."""
    found = _PARAMETERS.match(phc)
    return found is None or tuple(map(int, found.groups())) != (MEMORY_KIB, ITERATIONS, LANES)


def check_new(password: str, *, name: str = "") -> None:
    """Refuse a password that is short, common, a pattern, or the user's own name.

    Raises:
        InvalidRequest: why, and what would do.
    """
    if len(password) < MIN_CHARACTERS:
        _refuse(f"the password has fewer than {MIN_CHARACTERS} characters")
    if len(password) > MAX_CHARACTERS:
        _refuse(f"the password has more than {MAX_CHARACTERS} characters")
    folded = unicodedata.normalize("NFKC", password).casefold()
    core = folded.strip(_EDGES)
    owner = name.casefold()
    if folded in _common() or core in _common() or _is_pattern(folded):
        _refuse("the password is among the first that anybody would try")
    if len(owner) >= 3 and owner in folded and len(folded) - len(owner) < 8:
        _refuse("the password is little more than the user's name")


def _refuse(message: str) -> None:
    raise InvalidRequest(message, remedy=f"take at least {MIN_CHARACTERS} characters, best four words that do not belong together")


def _is_pattern(text: str) -> bool:
    """Whether a text repeats a few characters, or counts up or down."""
    if any(text == (text[:n] * len(text))[: len(text)] for n in range(1, 5)):
        return True
    steps = {ord(b) - ord(a) for a, b in pairwise(text)}
    return steps in ({1}, {-1}) or text in "1234567890" * 8 or text in "0987654321" * 8


@lru_cache(maxsize=1)
def _common() -> frozenset[str]:
    text = resources.files("archive.access").joinpath("common_passwords.txt").read_text(encoding="utf-8")
    return frozenset(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))


@lru_cache(maxsize=1)
def _nobody() -> str:
    """A password nobody has."""
    return Argon2id(
        salt=os.urandom(16), length=32, iterations=ITERATIONS, lanes=LANES, memory_cost=MEMORY_KIB
    ).derive_phc_encoded(os.urandom(32))


def _bytes(password: str) -> bytes:
    # The same keys on another keyboard may send composed or decomposed letters.
    return unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")
