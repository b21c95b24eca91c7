"""What one Part 10 instance says about itself, and the file meta information of instances that arrive without it.

`scan` reads a whole file; `stream.StreamScanner` reads one as it arrives. Both check the structure within `Limits`: reasons of
refusal (InvalidInstance.reason) are cannot-understand, bad-uid, missing-uid, uid-mismatch, class-mismatch, too-large, too-deep, no-meta.

Source: PS3.10 7.1, PS3.5 7.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any, Literal

from archive.dicom.attributes import BY_KEYWORD
from archive.dicom.frames import FrameTable
from archive.dicom.transfer import DEFLATED, EXPLICIT_BE, IMPLICIT_LE, UNCOMPRESSED
from archive.dicom.values import Element, plain
from archive.errors import InvalidInstance

SCANNER_VERSION = 5
"""Stands in every stored META section; grows when the same bytes would be scanned to something else."""

# Our own root for implementation identification: 2.25 and a UUID, fixed for good.
IMPLEMENTATION_CLASS_UID = "2.25.302868412967034962416438071532286410374"
IMPLEMENTATION_VERSION_NAME = "STRONGROOM_1"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what one data set may cost."""

    inflated_bytes: int = 64 << 20
    nesting: int = 64
    elements: int = 1_000_000


DEFAULT_LIMITS = Limits()
STORED_LIMITS = Limits(inflated_bytes=512 << 20)
"""For instances that were taken under the limits of their day."""


