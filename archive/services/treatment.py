"""Whether somebody has to do with a patient's treatment, as far as the archive can know: a reason to tell, never a right.

From the images: the referring, performing or reading physician. From the worklist: who requested or performs a step scheduled for the
patient about now, or at whose station, department or service it is. Persons are known by their full name, departments by groups' names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from archive.access import policy
from archive.db.tables import grants, membership, patient, peer, peer_ae_title, principal, series, study, worklist_entry
from archive.dicom.matching import fold, fuzzy_words
from archive.dicom.values import plain

_TOKEN = policy.system("access")
BEFORE, AFTER = timedelta(days=90), timedelta(days=30)
"""How long after a scheduled step, and before it, it counts."""

_OF_STUDY = {
    "00080090": "referring physician", "00081048": "physician of record", "00081060": "reading physician",
    "00081050": "performing physician",
}
_OF_ORDER = {"00080090": "referring physician of an order", "00321032": "requesting physician of an order"}
_OF_STEP = {"00400006": "performing physician of a scheduled step"}
_PLACES = {"00081040": "department", "00321033": "requesting service", "00380300": "current location"}
_STEP_PLACES = {"00400010": "station", "00400011": "location"}
_STEPS = "00400100"
_NAMED = 2


@dataclass(frozen=True, slots=True)
class Relation:
    """Why somebody has to do with a patient: in words that name no other person."""

    what: str
    study_instance_uid: str = ""


@dataclass(frozen=True, slots=True)
class _Who:
    id: int
    words: frozenset[str]
    groups: frozenset[str]
    titles: frozenset[str]


def related(tx: sa.Connection, principal_id: int, patient_pk: int, at: datetime) -> list[Relation]:
    """Return why a principal has to do with a patient at `at`; nothing where no reason is known."""
    row = tx.execute(sa.select(principal.c.id, principal.c.name, principal.c.full_name).where(principal.c.id == principal_id)).first()
    if row is None:
        return []
    live = sa.and_(membership.c.not_before <= at, membership.c.not_after > at)
    groups = tx.execute(sa.select(principal.c.name, principal.c.full_name).join(membership, membership.c.group_id == principal.c.id).where(
        membership.c.principal_id == principal_id, live, principal.c.removed_at.is_(None),
    )).all()
    titles = tx.execute(sa.select(peer_ae_title.c.ae_title).join(peer, peer.c.id == peer_ae_title.c.peer_id).where(
        peer.c.principal_id == principal_id
    )).scalars()
    who = _Who(
        row.id, frozenset(fuzzy_words(row.full_name)) or frozenset(fuzzy_words(row.name.replace(".", " "))),
        frozenset(fold(text) for one in groups for text in (one.name, one.full_name) if text), frozenset(titles),
    )
    found = [*_of_images(tx, who, patient_pk), *_of_orders(tx, who, patient_pk, at), *_of_rules(tx, who, patient_pk, at)]
    return list(dict.fromkeys(found))


def _is(who: _Who, name: str) -> bool:
    """Whether a person's name in an object is theirs: family and given name both stand in the full name."""
    family, given, *_ = [*name.split("=", maxsplit=1)[0].split("^"), "", ""]
    words = [*fuzzy_words(family), *fuzzy_words(given)[:1]]
    return len(words) >= _NAMED and bool(fuzzy_words(given)) and set(words) <= who.words


def _texts(element: Any) -> list[str]:
    return [text for value in (element or {}).get("Value") or () if (text := plain(value).strip(" \0"))]


def _of_images(tx: sa.Connection, who: _Who, patient_pk: int) -> Iterator[Relation]:
    query = sa.select(study.c.study_instance_uid, study.c.attributes, series.c.attributes.label("of_series")).join(
        series, series.c.study_pk == study.c.id
    ).where(study.c.patient_pk == patient_pk).order_by(series.c.id)
    for row in policy.run_as(tx, _TOKEN, query):
        elements = {**(row.attributes or {}), **(row.of_series or {})}
        for tag, what in _OF_STUDY.items():
            if any(_is(who, name) for name in _texts(elements.get(tag))):
                yield Relation(what, row.study_instance_uid)
        if any(fold(name) in who.groups for name in _texts(elements.get("00081040"))):
            yield Relation("department of the images", row.study_instance_uid)


