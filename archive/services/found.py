"""What a retrieve found: instances, frames and values of one, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from archive.access.permissions import Permission
from archive.index import locate


@dataclass(frozen=True, slots=True)
class Found:
    """One instance the caller may see."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    part10_bytes: int
    dataset_offset: int
    sha256: bytes
    etag: str
    number_of_frames: int
    row: locate.InstanceRow
    datastore: str
    need: Permission


@dataclass(frozen=True, slots=True)
class FramesAnswer:
    """Frames of one instance; numbers count from 1, as in the request."""

    found: Found
    transfer_syntax_uid: str
    stored: Callable[[int], bytes]
    explicit_le: Callable[[int], bytes]
    encoded: Callable[[int, str], bytes]
    """A frame in the transfer syntax told; NotAcceptable where there is no codec for it, or it would not keep every bit."""
    long: Callable[[int], BulkAnswer | None] = lambda _number: None
    """A frame as it is stored where that is too long to be held, as films are, to be read piece by piece."""


@dataclass(frozen=True, slots=True)
class BulkAnswer:
    """The value of one element, in little endian; `read` yields its bytes [start, start + length), each view valid until the next.

    `frame` is there where they are a code stream: the one frame, as which it has other forms.
    """

    found: Found
    length: int
    read: Callable[[int, int], Iterator[bytes | memoryview]]
    frame: FramesAnswer | None = None