OVERFULL = "the data set inflates beyond the limit; what follows its header is not looked at"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something odd that does not stop the instance from being kept; the text holds no attribute value."""

    tag: str
    text: str


@dataclass(frozen=True, slots=True)
class Scanned:
    """An instance's identity, index attributes and frames.

    `head_bytes` is where the pixel data's value begins, or the length of the stream when there is none or it is deflated.
    """

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    dataset_offset: int
    attributes: dict[str, Element]
    findings: tuple[Finding, ...]
    frames: FrameTable | None
    preamble: Literal["zero", "tiff", "other"]
    head_bytes: int = 0
    character_set: str = ""
    """What (0008,0005) was taken to be where the data set has none; empty where it has, or nothing was said."""

    def values(self, keyword: str) -> list[str]:
        """Return every value as plain text; a person name as "Alphabetic=Ideographic=Phonetic" without trailing "="."""
        return [plain(value) for value in self.attributes.get(BY_KEYWORD[keyword].tag_hex, {}).get("Value", ())]

    def text(self, keyword: str) -> str:
        """Return the first value as plain text, empty when absent."""
        return first_text(self.attributes, BY_KEYWORD[keyword].tag_hex)

    def number(self, keyword: str) -> int | None:
        """Return the first value as a whole number, None when it is absent or no such number."""
        return first_number(self.attributes, BY_KEYWORD[keyword].tag_hex)

    @property
    def deflated(self) -> bool:
        """Whether the data set is one deflate stream; frame offsets then count in `inflate`'s answer."""
        return self.transfer_syntax_uid in DEFLATED

    @property
    def mislabelled(self) -> bool:
        """Whether the pixel data are encapsulated in a transfer syntax that has none that are: their bytes are no samples."""
        return self.frames is not None and self.frames.kind == "encapsulated" and self.transfer_syntax_uid in UNCOMPRESSED

    @property
    def overfull(self) -> bool:
        """Whether a deflated data set was longer than the limit when it was scanned: it is kept, but never inflated whole."""
        return any(finding.text == OVERFULL for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return what the META section keeps; findings included."""
        return {
            "attributes": self.attributes,
            "dataset_offset": self.dataset_offset,
            "findings": [[finding.tag, finding.text] for finding in self.findings],
            "frames": None if self.frames is None else self.frames.to_json(),
            "head_bytes": self.head_bytes,
            "preamble": self.preamble,
            "scanner": SCANNER_VERSION,
            "series_instance_uid": self.series_instance_uid,
            "sop_class_uid": self.sop_class_uid,
            "sop_instance_uid": self.sop_instance_uid,
            "study_instance_uid": self.study_instance_uid,
            "transfer_syntax_uid": self.transfer_syntax_uid,
            **({"character_set": self.character_set} if self.character_set else {}),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Scanned:
        """Return what `to_json` was made from."""
        fields = {name: value[name] for name in cls.__slots__ if name not in {"findings", "frames", "character_set"}}
        return cls(
            **fields,
            findings=tuple(Finding(tag, text) for tag, text in value["findings"]),
            frames=None if value["frames"] is None else FrameTable.from_json(value["frames"]),
            character_set=value.get("character_set", ""),
        )


def first_text(attributes: dict[str, Element], name: str) -> str:
    """Return the first value of the attribute of this tag as plain text, empty when absent."""
    values = attributes.get(name, {}).get("Value")
    return plain(values[0]) if values else ""


def first_number(attributes: dict[str, Element], name: str) -> int | None:
    """Return the first value of the attribute of this tag as a whole number, None when it is absent or no such number."""
    values = attributes.get(name, {}).get("Value")
    if not values:
        return None
    if type(values[0]) is int and -1 << 53 < values[0] < 1 << 53:
        return int(values[0])
    try:
        number = float(plain(values[0]))
    except ValueError:
        return None
    return int(number) if number.is_integer() and abs(number) < 1 << 53 else None


def meta(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """Return preamble, DICM and file meta information for a data set that came by C-STORE.

    The same object from any peer gives the same bytes: no AE titles, no times.

    Source: PS3.10 7.1.
    """
    group = b"".join(
        (
            struct.pack("<HH2sHI2s", 2, 1, b"OB", 0, 2, b"\0\1"),
            _short(0x0002, b"UI", sop_class_uid),
            _short(0x0003, b"UI", sop_instance_uid),
            _short(0x0010, b"UI", transfer_syntax_uid),
            _short(0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
            _short(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
        )
    )
    return bytes(128) + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(group)) + group


def _short(element: int, vr: bytes, text: str) -> bytes:
    value = text.encode("ascii", "replace")
    value += (b"\0" if vr == b"UI" else b" ") * (len(value) & 1)
    return struct.pack("<HH2sH", 2, element, vr, len(value)) + value


def scan(part10: bytes | memoryview, limits: Limits = DEFAULT_LIMITS) -> Scanned:
    """Read one whole Part 10 file.

    Raises:
        InvalidInstance: not an instance that can be kept; `reason` says why.
    """
    from archive.dicom.stream import StreamScanner

    scanner = StreamScanner(limits)
    scanner.feed(part10)
    return scanner.finish()


def inflate(part10: bytes | memoryview, scanned: Scanned, limits: Limits = STORED_LIMITS, *, cut: bool = False) -> bytes:
    """Return the Part 10 stream with its data set inflated; unchanged when it is not deflated.

    Frame offsets of a deflated instance count in this answer. The file meta still names the deflated transfer syntax. With `cut` what
    lies beyond the limit is left out.

    Raises:
        InvalidInstance: too-large past limits.inflated_bytes, cannot-understand when damaged.
    """
    if not scanned.deflated:
        return bytes(part10)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        dataset = inflater.decompress(bytes(part10[scanned.dataset_offset :]), limits.inflated_bytes)
        # Only a byte beyond the limit tells a data set of exactly that length from a longer one.
        if not cut and not inflater.eof and inflater.decompress(inflater.unconsumed_tail, 1):
            raise InvalidInstance("the data set inflates beyond the limit", reason="too-large")
    except zlib.error as error:
        raise InvalidInstance("the deflated data set is damaged") from error
    return bytes(part10[: scanned.dataset_offset]) + dataset


@dataclass(frozen=True, slots=True)
class Bare:
    """What a data set without preamble and DICM says about itself; it begins at `dataset_offset` of its file."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    dataset_offset: int

    @property
    def wrap(self) -> tuple[str, str, str]:
        """The arguments of `meta`, and of StreamScanner's `wrap`."""
        return self.sop_class_uid, self.sop_instance_uid, self.transfer_syntax_uid


def unwrapped(data: bytes) -> str | None:
    """Return the transfer syntax of a file that begins with its data set, or with group 2; None when it looks like no data set."""
    found = bare(data)
    return None if found is None else found.transfer_syntax_uid


def bare(data: bytes) -> Bare | None:
    """Read what `meta` needs from the first bytes of a file without preamble; None when it looks like no data set.

    A file that begins with group 2 says its transfer syntax; of any other it is guessed from the first element. Uncompressed ones
    only: a compressed one is named by nothing but file meta.
    """
    from archive.dicom.filemeta import FileMeta, guess
    from archive.dicom.structure import Structure

    head = memoryview(data)[: 1 << 20]
    group_two = FileMeta()
    offset = 0
    transfer_syntax_uid = ""
    if bytes(head[:2]) == b"\2\0":
        try:
            rest = group_two.feed(memoryview(bytes(128) + b"DICM" + bytes(head)), last=True)
        except InvalidInstance:
            return None
        offset = group_two.end - 132
        transfer_syntax_uid = group_two.values.get(0x0010, "")
        head = head[:0] if rest is None else rest
    guessed = guess(bytes(head[:8]))
    if guessed is None:
        return None
    structure = Structure(implicit=guessed == IMPLICIT_LE, little=guessed != EXPLICIT_BE, nesting=64, elements=100_000)
    try:
        structure.feed(head)
    except InvalidInstance:
        return None
    uids = [structure.values.get(tag, ("UI", b""))[1].rstrip(b" \0").decode("ascii", "replace") for tag in (0x00080016, 0x00080018)]
    if not all(uids):
        return None
    return Bare(uids[0], uids[1], transfer_syntax_uid or guessed, offset)
