"""The schema of a database: made by the migrations, refused when it is another one.

Scripts lie in `archive/_migrations` of an installed wheel, in `migrations/` of a checkout: `versions/` for the index, `keystore/` for the
keystore. An upgrade is one transaction on both engines.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from archive.db import guard
from archive.db.engine import Database
from archive.db.tables import keystore_metadata, metadata
from archive.errors import ConfigurationError, DatabaseUnavailable

LOCK = 0x4D696772617465  # "Migrate": PostgreSQL's advisory lock of upgrades
LOCK_TIMEOUT_S = 10


def upgrade(database: Database, *, keystore: bool = False) -> None:
    """Bring an empty or older database to the revision of this release; nothing happens when it is there.

    Raises:
        DatabaseUnavailable: it cannot be written, or a newer release wrote it.
    """
    with database.begin() as tx:
        tx = tx.execution_options(**{guard.OPTION: guard.Token("schema")})  # noqa: PLW2901 # the same connection under a token
        if not database.sqlite:
            tx.execute(sa.text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'"))
            tx.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
        config = _config(keystore=keystore)
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        present = MigrationContext.configure(tx).get_current_revision()
        if present is not None and present not in known:
            raise _unknown(present)
        config.attributes["connection"] = tx
        command.upgrade(config, "head")


def revision(database: Database) -> str | None:
    """Return the revision a database is at, None for an empty one."""
    with database.read() as tx:
        return MigrationContext.configure(tx).get_current_revision()


def check(database: Database, *, keystore: bool = False) -> None:
    """Refuse a database that this release cannot work on.

    Raises:
        DatabaseUnavailable: it has another revision.
    """
    scripts = ScriptDirectory.from_config(_config(keystore=keystore))
    present = revision(database)
    if present == scripts.get_current_head():
        return
    if present is not None and present not in {script.revision for script in scripts.walk_revisions()}:
        raise _unknown(present)
    message = f"the database is at revision {present or 'none'}, this release needs {scripts.get_current_head()}"
    raise DatabaseUnavailable(message, remedy="run 'archive db upgrade'")


def _unknown(present: str) -> DatabaseUnavailable:
    message = f"the database is at revision {present}, which this release does not know"
    return DatabaseUnavailable(message, remedy="install the release that wrote it, or a newer one")


def _config(*, keystore: bool) -> Config:
    scripts = _scripts()
    config = Config()
    config.set_main_option("script_location", _literal(scripts))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", _literal(scripts / ("keystore" if keystore else "versions")))
    return config


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
