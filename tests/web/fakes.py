"""An archive in memory behind the real application: enough of each service to see what the door does with it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pydicom
from pydicom.encaps import generate_frames
from pydicom.uid import ExplicitVRLittleEndian

from archive.access.subject import Subject
from archive.config import Config, parse
from archive.dicom.attributes import ATTRIBUTES, Level
from archive.dicom.matching import matches
from archive.dicom.matching import parse as parse_match
from archive.dicom.part10 import Finding
from archive.errors import ArchiveError, InvalidInstance, NotAcceptable, NotFound, Unauthenticated, Unavailable
from archive.services.query import SearchAnswer, SearchRequest
from archive.services.retrieve import BulkAnswer, Found, FramesAnswer, MetadataAnswer
from archive.services.store import Outcome, Source

USER = Subject(1, "mia", "user", "token")
OTHER = Subject(2, "ole", "user", "token")
LARGE_BYTES = 64 << 20
"""Larger instances are counted, not kept: tests of memory send them."""

UNCOMPRESSED = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1"}
UNDECODABLE = {"1.2.840.10008.1.2.4.102"}


@dataclass
class Kept:
    data: bytes
    dataset: pydicom.Dataset

    @property
    def uids(self) -> tuple[str, str, str]:
        return self.dataset.StudyInstanceUID, self.dataset.SeriesInstanceUID, self.dataset.SOPInstanceUID


class FakeSignIn:
    """Tokens `mia-token` and `ole-token`; session `mia-session`."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def bearer(self, token: str, *, address: str) -> Subject:
        self.asked.append(("bearer", token, address))
        return self._of(token, "token")

    def basic(self, user: str, token: str, *, address: str) -> Subject:
        self.asked.append(("basic", user, token))
        found = self._of(token, "token")
        if found.name != user:
            raise Unauthenticated("not this user's token")
        return found

    def session(self, token: str, *, address: str) -> Subject:
        self.asked.append(("session", token))
        return self._of(token, "session")

    def _of(self, token: str, kind: str) -> Subject:
        for subject in (USER, OTHER):
            if token == f"{subject.name}-{kind}":
                return subject
        raise Unauthenticated("no such token")


class FakeIncoming:
    def __init__(self, store: FakeStore, subject: Subject, datastore: str, study: str | None) -> None:
        self.store, self.subject, self.datastore, self.study = store, subject, datastore, study
        self.data = bytearray()
        self.bytes_seen = 0
        self.ended = ""

    def write(self, data: bytes | memoryview) -> None:
        self.store.trip("write")
        self.bytes_seen += len(data)
        self.store.largest_write = max(self.store.largest_write, len(data))
        if self.store.keep_bytes and self.bytes_seen <= LARGE_BYTES:
            self.data += data

    def finish(self) -> Outcome:
        try:
            self.store.trip("finish")
            outcome = self.store.decide(self)
        except BaseException:
            self.abort()
            raise
        self.ended = "finished"
        return outcome

    def abort(self) -> None:
        self.ended = self.ended or "aborted"


class FakeBatch:
    """Tells at `flush`, those that were kept first, as services.batch does."""

    def __init__(self, told: Callable[[Any, Outcome | ArchiveError], None]) -> None:
        self.told = told
        self.waiting: list[tuple[Any, Outcome | ArchiveError]] = []

    def begin(self, incoming: FakeIncoming) -> None:
        pass

    def add(self, key: Any, incoming: FakeIncoming) -> None:
        try:
            self.waiting.append((key, incoming.finish()))
        except Unavailable as error:
            self.waiting.append((key, error))

    def flush(self) -> None:
        waiting, self.waiting = self.waiting, []
        for key, became in sorted(waiting, key=lambda one: isinstance(one[1], ArchiveError)):
            self.told(key, became)


