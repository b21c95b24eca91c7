"""The record format: a header that binds everything, chunks that authenticate alone (docs/format.md 2.2 and 3).

Pure: bytes and keys in, bytes out, no files. Nothing here keeps a study key.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import os
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from archive.errors import SealBroken

MAGIC = b"\x89SRM\r\n\x1a\n"
HEADER_BYTES = 160
TAG_BYTES = 16
TRAILER_BYTES = 96
CHUNK_LOG2 = 18
_TRAILER_MAGIC = b"SRMTRLR1"
_BOUND = struct.Struct(">8sHBBI16s16s32s16sB15x")  # header[0:112]
_TRAILER = struct.Struct(">8sQQQQ32s24x")
_COMMIT_LABEL = b"strongroom/v1/commit\0"
_sealed_here = itertools.count()

ReadInto = Callable[[int, memoryview], int]
"""Read bytes of the record from an offset into a view; returns how many there were."""


class Kind(IntEnum):
    """What a record holds."""

    INSTANCE = 1
    HELD = 2
    EVENT = 3
    PACK = 0x10
    PICTURE = 0x11


RECORD_KINDS = frozenset({Kind.INSTANCE, Kind.HELD, Kind.EVENT})
PACK_KINDS = frozenset({Kind.PACK})
PICTURE_KINDS = frozenset({Kind.PICTURE})
_LABELS: dict[int, bytes] = {Kind.PACK: b"strongroom/v1/pack\0", Kind.PICTURE: b"strongroom/v1/picture\0"}


def _expand(key: bytes, info: bytes) -> bytes:
    """HKDF-Expand-SHA-256 for one block of output (RFC 5869 2.3)."""
    return hmac.digest(key, info + b"\1", "sha256")


def _file_key(study_key: bytes, bound: bytes, kind: int) -> bytes:
    return _expand(study_key, _LABELS.get(kind, b"strongroom/v1/file\0") + bound)


_nonce_of = struct.Struct(">7xIB").pack


def _nonce(index: int, *, last: bool) -> bytes:
    return _nonce_of(index, last)


def _broken(verdict: str, message: str) -> SealBroken:
    return SealBroken(message, verdict=verdict, remedy="run 'archive verify'; bring the record back from a backup")


@dataclass(frozen=True, slots=True)
class Header:
    """The fields of a record's first 160 bytes."""

    key_id: bytes
    object_id: bytes
    salt: bytes
    datastore: bytes
    kind: int
    length: int
    commitment: bytes
    chunk_log2: int = CHUNK_LOG2

    @property
    def chunk_bytes(self) -> int:
        """Plaintext bytes of every chunk but the last."""
        return 1 << self.chunk_log2

    @property
    def chunks(self) -> int:
        """How many chunks the record has."""
        return (self.length + self.chunk_bytes - 1) >> self.chunk_log2

    @property
    def record_bytes(self) -> int:
        """Header and sealed chunks, without padding."""
        return HEADER_BYTES + self.length + TAG_BYTES * self.chunks

    def plain_bytes(self, index: int) -> int:
        """Plaintext bytes of chunk `index`."""
        return min(self.chunk_bytes, self.length - (index << self.chunk_log2))

    def chunk_offset(self, index: int) -> int:
        """Where chunk `index` starts in the record."""
        return HEADER_BYTES + index * (self.chunk_bytes + TAG_BYTES)


def parse_header(data: bytes | memoryview, kinds: frozenset[Kind] = RECORD_KINDS) -> Header:
    """Read a header without any key.

    Raises:
        SealBroken: V04, not a header of this version and of one of `kinds`.
    """
    data = bytes(data[:HEADER_BYTES])
    if len(data) < HEADER_BYTES:
        raise _broken("V04", "the record's header is cut short")
    magic, version, suite, chunk_log2, flags, key_id, object_id, salt, datastore, kind = _BOUND.unpack_from(data)
    if magic != MAGIC:
        raise _broken("V04", "there is no record here")
    if version != 1 or suite != 1 or not 12 <= chunk_log2 <= 22 or flags:
        raise _broken("V04", "the record's header is of an unknown form")
    length = int.from_bytes(data[112:120], "big")
    if kind not in kinds or data[97:112] != bytes(15) or data[120:128] != bytes(8) or not 1 <= length < 1 << 48:
        raise _broken("V04", "the record's header contradicts itself")
    header = Header(key_id, object_id, salt, datastore, kind, length, data[128:160], chunk_log2)
    if header.chunks >= 1 << 32:
        raise _broken("V04", "the record's header contradicts itself")
    return header


