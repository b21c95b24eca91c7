"""One instance while it arrives: scanned, hashed and sealed as its bytes come, never whole in memory nor in clear on disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from archive.dicom.part10 import Limits, Scanned
from archive.dicom.stream import StreamScanner
from archive.errors import InvalidInstance
from archive.vault.vault import RecordWriter

BUFFERED_BYTES = 4 << 20
"""Up to here an instance waits in memory: its study is known and a duplicate costs no writing."""

PREAMBLE_BYTES = 128
_NO_PREAMBLE = bytes(PREAMBLE_BYTES)
_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")


@dataclass(frozen=True, slots=True)
class Source:
    """The door an instance came through."""

    via: Literal["dimse", "stow", "import", "demo"]
    calling_ae_title: str = ""
    called_ae_title: str = ""
    certificate_sha256: str = ""
    issuer: str = ""
    character_set: str = ""
    """Of data sets that name none."""


@dataclass(frozen=True, slots=True)
class Coercion:
    """What was changed on the way in: only ever the preamble, cleared when it could be another file format."""

    sha256: bytes  # of the bytes as sent


class Intake:
    """Scanner, digest and writer of one arriving Part 10 stream.

    While `buffered` is not None everything is in memory; `attach` gives it a record to be sealed into.
    """

    def __init__(self, limits: Limits, *, max_bytes: int, scanner: StreamScanner | None = None) -> None:
        """Start with an empty stream of at most `max_bytes`."""
        self._scanner = scanner or StreamScanner(limits)
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._digest = hashlib.sha256()
        self._original: hashlib._Hash | None = None
        self._writer: RecordWriter | None = None
        self.part10_bytes = 0
        self.dataset_digest: hashlib._Hash | None = None

    @property
    def head(self) -> Scanned | None:
        """What has been scanned once every identifying attribute is in."""
        return self._scanner.head

    @property
    def buffered(self) -> memoryview | None:
        """The whole stream while it is small, else None."""
        return memoryview(self._buffer) if self._writer is None else None

    @property
    def overflowing(self) -> bool:
        """Whether the stream has outgrown the buffer and needs its writer now."""
        return self._writer is None and len(self._buffer) > BUFFERED_BYTES

    @property
    def coercion(self) -> Coercion | None:
        """What was changed, or None."""
        return Coercion(self._original.digest()) if self._original is not None else None

    @property
    def sha256(self) -> bytes:
        """SHA-256 of the Part 10 bytes as kept."""
        return self._digest.digest()

    def begin(self, made: bytes, uids: tuple[str, str, str]) -> None:
        """Take what `part10.meta` made of SOP class, SOP instance and transfer syntax UID for the first bytes; before anything is fed."""
        self.part10_bytes = len(made)
        self._scanner.begin(made, uids)
        self._digest.update(made)
        self._buffer += made

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes.

        Raises:
            InvalidInstance: as soon as the stream cannot become an instance.
        """
        view = memoryview(data)
        self.part10_bytes += len(view)
        if self.part10_bytes > self._max_bytes:
            message = f"the instance is larger than {self._max_bytes} bytes"
            raise InvalidInstance(message, reason="too-large", remedy="raise dimse.max_dataset_bytes if it is genuine")
        start = self.part10_bytes - len(view)
        if start < PREAMBLE_BYTES + 4:
            # The preamble decides whether what is kept is what was sent, so hashing waits for it.
            if start or len(view) < PREAMBLE_BYTES + 4:
                self._buffer += view
                if self.part10_bytes < PREAMBLE_BYTES + 4:
                    return
                view = memoryview(bytes(self._buffer))
                self._buffer.clear()
            preamble = bytes(view[:PREAMBLE_BYTES])
            genuine = bytes(view[PREAMBLE_BYTES : PREAMBLE_BYTES + 4]) == b"DICM"
            if genuine and preamble != _NO_PREAMBLE and not preamble.startswith(_TIFF):
                self._original = hashlib.sha256(view)
                self._take(memoryview(_NO_PREAMBLE))
                view = view[PREAMBLE_BYTES:]
        elif self._original is not None:
            self._original.update(view)
        self._take(view)

    def _take(self, view: memoryview) -> None:
        self._scanner.feed(view)
        self._digest.update(view)
        if self.dataset_digest is not None:
            self.dataset_digest.update(view)
        if self._writer is None:
            self._buffer += view
        else:
            self._writer.write(view)

    def attach(self, writer: RecordWriter) -> None:
        """Seal what is buffered into `writer`, and all that follows."""
        self._writer = writer
        writer.hashed_by(self._digest)
        if self._buffer:
            writer.write(memoryview(self._buffer))
        self._buffer = bytearray()

    def digest_dataset(self, dataset_offset: int) -> None:
        """Hash the data set too, from `dataset_offset`; only while everything is still buffered."""
        self.dataset_digest = hashlib.sha256(memoryview(self._buffer)[dataset_offset:])

    def finish(self) -> Scanned:
        """Return the scan of the whole stream.

        Raises:
            InvalidInstance: truncated or otherwise not an instance.
        """
        if self.part10_bytes < PREAMBLE_BYTES + 4:
            self._scanner.feed(memoryview(bytes(self._buffer)))
        return self._scanner.finish()

