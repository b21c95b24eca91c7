"""Access snapshots: who may do what, sealed beside the ledger for the day the index is lost (docs/format.md 10)."""

from __future__ import annotations

import base64
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from archive.db.copies import number_on
from archive.db.tables import (
    access_request,
    access_review,
    access_review_item,
    album,
    album_grant,
    album_item,
    album_share,
    api_token,
    archive_state,
    audit_event,
    auto_rule,
    boundary,
    boundary_item,
    break_glass,
    credential,
    datastore,
    external_identity,
    factor,
    grant_lineage,
    grants,
    hold,
    membership,
    peer,
    peer_ae_title,
    peer_network,
    principal,
    recovery_code,
    role,
    role_assignment,
    rule_grant,
    share_link,
)
from archive.db.types import Instant
from archive.keys import sealing
from archive.keys.keyring import Keyring
from archive.ledger import nodes
from archive.ledger.audit import Kind
from archive.services import targets
from archive.services.clock import machine_now
from archive.services.core import Core
from archive.services.snapshot_files import SnapshotFiles
from archive.services.targets import NOWHERE, Placed, Target

FOLDER = "access"
KEPT = 8
DAILY = timedelta(days=1)
LATEST = timedelta(seconds=30)
"""How long a change of access may wait for its snapshot."""
TABLES = (
    datastore, principal, membership, role, role_assignment, grants, boundary, boundary_item, credential, api_token, peer, peer_ae_title,
    peer_network, hold, factor, recovery_code, external_identity, auto_rule, rule_grant, access_review, access_review_item,
    grant_lineage, access_request, break_glass,
    share_link, album, album_item, album_share, album_grant,
)
CHANGING = (
    Kind.GRANTED, Kind.REVOKED, Kind.USER_CHANGED, Kind.ROLE_CHANGED, Kind.TOKEN_CHANGED, Kind.PASSWORD_CHANGED, Kind.PEER_CHANGED,
    Kind.KEY_CHANGED, Kind.CONFIGURED, Kind.FACTOR_CHANGED, Kind.RULE_CHANGED,
    Kind.BREAK_GLASS_STARTED, Kind.BREAK_GLASS_STOPPED, Kind.BREAK_GLASS_REVIEWED,
    Kind.SHARED, Kind.SHARE_CHANGED, Kind.ALBUM_CHANGED,
)
LATER = (hold, factor, recovery_code, external_identity, auto_rule, rule_grant, access_review, access_review_item,
         grant_lineage, access_request, break_glass,
         share_link, album, album_item, album_share, album_grant)
"""Tables that snapshots of earlier releases do not have."""
WRITTEN_FOR = (*CHANGING, Kind.ACCESS_REVIEWED, Kind.HOLD_ADDED, Kind.HOLD_REMOVED, Kind.ACCESS_REQUESTED)
STATE = ("syslog_told",)
"""Rows of archive_state: how far a collector has the audit log, which after a loss is told again from there on, not from then on."""
FILES = SnapshotFiles("access", b"SRSNAP1\0", b"strongroom/v1/access\0", "access-snapshot", FOLDER, KEPT)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a snapshot holds; `leaves` says up to where of the log it knows."""

    at: datetime
    leaves: int
    tables: dict[str, list[dict[str, Any]]]
    targets: dict[sa.Table, dict[int, Placed]]
    state: dict[str, str]


class Snapshots:
    """Written by one worker; read by a rebuild."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core
        self._written_at: datetime | None = None
        self._mine_at: datetime | None = None
        self._looked = 0
        self._changed = False
        last = next(iter(files(core.config.ledger_dir)), None)
        if last is not None:
            with suppress(OSError):
                self._written_at = datetime.fromtimestamp(last.stat().st_mtime, UTC)
                self._looked = int(last.name)

    def tick(self, *, patient: bool = False) -> bool:
        """Write a snapshot when access changed since the last one, or a day has gone by; False when none was due.

        One worker writes a row of changes together, the first at once; `patient` waits for others' writes too, as many short
        processes in a row should.

        Raises:
            DatabaseUnavailable, VaultUnavailable.
        """
        at = machine_now(self._core.clock)
        self._look()
        last, wait = self._written_at, DAILY
        if self._changed and last is not None:
            last, wait = (last if patient else self._mine_at), LATEST
        if last is not None and timedelta(0) <= at - last < wait:  # a clock that was set back makes none wait
            return False
        self.write()
        return True

    def _look(self) -> None:
        """Note whether events since the last look changed access."""
        with self._core.database.read() as tx:
            size = nodes.size(tx)
            if not self._changed and size > self._looked:
                said = sa.select(audit_event.c.n).where(
                    audit_event.c.n >= self._looked, audit_event.c.kind.in_([kind.label for kind in WRITTEN_FOR])
                )
                self._changed = tx.execute(said.limit(1)).first() is not None
        self._looked = size

    def write(self) -> Path:
        """Write one now, and remove the oldest ones.

        Raises:
            DatabaseUnavailable, VaultUnavailable.
        """
        core = self._core
        at = core.clock()
        with core.database.read() as tx:
            body = _body(tx, at)
        path = FILES.write(core.keyring, core.config.ledger_dir, body)
        self._written_at = self._mine_at = machine_now(core.clock)
        self._changed = False
        return path


