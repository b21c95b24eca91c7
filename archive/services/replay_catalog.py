"""What an archive held at a moment of the past: which series had images in sight, of which study and patient.

From the index, where it still has them, and from the events: arrivals, what was rejected, restored, let in, and what was purged since. A
study without PatientID that found its patient later stands on a patient of its own before that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from archive.access import policy
from archive.db.tables import audit_event, datastore, held, instance, ledger_leaf, patient, series, statement, study
from archive.errors import ArchiveError
from archive.ledger.bodies import Bodies, parse
from archive.services.core import Core
from archive.services.replay_access import Moment
from archive.services.state_events import decode_change

_TOKEN = policy.system("verify")
_CHANGES = ("rejected", "restored", "reconciled", "purged")
_ARRIVALS = ("stored", "held", "conflict")
_FIRST_OF_NOBODY = 1 << 40
"""Keys of rows that are made up: of patients nobody named, and of series that are gone."""
Row = dict[str, Any]


@dataclass(slots=True)
class Held:
    """A series as it stood, with how many of its instances were in sight."""

    row: Row
    live: int = 0


@dataclass(slots=True)
class Catalog:
    """Rows for the scratch database, and what could not be told."""

    series: dict[int, Held] = field(default_factory=dict)
    studies: dict[int, Row] = field(default_factory=dict)
    patients: dict[int, Row] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def insert(self, tx: sa.Connection, there: sa.Connection) -> None:
        """Fill the tables of a scratch database."""
        tx.execute(sa.insert(datastore), [dict(row) for row in there.execute(sa.select(datastore)).mappings()])
        for table, rows in (
            (patient, list(self.patients.values())), (study, list(self.studies.values())),
            (series, [{**one.row, "n_instances": one.live} for one in self.series.values()]),
        ):
            for start in range(0, len(rows), 1000):
                policy.run_as(tx, _TOKEN, sa.insert(table), rows[start : start + 1000])


@dataclass(slots=True)
class _Changes:
    """What changes of state say: of each object that changed, whether it was in sight at the moment."""

    sight: dict[bytes, bool] = field(default_factory=dict)
    let_in: dict[bytes, int] = field(default_factory=dict)  # by which event
    gone: set[bytes] = field(default_factory=set)  # purged by then
    purged_later: set[bytes] = field(default_factory=set)
    replaced: dict[bytes, list[bytes]] = field(default_factory=dict)  # of these, what went with each that had given its place
    unread: int = 0

    def gave_way(self, one: bytes, others: Iterable[bytes]) -> bool:
        """Whether one of these others had taken the place of an object by the moment: who was let in last has it."""
        return any(self.let_in.get(other, -1) > self.let_in.get(one, -1) for other in others)


def catalog_at(core: Core, tx: sa.Connection, moment: Moment, *, study_instance_uid: str | None = None) -> Catalog:
    """Return what there was; of one study where that is all that is asked.

    Raises:
        LedgerBroken: a body was changed.
    """
    found, changes = Catalog(), _changes(tx, moment)
    if changes.unread:
        found.notes.append(f"{changes.unread} changes of state do not open: what they changed is taken as it was before")
    made = _Making(core, tx, moment, changes, found, study_instance_uid)
    made.present()
    made.replaced()
    if changes.purged_later:
        made.purged()
    made.patients()
    return found


def _changes(tx: sa.Connection, moment: Moment) -> _Changes:
    found = _Changes()
    query = (
        sa.select(statement.c.leaf, statement.c.envelope, audit_event.c.at)
        .join(audit_event, audit_event.c.n == statement.c.leaf).where(audit_event.c.kind.in_(_CHANGES)).order_by(statement.c.leaf)
    )
    for row in tx.execute(query):
        try:
            change = decode_change(bytes(row.envelope))
            objects = [bytes.fromhex(one) for one in change["objects"]]
        except (msgspec.DecodeError, KeyError, ValueError, TypeError):
            found.unread += 1
            continue
        what, before = change["change"], moment.holds(row.leaf, row.at)
        if what == "purged":
            (found.gone if before else found.purged_later).update(objects)
            found.replaced.update((bytes.fromhex(one), objects) for one in change.get("replaced", ()))
        elif before and what in ("rejected", "restored"):
            found.sight.update(dict.fromkeys(objects, what == "restored"))
        elif before and what == "accepted":
            found.let_in.update(dict.fromkeys(objects, row.leaf))
            found.sight.update(dict.fromkeys(objects, True))
    return found


class _Making:
    def __init__(self, core: Core, tx: sa.Connection, moment: Moment, changes: _Changes, found: Catalog, uid: str | None) -> None:
        self._core, self._tx, self._moment, self._changes, self._found, self._uid = core, tx, moment, changes, found, uid
        self._bodies = Bodies(core.keyring)
        self._arrived: dict[int, list[int]] = {}  # of studies: the events their instances arrived by, then
        self._next = _FIRST_OF_NOBODY
        self._made_up: dict[tuple[int, str], Held] = {}  # series by study and UID

    def _run(self, query: sa.Select[Any]) -> Any:
        return policy.run_as(self._tx, _TOKEN, query)

    # --- what has its rows ---

    def present(self) -> None:
        """Count the instances there are, as they stood."""
        i, se = instance.c, series.c
        query = sa.select(i.object_id, i.series_pk, i.study_pk, i.leaf, audit_event.c.at, audit_event.c.kind).join(
            audit_event, audit_event.c.n == i.leaf
        )
        if self._uid is not None:
            query = query.join(study, study.c.id == i.study_pk).where(study.c.study_instance_uid == self._uid)
        live: dict[int, int] = {}
        for row in self._run(query.order_by(i.leaf)):
            if not self._moment.holds(row.leaf, row.at):
                continue
            key = bytes(row.object_id)
            if row.kind != "stored" and key not in self._changes.let_in:
                continue  # it waited then
            self._arrived.setdefault(row.study_pk, []).append(row.leaf)
            live[row.series_pk] = live.get(row.series_pk, 0) + int(self._changes.sight.get(key, True))
        columns = (
            se.id, se.datastore_id, se.patient_pk, se.study_pk, se.study_date, se.department_id, se.restricted, se.series_instance_uid,
            se.modality, se.created_at, se.updated_at,
        )
        rows = sa.select(*columns)
        if self._uid is not None:
            rows = rows.join(study, study.c.id == se.study_pk).where(study.c.study_instance_uid == self._uid)
        for row in self._run(rows).mappings():
            if row["id"] in live:
                self._found.series[row["id"]] = Held({**row, "attributes": {}}, live[row["id"]])
        self._take_studies({one.row["study_pk"] for one in self._found.series.values()})

    def _take_studies(self, keys: set[int]) -> None:
        st = study.c
        columns = (st.id, st.datastore_id, st.patient_pk, st.study_instance_uid, st.key_id, st.study_date, st.study_time, st.created_at,
                   st.updated_at)
        rows = sa.select(*columns) if len(keys) != 1 else sa.select(*columns).where(st.id.in_(keys))
        for row in self._run(rows).mappings():
            if row["id"] in keys:
                self._found.studies[row["id"]] = {**row, "attributes": {}}

    def replaced(self) -> None:
        """Count what was stored, or let in, and gave its place to another since: its series was there by it."""
        h = held.c
        columns = (h.object_id, h.leaf, h.sop_instance_uid, h.series_instance_uid, h.study_instance_uid, h.datastore_id, audit_event.c.at,
                   audit_event.c.kind)
        query = sa.select(*columns).join(audit_event, audit_event.c.n == h.leaf).where(h.state == "rejected")
        if self._uid is not None:
            query = query.where(h.study_instance_uid == self._uid)
        rows = self._run(query).all()
        of_place: dict[tuple[int, str], list[bytes]] = {}
        for row in rows:
            of_place.setdefault((row.datastore_id, row.sop_instance_uid), []).append(bytes(row.object_id))
        for row in rows:
            key = bytes(row.object_id)
            if not self._moment.holds(row.leaf, row.at) or not self._changes.sight.get(key, True):
                continue
            if row.kind != "stored" and key not in self._changes.let_in:
                continue
            twin = self._run(sa.select(instance.c.object_id).where(
                instance.c.datastore_id == row.datastore_id, instance.c.sop_instance_uid == row.sop_instance_uid)).scalar()
            others = of_place[row.datastore_id, row.sop_instance_uid]
            if self._changes.gave_way(key, others if twin is None else [*others, bytes(twin)]):
                continue
            self._add(row.datastore_id, row.study_instance_uid, row.series_instance_uid, row.leaf)

    # --- what is gone ---

    def purged(self) -> None:
        """Count what was purged since, by what its arrival says."""
        wanted = {one.hex() for one in self._changes.purged_later - self._changes.gone}
        query = (
            sa.select(ledger_leaf.c.n, ledger_leaf.c.data, audit_event.c.at, audit_event.c.kind, audit_event.c.body)
            .join(audit_event, audit_event.c.n == ledger_leaf.c.n).where(audit_event.c.kind.in_(_ARRIVALS)).order_by(ledger_leaf.c.n)
        )
        nameless, bare = 0, 0
        for row in self._tx.execute(query):
            leaf = msgspec.json.decode(bytes(row.data))
            key = leaf.get("obj", "")
            if key not in wanted or not self._moment.holds(row.n, row.at):
                continue
            one = bytes.fromhex(key)
            if (row.kind != "stored" and one not in self._changes.let_in) or not self._changes.sight.get(one, True):
                continue
            if self._changes.gave_way(one, self._changes.replaced.get(one, ())):
                continue
            objects = dict(self._objects(row.n, row.body))
            if "series" not in objects:
                nameless += 1
                continue
            if self._uid is None or objects["study"] == self._uid:
                bare += self._add(None, objects["study"], objects["series"], row.n, patient_id=objects.get("patient", ""))
        if nameless:
            self._found.notes.append(f"{nameless} instances there then are purged and their events erased: whose they were is unknown")
        if bare:
            self._found.notes.append(
                f"{bare} series were there then and are purged: of their modality and study date nothing is kept, so grants that ask for "
                "these are taken not to cover them"
            )

    def _add(self, place: int | None, study_uid: str, series_uid: str, leaf: int, *, patient_id: str = "") -> bool:
        """Count one instance of a series by names; whether the series had to be made up."""
        st, se = study.c, series.c
        wanted = sa.select(st.id, st.datastore_id).where(st.study_instance_uid == study_uid)
        rows = self._run(wanted if place is None else wanted.where(st.datastore_id == place)).all()
        if len(rows) != 1:
            many = "several datastores have" if rows else "nothing is left of"
            self._note(f"an instance of study {study_uid} was there then and is purged, and {many} that study: it is left out")
            return False
        [row] = rows
        there = self._run(sa.select(se.id).where(se.series_instance_uid == series_uid, se.datastore_id == row.datastore_id)).scalar()
        known = self._by_uid().get((row.id, series_uid))
        if known is not None:
            known.live += 1
            return False
        if row.id not in self._found.studies:
            self._take_studies({row.id})
        owner = self._owner(row, patient_id)
        self._arrived.setdefault(row.id, []).append(leaf)
        key = there if there is not None else self._number()
        whole = self._run(sa.select(series).where(se.id == key)).mappings().first() if there is not None else None
        said = {name: whole[name] for name in ("study_date", "department_id", "restricted", "modality")} if whole is not None else {}
        at = datetime.fromisoformat("2000-01-01T00:00:00+00:00")
        self._made_up[row.id, series_uid] = self._found.series[key] = Held({
            "id": key, "datastore_id": row.datastore_id, "patient_pk": owner, "study_pk": row.id, "study_date": "", "department_id": None,
            "restricted": False, "modality": "", **said, "series_instance_uid": series_uid, "attributes": {}, "created_at": at,
            "updated_at": at,
        }, 1)
        return whole is None or not whole["modality"]

    def _by_uid(self) -> dict[tuple[int, str], Held]:
        if not self._made_up:
            self._made_up = {(one.row["study_pk"], one.row["series_instance_uid"]): one for one in self._found.series.values()}
        return self._made_up

    def _owner(self, row: Any, patient_id: str) -> int:
        """Return whose a study with purged images is: as it stands, or where it was emptied whom the arrival names."""
        kept = self._found.studies[row.id]
        emptied = self._run(sa.select(patient.c.synthetic).where(patient.c.id == kept["patient_pk"])).scalar()
        if emptied and patient_id:
            kept["patient_pk"] = self._patient(row.datastore_id, patient_id) or kept["patient_pk"]
        return int(kept["patient_pk"])

    def _note(self, text: str) -> None:
        if text not in self._found.notes:
            self._found.notes.append(text)

    def _number(self) -> int:
        self._next += 1
        return self._next

    # --- whose it was ---

    def patients(self) -> None:
        """Give each study the patient it had then."""
        nameless = {pk for pk, leaves in self._arrived.items() if not self._named(leaves)}
        p = patient.c
        columns = (p.id, p.datastore_id, p.issuer, p.patient_id, p.synthetic, p.created_at)
        rows = {row["id"]: dict(row) for row in self._run(sa.select(*columns)).mappings()}
        for pk in nameless:
            whose = rows.get(self._found.studies[pk]["patient_pk"])
            if whose is not None and not whose["synthetic"]:
                key = self._number()
                rows[key] = {**whose, "id": key, "patient_id": f"nobody {key}", "synthetic": True}
                self._found.studies[pk]["patient_pk"] = key
        for one in self._found.series.values():
            one.row["patient_pk"] = self._found.studies[one.row["study_pk"]]["patient_pk"]
        self._found.patients = {
            key: rows[key] for key in {row["patient_pk"] for row in self._found.studies.values()} if key in rows
        }

    def _patient(self, place: int, patient_id: str) -> int | None:
        """Return the one patient of that id; events do not say who issued it."""
        p = patient.c
        found = self._run(sa.select(p.id).where(
            p.datastore_id == place, p.patient_id == patient_id, p.synthetic == sa.false()).limit(2)).scalars().all()
        if len(found) == 1:
            return int(found[0])
        self._note("of a patient whose images are all purged no row need be left: grants on such a patient are taken not to cover them")
        return None

    def _named(self, leaves: list[int]) -> bool:
        """Whether an instance that had arrived by then named its patient; nearly always the first did."""
        for n in sorted(leaves):
            body = self._tx.execute(sa.select(audit_event.c.body).where(audit_event.c.n == n)).scalar()
            if body is None:
                return True  # erased: as it stands now
            if any(kind == "patient" for kind, _value in self._objects(n, body)):
                return True
        return False

    def _objects(self, n: int, body: bytes | None) -> Iterator[tuple[str, str]]:
        try:
            opened = None if body is None else self._bodies.open(n, bytes(body))
        except ArchiveError:
            return  # the ledger's own check tells
        if opened is not None:
            yield from ((kind, value) for kind, value in parse(opened[1])["objects"])
