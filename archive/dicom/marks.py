"""Text with no more marks on a letter than any letter has.

Unicode puts the marks of a letter into order before it compares or composes them. That takes the square of their number: a text of nothing
but marks, which is no text in any language, would keep everybody waiting for minutes.

Source: Unicode Standard Annex 15, 13 (stream-safe text).
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

MOST = 30
_SHORT = 256
"""So few characters take no time whatever they are."""


def bounded(text: str) -> str:
    """Return a text without the marks of a letter beyond the thirtieth; before it is normalised."""
    if len(text) <= _SHORT or text.isascii():
        return text
    kept, marks = [], 0
    for character in text:
        marks = marks + 1 if _is_mark(character) else 0
        if marks <= MOST:
            kept.append(character)
    return "".join(kept)


@lru_cache(maxsize=4096)
def _is_mark(character: str) -> bool:
    return unicodedata.combining(unicodedata.normalize("NFKD", character)[0]) != 0
