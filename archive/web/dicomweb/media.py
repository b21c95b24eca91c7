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
from archive.web.dicomweb.accept import Accept

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
    taken = of_request(request)
    for one in taken.ranges:
        for name in (DICOM_JSON, "application/json"):
            if one.covers(name) and not taken.refuses(name, multipart=False, under=one):
                return "json"
        if one.multipart and one.part_type == DICOM_XML and one.transfer_syntax in {None, "*", EXPLICIT_LE}:
            return "xml"
    message = f"the answer is {DICOM_JSON} or {DICOM_XML} in multipart/related, which the request does not take"
    raise NotAcceptable(message, remedy=f"accept {DICOM_JSON}")


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


def containers(taken: Accept, *, single_allowed: bool) -> Iterator[Container]:
    """Yield the ways in which the caller takes instances, best first."""
    wanted: dict[bool, list[str | None]] = {}
    for one in taken.ranges:
        if one.covers_parts(DICOM):
            multipart = True
        elif single_allowed and one.covers(DICOM):
            multipart = False
        else:
            continue
        if not taken.refuses(DICOM, multipart=multipart, under=one):
            wanted.setdefault(multipart, []).append(one.transfer_syntax)
    for multipart, syntaxes in wanted.items():
        yield Container(multipart, tuple(syntaxes))


@dataclass(frozen=True, slots=True)
class FrameChoice:
    """One way to answer frames: as stored, or decoded to Explicit VR Little Endian."""

    multipart: bool
    stored: bool
    media_type: str
    transfer_syntax_uid: str


def frame_choices(taken: Accept, stored_syntax: str, *, single_allowed: bool) -> Iterator[FrameChoice]:
    """Yield the ways to answer frames stored in `stored_syntax`, best first; the caller takes the first that can be made."""
    stored_type = frame_type(stored_syntax)
    for one in taken.ranges:
        multipart = one.multipart or one.name == "*/*"
        if not multipart and not single_allowed:
            continue
        told = (one.part_type or "*/*") if multipart else one.name
        pattern = _ALIASES.get(told, told)
        as_stored = FrameChoice(multipart, True, stored_type, stored_syntax)
        decoded = FrameChoice(multipart, False, OCTETS, EXPLICIT_LE)
        for choice in _of_range(pattern, one.transfer_syntax, as_stored, decoded):
            if not taken.refuses(choice.media_type, multipart=multipart, under=one):
                yield choice


def _of_range(pattern: str, syntax: str | None, as_stored: FrameChoice, decoded: FrameChoice) -> Iterator[FrameChoice]:
    octets = accept.covers(pattern, OCTETS)
    # Asking for octets in the stored syntax is how viewers say "whatever you have": the part names its real type.
    typed = octets or accept.covers(pattern, as_stored.media_type)
    if syntax is None:
        if octets:
            yield decoded
        if accept.covers(pattern, as_stored.media_type) and as_stored.media_type != OCTETS:
            yield as_stored
    elif syntax == "*" and as_stored.transfer_syntax_uid in NORMALISED:
        if octets:
            yield decoded
    elif syntax in {"*", as_stored.transfer_syntax_uid}:
        if typed:
            yield as_stored
    elif syntax in AS_STORED and octets:
        yield decoded
