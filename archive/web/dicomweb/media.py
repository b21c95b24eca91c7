"""Media types of what is stored, and which representation an Accept asks for.

Source: PS3.18 8.7.3 (tables 8.7.3-2 to -5); image/jphc is what HTJ2K clients name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from flask import Request

from archive.errors import NotAcceptable
from archive.web.dicomweb import accept
from archive.web.dicomweb.accept import Accept, MediaRange

DICOM = "application/dicom"
DICOM_JSON = "application/dicom+json"
DICOM_XML = "application/dicom+xml"
OCTETS = "application/octet-stream"
IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
AS_STORED = frozenset({IMPLICIT_LE, EXPLICIT_LE})
"""Uncompressed little endian: what a retrieve without transfer-syntax answers unchanged."""

NORMALISED = frozenset({"1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"})
"""Big endian and deflated: no browser reads their frames, so `*` gives little endian; their UID gives them as stored."""

_JPEG, _JPEG_LS, _JP2, _JPX, _HTJ2K, _XL = "image/jpeg", "image/jls", "image/jp2", "image/jpx", "image/jphc", "image/jxl"
_RLE, _MPEG2, _MP4 = "image/dicom-rle", "video/mpeg", "video/mp4"

FRAME_TYPES: dict[str, str] = {
    "1.2.840.10008.1.2.5": _RLE,
    **{f"1.2.840.10008.1.2.4.{n}": _JPEG for n in (50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63, 64, 65, 66, 70)},
    **{f"1.2.840.10008.1.2.4.{n}": _JPEG_LS for n in (80, 81)},
    **{f"1.2.840.10008.1.2.4.{n}": _JP2 for n in (90, 91)},
    **{f"1.2.840.10008.1.2.4.{n}": _JPX for n in (92, 93)},
    **{f"1.2.840.10008.1.2.4.{n}": _MPEG2 for n in ("100", "100.1", "101", "101.1")},
    **{f"1.2.840.10008.1.2.4.{n}{part}": _MP4 for n in range(102, 109) for part in ("", ".1")},
    **{f"1.2.840.10008.1.2.4.{n}": _XL for n in (110, 111, 112)},
    **{f"1.2.840.10008.1.2.4.{n}": _HTJ2K for n in (201, 202, 203)},
}
"""Transfer syntax -> media type of its frames; every other one's frames are plain octets."""

_ALIASES = {"image/x-dicom-rle": _RLE, "image/dicom+rle": _RLE, "image/x-jls": _JPEG_LS, "image/jph": _HTJ2K}


def frame_type(transfer_syntax_uid: str) -> str:
    """Return the media type of a stored frame."""
    return FRAME_TYPES.get(transfer_syntax_uid, OCTETS)


def of_request(request: Request) -> Accept:
    """Return what a request takes."""
    return accept.parse(request.headers.get("Accept"), request.args.get("accept"))


def document_form(request: Request) -> Literal["json", "xml"]:
    """Return how data sets are answered; `application/json` means DICOM JSON too, XML only goes in multipart and is asked for by name.

    Raises:
        NotAcceptable.
    """
    form = form_of(of_request(request))
    if form is None:
        message = f"the answer is {DICOM_JSON} or {DICOM_XML} in multipart/related, which the request does not take"
        raise NotAcceptable(message, remedy=f"accept {DICOM_JSON}")
    return form


def form_of(taken: Accept) -> Literal["json", "xml"] | None:
    """Return the same of what is taken, None where it takes neither."""
    for one in taken.ranges:
        for name in (DICOM_JSON, "application/json"):
            if one.covers(name) and not taken.refuses(name, multipart=False, under=one):
                return "json"
        if one.multipart and one.part_type == DICOM_XML and one.transfer_syntax in {None, "*", EXPLICIT_LE}:
            return "xml"
    return None


def require_json(request: Request) -> None:
    """Go on only if DICOM JSON is taken; `application/json` means it too.

    Raises:
        NotAcceptable.
    """
    taken = of_request(request)
    if not any(True for name in (DICOM_JSON, "application/json") for _ in taken.singles(name)):
        message = "the answer is application/dicom+json, which the request does not take"
        raise NotAcceptable(message, remedy="accept application/dicom+json")


@dataclass(frozen=True, slots=True)
class Container:
    """How instances are asked for: in one multipart body or as a single part, in these transfer syntaxes, best first.

    A transfer syntax of None was left open by the caller; "*" means as stored.
    """

    multipart: bool
    syntaxes: tuple[str | None, ...]
    qualities: tuple[float, ...] = ()

    def for_stored(self, transfer_syntax_uid: str) -> list[str | None]:
        """Return the transfer syntaxes, best first, for an instance stored in one of them: its own goes before others as good."""
        own = {"*", transfer_syntax_uid} | ({None} if transfer_syntax_uid in AS_STORED else set())
        ranked = zip(self.qualities or range(0, -len(self.syntaxes), -1), self.syntaxes, strict=True)
        return [syntax for _, syntax in sorted(ranked, key=lambda one: (-one[0], one[1] not in own))]


