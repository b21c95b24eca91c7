"""Whether a record is the one its row names: an index that was edited must not make one image go out as another.

A record's key, object and place are bound by its header; the UIDs, the transfer syntax and the offset of the data set are columns beside
them. They are looked for where a Part 10 file has them, within its first bytes (PS3.5 7.1, PS3.10 7.1); what is not found there is
asked of the record's own sections.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from functools import lru_cache

from archive.dicom.part10 import Scanned
from archive.errors import SealBroken
from archive.index.locate import InstanceRow
from archive.index.pictures import PictureRow
from archive.services.core import Core
from archive.services.records import decode

_Forms = tuple[bytes, bytes]

LOOKED_AT_BYTES = 16 << 10
Row = InstanceRow | PictureRow
_META_LENGTH = struct.Struct("<128x4s8sI")  # preamble, prefix, (0002,0000) UL


def require_same(row: InstanceRow, scanned: Scanned) -> None:
    """Refuse a record that says otherwise than its row.

    Raises:
        SealBroken: V10.
    """
    require_uids(row, scanned)
    if (scanned.sop_class_uid, scanned.dataset_offset) != (row.sop_class_uid, row.dataset_offset):
        raise _other()


def require_uids(row: Row, scanned: Scanned) -> None:
    """Refuse a record of other UIDs than its row's.

    Raises:
        SealBroken: V10.
    """
    said = scanned.study_instance_uid, scanned.series_instance_uid, scanned.sop_instance_uid, scanned.transfer_syntax_uid
    if said != (row.study_instance_uid, row.series_instance_uid, row.sop_instance_uid, row.transfer_syntax_uid):
        raise _other()


def _other() -> SealBroken:
    message = "the record is not the instance that the index names"
    return SealBroken(message, verdict="V10", remedy="run 'archive verify': the index was edited or damaged")


def checked(core: Core, row: InstanceRow, views: Iterator[memoryview], *, from_start: bool) -> Iterator[memoryview]:
    """Return `views` of the record once it is known to be the row's; the first is taken for it where it begins the file.

    Raises:
        SealBroken: V10; else as the views.
    """
    first = next(views, memoryview(b"")) if from_start else memoryview(b"")
    if not _shows(row, bytes(first[:LOOKED_AT_BYTES])):
        sections = core.vault.sections(row.ref)  # the views have their own working space
        require_same(row, decode(sections.meta).scanned)
    return itertools.chain((first,), views) if from_start else views


def _shows(row: InstanceRow, head: bytes) -> bool:
    if len(head) < _META_LENGTH.size:
        return False
    prefix, element, length = _META_LENGTH.unpack_from(head)
    if prefix != b"DICM" or element != b"\2\0\0\0UL\4\0" or _META_LENGTH.size + length != row.dataset_offset:
        return False
    meta, dataset = head[: row.dataset_offset], head[row.dataset_offset :]
    sop_class, syntax, study, series = _shared(
        row.sop_class_uid, row.transfer_syntax_uid, row.study_instance_uid, row.series_instance_uid
    )
    of_meta = (sop_class, syntax, _element(b"\2\0\3\0", row.sop_instance_uid))
    for data, elements in ((meta, of_meta), (dataset, (study, series))):
        for explicit, implicit in elements:
            if explicit not in data and implicit not in data:
                return False
    return True


@lru_cache(maxsize=256)
def _shared(sop_class_uid: str, transfer_syntax_uid: str, study_instance_uid: str, series_instance_uid: str) -> tuple[_Forms, ...]:
    """Return the elements that the instances of a series have in common."""
    return (
        _element(b"\2\0\2\0", sop_class_uid), _element(b"\2\0\x10\0", transfer_syntax_uid),
        _element(b"\x20\0\x0d\0", study_instance_uid), _element(b"\x20\0\x0e\0", series_instance_uid),
    )


def _element(tag: bytes, uid: str) -> _Forms:
    """Return a UID's element as explicit and as implicit VR little endian write it."""
    value = uid.encode()
    value += bytes(len(value) % 2)
    return tag + b"UI" + len(value).to_bytes(2, "little") + value, tag + len(value).to_bytes(4, "little") + value
