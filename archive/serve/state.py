"""What the rest of the machine can know of a running archive: one lock, one status file, in storage/run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from archive import locks
from archive.config import Config
from archive.errors import Unavailable, VaultUnavailable
from archive.serve import listeners

LOCK = "serve.lock"
COMMANDS = "commands.lock"
"""Shared by the commands that have the archive open; taken alone by a rebuild, which gives what they name other numbers."""
STATUS = "status.json"
RELOAD_S = 180.0


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where a DIMSE listener accepts."""

    host: str
    port: int


class Web(msgspec.Struct, frozen=True, kw_only=True):
    """Where the web listener accepts, and the address clients use."""

    url: str
    public_url: str
    host: str
    port: int


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """One watched process."""

    role: str
    pid: int
    started_at: datetime
    restarts: int


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The content of storage/run/status.json."""

    ready: bool
    pid: int
    started_at: datetime
    http: Web
    viewer: Web | None
    events: Web | None = None
    dimse_tls: Address | None
    dimse_plain: Address | None
    read_only: str
    generation: int  # of the keyring every worker holds
    processes: list[Process]


def web_at(config: Config, port: int, public_url: str) -> Web:
    """Return where a web listener of this configuration is reached on this machine."""
    scheme = "http" if config.http.tls == "off" else "https"
    host = listeners.reachable(config.http.host)
    return Web(url=f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}", public_url=public_url, host=config.http.host, port=port)


class RunLock:
    """The one lock a serving archive holds on its storage."""

    def __init__(self, config: Config) -> None:
        """Take the lock.

        Raises:
            Unavailable: another archive serves this storage. VaultUnavailable: the lock file cannot be written.
        """
        config.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        taken = locks.take(config.run_dir / LOCK)
        if taken is None:
            running = read_status(config)
            message = "an archive already serves this storage" + (f" (process {running.pid})" if running else "")
            raise Unavailable(message, remedy="stop it first, or use another configuration with --config")
        self._file = taken

    def release(self) -> None:
        """Let go of the lock."""
        os.close(self._file)


def beside_others(config: Config) -> int | None:
    """Return a descriptor that keeps a rebuild away until it is closed; None where there is no archive yet, or no room for a lock.

    Raises:
        Unavailable: the index is being rebuilt.
    """
    if not config.run_dir.is_dir():
        return None
    try:
        taken = locks.take(config.run_dir / COMMANDS, shared=True)
    except VaultUnavailable:
        return None  # nor is there any for a rebuild
    if taken is None:
        message = "the index is being rebuilt"
        raise Unavailable(message, remedy="give the command again when 'archive rebuild-index' has ended")
    return taken


@contextmanager
def without_others(config: Config) -> Iterator[None]:
    """Keep every other command away from the archive.

    Raises:
        Unavailable: one is at work. VaultUnavailable: the lock file cannot be written.
    """
    with locks.alone_if_free(config.run_dir / COMMANDS) as free:
        if not free:
            message = "another command is at work in this archive"
            raise Unavailable(message, remedy="let it end, or stop it; then give this one again")
        yield


def is_serving(config: Config) -> bool:
    """Return whether a process holds the lock of this storage now."""
    return locks.is_taken(config.run_dir / LOCK)


def write_status(config: Config, status: Status) -> None:
    """Replace the status file."""
    path = config.run_dir / STATUS
    fresh = path.with_suffix(".new")
    file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(file, "wb") as stream:
        stream.write(msgspec.json.encode(status))
    fresh.replace(path)


def remove_status(config: Config) -> None:
    """Remove the status file of an archive that stopped."""
    (config.run_dir / STATUS).unlink(missing_ok=True)


def read_status(config: Config) -> Status | None:
    """Return what the serving archive last wrote, or None when none serves."""
    if not is_serving(config):
        return None
    try:
        return msgspec.json.decode((config.run_dir / STATUS).read_bytes(), type=Status)
    except (OSError, msgspec.DecodeError):
        return None


def reload_keyring(config: Config, generation: int, *, deadline_s: float = RELOAD_S) -> None:
    """Make a serving archive hand the keyring as it is now to its workers, and return when all hold it.

    Raises:
        Unavailable: it does not in time.
    """
    end = time.monotonic() + deadline_s
    told = 0
    while is_serving(config):
        status = read_status(config)
        if status is not None and status.ready:
            if status.generation >= generation:
                return
            if told != status.pid:
                os.kill(status.pid, signal.SIGHUP)
                told = status.pid
        if time.monotonic() > end:
            message = "the serving archive did not take the new keyring in time"
            raise Unavailable(message, remedy="restart it, then give this command again")
        time.sleep(0.1)


def begin_anew(config: Config) -> None:
    """Let a serving archive replace its workers, which looks again at what is held against its ledger."""
    status = read_status(config)
    if status is not None:
        os.kill(status.pid, signal.SIGHUP)


def as_json(status: Status) -> dict[str, Any]:
    """Return the status as plain JSON values."""
    return msgspec.to_builtins(status)  # type: ignore[no-any-return]


def socket_path(config: Config) -> Path:
    """The socket where workers get their handover."""
    return config.run_dir / "node.sock"
