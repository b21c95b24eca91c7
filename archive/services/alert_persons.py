"""Rules about whose images were opened: one's own, a colleague's, somebody's the clinic watches over. What they find names no patient."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from archive.access import policy
from archive.db.tables import audit_event, patient, principal, study
from archive.dicom.matching import fold
from archive.ledger import objects
from archive.ledger.audit import ObjectRef
from archive.services.alert_look import SEEING, Found, Look, Seen
from archive.services.treatment import related

log = logging.getLogger("archive.services")
_E = audit_event.c
_BETWEEN = re.compile(r"[\W_]+")


def own_record(look: Look) -> Iterator[Found]:
    """Somebody opened images of a patient who bears their own name."""
    names = dict(look.once(_staff))
    for one, whose in look.once(_opened):
        mine = names.get(one.principal_id or 0)
        if mine and mine <= whose["words"]:
            yield Found("own-record", one.n, str(one.principal_id), {"kind": one.kind}, one.principal_id)


def colleague_record(look: Look) -> Iterator[Found]:
    """Somebody opened images of a patient who bears the name of another user."""
    names = look.once(_staff)
    for one, whose in look.once(_opened):
        for colleague, words in names:
            if colleague != one.principal_id and words <= whose["words"]:
                yield Found("colleague-record", one.n, f"{one.principal_id} {colleague}", {"kind": one.kind}, one.principal_id)


def watched_record(look: Look) -> Iterator[Found]:
    """Somebody opened images of a patient whose PatientID stands in the file [alerts] watched_patients."""
    watched = _watched(look.settings.watched_patients)
    for one, whose in look.once(_opened) if watched else ():
        if whose["patient_id"] in watched:
            yield Found("watched-record", one.n, str(one.principal_id), {"kind": one.kind}, one.principal_id)


def unrelated_after_hours(look: Look) -> Iterator[Found]:
    """Somebody opened a study for the first time, outside working hours, and nothing says that they treat its patient."""
    begun: set[tuple[int | None, str, int]] = set()
    for one, whose in look.once(_opened):
        opening = one.principal_id, whose["uid"], whose["patient_pk"]
        if opening in begun:
            continue  # the one before it was the first
        begun.add(opening)
        local = one.at.astimezone()
        if look.settings.working(local.weekday(), local.hour * 60 + local.minute):
            continue
        ref = ObjectRef("study", whose["uid"]).pseudonym(look.ledger.keyring)
        before = sa.select(_E.n).where(_E.principal_id == one.principal_id, _E.kind.in_(SEEING), _E.n < one.n, _E.n.in_(objects.about(ref)))
        if look.tx.execute(before.limit(1)).first() is None and not related(look.tx, one.principal_id or 0, whose["patient_pk"], one.at):
            yield Found("unrelated-after-hours", one.n, str(one.principal_id), {"kind": one.kind}, one.principal_id)


def _staff(look: Look) -> list[tuple[int, frozenset[str]]]:
    """Return users and the words of their names, of those who have given name and family name."""
    rows = look.tx.execute(sa.select(principal.c.id, principal.c.full_name).where(
        principal.c.kind == "user", principal.c.removed_at.is_(None), principal.c.full_name != ""
    ))
    found = ((row.id, _words(row.full_name)) for row in rows)
    return [(key, words) for key, words in found if len(words) > 1]


def _opened(look: Look) -> list[tuple[Seen, dict[str, Any]]]:
    """Return each new event of somebody seeing images, with whose they are."""
    events = [one for one in look.events if one.kind in SEEING and one.principal_id is not None and not one.outcome]
    said = look.bodies([one.n for one in events])
    known: dict[str, list[dict[str, Any]]] = {}
    opened: list[tuple[Seen, dict[str, Any]]] = []
    for one in events:
        for kind, uid in said.get(one.n, {}).get("objects") or []:
            if kind == "study":
                if uid not in known:
                    known[uid] = _whose(look.tx, uid)
                opened += [(one, whose) for whose in known[uid]]
    return opened


def _whose(tx: sa.Connection, uid: str) -> list[dict[str, Any]]:
    query = sa.select(study.c.patient_name_folded, study.c.patient_pk, patient.c.patient_id).join(
        patient, patient.c.id == study.c.patient_pk
    ).where(study.c.study_instance_uid == uid)
    rows = policy.run_as(tx, policy.system("alerts"), query).all()
    return [
        {"uid": uid, "words": _words(row.patient_name_folded), "patient_pk": row.patient_pk, "patient_id": row.patient_id} for row in rows
    ]


def _words(name: str) -> frozenset[str]:
    return frozenset(word for word in _BETWEEN.split(fold(name)) if word)


def _watched(path: str) -> frozenset[str]:
    if not path:
        return frozenset()
    try:
        return _read(path, Path(path).stat().st_mtime_ns)
    except OSError:
        return frozenset()


@lru_cache(maxsize=4)
def _read(path: str, _changed_ns: int) -> frozenset[str]:
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    if "\ufffd" in text:
        log.warning("the file of watched patients is not UTF-8 throughout; lines with other bytes match nobody")
    return frozenset(line.strip() for line in text.splitlines() if line.strip())
