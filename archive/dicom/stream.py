"""Reading an instance as it arrives: one push parser for small and large instances.

Memory stays bounded whatever comes: the values of ATTRIBUTES, offset tables and a few bytes in flight; never pixel data.

Source: PS3.10 7.1, PS3.5 A.5 (deflated).
"""

from __future__ import annotations

import re
import struct
import zlib

from archive.dicom.alike import LONGEST, Alike, Encoding, Found
from archive.dicom.attributes import SCANNED
from archive.dicom.charsets import repertoire
from archive.dicom.conformity import faults_of
from archive.dicom.filemeta import FileMeta, guess, sniff
from archive.dicom.frames import SUBSAMPLED, FrameTable, PixelElement, Shape, encapsulated, native
from archive.dicom.matching import UID
from archive.dicom.metadata import dataset_json
from archive.dicom.part10 import DEFAULT_LIMITS, OVERFULL, Finding, Limits, Scanned, first_number, first_text, meta
from archive.dicom.structure import Structure
from archive.dicom.transfer import DEFLATED, TRANSFER_SYNTAXES, UNCOMPRESSED
from archive.dicom.usual import READERS, is_uid
from archive.dicom.values import BINARY, Element, element_json
from archive.errors import InvalidInstance

HEAD_BYTES = 1 << 20
"""After as much of a data set its identity is given, even when no large element came."""
_INFLATE_STEP = 256 << 10
_LEADING_ZERO = re.compile(r"\b0[0-9]")
_CHARACTER_SET = 0x00080005
_UIDS = (0x00080016, 0x00080018, 0x0020000D, 0x0020000E)


