"""Where an import finds instances: files, folders, DICOMDIR media, zip files, the storage folder of an Orthanc.

Nothing outside the named paths is opened: links are not followed, names inside a zip are labels only, nothing is unpacked to disk. Nor is
what belongs to the archive itself: whoever closes a file of SQLite's gives up every lock that the process has on it, and the databases
are open here.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from archive.errors import InvalidRequest, Rejected

ZIP_MEMBERS = 5_000_000
ORTHANC_HEADER = struct.Struct("<Q")
MAX_INFLATED = 4 << 30


class TooManyMembers(Rejected):
    """A zip file of more files than are read of one."""

    code = "too-many-members"


@dataclass(frozen=True, slots=True)
class Source:
    """One file to import: its name in reports, its size, and how to read it."""

    name: str
    size: int
    open: Callable[[], AbstractContextManager[BinaryIO]]


Own = Callable[[os.stat_result], bool]
"""Whether a file or folder belongs to the archive itself."""


def belonging(storage: Path, databases: Iterable[Path]) -> Own:
    """Tell the storage folder and the embedded databases by device and inode, under whatever name: mounted twice, linked hard."""
    files = [path.with_name(path.name + suffix) for path in databases for suffix in ("", "-wal", "-shm", "-journal")]

    def ours(found: os.stat_result) -> bool:
        which = [storage] if stat.S_ISDIR(found.st_mode) else files
        return (found.st_dev, found.st_ino) in set(map(_identity, which))  # asked each time: they come and go

    return ours


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def walk(paths: list[Path], own: Own = lambda _found: False) -> Iterator[Source]:
    """Yield every file under the paths in a stable order, but for what is the archive's own.

    Raises:
        InvalidRequest: a path does not exist, is no file or folder, or lies in the archive's own storage.
    """
    for path in paths:
        if path.is_symlink() or not path.exists():
            message = f"{path} is not there (or is a link, which an import does not follow)"
            raise InvalidRequest(message, remedy="name files and folders that exist")
        if any(own(above.stat()) for above in (path, *path.absolute().parents)):
            message = f"{path} belongs to this archive's own storage"
            raise InvalidRequest(message, remedy="name what is to be imported; what the archive holds already is moved by 'archive backup'")
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            yield from _folder(path, own)
        elif stat.S_ISREG(found.st_mode):
            yield from _file(path, found.st_size, own, beside=True)
        else:
            message = f"{path} is neither a file nor a folder"
            raise InvalidRequest(message, remedy="name files and folders")


def _folder(top: Path, own: Own) -> Iterator[Source]:
    """Yield what lies below a folder; what of it cannot be looked at, or is gone by then, is a source that cannot be opened."""
    waiting = [start := str(top)]  # no call within a call: folders may lie deeper than those
    while waiting:
        path = waiting.pop()
        try:
            itself = os.stat(path) if path == start else os.lstat(path)  # an entry's own stat() is not of what is mounted there
            if path != start and (stat.S_ISLNK(itself.st_mode) or own(itself)):
                continue
            if stat.S_ISDIR(itself.st_mode):
                waiting += [os.path.join(path, name) for name in sorted(os.listdir(path), reverse=True)]
                continue
        except OSError as error:
            yield Source(path, 0, _failing(error))
            continue
        if stat.S_ISREG(itself.st_mode):
            yield from _file(Path(path), itself.st_size, own, beside=False)


def _failing(error: Exception) -> Callable[[], AbstractContextManager[BinaryIO]]:
    def opened() -> AbstractContextManager[BinaryIO]:
        raise error

    return opened


def _file(path: Path, size: int, own: Own, *, beside: bool) -> Iterator[Source]:
    if path.name.upper() == "DICOMDIR":
        # The directory of a medium: its records name files that lie beside it, so the folder says it all.
        if beside:
            yield from _folder(path.parent, own)
        return
    if not _is_dicom(path) and zipfile.is_zipfile(path):
        yield from _zip(path, size)
        return
    yield Source(str(path), size, lambda: _opened(path))


def _is_dicom(path: Path) -> bool:
    """Whether the prefix of a DICOM file is there: a document inside one may end as a zip does, and must not hide it."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False  # told when it is opened


def _zip(path: Path, size: int) -> Iterator[Source]:
    try:
        archive = zipfile.ZipFile(path)  # closed with the last of its members: its directory is read once for all of them
        members = [info for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError, IndexError, struct.error):  # what zipfile raises on damage
        yield Source(str(path), size, lambda: _opened(path))
        return
    for info in members[:ZIP_MEMBERS]:
        if Path(info.filename).name.upper() == "DICOMDIR":
            continue
        yield Source(f"{path}!{info.filename}", info.file_size, _member(archive, info))
    if len(members) > ZIP_MEMBERS:
        message = f"it holds {len(members)} files, and those after the first {ZIP_MEMBERS} were not read"
        yield Source(str(path), size, _failing(TooManyMembers(message, remedy="unpack it, and import the folder")))


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], AbstractContextManager[BinaryIO]]:
    @contextmanager
    def opened() -> Iterator[BinaryIO]:
        with archive.open(info) as member:  # several threads may: each reads under the archive's lock
            yield member  # type: ignore[misc] # ZipExtFile reads like any binary file

    return opened


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    # O_NOFOLLOW: a file swapped for a link between listing and opening is not followed either.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        start = file.read(ORTHANC_HEADER.size + 2)
        file.seek(0)
        if _is_orthanc_compressed(start):
            yield io.BufferedReader(_Inflating(file))
        else:
            yield file


def _is_orthanc_compressed(start: bytes) -> bool:
    """Orthanc with StorageCompression keeps an attachment as its length, little endian, and a zlib stream."""
    if len(start) < ORTHANC_HEADER.size + 2:
        return False
    (length,) = ORTHANC_HEADER.unpack_from(start)
    return 132 <= length <= MAX_INFLATED and start[8] == 0x78 and (start[8] * 256 + start[9]) % 31 == 0


class _Inflating(io.RawIOBase):
    """The inflated bytes of an Orthanc attachment, never more than its header announces."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        (self._left,) = ORTHANC_HEADER.unpack(file.read(ORTHANC_HEADER.size))
        self._file = file
        self._inflate = zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type] # a writable buffer, by the protocol of RawIOBase
        wanted = min(len(view), self._left)
        while wanted:
            feed = self._inflate.unconsumed_tail or self._file.read(64 << 10)
            try:
                data = self._inflate.decompress(feed, wanted) if feed else b""
            except zlib.error:
                data = b""
                feed = b""
            if data:
                view[: len(data)] = data
                self._left -= len(data)
                return len(data)
            if not feed:
                return 0
        return 0
