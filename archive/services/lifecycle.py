"""The archive's own events: it started, with which keys and configuration, and it stopped (PS3.15 A.5.3.1)."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from pathlib import Path

import sqlalchemy as sa

from archive import __version__
from archive.db.tables import archive_state
from archive.ledger.audit import Detail, Event, Kind
from archive.services import key_record
from archive.services.clock import machine_now
from archive.services.core import Core

CONFIGURATION = "configuration_sha256"
TWO_PERSON = "two_person"
SET_BACK = timedelta(minutes=1)
"""What a clock is set back by less is no news: NTP does."""


def started(core: Core) -> None:
    """Record the start, the keyring that was opened, and a configuration that is not the last one's.

    Raises:
        DatabaseUnavailable, VaultUnavailable, KeysUnavailable.
    """
    at = core.clock()
    back = at - machine_now(core.clock)
    digest = _configuration(core)
    opened = key_record.opened(core)
    with core.database.begin() as tx:
        core.ledger.record(tx, Event(Kind.STARTED, detail={"software": __version__}), at=at)
        core.ledger.record(tx, Event(Kind.KEY_USED, detail=opened), at=at)
        if _became(tx, CONFIGURATION, digest, "") is not None:
            core.ledger.record(tx, Event(Kind.CONFIGURED, detail={"what": "configuration file", "sha256": digest}), at=at)
        on = core.config.policy.two_person
        if _became(tx, TWO_PERSON, "on" if on else "off", "off") is not None:
            # Whoever writes the configuration can end the rule of two; that they did stays here.
            core.ledger.record(tx, Event(Kind.CONFIGURED, detail={"what": "two_person", "on": on}), at=at)
        if back > SET_BACK:
            _set_back(core, tx, back, at)


def set_back(core: Core, back: timedelta) -> None:
    """Record that the machine's clock was set back while the archive ran: within the bound its events do not show it.

    Raises:
        DatabaseUnavailable.
    """
    with core.database.begin() as tx:
        _set_back(core, tx, back, core.clock())


def _set_back(core: Core, tx: sa.Connection, back: timedelta, at: datetime) -> None:
    detail: Detail = {"what": "clock set back", "back_s": round(back.total_seconds())}
    core.ledger.record(tx, Event(Kind.CONFIGURED, outcome=4, detail=detail), at=at)


def _became(tx: sa.Connection, name: str, value: str, first: str) -> str | None:
    """Keep a value, and return it when it is another than before; before the first it was `first`."""
    known = tx.execute(sa.select(archive_state.c.value).where(archive_state.c.name == name)).scalar()
    if (first if known is None else known) == value:
        return None
    if known is None:
        tx.execute(sa.insert(archive_state).values(name=name, value=value))
    else:
        tx.execute(sa.update(archive_state).where(archive_state.c.name == name).values(value=value))
    return value


def stopped(core: Core) -> None:
    """Record that the archive was told to stop and has drained.

    Raises:
        DatabaseUnavailable.
    """
    with core.database.begin() as tx:
        core.ledger.record(tx, Event(Kind.STOPPED), at=core.clock())


def _configuration(core: Core) -> str:
    path = Path(core.config.path)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
