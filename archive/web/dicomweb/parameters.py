"""Media types with parameters, read leniently: what real clients send, not only what RFC 9110 allows.

Values may be unquoted although they hold `/`, `*`, `=` or `:`, and spaces may stand round `=` and `;`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TYPE = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+/[!#$%&'*+.^_`|~0-9a-z-]+")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")


@dataclass(frozen=True, slots=True)
class MediaType:
    """A type in lower case and its parameters, names in lower case, values as sent without quotes."""

    name: str
    parameters: dict[str, str]


def parse(text: str) -> MediaType | None:
    """Return what a Content-Type, or one member of an Accept list, says; None when it is malformed."""
    head, *rest = text.split(";")
    name = head.strip().lower()
    if name == "*":  # what java.net.HttpURLConnection sends
        name = "*/*"
    if not _TYPE.fullmatch(name):
        return None
    parameters: dict[str, str] = {}
    for item in rest:
        if not item.strip():
            continue
        key, equals, value = item.partition("=")
        key = key.strip().lower()
        plain = unquoted(value.strip())
        if not equals or not _NAME.fullmatch(key) or plain is None:
            return None
        parameters.setdefault(key, plain)
    return MediaType(name, parameters)


def unquoted(value: str) -> str | None:
    """Return the text of a token or quoted string; None when its quotes do not match."""
    if '"' not in value:
        return value
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return None
    inner = re.sub(r"\\(.)", r"\1", value[1:-1])
    return None if '"' in re.sub(r"\\.", "", value[1:-1]) else inner


def is_type(text: str) -> bool:
    """Return whether `text` (lower case) is a media type or range."""
    return _TYPE.fullmatch(text) is not None
