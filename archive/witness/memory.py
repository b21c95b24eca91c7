"""What a witness remembers: its key, and of each log the newest checkpoint it cosigned, durable before anybody is answered.

Source: docs/format.md 7.1; c2sp.org/tlog-witness.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from archive.errors import ArchiveError, ConfigurationError, InvalidRequest, KeysUnavailable, LedgerBroken, Unavailable
from archive.keys import private_files
from archive.ledger import notes, tree
from archive.ledger.cosignatures import Cosigner, with_lines
from archive.ledger.notes import Verifier

SEED_BYTES = 32
_KEY, _LOGS, _LOCK, _KNOWN = "key.json", "logs", "lock", "known.json"
_NAME = re.compile(r"[!-*,-~]{1,100}")


class _Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    seed: str
    v: int = 1


class Remembered(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The newest checkpoint of a log that was cosigned, with the cosignature; `given_up` are those its operator let be forgotten."""

    origin: str
    size: int
    note: str
    given_up: tuple[str, ...] = ()
    v: int = 1


class _Names(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The files of every log that was ever remembered: one that is gone is missed."""

    logs: list[str]
    v: int = 1


@dataclass(frozen=True, slots=True)
class Conflict(Exception):
    """The request does not go on from what is remembered, which is a log of `size`."""

    size: int


class NotConsistent(Exception):
    """The checkpoint does not continue the one that is remembered."""


def make(folder: Path, name: str) -> Verifier:
    """Make the key of a new witness and the folder for what it will remember.

    Raises:
        InvalidRequest: the name is not one. KeysUnavailable: there is a witness already, or the folder cannot be written.
    """
    if not _NAME.fullmatch(name):
        message = "a witness's name has 1 to 100 characters without spaces and '+'"
        raise InvalidRequest(message, remedy="for example --name nas.clinic.example/witness")
    seed = os.urandom(SEED_BYTES)
    private_files.make_directory(folder)
    private_files.make_directory(folder / _LOGS)
    key = msgspec.json.encode(_Key(name, base64.b64encode(seed).decode()))
    private_files.write(folder / _KEY, key, replace=False)
    return Cosigner(name, seed).verifier


def _file(origin: str) -> str:
    return hashlib.sha256(origin.encode()).hexdigest()


class Memory:
    """The state of one witness; one process at a time holds it."""

    def __init__(self, folder: Path, *, lost: str = "") -> None:
        """Open what `make` made; what is remembered of the log of origin `lost` may be missing, to be forgotten.

        Raises:
            KeysUnavailable: missing, damaged, or open to others. Unavailable: another process holds it.
            ConfigurationError: what is remembered is missing or does not read: going on without it would undo what a witness is for.
        """
        self._folder = folder
        self._names: list[str] = []
        private_files.check_directory(folder)
        key = self._key(folder)
        self.cosigner = Cosigner(key.name, base64.b64decode(key.seed))
        self._lock = self._hold(folder)
        private_files.sweep(folder / _KEY)  # earlier releases gave the key a second name, which a crash left
        self._turn = threading.Lock()
        try:
            self._known = self._all(folder / _LOGS, lost)
        except ArchiveError:
            os.close(self._lock)
            raise

    @staticmethod
    def _key(folder: Path) -> _Key:
        try:
            key = msgspec.json.decode(private_files.read(folder / _KEY), type=_Key)
            if len(base64.b64decode(key.seed, validate=True)) == SEED_BYTES and key.v == 1:
                return key
        except (msgspec.DecodeError, ValueError):
            pass
        message = f"{folder / _KEY} is not the key of a witness"
        raise KeysUnavailable(message, remedy="put it back from its backup, or make a new witness with 'init'")

    @staticmethod
    def _hold(folder: Path) -> int:
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            message = "another witness runs on this folder"
            raise Unavailable(message, remedy="stop it first") from None
        return descriptor

    def _all(self, logs: Path, lost: str) -> dict[str, Remembered]:
        if not logs.is_dir():
            raise _unreadable(logs)
        paths = [path for path in sorted(logs.iterdir()) if not path.name.startswith(".")]  # those: what a write left that was cut short
        found = {known.origin: known for known in map(self._read, paths)}
        self._names = self._listed()
        missing = set(self._names) - {path.name for path in paths} - {_file(lost)}
        if missing:
            raise _unreadable(logs / min(missing))
        self._list(path.name for path in paths)
        return found

    def _listed(self) -> list[str]:
        """Return the names of the files that must be there; there is no list in a folder of an earlier release."""
        path = self._folder / _KNOWN
        if not path.exists():
            return []
        try:
            names = msgspec.json.decode(private_files.read(path), type=_Names)
        except (msgspec.DecodeError, ValueError):
            raise _unreadable(path) from None
        if names.v != 1:
            raise _unreadable(path)
        return names.logs

    def _list(self, names: Iterable[str]) -> None:
        """Let the files of these names be missed from now on."""
        if more := sorted({*self._names, *names}):
            if more != self._names:
                private_files.write(self._folder / _KNOWN, msgspec.json.encode(_Names(more)))
            self._names = more

    @staticmethod
    def _read(path: Path) -> Remembered:
        try:
            known = msgspec.json.decode(private_files.read(path), type=Remembered)
            parsed = notes.parse(known.note.encode(), extensions=True)
        except (msgspec.DecodeError, ValueError, LedgerBroken):
            raise _unreadable(path) from None
        if known.v != 1 or (parsed.origin, parsed.size) != (known.origin, known.size) or _file(known.origin) != path.name:
            raise _unreadable(path)
        return known

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._lock)

    def newest(self, origin_sha256: str) -> Remembered | None:
        """Return what is remembered of the log whose origin has this SHA-256, in hex."""
        return next((known for origin, known in list(self._known.items()) if _file(origin) == origin_sha256), None)

    def logs(self) -> list[Remembered]:
        """Return what is remembered of each log."""
        return sorted(self._known.values(), key=lambda known: known.origin)

    def add(self, old: int, proof: Sequence[bytes], note: bytes, at: datetime) -> str:
        """Remember a checkpoint whose log's signature was verified, and return the cosignature line.

        Raises:
            Conflict: it does not go on from the size that is remembered, or is another checkpoint of the same size.
            NotConsistent: the proof does not show that it continues what is remembered. KeysUnavailable: it could not be kept.
        """
        parsed = notes.parse(note, extensions=True)
        with self._turn:
            known = self._known.get(parsed.origin)
            size, root = (0, tree.EMPTY) if known is None else self._head(known)
            if old != size:
                raise Conflict(size)
            if parsed.size == size and parsed.root != root:
                raise Conflict(size)
            try:
                tree.verify_consistency(old, parsed.size, proof, root, parsed.root)
            except LedgerBroken:
                raise NotConsistent from None
            line = self.cosigner.line(parsed.text, at)
            cosigned = with_lines(_without(note, self.cosigner.verifier), [line])
            given_up = () if known is None else known.given_up
            self._keep(Remembered(parsed.origin, parsed.size, cosigned.decode(), given_up))
            return line

    def forget(self, origin: str) -> Remembered:
        """Begin anew with a log whose operator lost its newest part; what was remembered stays on record.

        Raises:
            InvalidRequest: nothing is remembered of such a log. KeysUnavailable: it could not be written.
        """
        with self._turn:
            known = self._known.get(origin)
            if known is None and _file(origin) in self._names:
                known = Remembered(origin, 0, "")  # its file is lost
            elif known is None or not known.size:
                message = "nothing is remembered of such a log"
                raise InvalidRequest(message, remedy="name its origin as 'remembered' shows it")
            text = f"{origin}\n0\n{base64.b64encode(tree.EMPTY).decode()}\n".encode()
            line = self.cosigner.line(text, datetime.fromtimestamp(0).astimezone())
            given_up = (*known.given_up, known.note) if known.note else ()
            self._keep(Remembered(origin, 0, f"{text.decode()}\n{line}", given_up))
            return known

    @staticmethod
    def _head(known: Remembered) -> tuple[int, bytes]:
        return notes.claims(known.note.encode()) if known.size else (0, tree.EMPTY)

    def _keep(self, known: Remembered) -> None:
        name = _file(known.origin)
        private_files.write(self._folder / _LOGS / name, msgspec.json.encode(known))
        self._list([name])  # after its file, and before anybody is answered
        self._known[known.origin] = known


def _without(note: bytes, key: Verifier) -> bytes:
    """Return a note without an earlier cosignature by the same key, which the sender may have left in it."""
    text, blank, lines = note.decode().rpartition("\n\n")
    kept = [line for line in lines.split("\n")[:-1] if not line.startswith(f"\N{EM DASH} {key.name} ")]
    return "".join((text, blank, *(f"{line}\n" for line in kept))).encode()


def _unreadable(path: Path) -> ConfigurationError:
    return ConfigurationError(
        f"{path} is missing or damaged", remedy="put it back from its backup; a witness that forgets is none. Where it is lost for good, "
        "remove what is left of it and begin anew with that log: 'archive witness forget --state DIR --origin ORIGIN'"
    )