class Sealer:
    """Seals one record under a key used for nothing else."""

    def __init__(
        self, study_key: bytes, *, key_id: bytes, object_id: bytes, datastore: bytes, kind: int, chunk_log2: int = CHUNK_LOG2,
        salt: bytes | None = None,
    ) -> None:
        """Derive the file key; `salt` is given by test vectors only."""
        if salt is None:
            # Not a timestamp: clock, pid and counter keep two salts apart even if the random generator repeats itself.
            hedge = struct.pack(">QIQ", time.time_ns(), os.getpid(), next(_sealed_here))
            salt = hmac.digest(study_key, b"salt" + os.urandom(32) + hedge[:8] + object_id + hedge[8:], "sha256")
        self._bound = _BOUND.pack(MAGIC, 1, 1, chunk_log2, 0, key_id, object_id, salt, datastore, kind)
        self._file_key = _file_key(study_key, self._bound, kind)
        self._aead = AESGCM(self._file_key)

    def chunk(self, index: int, view: memoryview, plain_bytes: int, *, last: bool) -> None:
        """Seal the first `plain_bytes` of `view` in place; the tag takes the 16 bytes behind them."""
        self._aead.encrypt_into(_nonce(index, last=last), view[:plain_bytes], None, view[: plain_bytes + TAG_BYTES])

    def header(self, length: int) -> bytes:
        """Return the 160 bytes that stand before chunks of `length` plaintext bytes in all."""
        head = self._bound + length.to_bytes(8, "big") + bytes(8)
        return head + _expand(self._file_key, _COMMIT_LABEL + head)