class StreamScanner:
    """Reads consecutive bytes of a Part 10 stream; with `wrap` those of a data set that came without file meta information."""

    def __init__(
        self, limits: Limits = DEFAULT_LIMITS, *, wrap: tuple[str, str, str] | None = None, character_set: str = "",
        alike: Alike | None = None,
    ) -> None:
        """`wrap` is SOP class, SOP instance and transfer syntax; offsets then count as if `part10.meta` of them came first.

        `character_set` is that of a data set which names none; `alike` knows the headers that came before from the same sender.
        """
        self._character_set = character_set
        self._alike = alike
        self._known: Found | None = None
        self._to_learn: tuple[bytes, bytes] | None = None  # a header, and the tag after it
        self._head: Scanned | None = None
        self._identified = False
        self._uids: tuple[str, ...] = ()
        self._limits = limits
        self._wrap = wrap
        self._meta = FileMeta()
        self._findings: list[Finding] = []
        self._structure: Structure | None = None
        self._inflater: zlib._Decompress | None = None
        self._inflated = 0
        self._overfull = False
        self._transfer_syntax_uid = ""
        self._dataset_offset = 0
        self._bytes = 0
        self._failure: InvalidInstance | None = None
        self._decoded: tuple[int, dict[str, Element], list[Finding]] | None = None
        if wrap is not None:
            self.feed(meta(*wrap))

    def begin(self, made: bytes, uids: tuple[str, str, str]) -> None:
        """Take what `part10.meta` made of these UIDs (SOP class, SOP instance, transfer syntax) for the first bytes of the stream."""
        self._bytes = len(made)
        self._meta.begin(made, uids)

    @property
    def head(self) -> Scanned | None:
        """What has been scanned, once every identifying attribute is in; read at the first asking."""
        if self._head is None and self._identified:
            self._head = self._build(last=False)
        return self._head

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes; nothing of `data` is referred to afterwards.

        Raises:
            InvalidInstance: as soon as it is certain that this is no instance that can be kept.
        """
        if self._failure is not None:
            raise self._failure
        try:
            view = memoryview(data)
            self._bytes += len(view)
            if self._structure is None:
                self._start(view, last=False)
            else:
                self._feed_dataset(view)
            structure = self._structure
            if not self._identified and structure is not None and (structure.past_header or structure.offset > HEAD_BYTES):
                self._identified = self._identify(last=False)
        except InvalidInstance as error:
            self._failure = error
            raise

    def finish(self) -> Scanned:
        """Say that all bytes came.

        Raises:
            InvalidInstance: cut short, an element past the end, a UID missing or malformed.
        """
        if self._failure is not None:
            raise self._failure
        try:
            if self._structure is None:
                self._start(memoryview(b""), last=True)
            structure = self._structure
            assert structure is not None
            if self._inflater is not None and not self._overfull:
                self._end_inflating()
            if not self._overfull:
                structure.finish()
            self._identify(last=True)
        except InvalidInstance as error:
            self._failure = error
            raise
        return self._build(last=True)

    def _start(self, data: memoryview, *, last: bool) -> None:
        rest = self._meta.feed(data, last=last)
        if rest is not None:
            self._start_dataset(rest)

    def _start_dataset(self, rest: memoryview) -> None:
        uid = self._meta.values.get(0x0010, "")
        first = bytes(rest[:8])
        if not uid:
            uid = guess(first) or ""
            if not uid:
                raise InvalidInstance("the file meta information names no transfer syntax")
            self._find(0x00020010, "no transfer syntax is named; it was guessed")
        elif len(uid) > 64 or UID.fullmatch(uid) is None:
            raise InvalidInstance("the transfer syntax is not a UID")
        self._transfer_syntax_uid = uid
        self._dataset_offset = self._meta.end
        if uid in DEFLATED:
            self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            implicit, little = False, True
        else:
            implicit, little, fault = sniff(first, uid)
            if fault:
                self._find(0x00020010, fault)
            if uid not in TRANSFER_SYNTAXES:
                self._find(0x00020010, "an unknown transfer syntax; the pixel data are kept as they are")
        self._structure = Structure(implicit=implicit, little=little, nesting=self._limits.nesting, elements=self._limits.elements)
        if self._alike is None or self._inflater is not None:
            self._feed_dataset(rest)
        else:
            self._feed_header(self._alike, rest)

    # --- data set

    def _feed_header(self, alike: Alike, data: memoryview) -> None:
        """Take the first bytes of a data set, whose header may be known."""
        structure = self._structure
        assert structure is not None
        self._known = found = alike.find(self._encoding, data)
        if found is not None:
            structure.go_on(found.begun)
            structure.feed(data[found.length :])
            return
        structure.feed(data)
        pixel = structure.pixel
        if pixel is not None and alike.learns and not structure.findings:
            end = pixel.offset - (8 if structure.implicit else 12)
            if end <= LONGEST:
                self._to_learn = bytes(data[:end]), bytes(data[end : end + 4])

    @property
    def _encoding(self) -> Encoding:
        structure = self._structure
        assert structure is not None
        return structure.implicit, structure.little, self._character_set, self._limits

    def _feed_dataset(self, data: memoryview) -> None:
        assert self._structure is not None
        if self._inflater is None:
            self._structure.feed(data)
            return
        if self._overfull or self._inflater.eof:
            return
        pending: bytes | memoryview = data
        full = False  # zlib may hold more than the last step had room for, though all input is taken
        try:
            while (pending or full) and not self._inflater.eof:
                step = min(_INFLATE_STEP, self._limits.inflated_bytes - self._inflated + 1)
                inflated = self._inflater.decompress(pending, step)
                pending, full = self._inflater.unconsumed_tail, len(inflated) == step
                if self._take_inflated(inflated):
                    return
        except zlib.error as error:
            raise InvalidInstance("the deflated data set is damaged") from error

    def _take_inflated(self, inflated: bytes) -> bool:
        """Pass inflated bytes on; say whether the limit is reached."""
        assert self._structure is not None
        self._inflated += len(inflated)
        self._structure.feed(memoryview(inflated))
        if self._inflated <= self._limits.inflated_bytes:
            return False
        if not self._structure.past_header:
            raise InvalidInstance("the data set inflates beyond the limit", reason="too-large")
        self._overfull = True
        self._find(0, OVERFULL)
        return True

    def _end_inflating(self) -> None:
        inflater = self._inflater
        assert inflater is not None
        if not inflater.eof:
            raise InvalidInstance("the deflated data set is cut short")
        # PS3.5 A.5: one byte of padding may follow an odd stream.
        if len(inflater.unused_data) > 1 or inflater.unused_data not in (b"", b"\0"):
            self._find(0, "bytes after the data set")

    # --- result

    def _find(self, tag: int, text: str) -> None:
        self._findings.append(Finding(f"{tag:08X}", text))

    def _identify(self, *, last: bool) -> bool:
        """Check the UIDs; say whether all came."""
        if not self._identified:
            self._uids = tuple(self._uid(tag, last=last) for tag in _UIDS)
            if not all(self._uids):
                return False
        if last:
            for tag, uid in zip(_UIDS, self._uids, strict=True):
                if (uid[0] == "0" or ".0" in uid.replace(".0.", ".")) and _LEADING_ZERO.search(uid):
                    self._find(tag, "a UID component with leading zeros")
        if not self._identified:
            self._compare_meta(self._uids[0], self._uids[1])
        return True

    def _build(self, *, last: bool) -> Scanned:
        structure = self._structure
        assert structure is not None
        if self._decoded is None or self._decoded[0] != len(structure.values):
            self._decoded = (len(structure.values), *self._decode())
        _, attributes, findings = self._decoded
        if last and self._alike is not None and self._to_learn is not None and not findings:
            self._alike.learn(self._encoding, *self._to_learn, structure.values, attributes)
        found = [*self._findings, *(Finding(f"{tag:08X}", text) for tag, text in structure.findings), *findings]
        pixel = structure.pixel
        frames = None
        head_bytes = self._bytes
        if pixel is not None and self._inflater is None:
            head_bytes = self._dataset_offset + pixel.offset
        if last and pixel is not None and not self._overfull:
            frames, faults = self._frames(attributes)
            found.extend(Finding(f"{pixel.tag:08X}", fault) for fault in faults)
        sop_class, sop_instance, study, series = self._uids
        return Scanned(
            sop_class_uid=sop_class,
            sop_instance_uid=sop_instance,
            study_instance_uid=study,
            series_instance_uid=series,
            transfer_syntax_uid=self._transfer_syntax_uid,
            dataset_offset=self._dataset_offset,
            attributes=attributes,
            findings=tuple(dict.fromkeys(found)),
            frames=frames,
            preamble=self._meta.preamble,
            head_bytes=head_bytes,
            character_set=self._assumed,
        )

    def _uid(self, tag: int, *, last: bool) -> str:
        """Return a UID without its padding, "" while it has not come."""
        assert self._structure is not None
        value = self._structure.values.get(tag)
        uid = b"" if value is None else value[1].rstrip(b" \0")
        if not uid:
            if last or value is not None:
                raise InvalidInstance(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) is missing or empty", reason="missing-uid")
            return ""
        if not is_uid(uid):
            raise InvalidInstance(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) is not a UID", reason="bad-uid")
        return uid.decode("ascii")

    def _compare_meta(self, sop_class_uid: str, sop_instance_uid: str) -> None:
        for element, name, uid in ((0x0002, "class", sop_class_uid), (0x0003, "instance", sop_instance_uid)):
            named = self._meta.values.get(element, "")
            if named == uid:
                continue
            if self._wrap is not None:
                reason = "class-mismatch" if name == "class" else "uid-mismatch"
                raise InvalidInstance(f"the data set is of another SOP {name} than its request says", reason=reason)
            if named:
                finding = Finding(f"0002{element:04X}", f"the file meta information names another SOP {name}")
                if finding not in self._findings:
                    self._findings.append(finding)

    @property
    def _assumed(self) -> str:
        """The character set a data set is read in that says nothing of its own."""
        structure = self._structure
        assert structure is not None
        return self._character_set if _CHARACTER_SET not in structure.values else ""

    def _decode(self) -> tuple[dict[str, Element], list[Finding]]:
        structure = self._structure
        assert structure is not None
        values = structure.values
        assumed = self._assumed
        text = repertoire(assumed.encode("ascii") if assumed else values[_CHARACTER_SET][1] if _CHARACTER_SET in values else None)
        attributes: dict[str, Element] = {}
        findings: list[Finding] = []
        little_endian = structure.little
        tags = sorted(values)
        known = self._known
        if known is not None and (_CHARACTER_SET in known.tags) == (_CHARACTER_SET in values):
            # Of what was known these alone have changed, and the rest came since; all that was known was read without a finding.
            attributes = dict(known.attributes)
            tags = [tag for tag in tags if tag in known.changed or tag not in known.tags]
        for tag in tags:
            vr, raw = values[tag]
            usual, name, reader = READERS[tag]
            if vr == usual and reader is not None and little_endian:
                value = reader(raw)
                if value is not None:
                    attributes[name] = {"vr": vr, "Value": value}
                    continue
            attribute = SCANNED[tag]
            little = little_endian
            if attribute.vr == "SQ" or vr == "SQ":
                if attribute.vr == vr:
                    attributes[name] = dataset_json(raw, 0, structure.implicit, little, _inline, text=text)[name]
                continue
            if vr != attribute.vr:
                if vr == "UN":
                    vr, little = attribute.vr, True
                if vr == "xs" or vr in BINARY:
                    vr = attribute.vr
            attributes[name] = element = element_json(vr, raw, little, text)
            findings.extend([Finding(name, fault) for fault in faults_of(attribute, element)])
        findings.extend(Finding("00080005", fault) for fault in sorted(text.faults))
        return attributes, findings

    def _frames(self, attributes: dict[str, Element]) -> tuple[FrameTable | None, list[str]]:
        structure = self._structure
        assert structure is not None
        found = structure.pixel
        assert found is not None
        uid = self._transfer_syntax_uid
        start = self._dataset_offset
        fragments = [(offset + start, length) for offset, length in found.fragments]
        pixel = PixelElement(found.tag, found.vr, found.offset + start, found.length, found.offset_table, fragments, found.ends)
        shape = Shape(
            rows=first_number(attributes, "00280010"),
            columns=first_number(attributes, "00280011"),
            samples=first_number(attributes, "00280002"),
            bits_allocated=first_number(attributes, "00280100") or {0x7FE00008: 32, 0x7FE00009: 64}.get(pixel.tag),
            frames=first_number(attributes, "00280008"),
            subsampled=first_text(attributes, "00280004") in SUBSAMPLED,
        )
        if pixel.length is None:
            form = "<" if structure.little else ">"
            extended, lengths = (
                struct.unpack(f"{form}{len(table) // 8}Q", table[: len(table) // 8 * 8])
                for table in (structure.tables.get(tag, b"") for tag in (0x7FE00001, 0x7FE00002))
            )
            frames, faults = encapsulated(pixel, shape, uid, extended, lengths)
            if uid in UNCOMPRESSED:
                faults.append("encapsulated pixel data in an uncompressed transfer syntax")
            return frames, faults
        if uid not in UNCOMPRESSED:
            return None, ["pixel data that are not encapsulated in a compressed transfer syntax"]
        return native(pixel, shape, little=structure.little)


def _inline(path: str, vr: str, buffer: bytes, start: int, stop: int) -> Element | None:  # noqa: ARG001
    return {"vr": vr.lstrip("=")} if stop - start > 1024 else None
