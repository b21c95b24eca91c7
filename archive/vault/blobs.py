"""Sealed cache objects: series packs and images that can be made again (docs/format.md 3)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from archive.errors import SealBroken
from archive.vault import container
from archive.vault.container import PACK_KINDS, Kind
from archive.vault.disk import DISK, Disk, translated
from archive.vault.keystore import Keystore, StudyKey


class Blobs:
    """Objects under `storage/cache`; any of them may vanish at any time."""

    def __init__(self, folder: Path, keystore: Keystore, disk: Disk = DISK) -> None:
        """Keep objects below `folder`, made when first needed."""
        self._folder, self._keystore, self._disk = folder, keystore, disk

    def _path(self, object_id: bytes) -> Path:
        name = object_id.hex()
        return self._folder / name[:2] / name

    def seal(self, payload: bytes, key: StudyKey, datastore: bytes) -> bytes:
        """Keep `payload` (at least one byte) and return its object id; not synced.

        Raises:
            OutOfSpace, VaultUnavailable.
        """
        object_id = os.urandom(16)
        record = container.seal(
            key.key, payload, key_id=key.key_id, object_id=object_id, datastore=datastore, kind=Kind.PACK,
        )
        path = self._path(object_id)
        half = path.with_name(f"{path.name}.{os.getpid()}.tmp")
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
        return object_id

    def open(self, object_id: bytes, key_id: bytes, datastore: bytes) -> bytes:
        """Return the payload.

        Raises:
            SealBroken: it is gone (V01) or is not what the index says; make it again.
            KeyShredded.
            VaultUnavailable.
        """
        try:
            record = self._path(object_id).read_bytes()
        except FileNotFoundError:
            raise SealBroken("the cached object is gone", verdict="V01") from None
        except OSError as error:
            raise translated(error, "reading a cached object") from error
        header, payload = container.open(self._keystore.open(key_id).key, record, PACK_KINDS)
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
