"""The Native DICOM Model: DICOM JSON data sets as XML.

Characters that XML 1.0 has no place for become U+FFFD.

Source: PS3.19 A.1, PS3.18 F.2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from archive.dicom import registry

NAMESPACE = "http://dicom.nema.org/PS3.19/models/NativeDICOM"

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")
_COMPONENTS = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")
_BLOCK_BYTES = 1 << 16


def native(document: Mapping[str, Any]) -> bytes:
    """Return one data set as a document of its own."""
    head = f'<?xml version="1.0" encoding="UTF-8"?>\n<NativeDicomModel xmlns="{NAMESPACE}" xml:space="preserve">'
    return "".join((head, *_attributes(document), "</NativeDicomModel>")).encode()


def each(chunks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the data sets of a JSON array that comes in pieces, holding one of them at a time; numbers keep their text."""
    decoder = json.JSONDecoder(parse_float=str, parse_int=str)
    held, wanted = bytearray(), _BLOCK_BYTES
    text = ""
    for chunk in (*chunks, b"") if isinstance(chunks, list | tuple) else _and_end(chunks):
        held += chunk
        if chunk and len(held) < wanted:
            continue
        # Cut where no character is: all of a multi-byte character comes with the next piece.
        whole = len(held)
        while chunk and whole and held[whole - 1] & 0xC0 == 0x80:
            whole -= 1
        if chunk and whole and held[whole - 1] >= 0xC0:
            whole -= 1
        text += held[:whole].decode()
        del held[:whole]
        while True:
            text = text.lstrip("[], \n")
            try:
                document, end = decoder.raw_decode(text)
            except ValueError:
                break  # not all of it is here
            yield document
            text = text[end:]
        wanted = max(_BLOCK_BYTES, len(text))


def _and_end(chunks: Iterable[bytes]) -> Iterator[bytes]:
    yield from (chunk for chunk in chunks if chunk)
    yield b""


def _attributes(document: Mapping[str, Any]) -> Iterator[str]:
    for tag, element in document.items():
        vr = element.get("vr", "UN")
        yield f'<DicomAttribute {_named(tag, document)} vr="{vr}">'
        yield from _content(vr, element)
        yield "</DicomAttribute>"


def _named(tag: str, document: Mapping[str, Any]) -> str:
    group, number = int(tag[:4], 16), int(tag[4:], 16)
    if group & 1 and number >= 0x1000:
        creator = (document.get(f"{tag[:4]}00{tag[4:6]}", {}).get("Value") or [None])[0]
        if creator:
            return f'tag="{tag[:4]}00{tag[6:]}" privateCreator={quoteattr(_text(creator))}'
        return f'tag="{tag}"'
    keyword = "" if group & 1 else registry.keyword_of(int(tag, 16))
    return f'tag="{tag}" keyword="{keyword}"' if keyword else f'tag="{tag}"'


def _content(vr: str, element: Mapping[str, Any]) -> Iterator[str]:
    if "BulkDataURI" in element:
        yield f"<BulkData uri={quoteattr(element['BulkDataURI'])}/>"
    elif "InlineBinary" in element:
        yield f"<InlineBinary>{element['InlineBinary']}</InlineBinary>"
    for number, value in enumerate(element.get("Value") or (), 1):
        if vr == "SQ":
            yield f'<Item number="{number}">'
            yield from _attributes(value or {})
            yield "</Item>"
        elif isinstance(value, Mapping):
            yield f'<PersonName number="{number}">{"".join(_name(value))}</PersonName>'
        elif value is not None:
            yield f'<Value number="{number}">{_escaped(value)}</Value>'


def _name(value: Mapping[str, Any]) -> Iterator[str]:
    for group in _GROUPS:
        if not value.get(group):
            continue
        parts = zip(_COMPONENTS, str(value[group]).split("^", 4), strict=False)
        yield f"<{group}>" + "".join(f"<{name}>{_escaped(part)}</{name}>" for name, part in parts if part) + f"</{group}>"


def _escaped(value: object) -> str:
    return escape(_text(value), {"\r": "&#13;"})  # readers take the end of a line, CR LF too, for LF


def _text(value: object) -> str:
    return _UNPRINTABLE.sub("\ufffd", str(value))
