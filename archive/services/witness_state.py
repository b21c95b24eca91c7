"""How it stands with the witnesses: for `archive doctor`, `archive status` and the first page."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa

from archive.config import Config, Witness, load
from archive.db.tables import witness, witness_cosignature
from archive.errors import ArchiveError, ConfigurationError, LedgerBroken
from archive.ledger import cosignatures, notes, witnessed
from archive.services.core import Core

CLOCKS_APART = timedelta(minutes=10)
_W, _C = witness.c, witness_cosignature.c


class Settings:
    """[witness] as the configuration file says it now: a witness counts from when it is written there."""

    def __init__(self, config: Config) -> None:
        """Begin with what was read at the start."""
        self._path = Path(config.path) if config.path else None
        self._known = config.witness
        self._read_at = -1.0

    def now(self) -> Witness:
        """Return it, read again when the file changed; a file that does not read changes nothing."""
        try:
            changed = -1.0 if self._path is None else self._path.stat().st_mtime
            if self._path is not None and changed != self._read_at:
                self._known = load(self._path).witness
                self._read_at = changed
        except (OSError, ConfigurationError):
            pass
        return self._known


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a witness signed last: so many events, at this time by its clock."""

    name: str
    size: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Standing:
    """One line for an operator."""

    state: Literal["ok", "warning", "problem"]
    detail: str
    remedy: str = ""


def agreements(config: Config) -> list[Agreement]:
    """Return what the configured witnesses signed last, from the files beside the ledger; nothing has to be opened for that."""
    found = []
    for one in config.witness.known:
        note = witnessed.agreed(config.ledger_dir, one.name)
        try:
            parsed = notes.parse(note or b"")
            found += [Agreement(one.name, parsed.size, at) for at in cosignatures.found(parsed, [cosignatures.parse_key(one.key)]).values()]
        except LedgerBroken:
            continue
    return sorted(found, key=lambda agreement: agreement.at)


def standing(core: Core, settings: Witness, at: datetime) -> Standing:
    """Return how it stands with all of them."""
    newest = sa.select(_C.witness, sa.func.max(_C.at).label("at")).group_by(_C.witness).subquery()
    query = sa.select(witness, newest.c.at.label("said_at")).outerjoin(newest, newest.c.witness == _W.name).order_by(_W.name)
    with core.database.read() as tx:
        rows = {row.name: row for row in tx.execute(query)}
    against = [f"{row.name}: {row.problem}" for row in rows.values() if "(V14)" in row.problem or row.problem.startswith("it speaks")]
    if against or _claims(core):
        return Standing("problem", "; ".join(against) or "one remembers another ledger",
                        "compare with 'archive witness remembered' there and 'archive ledger verify' here; docs/operate.md says what then")
    gone = sorted(rows.keys() - {one.name for one in settings.known})
    if gone:
        return Standing("warning", f"{', '.join(gone)}: no more in the configuration, though nobody removed it",
                        "put it back, or give 'archive witness remove NAME'")
    return _known(settings, rows, at) if settings.known else _none(core, settings)


def _claims(core: Core) -> bool:
    try:
        return bool(witnessed.claims(core.config.ledger_dir))
    except ArchiveError:
        return False


def _known(settings: Witness, rows: dict[str, Any], at: datetime) -> Standing:
    late = at - timedelta(hours=settings.silent_hours)
    heard = {name: row for name, row in rows.items() if row.agreed_at is not None and row.agreed_at > late}
    told = [f"{row.name} agrees: {row.agreed_at:%Y-%m-%d %H:%M} UTC, {row.size} events" for row in heard.values()]
    told += [_silent(one.name, rows.get(one.name)) for one in settings.known if one.name not in heard]
    if len(heard) < len(settings.known):
        return Standing("warning", "; ".join(told), "look at that machine and the network")
    apart = [name for name, row in heard.items() if abs(row.said_at - row.agreed_at) > CLOCKS_APART]
    if apart:
        told.append(f"the clock of {', '.join(apart)} is more than ten minutes apart from this machine's")
        return Standing("warning", "; ".join(told), "set both by NTP")
    return Standing("ok", "; ".join(told))


def _silent(name: str, row: Any) -> str:
    if row is None:
        return f"{name} was not asked yet"
    since = "has never agreed" if row.agreed_at is None else f"agreed last at {row.agreed_at:%Y-%m-%d %H:%M} UTC"
    return f"{name} {since}" + (f": {row.problem}" if row.problem else "")


def _none(core: Core, settings: Witness) -> Standing:
    if settings.mail_to and core.config.alerts.smtp_host:
        return Standing("ok", "no witness is set up; the newest checkpoint is mailed each day")
    return Standing(
        "warning", "nobody outside this machine remembers the ledger: a rollback of the whole disk would not show",
        "run 'archive witness serve' on another machine and 'archive witness add' here; or from time to time print what "
        "'archive ledger page --out FILE' writes",
    )
