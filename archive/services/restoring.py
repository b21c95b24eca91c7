"""What a restore makes before it counts, where a kill may leave it, and who takes it away: the next restore, or a start."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import sqlalchemy as sa

from archive import locks
from archive.access import policy
from archive.config import Config
from archive.db import migrate
from archive.db.engine import Database
from archive.db.tables import ledger_leaf, metadata
from archive.errors import ConfigurationError, Unavailable
from archive.keys import private_files

STAGE = ".restoring"
MOVING = "moving"
"""In the stage: which names are being moved out of it. Where there is no keyring yet they are nobody's."""
LOCK = "lock"
"""In the stage: held by the restore that is at work in it."""
FILLING = "filling"
"""In the stage: which server's database is being filled, and the newest leaf of what with, which no other has."""


class _Filling(msgspec.Struct, frozen=True):
    leaf: str
    server: str = ""


def refuse_occupied(config: Config) -> None:
    """Refuse a storage folder that holds anything; a key file may lie where the configuration says.

    Raises:
        ConfigurationError.
    """
    there = [config.keys_dir / "keyring.json"] if _whole(config) else []
    if config.storage_dir.is_dir():
        harmless = {STAGE, "run", ".gitignore", "README.md", "README", *_half_moved(config)}
        there += [path for path in sorted(config.storage_dir.iterdir()) if path.name not in harmless and not _keys_alone(path, config)]
    if there:
        message = f"the storage folder is not empty: {there[0]}"
        raise ConfigurationError(message, remedy="name an empty one, or move this one away first; nothing is ever overwritten")


@contextmanager
def stage(config: Config) -> Iterator[Path]:
    """Make the folder in which one restore works; until this ends another is refused.

    Raises:
        VaultUnavailable: it cannot be written. OSError.
    """
    folder = config.storage_dir / STAGE
    folder.mkdir(mode=0o700)
    with locks.alone(folder / LOCK):
        yield folder


def say_moving(config: Config, names: Sequence[str]) -> None:
    """Let it be known which names a restore is about to give."""
    private_files.write(config.storage_dir / STAGE / MOVING, msgspec.json.encode(names))


def say_filling(config: Config, source: sa.Connection) -> None:
    """Let it be known what the server's database is about to be filled with."""
    private_files.write(config.storage_dir / STAGE / FILLING, msgspec.json.encode(_Filling(_newest(source), _server(config))))


def unmake(config: Config) -> None:
    """Take away what a restore that was cut short has made; one that is whole stays.

    Raises:
        DatabaseUnavailable: the server that was filled does not answer; nothing is forgotten of it.
        ConfigurationError: the configuration names another server than was filled, or none.
        Unavailable: another restore is at work.
    """
    if locks.is_taken(config.storage_dir / STAGE / LOCK):
        message = "another restore is at work in this storage folder"
        raise Unavailable(message, remedy="let it end, or stop it; then give this one again")
    if not _whole(config):
        _empty_server(config)
        for name in _half_moved(config):
            path = config.storage_dir / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        for path in _keys(config):
            private_files.sweep(path)
    shutil.rmtree(config.storage_dir / STAGE, ignore_errors=True)


def sweep(config: Config) -> None:
    """Remove what a restore that came to its end could not remove any more: nothing of it may be taken for half a restore later."""
    if _whole(config) and (config.storage_dir / STAGE).is_dir():
        shutil.rmtree(config.storage_dir / STAGE, ignore_errors=True)


def _whole(config: Config) -> bool:
    return (config.keys_dir / "keyring.json").exists()


def _keys(config: Config) -> tuple[Path, Path]:
    return config.key_file, config.keys_dir / "keyring.json"


def _half_moved(config: Config) -> list[str]:
    """Return the names that a restore which was cut short was giving to what it had made."""
    if _whole(config):
        return []
    try:
        names = msgspec.json.decode((config.storage_dir / STAGE / MOVING).read_bytes(), type=list[str])
        return [name for name in names if Path(name).name == name]
    except (FileNotFoundError, msgspec.DecodeError):
        return []


def _keys_alone(path: Path, config: Config) -> bool:
    """Whether this is the folder of keys, with no more than a key file and what was written of one."""
    names = tuple(f".{one.name}." for one in _keys(config))
    return path == config.keys_dir and path.is_dir() and all(one == config.key_file or one.name.startswith(names) for one in path.iterdir())


# --- a server's database ---------------------------------------------------------------------------------------------------------------


def _empty_server(config: Config) -> None:
    """Empty the configured database again where it holds just what a restore filled it with, and nobody went on with it.

    Raises:
        ConfigurationError: another was filled, which nobody would look at again.
    """
    marker = config.storage_dir / STAGE / FILLING
    try:
        filled = _read(marker.read_bytes())
    except FileNotFoundError:
        return
    if config.database.url and _emptied(config, filled.leaf):
        return
    if filled.server and filled.server != _server(config):
        message = f"a restore that was cut short has filled another database: {filled.server}"
        raise ConfigurationError(message, remedy="name that one in database.url and give the command again, which empties it; or, when it "
                                 f"is gone or empty, remove {marker}")


def _read(marker: bytes) -> _Filling:
    try:
        return msgspec.json.decode(marker, type=_Filling)
    except msgspec.DecodeError:
        return _Filling(marker.decode(errors="replace"))  # an earlier release named the leaf alone


def _server(config: Config) -> str:
    """Return which database a configuration names, without user and password."""
    if not config.database.url:
        return ""
    address = sa.make_url(config.database.url)
    host, port = address.host or address.query.get("host", ""), address.port or address.query.get("port", "")
    return f"{host}:{port}/{address.database}"


def _emptied(config: Config, filled_with: str) -> bool:
    with closing(Database(config.database.url)) as server:
        if migrate.revision(server) is None:
            return False
        with server.begin() as tx:
            if not filled_with or _newest(tx) != filled_with:
                return False
            names = ", ".join(f'"{table.name}"' for table in metadata.sorted_tables)
            policy.run_as(tx, policy.system("backup"), sa.text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
    return True


def _newest(tx: sa.Connection) -> str:
    """Return the hash of the newest leaf, which begins with a salt of its own: the same in two databases, one is a copy of the other."""
    found = tx.execute(sa.select(ledger_leaf.c.hash).order_by(ledger_leaf.c.n.desc()).limit(1)).scalar()
    return "" if found is None else bytes(found).hex()
