"""The Native DICOM Model, a data set as XML, into the DICOM JSON Model.

Read event by event; a document type, and with it every entity, is refused. Numbers stay texts, as they are written.

Source: PS3.19 A.1, PS3.18 F.2.
"""

from __future__ import annotations

from typing import Any
from xml.parsers import expat

from archive.errors import InvalidInstance

DEPTH = 400
"""How deep elements may lie in each other: six for each level of sequences."""

_GROUPS = frozenset({"Alphabetic", "Ideographic", "Phonetic"})
_PARTS = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")
MOST = 4_000_000
"""Elements of a document, and its values: each takes some two hundred bytes of memory, where eight are enough to write it."""
_PLACES = 1_000_000
"""Values that a document leaves out before others: a number of seven digits makes as many."""


class _Reader:
    """Builds data sets as the tags of the document pass."""

    def __init__(self) -> None:
        self.documents: list[dict[str, Any]] = []
        self._sets: list[dict[str, Any]] = []
        self._elements: list[dict[str, Any]] = []
        self._name: dict[str, str] | None = None
        self._parts: dict[str, str] = {}
        self._text: list[str] = []
        self._number = 0
        self._depth = 0
        self._left = MOST
        self._places = _PLACES

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._left -= 1
        if self._left < 0:
            message = "the metadata have more elements than are read of them"
            raise InvalidInstance(message, reason="too-large")
        self._depth += 1
        if self._depth > DEPTH:
            message = "sequences lie too deep in each other"
            raise InvalidInstance(message, reason="too-deep")
        name = name.rpartition(":")[2]
        self._text = []
        match name:
            case "NativeDicomModel":
                self.documents.append({})
                self._sets.append(self.documents[-1])
            case "DicomAttribute" if self._sets:
                element: dict[str, Any] = {"vr": attributes.get("vr", "")}
                self._sets[-1][_placed(self._sets[-1], attributes.get("tag", ""), attributes.get("privateCreator"))] = element
                self._elements.append(element)
            case "Item" if self._elements:
                items = self._elements[-1].setdefault("Value", [])
                items.append({})
                self._sets.append(items[-1])
            case "PersonName":
                self._name, self._number = {}, _number(attributes)
            case "Value":
                self._number = _number(attributes)
            case "BulkData" if self._elements:
                self._elements[-1]["BulkDataURI"] = attributes.get("uri") or attributes.get("uuid") or ""
            case _:
                if name in _GROUPS:
                    self._parts = {}

    def text(self, data: str) -> None:
        self._text.append(data)

    def end(self, name: str) -> None:
        self._depth -= 1
        name = name.rpartition(":")[2]
        text, self._text = "".join(self._text), []
        if name in {"NativeDicomModel", "Item"} and self._sets:
            self._sets.pop()
        elif name == "DicomAttribute" and self._elements:
            self._elements.pop()
        elif name == "InlineBinary" and self._elements:
            self._elements[-1]["InlineBinary"] = "".join(text.split())
        elif name == "Value" and self._elements:
            self._place(text)
        elif name == "PersonName" and self._elements:
            self._place(self._name or {})
            self._name = None
        elif name in _GROUPS and self._name is not None:
            self._name[name] = "^".join(self._parts.get(part, "") for part in _PARTS).rstrip("^")
        elif name in _PARTS:
            self._parts[name] = text

    def _place(self, value: Any) -> None:
        """Put a value where its number says; those left out between are empty."""
        values = self._elements[-1].setdefault("Value", [])
        number = self._number or len(values) + 1
        left_out = max(0, number - 1 - len(values))
        self._places -= left_out
        if self._places < 0:
            raise _malformed()
        values += [None] * (number - len(values))
        values[number - 1] = value


def to_json(document: bytes) -> list[dict[str, Any]]:
    """Return the data sets of an XML document.

    Raises:
        InvalidInstance.
    """
    reader = _Reader()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = reader.start, reader.end, reader.text
    parser.StartDoctypeDeclHandler = _refuse
    try:
        parser.Parse(document, True)
    except expat.ExpatError as error:
        raise _malformed() from error
    return reader.documents


def _placed(dataset: dict[str, Any], tag: str, creator: str | None) -> str:
    """Return the tag of an attribute: of a private one, written without its block, in the block of its creator or the first free one.

    Raises:
        InvalidInstance: no block is free.
    """
    if not creator or len(tag) != 8 or tag[4:6] != "00":
        return tag
    free = ""
    for block in range(0x10, 0x100):
        name = f"{tag[:4]}00{block:02X}"
        held = dataset.get(name)
        if held is not None and [str(value).strip() for value in held.get("Value", ())] == [creator.strip()]:
            return f"{tag[:4]}{block:02X}{tag[6:]}"
        free = free or ("" if held is not None else name)
    if not free:
        raise _malformed()
    dataset[free] = {"vr": "LO", "Value": [creator]}
    return f"{tag[:4]}{free[6:]}{tag[6:]}"


def _number(attributes: dict[str, str]) -> int:
    told = attributes.get("number", "")
    return int(told) if told.isascii() and told.isdigit() and len(told) < 8 else 0


def _refuse(*_: object) -> None:
    raise _malformed()


def _malformed() -> InvalidInstance:
    message = "the metadata are not a data set in XML"
    return InvalidInstance(message, reason="cannot-understand")