def _of_orders(tx: sa.Connection, who: _Who, patient_pk: int, at: datetime) -> Iterator[Relation]:
    asked = sa.select(patient.c.patient_id, patient.c.issuer, patient.c.datastore_id).where(
        patient.c.id == patient_pk, patient.c.synthetic == sa.false()
    )
    whose = policy.run_as(tx, _TOKEN, asked).first()
    if whose is None:
        return
    w = worklist_entry.c
    query = sa.select(worklist_entry).where(
        w.datastore_id == whose.datastore_id, w.patient_id == whose.patient_id, w.state != "cancelled",
        w.start_date >= f"{at - BEFORE:%Y%m%d}", w.start_date <= f"{at + AFTER:%Y%m%d}",
    ).order_by(w.id)
    for row in tx.execute(query):
        entry: dict[str, Any] = row.attributes
        issuer = _texts(entry.get("00100021"))
        if not issuer or not whose.issuer or issuer[0] == whose.issuer:  # else another's number
            yield from (Relation(what, row.study_instance_uid) for what in _in_order(who, entry))


def _in_order(who: _Who, entry: dict[str, Any]) -> Iterator[str]:
    from archive.dicom import scheduled  # only for who explains a grant

    step = next(iter(scheduled.items(entry, _STEPS)), {})
    for elements, people in ((entry, _OF_ORDER), (step, _OF_STEP)):
        yield from (what for tag, what in people.items() if any(_is(who, name) for name in _texts(elements.get(tag))))
    if who.titles & set(_texts(step.get("00400001"))):
        yield "a step scheduled for this device"
    for elements, places in ((entry, _PLACES), (step, _STEP_PLACES)):
        for tag, what in places.items():
            if any(fold(text) in who.groups for text in _texts(elements.get(tag))):
                yield f"{what} of an order"


def _of_rules(tx: sa.Connection, who: _Who, patient_pk: int, at: datetime) -> Iterator[Relation]:
    """A rule on arrival that gave to them says that they have to do with it."""
    g, groups = grants.c, sa.select(membership.c.group_id).where(
        membership.c.principal_id == who.id, membership.c.not_before <= at, membership.c.not_after > at
    )
    parts = policy.run_as(tx, _TOKEN, sa.select(series.c.id, series.c.study_pk).where(series.c.patient_pk == patient_pk)).all()
    keys = {patient_pk * 4 + 1, *(row.study_pk * 4 + 2 for row in parts), *(row.id * 4 + 3 for row in parts)}
    query = sa.select(g.reason).where(
        g.kind == "rule", g.revoked_at.is_(None), g.not_before <= at, g.not_after > at, g.scope_key.in_(sorted(keys)[:500]),
        sa.or_(g.subject_id == who.id, g.subject_id.in_(groups)),
    )
    for reason in tx.execute(query.distinct()).scalars():
        yield Relation(reason)


def of_object(tx: sa.Connection, principal_id: int, datastore_id: int, uid: str, at: datetime) -> list[Relation]:
    """Return why a principal has to do with the patient of a study or series of that UID; nothing where there is none."""
    by_study = sa.select(study.c.patient_pk).where(study.c.datastore_id == datastore_id, study.c.study_instance_uid == uid)
    by_series = sa.select(series.c.patient_pk).where(series.c.datastore_id == datastore_id, series.c.series_instance_uid == uid)
    found = policy.run_as(tx, _TOKEN, by_study).scalar() or policy.run_as(tx, _TOKEN, by_series).scalar()
    return related(tx, principal_id, found, at) if found is not None else []
