"""DICOMDIR: the directory of a file-set, written from index attributes while instances pass.

A record is kept as its bytes; offsets are put in when the directory ends. Text is in UTF-8. What has no record type of the standard is
in the file-set and not in its directory.

Source: PS3.3 F, PS3.10 8, PS3.5 7.1.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from archive.dicom import compose, registry
from archive.dicom.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, Scanned
from archive.dicom.transfer import EXPLICIT_LE

NAME = "DICOMDIR"
MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"

_UTF_8 = b"ISO_IR 192"
_NEXT_AT, _LOWER_AT = 8, 30
"""Where the values of the two offsets lie in a record: they are its first and third element, of fixed length."""

_PATIENT = {"00100010": "PN", "00100020": "LO"}
_STUDY = {"00080020": "DA", "00080030": "TM", "00080050": "SH", "00081030": "LO", "0020000D": "UI", "00200010": "SH"}
_SERIES = {"00080060": "CS", "0008103E": "LO", "0020000E": "UI", "00200011": "IS"}
_NUMBERED = {"00200013": "IS"}
_DOCUMENT = {**_NUMBERED, "00080023": "DA", "00080033": "TM", "0040A043": "SQ"}
_LEAVES: dict[str, dict[str, str]] = {
    "IMAGE": _NUMBERED,
    "SR DOCUMENT": {**_DOCUMENT, "0040A491": "CS", "0040A493": "CS"},
    "KEY OBJECT DOC": _DOCUMENT,
    "ENCAP DOC": {**_DOCUMENT, "00420010": "ST"},
    "PRESENTATION": {**_NUMBERED, "00700080": "CS", "00700081": "LO", "00700082": "DA", "00700083": "TM", "00700084": "PN"},
}
_BY_NAME = (
    ("Presentation State", "PRESENTATION"), ("Key Object Selection", "KEY OBJECT DOC"), (" SR ", "SR DOCUMENT"),
    ("Radiation Dose", "SR DOCUMENT"), ("Procedure Log", "SR DOCUMENT"), ("Encapsulated", "ENCAP DOC"), ("Waveform", "WAVEFORM"),
    ("ECG", "WAVEFORM"), ("RT Dose", "RT DOSE"), ("RT Structure Set", "RT STRUCTURE SET"),
    ("RT Plan", "RT PLAN"), ("RT Ion Plan", "RT PLAN"),
    ("Treatment Record", "RT TREAT RECORD"), ("Treatment Summary Record", "RT TREAT RECORD"), ("Registration", "REGISTRATION"),
    ("Fiducials", "FIDUCIAL"), ("Raw Data", "RAW DATA"), ("Spectroscopy", "SPECTROSCOPY"), ("Surface", "SURFACE"),
    ("Real World Value", "VALUE MAP"), ("Stereometric", "STEREOMETRIC"), ("Tractography", "TRACT"),
)  # fmt: skip


def record_type(scanned: Scanned) -> str | None:
    """Return the type of an instance's directory record, None when the standard has none for it (PS3.3 F.4)."""
    name = registry.UIDS.get(scanned.sop_class_uid, ("",))[0]
    for part, kind in _BY_NAME:
        if part in name:
            return kind
    return "IMAGE" if scanned.frames is not None else None


@dataclass
class _Record:
    data: bytearray
    below: dict[tuple[str, ...], _Record] = field(default_factory=dict)
    at: int = 0


