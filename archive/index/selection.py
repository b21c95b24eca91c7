"""Select: the instances under unique keys of any level that lie inside the scope, and inside a second one where two must agree.

Source: PS3.4 C.4.2, C.4.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import ColumnElement

from archive.access import predicate
from archive.access.policy import Scope
from archive.db.tables import instance, series, study
from archive.dicom.attributes import BY_KEYWORD
from archive.dicom.matching import Single
from archive.index.terms import condition

_ST, _SE, _IM = study.alias("st"), series.alias("se"), instance.alias("im")
_FROM = _ST.join(_SE, _SE.c.study_pk == _ST.c.id).join(_IM, _IM.c.series_pk == _SE.c.id)
_PATIENT_ID, _ISSUER = BY_KEYWORD["PatientID"], BY_KEYWORD["IssuerOfPatientID"]


@dataclass(frozen=True, slots=True)
class UniqueKeys:
    """What is asked for; an empty one asks about nothing, and all of them together are never empty."""

    patient_id: str = ""
    studies: tuple[str, ...] = ()
    series: tuple[str, ...] = ()
    instances: tuple[str, ...] = ()
    issuer: str = ""
    """Of the patient ID: it narrows what the others name, and asks for nothing by itself."""


class Selected(NamedTuple):
    """One instance, as far as planning needs it."""

    instance_pk: int
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    part10_bytes: int


def select(
    tx: sa.Connection, scope: Scope, datastore_id: int, keys: UniqueKeys, *, also: Scope | None = None, limit: int
) -> list[Selected]:
    """Return at most `limit` live instances inside the scopes, ordered by study, series and instance number.

    Raises:
        ValueError: no key at all.
    """
    if not (keys.patient_id or keys.studies or keys.series or keys.instances):
        message = "a selection needs a key"
        raise ValueError(message)
    wanted: list[ColumnElement[bool]] = [
        _ST.c.datastore_id == datastore_id, _IM.c.rejected_at.is_(None), predicate.series_condition(_SE, scope.shape),
    ]  # fmt: skip
    if also is not None:
        wanted.append(predicate.series_condition(_SE, also.shape))
    for attribute, value in ((_PATIENT_ID, keys.patient_id), (_ISSUER, keys.issuer)):
        if value:
            wanted.append(condition(attribute, Single(value), _ST, sqlite=tx.dialect.name == "sqlite"))
    for column, uids in ((_ST.c.study_instance_uid, keys.studies), (_SE.c.series_instance_uid, keys.series)):
        if uids:
            wanted.append(_one_of(column, uids))
    if keys.instances:  # the datastore again, for the index of both
        wanted += [_IM.c.datastore_id == datastore_id, _one_of(_IM.c.sop_instance_uid, keys.instances)]
    statement = (
        sa.select(
            _IM.c.id, _ST.c.study_instance_uid, _SE.c.series_instance_uid, _IM.c.sop_instance_uid, _IM.c.sop_class_uid,
            _IM.c.transfer_syntax_uid, _IM.c.part10_bytes,
        )
        .select_from(_FROM).where(*wanted)
        .order_by(_ST.c.id, _SE.c.series_number.asc().nulls_last(), _SE.c.id, _IM.c.instance_number.asc().nulls_last(), _IM.c.id)
        .limit(limit)
    )  # fmt: skip
    return [Selected(*tuple(row)) for row in scope.run(tx, statement, also=also)]


def _one_of(column: ColumnElement[str], uids: Sequence[str]) -> ColumnElement[bool]:
    return column == uids[0] if len(uids) == 1 else column.in_(uids)