class FakeStore:
    """Keeps what pydicom reads; `faults` raises an error at the nth open, write or finish."""

    def __init__(self, archive: FakeNode) -> None:
        self.archive = archive
        self.incoming: list[FakeIncoming] = []
        self.faults: dict[tuple[str, int], ArchiveError] = {}
        self.counts: dict[str, int] = {}
        self.findings: tuple[Finding, ...] = ()
        self.status: str | None = None
        self.decided = False
        self.keep_bytes = True
        self.largest_write = 0
        self.sources: list[Source] = []

    def trip(self, step: str) -> None:
        self.counts[step] = self.counts.get(step, 0) + 1
        error = self.faults.get((step, self.counts[step])) or self.faults.get((step, 0))
        if error is not None:
            raise error

    def open(
        self, subject: Subject, datastore: str, source: Source, *, study_instance_uid: str | None = None,
        alike: object = None,  # as Store's
    ) -> FakeIncoming:
        self.sources.append(source)
        self.trip("open")
        made = FakeIncoming(self, subject, datastore, study_instance_uid)
        self.incoming.append(made)
        return made

    def batch(self, told: Callable[[Any, Outcome | ArchiveError], None]) -> FakeBatch:
        return FakeBatch(told)

    def decide(self, incoming: FakeIncoming) -> Outcome:
        data = bytes(incoming.data)
        if not self.keep_bytes or incoming.bytes_seen > LARGE_BYTES:
            return Outcome("stored", "1.2", "1.3", "1.4", "1.5")
        if data[128:132] != b"DICM":
            raise InvalidInstance("not Part 10", reason="cannot-understand")
        try:
            dataset = pydicom.dcmread(io.BytesIO(data))
            uids = dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID
        except Exception as error:
            raise InvalidInstance("cannot be read", reason="cannot-understand") from error
        if not all(set(uid) <= set("0123456789.") and 0 < len(uid) <= 64 for uid in uids):
            raise InvalidInstance("a UID is malformed", reason="bad-uid")
        if incoming.study and incoming.study != dataset.StudyInstanceUID:
            raise InvalidInstance("another study", reason="wrong-study")
        held = self.archive.kept.get(dataset.SOPInstanceUID)
        status: Any = self.status or ("stored" if held is None else "duplicate" if held.data == data else "conflict")
        if held is None and status in {"stored", "duplicate"}:
            self.archive.kept[dataset.SOPInstanceUID] = Kept(data, dataset)
        return Outcome(status, *(str(uid) for uid in uids), findings=self.findings, decided=self.decided)


class FakeQuery:
    """Matches with the plain matcher over every attribute that pydicom reads."""

    def __init__(self, archive: FakeNode) -> None:
        self.archive = archive
        self.asked: list[SearchRequest] = []
        self.total: int | None = -1

    def find(self, subject: Subject, request: SearchRequest) -> SearchAnswer:
        self.asked.append(request)
        wanted = [(attribute, parse_match(attribute, text)) for attribute, text in request.keys]
        rows: dict[str, dict[str, dict[str, Any]]] = {}
        for kept in self.archive.visible(subject):
            study, series, sop = kept.uids
            if (request.study_instance_uid or study) != study or (request.series_instance_uid or series) != series:
                continue
            plain = {a.keyword: str(kept.dataset.get(a.keyword, "")) for a, _ in wanted}
            if not all(matches(match, a, [plain[a.keyword]] if plain[a.keyword] else []) for a, match in wanted):
                continue
            key = {Level.STUDY: study, Level.SERIES: series}.get(request.level, sop)
            rows.setdefault(key, self._row(kept, request))
        ordered = list(rows.values())
        end = None if request.limit is None else request.offset + request.limit
        return SearchAnswer(ordered[request.offset : end], len(rows) if self.total == -1 else self.total)

    def _row(self, kept: Kept, request: SearchRequest) -> dict[str, dict[str, Any]]:
        order = [Level.PATIENT, Level.STUDY, Level.SERIES, Level.IMAGE]
        levels = order[: order.index(request.level) + 1]
        document = json.loads(json.dumps(kept.dataset.to_json_dict(bulk_data_element_handler=lambda _: "")))
        asked = {a.tag for a, _ in request.keys} | ({a.tag for a in request.include} if request.include != "all" else set())
        row = {}
        for attribute in ATTRIBUTES:
            if attribute.level in levels and (attribute.returned or request.include == "all" or attribute.tag in asked):
                value = document.get(attribute.tag_hex)
                if value is not None:
                    row[attribute.tag_hex] = value
        return row


