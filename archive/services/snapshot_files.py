"""Sealed files beside the ledger that say how something stood when the log had so many leaves (docs/format.md 10)."""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from archive.errors import IntegrityError, SealBroken, VaultUnavailable
from archive.keys import private_files, sealing
from archive.keys.keyring import Keyring

T = TypeVar("T")
_LIMIT = 1 << 30


@dataclass(frozen=True, slots=True)
class SnapshotFiles:
    """One kind of snapshot; a file's name is the number of leaves, in 20 digits."""

    what: str
    magic: bytes
    context: bytes
    label: str
    folder: str
    kept: int

    def there(self, ledger_dir: Path) -> list[Path]:
        """Return the snapshots there are, newest first."""
        with suppress(OSError):
            found = [path for path in (ledger_dir / self.folder).iterdir() if len(path.name) == 20 and path.name.isdecimal()]
            return sorted(found, key=lambda path: path.name, reverse=True)
        return []

    def write(self, keyring: Keyring, ledger_dir: Path, body: dict[str, Any]) -> Path:
        """Seal and keep one, and remove the oldest.

        Raises:
            VaultUnavailable.
        """
        leaves: int = body["leaves"]
        packed = zlib.compress(sealing.canonical(body))
        sealed = self.magic + keyring.seal(self.label, packed, self._aad(keyring, leaves))
        path = ledger_dir / self.folder / f"{leaves:020d}"
        try:
            private_files.make_directory(path.parent)
            private_files.write(path, sealed)
            for old in self.there(ledger_dir)[self.kept:]:
                old.unlink(missing_ok=True)
        except (OSError, IntegrityError) as error:
            message = f"the {self.what} snapshot cannot be written"
            raise VaultUnavailable(message, remedy="free space on the storage disk, then restart the archive") from error
        return path

    def set_aside(self, ledger_dir: Path, leaves: int) -> None:
        """Give those that know more than a log of so many leaves another name: they are of a history that was given up.

        Else they would be taken for the newest, and keep every new one out, until the log is as long again.

        Raises:
            VaultUnavailable.
        """
        for path in self.there(ledger_dir):
            if int(path.name) > leaves:
                try:
                    path.replace(path.with_name(f"{path.name}.given-up"))
                except OSError as error:
                    message = f"the {self.what} snapshot {path.name} cannot be set aside: {error.strerror}"
                    raise VaultUnavailable(message, remedy="give the archive's user the right to write there") from error

    def read(self, keyring: Keyring, path: Path, parsed: Callable[[dict[str, Any]], T]) -> T:
        """Open one and return what `parsed` makes of it.

        Raises:
            SealBroken: changed, cut, or not the one its name says. OSError.
        """
        data, leaves = path.read_bytes(), int(path.name)
        try:
            if not data.startswith(self.magic):
                raise sealing.WrongKey
            packed = keyring.unseal(self.label, data[len(self.magic):], self._aad(keyring, leaves))
            body = msgspec.json.decode(zlib.decompressobj().decompress(packed, _LIMIT))
            if (body["v"], body["leaves"]) != (1, leaves):
                raise sealing.WrongKey
            return parsed(body)
        except (sealing.WrongKey, zlib.error, msgspec.DecodeError, KeyError, ValueError, TypeError):
            message = f"a snapshot of {self.what} does not open"
            raise SealBroken(message, verdict="V12", remedy=f"bring storage/ledger/{self.folder} back from a backup") from None

    def newest(
        self, keyring: Keyring, ledger_dir: Path, leaves: int, parsed: Callable[[dict[str, Any]], T]
    ) -> tuple[T | None, list[str]]:
        """Return the newest that opens and knows no more than a log of so many leaves, and names of newer ones that do not."""
        broken: list[str] = []
        for path in self.there(ledger_dir):
            if int(path.name) > leaves:
                continue
            try:
                return self.read(keyring, path, parsed), broken
            except (SealBroken, OSError):
                broken.append(path.name)
        return None, broken

    def _aad(self, keyring: Keyring, leaves: int) -> bytes:
        return self.context + uuid.UUID(keyring.archive_uuid).bytes + leaves.to_bytes(8, "big")