class Opener:
    """Opens chunks of one record whose header has been verified."""

    def __init__(self, study_key: bytes, data: bytes | memoryview, kinds: frozenset[Kind] = RECORD_KINDS) -> None:
        """Verify the first 160 bytes of a record under `study_key`.

        Raises:
            SealBroken: V04 or V06.
        """
        head = bytes(data[:HEADER_BYTES])
        self.header = parse_header(head, kinds)
        file_key = _file_key(study_key, head[:112], self.header.kind)
        if not hmac.compare_digest(_expand(file_key, _COMMIT_LABEL + head[:128]), self.header.commitment):
            raise _broken("V06", "the record's header does not verify under its key")
        self._aead = AESGCM(file_key)

    def chunk(self, index: int, sealed: memoryview, into: memoryview) -> None:
        """Authenticate chunk `index` and put its plaintext into `into`, which has exactly that size.

        Raises:
            SealBroken: V07; `into` is wiped.
        """
        try:
            self._aead.decrypt_into(_nonce(index, last=index == self.header.chunks - 1), sealed, None, into)
        except InvalidTag:
            into[:] = bytes(len(into))
            start = self.header.chunk_offset(index)
            message = f"chunk {index} (bytes {start}..{start + len(sealed) - 1} of the record) does not verify"
            raise _broken("V07", message) from None

    def open_part(self, record: memoryview, start: int, length: int, plain: memoryview) -> memoryview:
        """Open the chunks with plaintext [start, start + length) of a whole record in memory, and return that.

        It lies in `plain`, in which there is room for these chunks.

        Raises:
            SealBroken: V02 or V07.
        """
        header, out = self.header, 0
        if len(record) < header.record_bytes:
            raise _broken("V02", "the segment ends within the record")
        first = start >> header.chunk_log2
        for index in range(first, (start + length + header.chunk_bytes - 1) >> header.chunk_log2):
            at, count = header.chunk_offset(index), header.plain_bytes(index)
            self.chunk(index, record[at : at + count + TAG_BYTES], plain[out : out + count])
            out += count
        begin = start - (first << header.chunk_log2)
        return plain[begin : begin + length]

    def open_range(self, read: ReadInto, start: int, length: int, sealed: memoryview, plain: memoryview) -> Iterator[memoryview]:
        """Yield plaintext [start, start + length); only the chunks it touches are read and opened.

        `sealed` and `plain` are working space for at least one chunk each; with more room several are read at once. A view is valid
        until the next one.

        Raises:
            SealBroken: V02 or V07, before a byte of the chunk is released.
        """
        header = self.header
        size = header.chunk_bytes
        batch = max(1, min(len(sealed) // (size + TAG_BYTES), len(plain) // size))
        end = start + length
        index = start >> header.chunk_log2
        stop = (end + size - 1) >> header.chunk_log2 if length else index
        while index < stop:
            count = min(batch, stop - index)
            last = index + count - 1
            base = header.chunk_offset(index)
            want = header.chunk_offset(last) + header.plain_bytes(last) + TAG_BYTES - base
            if read(base, sealed[:want]) < want:
                raise _broken("V02", f"the segment ends within chunks {index}..{last} of the record")
            for one in range(index, index + count):
                at = (one - index) * (size + TAG_BYTES)
                out = (one - index) * size
                plain_bytes = header.plain_bytes(one)
                self.chunk(one, sealed[at : at + plain_bytes + TAG_BYTES], plain[out : out + plain_bytes])
            first = index << header.chunk_log2
            yield plain[max(start, first) - first : min(end, (last << header.chunk_log2) + header.plain_bytes(last)) - first]
            index += count


def seal(
    study_key: bytes, plaintext: bytes | memoryview, *, key_id: bytes, object_id: bytes, datastore: bytes, kind: int,
    chunk_log2: int = CHUNK_LOG2, salt: bytes | None = None,
) -> bytes:
    """Return a whole record of `plaintext` (at least one byte), without padding."""
    sealer = Sealer(
        study_key, key_id=key_id, object_id=object_id, datastore=datastore, kind=kind, chunk_log2=chunk_log2, salt=salt,
    )
    size = 1 << chunk_log2
    count = (len(plaintext) + size - 1) // size
    record = memoryview(bytearray(HEADER_BYTES + len(plaintext) + TAG_BYTES * count))
    for index in range(count):
        piece = plaintext[index * size : (index + 1) * size]
        at = HEADER_BYTES + index * (size + TAG_BYTES)
        record[at : at + len(piece)] = piece
        sealer.chunk(index, record[at : at + len(piece) + TAG_BYTES], len(piece), last=index == count - 1)
    record[:HEADER_BYTES] = sealer.header(len(plaintext))
    return bytes(record)


def open(study_key: bytes, record: bytes | memoryview, kinds: frozenset[Kind] = RECORD_KINDS) -> tuple[Header, bytes]:  # noqa: A001 # the pair of seal
    """Return header and plaintext of a whole record, nothing before and nothing behind it.

    Raises:
        SealBroken: V02, V04, V06 or V07.
    """
    view = memoryview(record)
    opener = Opener(study_key, view, kinds)
    header = opener.header
    if len(view) != header.record_bytes:
        raise _broken("V02", f"the record has {len(view)} bytes instead of {header.record_bytes}")
    plain = memoryview(bytearray(header.length))
    for index in range(header.chunks):
        at, count = header.chunk_offset(index), header.plain_bytes(index)
        start = index << header.chunk_log2
        opener.chunk(index, view[at : at + count + TAG_BYTES], plain[start : start + count])
    return header, bytes(plain)


@dataclass(frozen=True, slots=True)
class Trailer:
    """The last 96 plaintext bytes: where the sections lie, and the digest of the first."""

    part10_bytes: int
    meta_bytes: int
    statement_bytes: int
    sha256: bytes

    def to_bytes(self) -> bytes:
        """Return the 96 bytes."""
        lengths = (self.part10_bytes, self.part10_bytes, self.meta_bytes, self.statement_bytes)
        return _TRAILER.pack(_TRAILER_MAGIC, *lengths, self.sha256)

    @classmethod
    def parse(cls, data: bytes | memoryview, length: int) -> Trailer:
        """Read the trailer of `length` plaintext bytes.

        Raises:
            SealBroken: V04, it contradicts itself or the length.
        """
        if len(data) != TRAILER_BYTES:
            raise _broken("V04", "the record is shorter than a trailer")
        magic, part10_bytes, meta_offset, meta_bytes, statement_bytes, sha256 = _TRAILER.unpack(data)
        whole = part10_bytes + meta_bytes + statement_bytes + TRAILER_BYTES
        if magic != _TRAILER_MAGIC or meta_offset != part10_bytes or whole != length or any(data[72:]):
            raise _broken("V04", "the record's trailer contradicts itself")
        return cls(part10_bytes, meta_bytes, statement_bytes, sha256)


def split(header: Header, plaintext: bytes) -> tuple[Trailer, bytes, bytes, bytes]:
    """Return trailer, P10, META (deflated) and STMT of a record's whole plaintext, P10 checked against its digest.

    Raises:
        SealBroken: V04 or V08.
    """
    trailer = Trailer.parse(plaintext[-TRAILER_BYTES:], header.length)
    part10 = plaintext[: trailer.part10_bytes]
    meta_end = trailer.part10_bytes + trailer.meta_bytes
    if not hmac.compare_digest(hashlib.sha256(part10).digest(), trailer.sha256):
        raise _broken("V08", "SHA-256 differs from the record's trailer")
    return trailer, part10, plaintext[trailer.part10_bytes : meta_end], plaintext[meta_end : meta_end + trailer.statement_bytes]