class FakeRetrieve:
    """Yields views of one reused buffer, as the vault does: whoever keeps a view sees wrong bytes."""

    def __init__(self, archive: FakeNode) -> None:
        self.archive = archive
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.fail_open: dict[str, ArchiveError] = {}
        self.fail_after: int | None = None
        self.chunk_bytes = 64 << 10
        self.decoded: list[str] = []

    def instances(self, subject: Subject, datastore: str, study: str, series: str | None = None, sop: str | None = None) -> list[Found]:
        found = [
            self._found(kept, datastore)
            for kept in self.archive.visible(subject)
            if all(asked is None or asked == has for asked, has in zip((study, series, sop), kept.uids, strict=True))
        ]
        if datastore != "clinical" or not found:
            raise NotFound("there is no such object")
        return found

    def reading(
        self, subject: Subject, datastore: str, study: str, series: str, sop: str, read: Callable[[Found], Any]
    ) -> tuple[Found, Any]:
        found = self.instances(subject, datastore, study, series, sop)[0]
        return found, read(found)

    def _found(self, kept: Kept, datastore: str) -> Found:
        digest = hashlib.sha256(kept.data).digest()
        meta = kept.dataset.file_meta
        return Found(
            *(str(uid) for uid in kept.uids), str(kept.dataset.SOPClassUID), str(meta.TransferSyntaxUID), len(kept.data), 0, digest,
            f'"{digest.hex()[:16]}"', int(kept.dataset.get("NumberOfFrames") or 1), None, datastore, None,
        )

    def obtainable(self, found: Found, transfer_syntax_uid: str) -> bool:
        return transfer_syntax_uid == ExplicitVRLittleEndian and found.transfer_syntax_uid not in UNDECODABLE

    def leaving(self, subject: Subject, found: Sequence[Found]) -> Callable[[int], Iterator[memoryview]]:
        return lambda number: self.open(subject, found[number])

    def open(
        self, subject: Subject, found: Found, start: int = 0, length: int | None = None, *, just_found: bool = False
    ) -> Iterator[memoryview]:
        error = self.fail_open.get(found.sop_instance_uid)
        if error is not None:
            raise error
        self.opened.append(found.sop_instance_uid)
        data = self.archive.data_of(found.sop_instance_uid)
        data = data[start:] if length is None else data[start : start + length]
        buffer = bytearray(self.chunk_bytes)
        try:
            for number, at in enumerate(range(0, len(data), self.chunk_bytes)):
                if self.fail_after is not None and number >= self.fail_after:
                    raise self.archive.damage
                chunk = data[at : at + self.chunk_bytes]
                buffer[: len(chunk)] = chunk
                yield memoryview(buffer)[: len(chunk)]
                buffer[:] = b"\xee" * self.chunk_bytes
        finally:
            self.closed.append(found.sop_instance_uid)

    def transcoded(self, subject: Subject, found: Found, transfer_syntax_uid: str) -> Iterator[bytes | memoryview]:
        self.decoded.append(found.sop_instance_uid)
        if found.transfer_syntax_uid in UNCOMPRESSED:
            yield from self.open(subject, found)
            return
        if not self.obtainable(found, ExplicitVRLittleEndian):
            raise NotAcceptable("no codec decodes it")
        dataset = pydicom.dcmread(io.BytesIO(self.archive.data_of(found.sop_instance_uid)))
        if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            dataset.decompress()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        out = io.BytesIO()
        pydicom.dcmwrite(out, dataset, implicit_vr=False, little_endian=True, enforce_file_format=True)
        yield out.getvalue()

    def metadata(self, subject: Subject, datastore: str, study: str, series: str | None = None, sop: str | None = None) -> MetadataAnswer:
        found = self.instances(subject, datastore, study, series, sop)
        base = self.archive.config.archive.public_url + "/dicomweb"
        documents = []
        for one in found:
            where = f"{base}/studies/{one.study_instance_uid}/series/{one.series_instance_uid}/instances/{one.sop_instance_uid}/bulk/"

            def uri(element: Any, where: str = where) -> str:
                return where + f"{int(element.tag):08X}"

            dataset = self.archive.kept[one.sop_instance_uid].dataset
            documents.append(dataset.to_json_dict(bulk_data_threshold=1024, bulk_data_element_handler=uri))
        body = gzip.compress(json.dumps(documents).encode(), mtime=0)
        etag = hashlib.sha256(body).hexdigest()[:16]
        return MetadataAnswer(f'"{etag}"', lambda: (body[at : at + 1000] for at in range(0, len(body), 1000)))

    def frames(self, subject: Subject, datastore: str, study: str, series: str, sop: str, numbers: list[int]) -> FramesAnswer:
        found = self.instances(subject, datastore, study, series, sop)[0]
        dataset = self.archive.kept[sop].dataset
        count = found.number_of_frames
        if "PixelData" not in dataset or any(number > count for number in numbers):
            raise NotFound("there is no such frame")
        encapsulated = dataset.file_meta.TransferSyntaxUID.is_encapsulated

        def native(number: int) -> bytes:
            size = len(dataset.PixelData) // count
            return bytes(dataset.PixelData[(number - 1) * size : number * size])

        def stored(number: int) -> bytes:
            return list(generate_frames(dataset.PixelData, number_of_frames=count))[number - 1] if encapsulated else native(number)

        def explicit_le(number: int) -> bytes:
            if not encapsulated:
                return native(number)
            if not self.obtainable(found, ExplicitVRLittleEndian):
                raise NotAcceptable("no codec decodes it")
            array = dataset.pixel_array
            return bytes((array[number - 1] if count > 1 else array).tobytes())

        def encoded(number: int, transfer_syntax_uid: str) -> bytes:
            raise NotAcceptable("no codec encodes it")

        return FramesAnswer(found, found.transfer_syntax_uid, stored, explicit_le, encoded)

    def bulk(self, subject: Subject, datastore: str, study: str, series: str, sop: str, path: str) -> BulkAnswer:
        found = self.instances(subject, datastore, study, series, sop)[0]
        element = self.archive.kept[sop].dataset.get(int(path, 16)) if len(path) == 8 else None
        if element is None:
            raise NotFound("there is no such value")
        value = bytes(element.value)
        return BulkAnswer(found, len(value), lambda start, length: iter((value[start : start + length],)))


