"""The DICOM JSON Model of an instance, straight from its bytes in one pass.

Nesting lies on a stack of its own and lengths that run too far end where what holds them ends, so no data set makes this raise. What
stands twice counts the first time, as in the scanner. File meta, group lengths and padding are left out; text is Unicode and
(0008,0005) says so.

Source: PS3.18 F.2, PS3.5 7.5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from archive.dicom.charsets import Text, repertoire
from archive.dicom.dictionary import vr_of
from archive.dicom.filemeta import sniff
from archive.dicom.nesting import ENDLESS, OPEN, item_end, past_delimiter, sequence_end
from archive.dicom.part10 import DEFAULT_LIMITS, Scanned, inflate
from archive.dicom.repeats import Repeats
from archive.dicom.runs import READ, UNDEFINED
from archive.dicom.structure import FRAGMENTED, PIXEL_TAGS, odd_header
from archive.dicom.usual import usual_json
from archive.dicom.values import BINARY, LONG, SHORT, Element, element_json, sample_vr, swapped
from archive.dicom.zeros import goes_on, past_zeros
from archive.errors import InvalidInstance, NotFound

Binary = Callable[[str, str, bytes, int, int], Element | None]
"""Given path, VR ("=" before it: big endian), buffer, start and stop of a value, returns the element; None: as InlineBinary."""
Unpack = Callable[[bytes, int], tuple[int, ...]]

METADATA_VERSION = 3
"""Grows when the same bytes would give other metadata: those kept by an older one are made again."""
INLINE_BYTES = 4096
"""The longest binary value that stands in metadata itself."""
PIXEL_PATHS = frozenset(f"{tag:08X}" for tag in PIXEL_TAGS)
_CHARSET = 0x00080005
_NONE: Element = {"vr": ""}
LEFT_OUT = frozenset({0x0000, 0x0002, 0xFFFC})  # command, file meta, padding
_VRS = {code: code.decode("ascii") for code in SHORT | LONG}
_LONG_VRS = frozenset(code.decode("ascii") for code in LONG)
_SHORT_VRS = {code: code.decode("ascii") for code in SHORT}
_SHORT_NAMES = frozenset(_SHORT_VRS.values())


@dataclass(slots=True)
class _Sequence:
    """A sequence whose items are read, and what to go back to after it."""

    tag: str
    items: list[dict[str, Any]]
    stop: int
    bound: int  # where the next thing around it ends whose length is known
    over: bool  # it would end behind that
    implicit: bool  # of its items
    loose: bool
    fresh: bool  # the first of its tag
    target: dict[str, Any]
    end: int
    outer_bound: int
    outer_kind: int
    outer_implicit: bool
    outer_loose: bool
    text: Text


def to_json(
    part10_head: bytes, scanned: Scanned, bulk: Callable[[str], str], inline_bytes: int = INLINE_BYTES, *, repeats: Repeats | None = None
) -> dict[str, Element]:
    """Return the DICOM JSON Model of everything up to the pixel data.

    `part10_head` is the stream up to `scanned.head_bytes` at least, whole when deflated. Binary values longer than `inline_bytes`, and
    pixel data always, are a BulkDataURI: `bulk(path)` with a path like "7FE00010" or "60031010/1/60031011", items counted from 1.
    `repeats` is given again with each instance of a series; documents then have equal elements in common, which nobody changes.
    """

    def binary(path: str, vr: str, buffer: bytes, start: int, stop: int) -> Element | None:  # noqa: ARG001
        if stop - start > inline_bytes or path in PIXEL_PATHS:
            if repeats is not None:
                repeats.more += 1
            return {"vr": vr.lstrip("="), "BulkDataURI": bulk(path)}
        return None

    head = inflate(part10_head, scanned, DEFAULT_LIMITS, cut=True) if scanned.deflated else part10_head
    coding = encoding(head, scanned)
    if repeats is not None:
        repeats.begin(*coding, inline_bytes)
    document = dataset_json(
        head, scanned.dataset_offset, *coding, binary, text=text_of(scanned), repeats=repeats, words=words_of(scanned)
    )
    # What is behind the pixel data, against the order of tags, or of a VR that such an attribute cannot have, is as it was indexed.
    indexed = {name: element for name, element in scanned.attributes.items() if document.get(name, _NONE)["vr"] != element["vr"]}
    if indexed:
        document = dict(sorted((document | indexed).items()))
    return document


def text_of(scanned: Scanned) -> Text | None:
    """Return how texts are read before (0008,0005), which counts wherever it stands; None: as where it is absent."""
    named = scanned.character_set or "\\".join(scanned.values("SpecificCharacterSet"))
    return repertoire(named.encode("ascii", "replace")) if named else None


def words_of(scanned: Scanned) -> str:
    """Return the VR, US or SS, of what PixelRepresentation decides."""
    return "SS" if scanned.number("PixelRepresentation") == 1 else "US"


def bulk_value(part10: bytes, scanned: Scanned, path: str) -> bytes:
    """Return the value that a BulkDataURI of this path stands for, in little endian; one encapsulated frame without its items.

    Raises:
        NotFound: no such value, or pixel data of several encapsulated frames, which are served frame by frame, or said to be native.
    """
    found: list[bytes] = []

    def binary(at: str, vr: str, buffer: bytes, start: int, stop: int) -> Element | None:
        if at == path:
            raw = buffer[start:stop]
            swap = sample_vr(vr[1:], scanned.number("BitsAllocated")) if path in PIXEL_PATHS else vr[1:]
            found.append(swapped(swap, raw) if vr.startswith("=") else raw)
        return {"vr": vr}

    table = scanned.frames
    if table is not None and table.kind == "encapsulated" and path in PIXEL_PATHS:
        if table.count != 1 or scanned.mislabelled:
            raise NotFound("pixel data of several frames are served frame by frame")
        return b"".join(part10[offset : offset + length] for offset, length in table.pieces(0))
    try:
        whole = inflate(part10, scanned) if scanned.deflated else part10
    except InvalidInstance as error:
        raise NotFound("the data set is too large to be inflated") from error
    dataset_json(whole, scanned.dataset_offset, *encoding(whole, scanned), binary)
    if not found:
        raise NotFound("there is no such bulk data")
    return found[0]


def encoding(part10: bytes, scanned: Scanned) -> tuple[bool, bool]:
    """Return whether the data set is in implicit VR, and whether in little endian, as its first element shows where it is not deflated."""
    if scanned.deflated:
        return False, True  # PS3.5 A.5, and the scanner reads it as nothing else
    at = scanned.dataset_offset
    implicit, little, _ = sniff(bytes(part10[at : at + 8]), scanned.transfer_syntax_uid)
    return implicit, little


def dataset_json(  # noqa: C901, PLR0912, PLR0915 # one pass over the bytes is the point
    buffer: bytes, start: int, implicit: bool, little: bool, binary: Binary, *, text: Text | None = None,
    repeats: Repeats | None = None, words: str = "US",
) -> dict[str, Any]:
    """Return the JSON of the data set that begins at `start`.

    `repeats`, told that this data set begins, spares reading what the one before held as well. `words` is the VR, US or SS, of what
    PixelRepresentation decides where none has been read yet.
    """
    head, short, long, explicit, plain = READ["<" if little else ">"]
    root: dict[str, Any] = {}
    target, end, loose = root, len(buffer), False
    bound, kind = ENDLESS, OPEN  # where the innermost thing of known length ends, and which kind of item this is
    text = text or Text()
    position = start
    stack: list[_Sequence] = []
    between = False  # items of the innermost sequence come next
    while True:
        if between:
            level = stack[-1]
            if position + 8 <= level.stop:
                group, element = head(buffer, position)
                length = long(buffer, position + 4)[0]
                if group == 0xFFFE and element == 0xE000:
                    position += 8
                    end, bound, kind = item_end(position, length, level.stop, level.bound)
                    target = {}
                    level.items.append(target)
                    implicit, loose, text, between = level.implicit, level.loose, level.text, False
                    continue
                position = position + 8 if group == 0xFFFE and element == 0xE0DD and not level.over else level.stop
            else:
                position = level.stop
            stack.pop()
            if level.fresh:
                level.target[level.tag] = {"vr": "SQ", "Value": level.items} if level.items else {"vr": "SQ"}
            target, end, bound, kind = level.target, level.end, level.outer_bound, level.outer_kind
            text, between = level.text, False
            implicit, loose = level.outer_implicit, level.outer_loose
            continue
        if position + 8 > end:
            if not stack:
                return root
            position, between = end, True
            continue
        if repeats is not None and not stack:
            position = repeats.past(buffer, position, root, text)
            if position + 8 > end:
                return root
        if not loose:
            # The usual element; whatever is special about one is below.
            if implicit:
                group, element, length = plain(buffer, position)
                vr = vr_of(group << 16 | element)
                usual = vr in _SHORT_NAMES or (vr in BINARY and little)
            else:
                group, element, code, length = explicit(buffer, position)
                usual = code in _SHORT_VRS
            stop = position + 8 + length
            tag = group << 16 | element
            if usual and stop <= end and element and 2 < group < 0x7FE0 and tag != _CHARSET:
                name = f"{tag:08X}"
                if name not in target:
                    vr = vr if implicit else _SHORT_VRS[code]
                    found = binary(_path(stack, name), vr, buffer, position + 8, stop) if vr in BINARY and length else None
                    target[name] = found or usual_json(vr, buffer[position + 8 : stop], little, text)
                position = stop
                continue
        group, element = head(buffer, position)
        if group == 0xFFFE:
            if not stack:
                if element == 0xE000:
                    return root
                position += 8
                continue
            position = past_delimiter(position, element, end, kind)
            between = True
            continue
        tag = group << 16 | element

        # Length and VR, as the scanner reads them.
        vr = "" if implicit and not loose else _VRS.get(buffer[position + 4 : position + 6], "")
        inner = implicit
        if vr and vr not in _LONG_VRS:
            length = short(buffer, position + 6)[0]
            position += 8
        elif vr:
            if position + 12 > end:
                position = end
                continue
            length = long(buffer, position + 8)[0]
            position += 12
        elif not tag and not stack and not any(buffer[position : position + 8]):
            position = past_zeros(lambda at, count: buffer[at : at + count], position, end)
            if position + 8 > end or not goes_on(buffer[position : position + 8], implicit, head):
                return root
            continue
        elif implicit:
            vr, length = vr_of(tag), long(buffer, position + 4)[0]
            position += 8
        else:
            vr, length, header, inner, _ = odd_header(tag, buffer[position + 4 : position + 6], short(buffer, position + 6)[0])
            if length < 0:
                length = long(buffer, position + (8 if header == 12 else 4))[0] if position + 12 <= end else 0
            position += header
        if vr == "UN":
            known = vr_of(tag)
            as_little = little if known == "UN" else True  # PS3.5 6.2.2: UN is implicit little endian
            vr_inside = known
        else:
            as_little, vr_inside = little, vr
        if vr_inside == "xs":
            vr_inside = _word(target, stack, words)
            if repeats is not None:
                repeats.more += 1
        name = f"{group:04X}{element:04X}"

        if tag in PIXEL_TAGS and not stack:
            stop = position if length == UNDEFINED else min(position + length, end)
            root.setdefault(name, binary(name, vr_inside if as_little else "=" + vr_inside, buffer, position, stop) or {"vr": vr_inside})
            return root
        if vr_inside == "SQ" or (length == UNDEFINED and vr not in FRAGMENTED):
            stop, inner_bound, over = sequence_end(position, length, end, bound)
            fresh = name not in target
            un = vr == "UN"
            known_as = name if fresh else ""  # no path leads into a second sequence of a tag
            stack.append(_Sequence(
                known_as, [], stop, inner_bound, over, inner or un, loose or un, fresh, target, end, bound, kind, implicit, loose, text
            ))
            between = True
            continue
        if length == UNDEFINED:
            stop = past_fragments(buffer, position, end, head, long)
            if repeats is not None:
                repeats.more += 1  # where they have no delimiter, what follows decides where they end
            length = stop - position
            if name not in target:
                target[name] = binary(_path(stack, name), vr_inside, buffer, position, stop) or {"vr": vr_inside}
            position = stop
            continue
        stop = position + length
        if stop > end:
            position = end
            continue
        if not element or group in LEFT_OUT or name in target:
            position = stop
            continue
        if vr_inside in BINARY and length:
            found = binary(_path(stack, name), vr_inside if as_little else "=" + vr_inside, buffer, position, stop)
            target[name] = found or element_json(vr_inside, buffer[position:stop], as_little, text)
        elif tag == _CHARSET:
            text = repertoire(buffer[position:stop])
            target[name] = {"vr": "CS", "Value": ["ISO_IR 192"]} if length else {"vr": "CS"}
        else:
            target[name] = element_json(vr_inside, buffer[position:stop], as_little, text)
        position = stop


def _path(stack: list[_Sequence], name: str) -> str:
    if not stack:
        return name
    return "".join(f"{level.tag}/{len(level.items)}/" for level in stack) + name


def _word(target: dict[str, Any], stack: list[_Sequence], words: str) -> str:
    """Return US or SS as the nearest PixelRepresentation says (PS3.5 A.1)."""
    for dataset in (target, *(level.target for level in reversed(stack))):
        values = dataset.get("00280103", {}).get("Value")
        if values:
            return "SS" if values[0] == 1 else "US"
    return words


def past_fragments(buffer: bytes, position: int, end: int, head: Unpack, long: Unpack) -> int:
    """Return where encapsulated data inside an item or a private element end."""
    while position + 8 <= end:
        group, element = head(buffer, position)
        if group != 0xFFFE or element != 0xE000:
            return position + 8 if group == 0xFFFE and element == 0xE0DD else position
        position += 8 + int(long(buffer, position + 4)[0])
    return end
