"""Pictures kept sealed: what was drawn once is not decoded again, and all of them together stay within a bound.

A picture's name is a keyed pseudonym of everything it depends on, so no table names it: another record, frame, renderer or recipe is
another name, and what does not open under its own name and key is made again. Nothing here decides who may see it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from archive.db.location import RecordRef
from archive.dicom.recipe import Recipe
from archive.dicom.render import RENDERER_VERSION
from archive.errors import ArchiveError
from archive.index.pictures import PictureRow
from archive.services.core import Core

SHARE_OF_ONE = 16
"""One picture takes at most this part of the cache, and a process looks at the whole again after writing that much."""


@dataclass(frozen=True, slots=True)
class Name:
    """What a picture is called in the cache, and to clients as an entity tag."""

    object_id: bytes
    etag: str


class PictureCache:
    """Sealed pictures of one archive; safe to share between threads."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core
        self._limit = core.config.storage.picture_cache_bytes
        self._lock = threading.Lock()
        self._written = self._limit  # by whom the cache was filled before is not known: the first picture looks

    def name(self, row: PictureRow, frame: int, recipe: Recipe) -> Name:
        """Return the name of the picture of `frame` (from 1; 0: the one that stands for the instance)."""
        parts = row.ref.object_id + RENDERER_VERSION.to_bytes(2, "big") + frame.to_bytes(4, "big") + recipe.text.encode()
        uids = "".join("\0" + uid for uid in (row.study_instance_uid, row.series_instance_uid, row.sop_instance_uid))
        pseudonym = self._core.keyring.pseudonym("picture", parts + uids.encode())
        return Name(pseudonym[:16], f'"{pseudonym[16:].hex()}"')

    def find(self, name: Name, ref: RecordRef) -> bytes | None:
        """Return the picture, or None when it has to be made."""
        if not self._limit:
            return None
        try:
            return self._core.vault.open_picture(name.object_id, ref.key_id, ref.datastore)
        except ArchiveError:
            return None  # a cache: damaged or of another key, it is made again; a shredded key refuses there

    def keep(self, name: Name, ref: RecordRef, picture: bytes) -> None:
        """Keep a picture; a full or read-only disk costs the cache, not the answer."""
        core = self._core
        if core.read_only or len(picture) > self._limit // SHARE_OF_ONE:
            return
        try:
            core.vault.require_space()
            core.vault.seal_picture(picture, core.keystore.open(ref.key_id), ref.datastore, name.object_id)
            self._grown(len(picture))
        except ArchiveError:
            return

    def _grown(self, count: int) -> None:
        with self._lock:
            self._written += max(count, 4096)
            if self._written < self._limit // SHARE_OF_ONE:
                return
            self._written = 0
        self._core.vault.trim_pictures(self._limit)
