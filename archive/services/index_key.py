"""The embedded index under a new key: encrypted anew in place, in one transaction of its own (docs/format.md 5).

The coming key is in the keyring before a page is written with it; whichever of the two opens the file afterwards is the one that counts.
"""

from __future__ import annotations

from datetime import datetime

from archive import locks
from archive.config import Config
from archive.db import rekey
from archive.errors import DatabaseUnavailable, InvalidRequest
from archive.keys.keyring import Keyring


def replace(config: Config, keyring: Keyring, *, at: datetime) -> None:
    """Encrypt the index under a new key and destroy the old one; nobody else may have it open. A key that is to come already is taken.

    Raises:
        InvalidRequest: the index is on a server. DatabaseUnavailable: it is in use, damaged, or there is no space. KeysUnavailable.
    """
    require_embedded(config)
    with locks.alone(config.run_dir / "rotate.lock"):
        keyring.refresh()
        begun = keyring.coming("index")
        if begun is None or rekey.opens(config.index_path, begun.secret):
            finish(config, keyring, at)
            keyring.prepare(["index"], at=at)
        coming = keyring.coming("index")
        assert coming is not None
        rekey.rekey(config.index_path, keyring.index_key, coming.secret)
        finish(config, keyring, at)


def require_embedded(config: Config) -> None:
    """Refuse an index that has no key of ours.

    Raises:
        InvalidRequest: it is on a server.
    """
    if config.database.url:
        message = "the index is on a database server, which looks after its own encryption"
        raise InvalidRequest(message, remedy="rotate the other keys: kek, signing, log, pepper")


def lean(keyring: Keyring, config: Config) -> None:
    """Use the key that opens the index where another is to come, in this process alone: nothing is written.

    Whether this keyring.json is the newest is known once the index is open; `settle` comes after that.
    """
    coming = keyring.coming("index")
    if coming is not None and coming.secret and rekey.opens(config.index_path, coming.secret):
        keyring.assume(["index"])


def settle(config: Config, keyring: Keyring, *, at: datetime) -> None:
    """Bring to its end a change of key that was cut short, if there was one.

    Raises:
        DatabaseUnavailable: neither key opens the index. KeysUnavailable.
    """
    if "index" not in keyring.waiting():
        return
    with locks.alone(config.run_dir / "rotate.lock"):
        keyring.refresh()
        finish(config, keyring, at)


def finish(config: Config, keyring: Keyring, at: datetime) -> None:
    """Settle inside the lock of rotations.

    Raises:
        As settle.
    """
    coming = keyring.coming("index")
    if coming is not None:
        if rekey.opens(config.index_path, coming.secret):
            keyring.activate(["index"])
        elif not config.index_path.exists() or rekey.opens(config.index_path, keyring.index_key):
            keyring.give_up("index")
        else:
            message = "neither the old nor the new key opens the index"
            raise DatabaseUnavailable(message, remedy="put the index back from its backup, or run 'archive rebuild-index'")
    if "index" in keyring.waiting():
        keyring.retire(["index"], at=at)
