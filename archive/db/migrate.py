"""The schema of a database: made by the migrations, refused when it is another one.

Scripts lie in `archive/_migrations` of an installed wheel, in `migrations/` of a checkout: `versions/` for the index, `keystore/` for the
keystore. An upgrade is one transaction on both engines.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from archive.db import guard
from archive.db.engine import Database
from archive.db.tables import keystore_metadata, metadata
from archive.errors import ConfigurationError, DatabaseUnavailable

if TYPE_CHECKING:
    from alembic.config import Config

LOCK = 0x4D696772617465  # "Migrate": PostgreSQL's advisory lock of upgrades
LOCK_TIMEOUT_S = 10
_VERSION = sa.table("alembic_version", sa.column("version_num"))
_REVISION = re.compile(r'^(down_)?revision = "(\w+)"$', re.MULTILINE)


def upgrade(database: Database, *, keystore: bool = False) -> None:
    """Bring an empty or older database to the revision of this release; nothing happens when it is there.

    Raises:
        DatabaseUnavailable: it cannot be written, a newer release wrote it, or it is a new one that cannot hold every text.
    """
    from alembic import command  # a third of a second, for one command in a release's life

    with database.begin() as tx:
        tx = tx.execution_options(**{guard.OPTION: guard.Token("schema")})  # noqa: PLW2901 # the same connection under a token
        if not database.sqlite:
            tx.execute(sa.text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'"))
            tx.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
        present = _present(tx)
        if present is None:
            _require_unicode(tx)
        elif present not in _known(keystore=keystore)[0]:
            raise _unknown(present)
        config = _config(keystore=keystore)
        config.attributes["connection"] = tx
        command.upgrade(config, "head")


def revision(database: Database) -> str | None:
    """Return the revision a database is at, None for an empty one."""
    with database.read() as tx:
        return _present(tx)


def check(database: Database, *, keystore: bool = False) -> None:
    """Refuse a database that this release cannot work on.

    Raises:
        DatabaseUnavailable: it has another revision.
    """
    known, head = _known(keystore=keystore)
    present = revision(database)
    if present == head:
        return
    if present is not None and present not in known:
        raise _unknown(present)
    message = f"the database is at revision {present or 'none'}, this release needs {head}"
    raise DatabaseUnavailable(message, remedy="run 'archive db upgrade'")


def _require_unicode(tx: sa.Connection) -> None:
    """Refuse a server's database in which names of patients would not find room once they come."""
    if tx.dialect.name == "postgresql" and (encoding := tx.execute(sa.text("SHOW server_encoding")).scalar_one()) != "UTF8":
        message = f"the database's encoding is {encoding}"
        raise DatabaseUnavailable(message, remedy="make one with CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0")


def _unknown(present: str) -> DatabaseUnavailable:
    message = f"the database is at revision {present}, which this release does not know"
    return DatabaseUnavailable(message, remedy="install the release that wrote it, or a newer one")


def _present(tx: sa.Connection) -> str | None:
    """Return what stands in alembic's own table; asking alembic would import it for every command."""
    if not sa.inspect(tx).has_table(_VERSION.name):
        return None
    return ", ".join(sorted(tx.execute(sa.select(_VERSION.c.version_num)).scalars())) or None


def _known(*, keystore: bool) -> tuple[frozenset[str], str]:
    """Return every revision of this release and the last of them, the one that nothing follows."""
    made: set[str] = set()
    followed: set[str] = set()
    for script in _versions(keystore=keystore).glob("*.py"):
        for down, name in _REVISION.findall(script.read_text(encoding="utf-8")):
            (followed if down else made).add(name)
    head, = made - followed
    return frozenset(made), head


def _config(*, keystore: bool) -> Config:
    from alembic.config import Config

    scripts = _scripts()
    config = Config()
    config.set_main_option("script_location", _literal(scripts))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", _literal(_versions(keystore=keystore)))
    return config


def _versions(*, keystore: bool) -> Path:
    return _scripts() / ("keystore" if keystore else "versions")


def _scripts() -> Path:
    package = Path(__file__).resolve().parents[1]
    for place in (package / "_migrations", package.parent / "migrations"):
        if (place / "env.py").is_file():
            return place
    message = "the migrations are missing from this installation"
    raise ConfigurationError(message, remedy="install the package again")


def _literal(path: Path) -> str:
    return str(path).replace("%", "%%")


def create_all(database: Database, *, keystore: bool = False) -> None:
    """Create every table at once, for tests and for scratch databases; an archive gets its schema from the migrations."""
    with database.begin() as tx:
        tx = tx.execution_options(**{guard.OPTION: guard.Token("schema")})  # noqa: PLW2901 # the same connection under a token
        (keystore_metadata if keystore else metadata).create_all(tx)
