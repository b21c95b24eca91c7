"""Sealed cache objects: series packs and images that can be made again (docs/format.md 3)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from archive.errors import SealBroken
from archive.vault import container
from archive.vault.container import PACK_KINDS, PICTURE_KINDS, Kind
from archive.vault.disk import DISK, Disk, translated
from archive.vault.keystore import Keystore, StudyKey

PICTURES = "pictures"
"""The folder of pictures, beside the packs."""


class Blobs:
    """Objects under `storage/cache`; any of them may vanish at any time."""

    def __init__(self, folder: Path, keystore: Keystore, disk: Disk = DISK) -> None:
        """Keep objects below `folder`, made when first needed."""
        self._folder, self._keystore, self._disk = folder, keystore, disk

    def _path(self, object_id: bytes, kind: Kind = Kind.PACK) -> Path:
        name = object_id.hex()
        folder = self._folder / PICTURES if kind is Kind.PICTURE else self._folder
        return folder / name[:2] / name

    def seal(self, payload: bytes, key: StudyKey, datastore: bytes) -> bytes:
        """Keep `payload` (at least one byte) and return its object id; not synced.

        Raises:
            OutOfSpace, VaultUnavailable.
        """
        object_id = os.urandom(16)
        self._keep(payload, key, datastore, object_id, Kind.PACK)
        return object_id

    def seal_picture(self, picture: bytes, key: StudyKey, datastore: bytes, object_id: bytes) -> None:
        """Keep a picture under the id that says what it is; another of that id is replaced.

        Raises:
            OutOfSpace, VaultUnavailable.
        """
        self._keep(picture, key, datastore, object_id, Kind.PICTURE)

    def _keep(self, payload: bytes, key: StudyKey, datastore: bytes, object_id: bytes, kind: Kind) -> None:
        record = container.seal(key.key, payload, key_id=key.key_id, object_id=object_id, datastore=datastore, kind=kind)
        path = self._path(object_id, kind)
        half = path.with_name(f"{path.name}.{os.urandom(4).hex()}.tmp")  # two may make the same picture at once
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = self._disk.create(half, direct=False)
            try:
                self._disk.pwrite(fd, memoryview(record), 0)
            finally:
                os.close(fd)
            self._disk.rename(half, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._disk.unlink(half)
            raise translated(error, "writing a cached object") from error

    def open(self, object_id: bytes, key_id: bytes, datastore: bytes) -> bytes:
        """Return the payload.

        Raises:
            SealBroken: it is gone (V01) or is not what the index says; make it again.
            KeyShredded.
            VaultUnavailable.
        """
        record = self._read(self._path(object_id))
        if record is None:
            raise SealBroken("the cached object is gone", verdict="V01")
        return self._opened(record, object_id, key_id, datastore, PACK_KINDS)

    def open_picture(self, object_id: bytes, key_id: bytes, datastore: bytes) -> bytes | None:
        """Return a picture, or None when it is not kept.

        Raises:
            SealBroken: what lies there is not it; make it again.
            KeyShredded.
            VaultUnavailable.
        """
        record = self._read(self._path(object_id, Kind.PICTURE))
        return None if record is None else self._opened(record, object_id, key_id, datastore, PICTURE_KINDS)

    def _read(self, path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise translated(error, "reading a cached object") from error

    def _opened(self, record: bytes, object_id: bytes, key_id: bytes, datastore: bytes, kinds: frozenset[Kind]) -> bytes:
        header, payload = container.open(self._keystore.open(key_id).key, record, kinds)
        if (header.key_id, header.object_id, header.datastore) != (key_id, object_id, datastore):
            raise SealBroken("the cached object is another one", verdict="V04")
        return payload

    def drop(self, object_id: bytes) -> None:
        """Remove an object; absent is as good.

        Raises:
            VaultUnavailable.
        """
        try:
            self._disk.unlink(self._path(object_id))
        except OSError as error:
            raise translated(error, "removing a cached object") from error

    def trim_pictures(self, limit_bytes: int) -> int:
        """Remove the pictures that were read least recently until the others take `limit_bytes`; return what those take.

        A file system that keeps no access times gives up the oldest first. What others remove or make meanwhile is passed over.

        Raises:
            VaultUnavailable.
        """
        found: list[tuple[float, int, Path]] = []
        try:
            for folder in (self._folder / PICTURES).iterdir():
                with os.scandir(folder) as entries:
                    for entry in entries:
                        with contextlib.suppress(FileNotFoundError):
                            stat = entry.stat(follow_symlinks=False)
                            found.append((max(stat.st_atime, stat.st_mtime), stat.st_blocks * 512, Path(entry.path)))
            taken = sum(size for _, size, _ in found)
            for _, size, path in sorted(found):
                if taken <= limit_bytes:
                    break
                self._disk.unlink(path)
                taken -= size
        except FileNotFoundError:
            return 0  # no picture was ever kept
        except OSError as error:
            raise translated(error, "removing cached pictures") from error
        return taken
