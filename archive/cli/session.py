"""What every command stands on: the configuration, the opened archive, who asks, how to answer."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from archive.cli import output
from archive.errors import InvalidRequest

if TYPE_CHECKING:
    from archive.access.subject import Subject
    from archive.config import Config
    from archive.keys.keyring import Keyring


WITH_KIT = click.option("--with-kit", type=click.Path(path_type=Path, dir_okay=False, exists=True), metavar="FILE",
                        help="Open the keyring with this recovery kit: no key file opens it.")


def _open_node(config: Config, keyring: Keyring) -> Any:
    from archive.node import open_node
    from archive.serve import state

    serving = state.read_status(config)
    return open_node(config, keyring=keyring, role="cli", read_only=serving.read_only if serving is not None else "")


class Session:
    """One call of the command line; the archive is opened when first used."""

    def __init__(self, open_node: Callable[[Config, Keyring], Any] = _open_node) -> None:
        """`open_node` is another one in tests."""
        self._open_node = open_node
        self._node: Any = None
        self._beside: int | None = None
        self._config: Config | None = None
        self._keyring: Keyring | None = None
        self.config_path = Path(os.environ.get("ARCHIVE_CONFIG") or "config.toml")
        self.as_json = False
        self.passphrase_file: Path | None = None
        self.recovery_kit: Path | None = None
        self.changes_keys = False
        """Whether the command needs more of the keyring than an archive that serves hands out."""

    @property
    def config(self) -> Config:
        """The configuration.

        Raises:
            ConfigurationError.
        """
        if self._config is None:
            from archive.config import load

            self._config = load(self.config_path)
        return self._config

    def use(self, config: Config) -> None:
        """Go on with a configuration that a command has just written."""
        self._config = config

    @property
    def node(self) -> Any:
        """The opened archive.

        Raises:
            ConfigurationError, Unavailable: also while the index is being rebuilt.
        """
        if self._node is None:
            config = self.config  # first: what is wrong with it is told before anything is imported
            from archive.serve import state

            self._beside = state.beside_others(config) if self._beside is None else self._beside
            keyring = self.keyring(beside=not self.changes_keys) if self._keyring is None else self.opened()
            self._node = self._open_node(config, keyring)
            if keyring.whole and "index" in keyring.waiting() and not self._node.core.read_only:
                from archive.services import clock, index_key

                index_key.settle(config, keyring, at=clock.utc_now())
        return self._node

    def keyring(self, *, beside: bool = False) -> Keyring:
        """Open the keyring by what was given, its key file or a passphrase; `beside` a serving archive, take its keys rather than ask.

        Raises:
            KeysUnavailable.
        """
        from archive.cli.unlock import unlock
        from archive.keys.keyring import Keyring

        if self.recovery_kit is not None:
            found = Keyring.open(self.config, recovery_kit=self.recovery_kit)
        else:
            found = unlock(self.config, given=self.passphrase_file, beside=beside)
        if "index" in found.waiting():
            from archive.services import index_key

            index_key.lean(found, self.config)  # it is settled once the archive is open, and this is no older keyring
        return found

    def opened(self) -> Keyring:
        """Return the whole keyring, asked for once: `archive up` migrates with it and serves."""
        if self._keyring is None:
            self._keyring = self.keyring()
        self._keyring.stay_current()
        return self._keyring

    @property
    def subject(self) -> Subject:
        """Who asks: the console, and the operating system's user behind it."""
        return console(self.node)

    def close(self) -> None:
        """Close the archive when it was opened."""
        if self._node is not None:
            self._node.close()
            self._node = None
        if self._beside is not None:
            os.close(self._beside)
            self._beside = None

    def rows(self, found: Sequence[Mapping[str, Any]], *columns: str) -> None:
        """Answer with a list: every field as JSON, `columns` for people."""
        if self.as_json:
            print(output.to_json(list(found)))
        elif found:
            output.table(found, columns)
        else:
            print("nothing to show")

    def answer(self, found: Mapping[str, Any], message: str | None = None) -> None:
        """Answer with a record: every field as JSON, `message` or the fields for people."""
        if self.as_json:
            print(output.to_json(found))
        elif message is not None:
            print(message)
        else:
            output.record(found)


def console(node: Any) -> Subject:
    """Return the subject that the command line acts as."""
    from archive.services import console as services

    return services.console(node.core, operator())


def operator() -> str:
    """Return the operating system's user, and behind sudo who called it."""
    try:
        name = getpass.getuser() if os.geteuid() else "root"
    except (KeyError, OSError):
        name = str(os.geteuid())
    behind = os.environ.get("SUDO_USER", "")
    return f"{behind} (sudo)" if behind and name == "root" else name


def password_from(path: Path | None, prompt: str, *, confirm: bool = True) -> str:
    """Return a password: the first line of a file, else asked for on the terminal.

    Raises:
        InvalidRequest: no file given and nobody to ask.
    """
    if path is not None:
        lines = path.read_text(encoding="utf-8").splitlines()
        if not lines or not lines[0]:
            message = "the password file is empty"
            raise InvalidRequest(message, remedy="write the password into its first line")
        return lines[0]
    if not sys.stdin.isatty():
        message = "no password was given, and there is no terminal to ask on"
        raise InvalidRequest(message, remedy="name a file that holds it with --password-file")
    return str(click.prompt(prompt, hide_input=True, confirmation_prompt=confirm))
