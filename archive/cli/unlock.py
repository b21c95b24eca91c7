"""How a command comes by the opened keyring: key file, passphrase, or from the archive that serves.

A passphrase comes from a file that is named, from systemd's credential, or from whoever sits at the terminal; never from an argument
or a variable of the environment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import click

from archive.config import Config
from archive.errors import ArchiveError, InvalidRequest, KeysUnavailable
from archive.keys import keyring_file, private_files
from archive.keys.hygiene import harden_process
from archive.keys.keyring import Keyring

CREDENTIAL = "strongroom-passphrase"
"""The name of the systemd credential (systemd.exec(5), LoadCredential=)."""
STDIN = Path("-")
ATTEMPTS = 3
LONGEST = 4096


def unlock(config: Config, *, given: Path | None = None, beside: bool = False, ask: bool = True) -> Keyring:
    """Return the archive's keyring; `beside`: without its root from the archive that serves, rather than ask somebody for a passphrase.

    Raises:
        KeysUnavailable: nothing here opens it.
    """
    harden_process()
    if given is not None:
        return Keyring.open(config, passphrase=from_file(given))
    if not _has_passphrase(config):
        return Keyring.open(config)
    try:
        if config.key_file.exists():
            return Keyring.open(config)
    except KeysUnavailable as error:
        if "wrong key file" not in error.message:
            raise
    handed = credential()
    if handed is not None:
        return Keyring.open(config, passphrase=handed)
    if beside and (served := _from_server(config)) is not None:
        return served
    if not ask or not sys.stdin.isatty():
        message = "the archive opens with a passphrase, and there is no terminal to ask on"
        raise KeysUnavailable(message, remedy=f"give --passphrase-file FILE, or the systemd credential {CREDENTIAL}")
    return _asked(lambda passphrase: Keyring.open(config, passphrase=passphrase))


def from_file(path: Path) -> str:
    """Return the first line of a file that only its owner may read, or of standard input (`-`).

    Raises:
        KeysUnavailable: absent, open to others, or not text. InvalidRequest: empty.
    """
    data = sys.stdin.buffer.readline(LONGEST) if path == STDIN else private_files.read(path, limit_bytes=LONGEST)
    return _line(data, "what was given as passphrase")


def offered(given: Path | None) -> str | None:
    """Return a passphrase from a file, systemd or the terminal, or None where there is nobody to ask.

    Raises:
        KeysUnavailable, InvalidRequest.
    """
    if given is not None:
        return from_file(given)
    if (handed := credential()) is not None or not sys.stdin.isatty():
        return handed
    return str(click.prompt("Passphrase of the archive", hide_input=True, err=True))


def chosen(given: Path | None) -> str:
    """Return a new passphrase: from a file, or typed twice.

    Raises:
        InvalidRequest: no file, and nobody to ask. KeysUnavailable.
    """
    if given is not None:
        return from_file(given)
    if not sys.stdin.isatty():
        message = "no passphrase was given, and there is no terminal to ask on"
        raise InvalidRequest(message, remedy="name a file that holds it with --new-passphrase-file, or - for standard input")
    return str(click.prompt("New passphrase", hide_input=True, confirmation_prompt=True, err=True))


def credential() -> str | None:
    """Return the passphrase that systemd hands over, or None without one.

    Raises:
        KeysUnavailable: not readable, or not text. InvalidRequest: empty.
    """
    folder = os.environ.get("CREDENTIALS_DIRECTORY", "")  # systemd's name for a folder; nothing secret stands in it
    path = Path(folder) / CREDENTIAL
    if not folder or not path.exists():
        return None
    try:
        data = path.read_bytes()[:LONGEST]  # systemd gives it to this service's user alone
    except OSError as error:
        message = f"the credential {CREDENTIAL} cannot be read: {error.strerror}"
        raise KeysUnavailable(message, remedy="look at LoadCredential= in the unit") from error
    return _line(data, f"the credential {CREDENTIAL}")


def _line(data: bytes, what: str) -> str:
    try:
        line = data.decode().split("\n")[0].removesuffix("\r")
    except UnicodeDecodeError:
        message = f"{what} is not text in UTF-8"
        raise KeysUnavailable(message, remedy="write the passphrase into its first line") from None
    if not line:
        message = f"{what} is empty"
        raise InvalidRequest(message, remedy="write the passphrase into its first line")
    return line


def _asked(opened: Callable[[str], Keyring]) -> Keyring:
    """Ask at the terminal, again after a wrong one: what a guess costs is the slot's own affair."""
    for left in range(ATTEMPTS - 1, -1, -1):
        try:
            return opened(str(click.prompt("Passphrase of the archive", hide_input=True, err=True)))
        except KeysUnavailable as error:
            if not left or "wrong passphrase" not in error.message:
                raise
            print(f"archive: {error.message}", file=sys.stderr)
    raise AssertionError


def _has_passphrase(config: Config) -> bool:
    try:
        file = keyring_file.load(config.keys_dir / "keyring.json")
    except ArchiveError:
        return False  # opening it tells
    return any(slot.kind == "passphrase" for slot in file.slots)


def _from_server(config: Config) -> Keyring | None:
    """Return what the serving archive hands to processes of the same user, or None when none serves."""
    from archive.serve import state
    from archive.serve.handover import Link

    status = state.read_status(config)
    if status is None or not status.ready:
        return None
    link = Link(state.socket_path(config))
    try:
        return Keyring.from_bytes(link.handover.keyring)
    finally:
        link.close()