def files(ledger_dir: Path) -> list[Path]:
    """Return the snapshots there are, newest first."""
    return FILES.there(ledger_dir)


def newest(keyring: Keyring, ledger_dir: Path, leaves: int) -> tuple[Snapshot | None, list[str]]:
    """Return the newest snapshot that opens and knows no more than a log of so many leaves, and names of newer ones that do not."""
    return FILES.newest(keyring, ledger_dir, leaves, _parsed)


def read(keyring: Keyring, path: Path) -> Snapshot:
    """Open a snapshot.

    Raises:
        SealBroken: changed, cut, or not the one its name says. OSError.
    """
    return FILES.read(keyring, path, _parsed)


def taken(tx: sa.Connection, at: datetime) -> Snapshot:
    """Return what a snapshot written now would say."""
    return _parsed(_body(tx, at))


def _body(tx: sa.Connection, at: datetime) -> dict[str, Any]:
    state = {row.name: row.value for row in tx.execute(sa.select(archive_state).where(archive_state.c.name.in_(STATE)))}
    return {"v": 1, "at": sealing.format_instant(at), "leaves": nodes.size(tx), "tables": _rows(tx), "state": state}


def _rows(tx: sa.Connection) -> dict[str, list[dict[str, Any]]]:
    about = targets.captured(tx)
    tables: dict[str, list[dict[str, Any]]] = {}
    for table in TABLES:
        rows = []
        for row in tx.execute(sa.select(table).order_by(*table.primary_key.columns)).mappings():
            kept = {name: _out(value) for name, value in row.items() if value is not None and name != "scope_key"}
            if table in about:
                place, target = about[table][row["id"]]
                kept |= {"target": list(target), "place": place}
            rows.append(kept)
        tables[table.name] = rows
    return tables


def _out(value: Any) -> Any:
    if isinstance(value, datetime):
        return sealing.format_instant(value)
    return base64.b64encode(value).decode() if isinstance(value, bytes | memoryview) else value


def to_json(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row's columns as snapshots hold them, without those that are NULL."""
    return {name: _out(value) for name, value in row.items() if value is not None}


def from_json(table: sa.Table, row: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of a table's row from what a snapshot holds."""
    return {name: _in(table.c[name], value) for name, value in row.items()}


def _parsed(body: dict[str, Any]) -> Snapshot:
    tables: dict[str, list[dict[str, Any]]] = {}
    about: dict[sa.Table, dict[int, Placed]] = {table: {} for table in targets.SCOPED}
    for table in TABLES:
        tables[table.name] = []
        for kept in body["tables"].get(table.name, []) if table in LATER else body["tables"][table.name]:
            row = dict(kept)
            if table in about:
                target: Target = tuple(row.pop("target"))
                about[table][row["id"]] = (row.pop("place"), target)
                row["scope_key"] = NOWHERE
            tables[table.name].append({name: _in(table.c[name], value) for name, value in row.items()})
    return Snapshot(sealing.parse_instant(body["at"]), body["leaves"], tables, about, body.get("state", {}))


def _in(column: sa.Column[Any], value: Any) -> Any:
    if isinstance(column.type, Instant):
        return sealing.parse_instant(value)
    return sealing.decode_base64(value) if isinstance(column.type, sa.LargeBinary) else value


def put_back(tx: sa.Connection, kept: Snapshot) -> None:
    """Fill the empty tables; what grants are about is still to be found (targets.put_back)."""
    for table in TABLES:
        for row in kept.tables[table.name]:
            # A column that is younger than the snapshot takes what rows of its time had.
            known = [column for column in table.columns if column.name in row or column.nullable or column.server_default is None]
            tx.execute(sa.insert(table), {column.name: row.get(column.name) for column in known})
    number_on(tx, TABLES)
    for name, value in kept.state.items():
        tx.execute(sa.insert(archive_state).values(name=name, value=value))