class Directory:
    """Collects the instances of a file-set."""

    def __init__(self) -> None:
        """Start without any."""
        self._root = _Record(bytearray())

    def add(self, scanned: Scanned, file_id: tuple[str, ...]) -> None:
        """Enter an instance under its patient, study and series; `file_id` holds the components of its file's name."""
        kind = record_type(scanned)
        if kind is None:
            return
        known = scanned.attributes
        patient = _of(self._root, (scanned.text("PatientID"), scanned.text("PatientName")), "PATIENT", _chosen(known, _PATIENT))
        study = _of(patient, (scanned.study_instance_uid,), "STUDY", _chosen(known, _STUDY, "0020000D", scanned.study_instance_uid))
        series = _of(study, (scanned.series_instance_uid,), "SERIES", _chosen(known, _SERIES, "0020000E", scanned.series_instance_uid))
        named = {
            "00041500": {"vr": "CS", "Value": list(file_id)},
            "00041510": {"vr": "UI", "Value": [scanned.sop_class_uid]},
            "00041511": {"vr": "UI", "Value": [scanned.sop_instance_uid]},
            "00041512": {"vr": "UI", "Value": [scanned.transfer_syntax_uid]},
        }
        _of(series, (scanned.sop_instance_uid,), kind, named | _chosen(known, _LEAVES.get(kind, _NUMBERED)))

    def written(self) -> bytes:
        """Return the directory as a Part 10 file."""
        records = list(_in_order(self._root))
        head = self._head(b"")
        at = len(head)
        for record in records:
            record.at = at
            at += 8 + len(record.data)
        _link(self._root)
        tops = list(self._root.below.values())
        body = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(record.data)) + record.data for record in records)
        return self._head(body, tops[0].at if tops else 0, tops[-1].at if tops else 0) + body

    def _head(self, body: bytes, first: int = 0, last: int = 0) -> bytes:
        """Return everything before the first record."""

        def element(tag: int, vr: str, value: bytes) -> bytes:
            return compose.element(tag, vr, value, explicit=True)

        own = f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '|'.join(self._uids())).int}"
        meta = b"".join((
            element(0x00020001, "OB", b"\0\1"), element(0x00020002, "UI", MEDIA_STORAGE_DIRECTORY.encode()),
            element(0x00020003, "UI", own.encode()), element(0x00020010, "UI", EXPLICIT_LE.encode()),
            element(0x00020012, "UI", IMPLEMENTATION_CLASS_UID.encode()), element(0x00020013, "SH", IMPLEMENTATION_VERSION_NAME.encode()),
        ))
        return b"".join((
            bytes(128), b"DICM", element(0x00020000, "UL", struct.pack("<I", len(meta))), meta,
            element(0x00041130, "CS", b""), element(0x00041200, "UL", struct.pack("<I", first)),
            element(0x00041202, "UL", struct.pack("<I", last)), element(0x00041212, "US", b"\0\0"),
            struct.pack("<HH2sHI", 0x0004, 0x1220, b"SQ", 0, len(body)),
        ))

    def _uids(self) -> list[str]:
        return ["".join(key) for record in self._root.below.values() for key in record.below]


def _chosen(known: Mapping[str, Any], wanted: Mapping[str, str], uid_tag: str = "", uid: str = "") -> dict[str, Any]:
    found = {tag: known.get(tag) or {"vr": vr} for tag, vr in wanted.items()}
    return found | {uid_tag: {"vr": "UI", "Value": [uid]}} if uid_tag else found


def _of(parent: _Record, key: tuple[str, ...], kind: str, elements: dict[str, Any]) -> _Record:
    if key not in parent.below:
        zero = {"vr": "UL", "Value": [0]}
        whole = {
            "00041400": zero, "00041410": {"vr": "US", "Value": [0xFFFF]}, "00041420": zero, "00041430": {"vr": "CS", "Value": [kind]},
            **elements,
        }
        parent.below[key] = _Record(bytearray(compose.dataset(whole, explicit=True, declared=_UTF_8)))
    return parent.below[key]


def _in_order(record: _Record) -> list[_Record]:
    found: list[_Record] = []
    for below in record.below.values():
        found += [below, *_in_order(below)]
    return found


def _link(record: _Record) -> None:
    each = list(record.below.values())
    if record.data and each:
        struct.pack_into("<I", record.data, _LOWER_AT, each[0].at)
    for one, following in pairwise(each):
        struct.pack_into("<I", one.data, _NEXT_AT, following.at)
    for one in each:
        _link(one)
