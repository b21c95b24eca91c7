"""Every column of every table that matters, edited one at a time; a sample of them here, all with ARCHIVE_TEST_TAMPER_ALL=1."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.db import tables
from tests.tamper import columns, world
from tests.tamper.world import Sql, World

ELSEWHERE = {
    "passkey_challenge": "asked and answered within minutes; the answer is signed by the key",
    "external_state": "returns from a provider that came; what is gone lets one count again within minutes, with a code that does not",
    "login_attempt": "a throttle: it opens nothing",
    "pending_peer": "who was refused: shown, never let in by it",
    "association_slot": "counts associations while they last",
    "access_study": "derived, never what decides; what is missing is found and made good (see the catalogue)",
    "job": "work that waits",
    "job_item": "work that waits",
    "commitment": "what a peer was promised is in the ledger, and proved from there",
    "commitment_item": "as above; every byte is checked again for each promise",
    "forward_rule": "who wrote it is in the ledger; what leaves is decided by the grants of both sides",
    "delivery": "reports are compared: tests/services/test_delivery_check.py; what leaves is decided by the grants of both sides",
    "delivery_destination": "work that waits",
    "worklist_entry": "what is asked for, never what was acquired; who entered it is in the ledger",
    "worklist_station": "as above",
    "mpps": "what a device said it does; what it said is in the ledger",
    "mpps_step": "as above",
    "access_request": "what was asked and decided is in the ledger; the grant that came of it is compared with its event",
    "break_glass": "each row is compared with its events: tests/services/test_break_glass.py edits them",
    "grant_lineage": "each row is compared with the events of its grants: tests/services/test_delegation.py edits them",
    "alert": "each that waits is compared with its events: tests/services/test_alert_check.py edits them",
    "approval": "each row is compared with its events: tests/services/test_approvals.py edits them",
    "idempotent_request": "answers of the API under a caller's own key, sealed: changed ones do not open",
    "association_record": "shown to administrators only",
    "auto_rule": "each row is compared with its event: tests/services/test_arrival_rules.py edits them",
    "rule_grant": "as above",
    "access_review": "what is still to be decided; a closed one is its event, which says what became of each row",
    "access_review_item": "as above; it opens nothing, and closing shows whoever closes it every decision",
    "share_link": "each row is compared with its event: tests/services/test_sharing_kept.py edits them",
    "share_session": "as above",
    "share_code": "each row is compared with its events: tests/services/test_share_code_check.py edits them",
    "album": "each row is compared with its event: tests/services/test_sharing_kept.py edits them",
    "album_item": "as above",
    "album_share": "as above",
    "album_grant": "which grants end with which share; a grant that stays is found by its own event",
    "hold": "each row is compared with its event: tests/services/test_purge_tampered.py edits them",
    "purged": "empty here; tests/services/test_purge_tampered.py edits them",
    "purged_key": "as above",
    "workitem": "the worklist: what is to be done, never an image; every change is in the ledger",
    "workitem_study": "derived from the workitem",
    "ups_subscriber": "each row is compared with its events: tests/services/test_watch_check.py edits them",
    "ups_subscription": "as above",
    "ups_event": "work that waits",
    "webhook": "each row is compared with its events: tests/services/test_webhook_check.py edits them",
}
"""Tables whose rows are no finding, and why."""


def test_every_table_and_column_has_its_line() -> None:
    known = columns.expected()
    found = {one.name: one for one in vars(tables).values() if isinstance(one, sa.Table)}
    assert found.keys() - columns.ROWS.keys() <= ELSEWHERE.keys(), "a new table: what does verify say of its rows?"
    for name in columns.ROWS:
        there = {column.name for column in found[name].columns}
        assert {column for table, column in known if table == name} == there, f"{name}: what does verify say of the new column?"


def _edits(table: str) -> list[tuple[str, ...]]:
    """Which columns are edited at once: each alone; in the suite every third that is a finding, and all those together that are none."""
    known = columns.expected()
    names = [column.name for column in columns.table_of(table).columns]
    if world.ALL:
        return [(name,) for name in names]
    quiet = tuple(name for name in names if not known[table, name])
    alone = [(name,) for name in names if known[table, name]][::3]
    return [*alone, quiet] if quiet else alone


@pytest.mark.parametrize("table", columns.ROWS)
def test_an_edited_column(pristine: World, tmp_path: Path, table: str) -> None:
    known = columns.expected()
    for names in _edits(table):
        made = pristine.copy(tmp_path / names[0])
        sets = ", ".join(f'"{name}" = {columns.edited(columns.table_of(table).c[name])}' for name in names)
        assert world.run(made.config, Sql([f'UPDATE "{table}" SET {sets} WHERE {columns.ROWS[table]}'], table in {"data_key", "anchor"}))
        with world.opened(made.config) as (node, why):
            assert bool(why) == ((table, names) == ("anchor", ("note",)))
            world.served(node, made)
            assert " ".join(sorted(world.codes(node, "standard"))) == known[table, names[0]], names
        shutil.rmtree(made.folder)