def containers(taken: Accept, *, single_allowed: bool) -> Iterator[Container]:
    """Yield the ways in which the caller takes instances, best first."""
    wanted: dict[bool, list[MediaRange]] = {}
    for one in taken.ranges:
        if one.covers_parts(DICOM):
            multipart = True
        elif single_allowed and one.covers(DICOM):
            multipart = False
        else:
            continue
        if not taken.refuses(DICOM, multipart=multipart, under=one, syntax=one.transfer_syntax):
            wanted.setdefault(multipart, []).append(one)
    for multipart, ranges in wanted.items():
        yield Container(multipart, tuple(one.transfer_syntax for one in ranges), tuple(one.quality for one in ranges))


ENCODED: dict[str, tuple[str, ...]] = {
    _JPEG: ("1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.57"),
    _JPEG_LS: ("1.2.840.10008.1.2.4.80",),
    _JP2: ("1.2.840.10008.1.2.4.90",),
    _RLE: ("1.2.840.10008.1.2.5",),
}
"""Media type -> the transfer syntaxes frames are encoded in without loss; the first where none is named (PS3.18 table 8.7.3-4)."""

LOSSY = {"1.2.840.10008.1.2.4.50": _JPEG}
"""Those frames are encoded in with loss, asked for by their UID alone."""


@dataclass(frozen=True, slots=True)
class FrameChoice:
    """One way to answer frames: as stored, decoded to Explicit VR Little Endian, or encoded in another transfer syntax."""

    multipart: bool
    stored: bool
    media_type: str
    transfer_syntax_uid: str

    @property
    def encoded(self) -> bool:
        """Whether frames have to be encoded for it."""
        return not self.stored and self.transfer_syntax_uid != EXPLICIT_LE


def frame_choices(taken: Accept, stored_syntax: str, *, single_allowed: bool) -> Iterator[FrameChoice]:
    """Yield the ways to answer frames stored in `stored_syntax`, best first; the caller takes the first that can be made.

    Among members of one quality nothing is encoded, and nothing lost, that some other of them takes as it is.
    """
    found: list[tuple[float, int, FrameChoice]] = []
    for one in taken.ranges:
        multipart = one.multipart or one.name == "*/*"
        if not multipart and not single_allowed:
            continue
        told = (one.part_type or "*/*") if multipart else one.name
        for stored, media_type, syntax in _of_range(_ALIASES.get(told, told), one.transfer_syntax, stored_syntax):
            if not taken.refuses(media_type, multipart=multipart, under=one, syntax=syntax):
                choice = FrameChoice(multipart, stored, media_type, syntax)
                found.append((-one.quality, 0 if not choice.encoded else 2 if syntax in LOSSY else 1, choice))
    found.sort(key=lambda ranked: ranked[:2])  # stable: then as `taken` has them
    yield from dict.fromkeys(choice for *_, choice in found)


def _of_range(pattern: str, syntax: str | None, stored_syntax: str) -> Iterator[tuple[bool, str, str]]:
    """Yield whether as stored, media type and transfer syntax of what one member of an Accept takes."""
    if syntax is None or syntax == "*":
        yield from _of_any(pattern, stored_syntax, named=syntax == "*")
        return
    stored_type, octets = frame_type(stored_syntax), accept.covers(pattern, OCTETS)
    if syntax == stored_syntax:
        # Asking for octets in the stored syntax is how viewers say "whatever you have": the part names its real type.
        if octets or accept.covers(pattern, stored_type):
            yield True, stored_type, stored_syntax
    elif syntax in AS_STORED:
        if octets:
            yield False, OCTETS, EXPLICIT_LE
    elif syntax in LOSSY or any(syntax in syntaxes for syntaxes in ENCODED.values()):
        media_type = FRAME_TYPES[syntax]
        if octets or accept.covers(pattern, media_type):
            yield False, media_type, syntax


def _of_any(pattern: str, stored_syntax: str, *, named: bool) -> Iterator[tuple[bool, str, str]]:
    """Yield the same of a member that leaves the transfer syntax open, or says `*` (`named`)."""
    stored_type, octets = frame_type(stored_syntax), accept.covers(pattern, OCTETS)
    hidden = named and stored_syntax in NORMALISED
    if octets and (hidden or not named):
        yield False, OCTETS, EXPLICIT_LE
    if (accept.covers(pattern, stored_type) or (named and octets)) and not hidden and (named or stored_type != OCTETS):
        yield True, stored_type, stored_syntax
    for media_type, syntaxes in ENCODED.items():
        if not octets and accept.covers(pattern, media_type) and syntaxes[0] != stored_syntax:
            yield False, media_type, syntaxes[0]
