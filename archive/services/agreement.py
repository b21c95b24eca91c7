"""What the index says of studies, series and instances, compared with what the sealed records say (V10, docs/format.md).

An instance's row is what its own record says. What a study or series is said to be, some record of it says: its first one, or of a
study that found its patient later, one or the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import sqlalchemy as sa

from archive.access import policy
from archive.db.tables import datastore, held, instance, series, study
from archive.dicom.part10 import Scanned
from archive.index import columns
from archive.index.identity import PatientKey, key_of, naming
from archive.services.records import RecordMeta
from archive.services.retrace import Found, Said

_TOKEN = policy.system("verify")
_SCANNED = ("instance_number", "rows", "columns", "bits_allocated", "number_of_frames", "attributes", "normalised")
OF_INSTANCE = tuple(instance.c[name].label(f"of_{name}") for name in _SCANNED)
OF_HELD = (
    held.c.patient_id.label("held_patient_id"), held.c.issuer_of_patient_id.label("held_issuer"),
    held.c.patient_name.label("held_patient_name"),
)
_OF_STUDY = (*columns.study_row({}), "study_instance_uid")
_OF_SERIES = tuple(column.name for column in series.c if column.name not in {
    "id", "datastore_id", "patient_pk", "study_pk", "study_date", "department_id", "restricted", "n_instances", "generation", "created_at",
    "updated_at",
})
Key = tuple[str, int, str]


def _flat(row: dict[str, Any]) -> dict[str, bytes]:
    """Return each value as bytes to compare; of JSON each element alone."""
    found: dict[str, bytes] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            found |= {f"{name} {tag}": msgspec.json.encode(one, order="sorted") for tag, one in value.items()}
        elif value is not None:
            found[name] = msgspec.json.encode(value)
    return found


def _naming(key: PatientKey) -> dict[str, bytes]:
    """Return what a study says that names this patient, and otherwise nothing."""
    empty = _flat(columns.study_row({}))
    return {name: value for name, value in _flat(columns.study_row(naming(key))).items() if empty.get(name) != value}


def _key(row: Any, level: str) -> Key:
    return level, row.datastore_id, row.study_instance_uid if level == "study" else row.series_instance_uid


class Agreement:
    """Takes every record and its row, tells what does not hold of each, and at the end what no record said."""

    def __init__(self, said: Said) -> None:
        """`said`: what data managers decided."""
        self._joined = said.joined
        self._patients = said.patients
        self._places: dict[int, str] = {}
        self._open: dict[Key, tuple[dict[str, bytes], str]] = {}  # what no record has said yet
        self._in: dict[Key, str] = {}  # the study of each
        self._whose: dict[Key, tuple[PatientKey, str]] = {}  # studies of patients whom none of their records has named yet
        self._met: set[Key] = set()

    def page(self, tx: sa.Connection, rows: Iterable[Any]) -> None:
        """Take in what the index says of the studies and series of these rows, once each."""
        self._places = self._places or {row.id: bytes(row.uid).hex() for row in tx.execute(sa.select(datastore.c.id, datastore.c.uid))}
        live = [row for row in rows if row.patient_pk is not None]
        for table, names, level in ((study, _OF_STUDY, "study"), (series, _OF_SERIES, "series")):
            new = {getattr(row, f"{level}_pk"): row for row in live if _key(row, level) not in self._met}
            query = sa.select(table.c.id, *[table.c[name] for name in names]).where(table.c.id.in_(list(new)))
            for found in policy.run_as(tx, _TOKEN, query).mappings():
                row = new[found["id"]]
                self._open[_key(row, level)] = _flat({name: found[name] for name in names}), row.sop_instance_uid
                self._in[_key(row, level)] = row.study_instance_uid
                if level == "study" and not row.synthetic:
                    self._whose[_key(row, level)] = PatientKey(row.issuer, row.patient_id), row.sop_instance_uid
            self._met.update(_key(row, level) for row in new.values())

    def add(self, row: Any, meta: RecordMeta) -> Iterator[Found]:
        """Take one record and its row; yield what does not hold of it alone."""
        scanned, uid = meta.scanned, row.sop_instance_uid
        key = key_of(scanned, meta.issuer)
        if row.patient_pk is None:
            if (row.held_patient_id, row.held_issuer, row.held_patient_name) != (
                key.patient_id, key.issuer, scanned.text("PatientName").replace("\0", "")
            ):
                yield "V10", "what waits is another patient's than the record says", uid
            self._all(row, scanned, key)  # what was replaced may be what the study's row was made of
            return
        if row.patient_pk != row.series_patient_pk or row.study_date != row.series_study_date:
            yield "V10", "its series and its study say otherwise of patient or date", uid
        if row.of_study_pk != row.study_pk:
            yield "V10", "it lies in another study than its series", uid
        other = row.synthetic or (row.issuer, row.patient_id) != (key.issuer, key.patient_id)
        if key.patient_id and other and bytes(row.object_id) not in self._joined:
            yield "V10", "its study is another patient's than the record says", uid
        said = columns.of_instance(scanned)
        wrong = [name for name in _SCANNED if getattr(row, f"of_{name}") != said[name]]
        if wrong:
            yield "V10", f"the index says otherwise than the record: {', '.join(wrong)}", uid
        self._all(row, scanned, key)

    def _all(self, row: Any, scanned: Scanned, whose: PatientKey) -> None:
        of_study = _key(row, "study")
        if of_study in self._whose and self._whose[of_study][0] == whose:
            del self._whose[of_study]
        for level, row_of in (("study", columns.of_study), ("series", columns.of_series)):
            known = self._open.get(_key(row, level))
            if known is not None:
                left = known[0]
                for name, value in _flat(row_of(scanned)).items():
                    if left.get(name) == value:
                        del left[name]
                if not left:
                    del self._open[_key(row, level)]
                    if _key(row, level) not in self._whose:
                        del self._in[_key(row, level)]

    def skip(self, row: Any) -> None:
        """Leave out the study and series of a record that does not open: what it would have said is not known."""
        for level in ("study", "series"):
            self._open.pop(_key(row, level), None)
        self._whose.pop(_key(row, "study"), None)

    def doubted(self) -> set[str]:
        """Return the studies of which something is left that no record said."""
        return {self._in[key] for key in (*self._open, *self._whose)}

    def findings(self) -> Iterator[Found]:
        """Yield what no record says; only once all of them were added."""
        for (level, place, of), (left, uid) in self._open.items():
            # What named the patient may be purged: then the event of that says who it is.
            named = [_naming(PatientKey(*one)) for one in self._patients.get((self._places.get(place, ""), of), ()) if level == "study"]
            for name in sorted(left):
                if any(one.get(name) == left[name] for one in named):
                    continue
                yield "V10", f"no record says the {name.replace('_', ' ')} that the index does", uid
        for (_level, place, of), (whose, uid) in self._whose.items():
            if (whose.issuer, whose.patient_id) not in self._patients.get((self._places.get(place, ""), of), ()):
                yield "V10", "no record names the patient whose its study is", uid
