"""The Accept header (and `accept` parameter) of DICOMweb requests.

A list with one usable member succeeds; a malformed member is skipped; nothing here ever raises.

Source: PS3.18 8.7, RFC 9110 12.5.1, and what OHIF, cornerstone and both dicomweb-clients send (docs/conformance.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from archive.web.dicomweb import parameters

HEADER_CHARACTERS = 8192
MEMBERS = 64
MULTIPART = "multipart/related"
_KEPT_CHARACTERS = 512  # a client sends the same text with each request; a longer one is read each time

_QUALITY = re.compile(r"\d{0,4}(\.\d{0,6})?")
_PLUS_LOST = re.compile(r"(?<=application/dicom) (?=json|xml)")


@dataclass(frozen=True, slots=True)
class MediaRange:
    """One member of the list.

    `name` and `part_type` are in lower case and may hold `*`; `part_type` is the `type` parameter ("" when not sent).
    """

    name: str
    part_type: str = ""
    transfer_syntax: str | None = None
    quality: float = 1.0

    @property
    def multipart(self) -> bool:
        """Whether this asks for multipart by name."""
        return self.name in {MULTIPART, "multipart/*"}

    def covers(self, media_type: str) -> bool:
        """Return whether a single part of this type satisfies it."""
        return not self.multipart and covers(self.name, media_type)

    def covers_parts(self, media_type: str) -> bool:
        """Return whether multipart/related with parts of this type satisfies it."""
        return self.name == "*/*" or (self.multipart and covers(self.part_type or "*/*", media_type))

    @property
    def specificity(self) -> int:
        """How much is said: 0 anything, 1 a family, 2 a type."""
        told = self.part_type or "*/*" if self.multipart else self.name
        return 0 if told == "*/*" else 1 if told.endswith("/*") else 2


@dataclass(frozen=True, slots=True)
class Accept:
    """What the caller takes, best first, and what it says it does not take."""

    ranges: tuple[MediaRange, ...]
    refused: tuple[MediaRange, ...] = ()

    def refuses(self, media_type: str, *, multipart: bool, under: MediaRange, syntax: str | None = None) -> bool:
        """Return whether a `q=0` member excludes what the member `under` would allow; one with a transfer syntax, only that one."""
        rivals = (
            member for member in self.refused
            if member.specificity >= under.specificity and member.transfer_syntax in {None, "*", syntax}
        )
        return any(member.covers_parts(media_type) if multipart else member.covers(media_type) for member in rivals)

    def singles(self, media_type: str) -> Iterator[MediaRange]:
        """Yield the members that a single part of this type satisfies, best first."""
        return (one for one in self.ranges if one.covers(media_type) and not self.refuses(media_type, multipart=False, under=one))


ANYTHING = Accept((MediaRange("*/*"),))


def parse(header: str | None, query: str | None = None) -> Accept:
    """Return what a request takes; `query` is its `accept` parameter, which goes before the header (PS3.18 8.3.3.1).

    Neither sent, or both empty: anything. Nothing but malformed members: nothing.
    """
    if query is not None and query.strip():
        found = _members(_PLUS_LOST.sub("+", query))
        if found.ranges:
            return found
    if header is None or not header.strip():
        return ANYTHING
    return _members(header)


def _members(text: str) -> Accept:
    return _parsed(text) if len(text) <= _KEPT_CHARACTERS else _parsed.__wrapped__(text)


@lru_cache(maxsize=256)
def _parsed(text: str) -> Accept:
    taken: list[MediaRange] = []
    refused: list[MediaRange] = []
    # Nothing in a member may hold a comma, so a comma always ends one: a quote left open costs only its own member.
    for member in text[:HEADER_CHARACTERS].split(",")[:MEMBERS]:
        found = _member(member)
        if found is not None:
            (taken if found.quality > 0 else refused).append(found)
    taken.sort(key=lambda one: (-one.quality, -one.specificity))  # stable: then as sent
    return Accept(tuple(taken), tuple(refused))


def _member(text: str) -> MediaRange | None:
    media = parameters.parse(text)
    if media is None:
        return None
    quality = _quality(media.parameters.get("q", "1"))
    part_type = media.parameters.get("type", "").strip().lower()
    if quality is None or (part_type and not parameters.is_type(part_type)):
        return None
    syntax = media.parameters.get("transfer-syntax")
    return MediaRange(media.name, part_type, syntax.strip() if syntax is not None else None, quality)


def _quality(text: str) -> float | None:
    text = text.strip()
    if not _QUALITY.fullmatch(text) or not any(character.isdigit() for character in text):
        return None
    return min(float(text), 1.0)


def covers(pattern: str, media_type: str) -> bool:
    """Return whether `*/*`, `application/*` or `application/dicom` covers a concrete type."""
    if pattern in {"*/*", media_type}:
        return True
    return pattern.endswith("/*") and media_type.startswith(pattern[:-1])