class FakeHealth:
    def __init__(self) -> None:
        self.answer: bool | ArchiveError = True

    def ready(self) -> bool:
        if isinstance(self.answer, ArchiveError):
            raise self.answer
        return self.answer


@dataclass
class FakeNode:
    """`hidden` holds SOP Instance UIDs that nobody may see."""

    config: Config = field(default_factory=Config)
    kept: dict[str, Kept] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    damage: ArchiveError = field(default_factory=ArchiveError)
    read_data: Callable[[str], bytes] | None = None

    def __post_init__(self) -> None:
        self.signin = FakeSignIn()
        self.store = FakeStore(self)
        self.query = FakeQuery(self)
        self.retrieve = FakeRetrieve(self)
        self.health = FakeHealth()

    def visible(self, subject: Subject) -> list[Kept]:
        if subject.name != USER.name:
            return []
        return [kept for uid, kept in self.kept.items() if uid not in self.hidden]

    def visible_in(self, study: str) -> list[Kept]:
        return [kept for kept in self.visible(USER) if kept.uids[0] == study]

    def data_of(self, sop: str) -> bytes:
        return self.read_data(sop) if self.read_data is not None else self.kept[sop].data

    def add(self, data: bytes) -> Kept:
        dataset = pydicom.dcmread(io.BytesIO(data))
        kept = self.kept[dataset.SOPInstanceUID] = Kept(data, dataset)
        return kept


def config_of(tmp_path: Any, **sections: Any) -> Config:
    """Return a configuration as if read from a file in `tmp_path`."""
    return parse(json.loads(json.dumps(sections)), tmp_path / "config.toml")
