"""What a caller may see of rows that name a patient and studies which the archive need not hold: orders, and what was performed.

No grant is asked for here, whose function is the worklist asks for that: a deny hides such a row, and a bound leaves only what it names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement, FromClause

from archive.access import predicate
from archive.access.shape import Shape
from archive.db.tables import boundary, boundary_item, grants, patient, series, study

_PT, _DENY = patient.alias("named_patient"), grants.alias("deny_unseen")
_ST, _SE = study.alias("named_study"), series.alias("of_study")
_BOUND, _ITEM = boundary.alias("naming_boundary"), boundary_item.alias("naming_item")


@dataclass(frozen=True, slots=True)
class Naming:
    """A table whose rows name a patient, and the table that says which studies: `link` joins a row to its own."""

    row: FromClause
    patient_id: ColumnElement[str]
    issuer: ColumnElement[str]
    studies: FromClause
    link: ColumnElement[bool]

    def any_study(self, condition: ColumnElement[bool]) -> ColumnElement[bool]:
        """True for the rows that name a study of which the condition holds."""
        return sa.exists(sa.select(1).select_from(self.studies).where(self.link, condition).correlate(self.row))


def issuer_in(dataset: ColumnElement[Any]) -> ColumnElement[str]:
    """Return IssuerOfPatientID of a data set that is kept as DICOM JSON, empty when it says none."""
    return sa.func.coalesce(dataset[("00100021", "Value", 0)].as_string(), "")


def seen(named: Naming, shape: Shape) -> ColumnElement[bool]:
    """True for the rows that no deny hides from the caller and that all that binds it names."""
    hidden = sa.or_(whole_denied(named.row, shape), patient_denied(named, shape), named.any_study(_study_denied(named, shape)))
    clauses = [sa.not_(sa.and_(predicate.any_deny(shape), hidden)), *(_named_by(named, shape, n) for n in range(shape.boundaries))]
    if shape.besides is not None:
        clauses.append(seen(named, shape.besides))
    return sa.and_(*clauses)


def whole_denied(row: FromClause, shape: Shape) -> ColumnElement[bool]:
    """A deny on everything hides also what the archive does not hold yet."""
    return sa.exists(_denies(row, _DENY, shape).where(_DENY.c.scope_key == 0).correlate(row))


def patient_denied(named: Naming, shape: Shape) -> ColumnElement[bool]:
    """A deny on the patient does as well, by PatientID, and by its issuer where the row says one."""
    # From denies to patients: of an ID without its issuer no index tells, and SQLite would read all patients for each row.
    denies = _denies(named.row, _DENY.join(_PT, _PT.c.id == _DENY.c.scope_key // 4), shape)
    return sa.exists(denies.where(_DENY.c.scope_key % 4 == 1, _is_patient(named)).correlate(named.row))


def _study_denied(named: Naming, shape: Shape) -> ColumnElement[bool]:
    """Denied itself, or by its patient as the archive knows it; or it is here, and all there is of it is denied."""
    on_it = _denies(named.row, _DENY, shape).where(_DENY.c.scope_key.in_([_ST.c.patient_pk * 4 + 1, _ST.c.id * 4 + 2]))
    parts = sa.select(1).select_from(_SE).where(_SE.c.study_pk == _ST.c.id, predicate.holds_images(_SE)).correlate(_ST)
    all_of_it = sa.and_(sa.exists(parts), sa.not_(sa.exists(parts.where(sa.not_(predicate.denied(_SE, shape))))))
    return _held(named, sa.or_(sa.exists(on_it.correlate(named.row, _ST)), all_of_it))


def _named_by(named: Naming, shape: Shape, number: int) -> ColumnElement[bool]:
    """One of the caller's boundaries names everything, the datastore, the patient, or each of the studies."""
    b, i = _BOUND, _ITEM
    items = sa.select(1).select_from(i.join(b, b.c.id == i.c.boundary_id)).where(
        i.c.boundary_id == shape.boundary_id(number), b.c.owner_id == shape.me(), b.c.not_after > shape.now()
    )
    whole = items.where(i.c.scope_key.in_([sa.literal_column("0"), named.row.c.datastore_id * 4])).correlate(named.row)
    of_patient = items.join(_PT, _PT.c.id == i.c.scope_key // 4).where(i.c.scope_key % 4 == 1, _is_patient(named)).correlate(named.row)
    of_study = items.where(i.c.scope_key.in_([_ST.c.patient_pk * 4 + 1, _ST.c.id * 4 + 2])).correlate(_ST)
    studies = named.any_study(sa.true()), named.any_study(sa.not_(_held(named, sa.exists(of_study))))
    return sa.or_(sa.exists(whole), sa.exists(of_patient), sa.and_(studies[0], sa.not_(studies[1])))


def _held(named: Naming, condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """True where the study that is named is here and the condition holds of it."""
    return sa.exists(sa.select(1).select_from(_ST).where(
        _ST.c.study_instance_uid == named.studies.c.study_instance_uid, _ST.c.datastore_id == named.row.c.datastore_id, condition
    ).correlate(named.row, named.studies))


def _is_patient(named: Naming) -> ColumnElement[bool]:
    return sa.and_(
        _PT.c.datastore_id + 0 == named.row.c.datastore_id, _PT.c.patient_id == named.patient_id, named.patient_id != "",
        _PT.c.synthetic == sa.false(), sa.or_(named.issuer == "", _PT.c.issuer == named.issuer),
    )


def _denies(row: FromClause, source: FromClause, shape: Shape) -> sa.Select[tuple[int]]:
    """Denies without conditions: what those say holds of images alone."""
    d = _DENY
    return sa.select(1).select_from(source).where(
        predicate.is_caller(d.c.subject_id, shape), d.c.effect == predicate.DENY, d.c.datastore_id == row.c.datastore_id,
        predicate.not_revoked(d), predicate.in_window(d, shape), d.c.modality == "", d.c.department_id.is_(None),
        d.c.study_date_from == "", d.c.study_date_to == "", d.c.permissions.bitwise_and(shape.need()) != 0,
    )
