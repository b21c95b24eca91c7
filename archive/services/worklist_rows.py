"""Rows of the modality worklist: written, found by what performs them, and made again from what was sealed."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.db.tables import worklist_entry, worklist_station
from archive.dicom import scheduled
from archive.dicom.scheduled import DataSet
from archive.errors import StateConflict

STEPS = "00400100"  # Scheduled Procedure Step Sequence


def move(tx: sa.Connection, row: sa.RowMapping, state: str, at: datetime) -> None:
    """Move an entry to another state; whoever does records it."""
    tx.execute(sa.update(worklist_entry).where(worklist_entry.c.id == row["id"]).values(state=state, updated_at=at))


def put(tx: sa.Connection, place: int, entry: DataSet, source: str, at: datetime) -> tuple[sa.RowMapping, str]:
    """Insert an entry of one step, or replace it while it waits, and return its row and what was done; nothing if it is so already.

    Raises:
        StateConflict: it was begun.
    """
    step = scheduled.items(entry, STEPS)[0]
    values = {
        "start_date": scheduled.text(step, "00400002"), "modality": scheduled.text(step, "00080060"),
        "patient_id": scheduled.text(entry, "00100020"), "accession_number": scheduled.text(entry, "00080050"),
        "attributes": entry, "source": source[:64], "updated_at": at,
    }
    study, number = name_of(entry)
    w = worklist_entry.c
    there = tx.execute(_named(place, study, number).with_for_update()).mappings().first()
    if there is None:
        made = tx.execute(sa.insert(worklist_entry).values(
            datastore_id=place, study_instance_uid=study, procedure_step_id=number, state="scheduled", created_at=at, **values
        ))
        assert made.inserted_primary_key is not None
        key, what = int(made.inserted_primary_key[0]), "entered"
    else:
        key, what = there["id"], "replaced"
        if there["attributes"] == entry and there["state"] == "scheduled":
            return there, ""
        if there["state"] != "scheduled":
            message = f"that procedure step is {there['state'].replace('-', ' ')} already"
            raise StateConflict(message, remedy="give the new one another ScheduledProcedureStepID")
        tx.execute(sa.update(worklist_entry).where(w.id == key).values(values))
        tx.execute(sa.delete(worklist_station).where(worklist_station.c.entry_id == key))
    titles = dict.fromkeys(scheduled.texts(step, "00400001"))
    if titles:
        tx.execute(sa.insert(worklist_station), [{"entry_id": key, "ae_title": title} for title in titles])
    return by_key(tx, key), what


def redo(tx: sa.Connection, place: int, change: dict[str, Any], *, late: datetime | None) -> None:
    """Do again what a sealed record says was entered or cancelled; where it comes `late`, what went on since stays as it is."""
    at = datetime.fromisoformat(change["at"])
    if change["what"] == "entered":
        for entry in change["entries"]:
            try:
                put(tx, place, entry, change["source"], at)
            except StateConflict:
                if late is None:  # it was taken, so what has its step was forgotten by then
                    _forget(tx, place, entry)
                    put(tx, place, entry, change["source"], at)
        return
    row = tx.execute(_named(place, change["study"], change["step"])).mappings().first()
    if row is not None and row["state"] == "scheduled":
        move(tx, row, "cancelled", at)


def name_of(entry: DataSet) -> tuple[str, str]:
    """Return what names an entry of one step in its datastore: StudyInstanceUID and ScheduledProcedureStepID."""
    return scheduled.text(entry, "0020000D"), scheduled.text(scheduled.items(entry, STEPS)[0], "00400009")


def _forget(tx: sa.Connection, place: int, entry: DataSet) -> None:
    study, number = name_of(entry)
    w = worklist_entry.c
    tx.execute(sa.delete(worklist_entry).where(w.datastore_id == place, w.study_instance_uid == study, w.procedure_step_id == number))


def _named(place: int, study: str, number: str) -> sa.Select[Any]:
    w = worklist_entry.c
    return sa.select(worklist_entry).where(w.datastore_id == place, w.study_instance_uid == study, w.procedure_step_id == number)


def of_step(tx: sa.Connection, place: int, study: str, number: str) -> list[sa.RowMapping]:
    """Return the entries that a performed step names: by its step's ID, or where it says none by the study."""
    w = worklist_entry.c
    query = sa.select(worklist_entry).where(w.datastore_id == place, w.study_instance_uid == study, w.state != "cancelled")
    if number:
        query = query.where(w.procedure_step_id == number)
    return list(tx.execute(query.order_by(w.id).with_for_update()).mappings())


def by_key(tx: sa.Connection, key: int) -> sa.RowMapping:
    """Return one entry."""
    return tx.execute(sa.select(worklist_entry).where(worklist_entry.c.id == key)).mappings().one()
