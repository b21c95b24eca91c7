"""Audit messages: every kind of event is valid by the schema of the standard, whatever it says; arrivals go together."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from archive.access.subject import Subject
from archive.ledger.audit import KINDS, Event, Kind, ObjectRef, body_of
from archive.services.audit_messages import MEANINGS, Occurrence, Source, message, occurrence, together

AT = datetime(2031, 3, 3, 12, 0, 0, 123456, tzinfo=UTC)
SCHEMA = etree.RelaxNG(etree.parse(str(Path(__file__).parent / "schemas" / "audit-message.rng")))
SOURCE = Source("clinic", "West", "0b3f", "STRONGROOM", True, lambda kind, value: f"{kind}{value}".encode())
MIA = Subject(7, "mia", "user", "web", address="192.0.2.7")


def told(
    kind: Kind, *, n: int = 5, outcome: int = 0, subject: Subject | None = MIA, objects: tuple[ObjectRef, ...] = (), instances: int = 0,
    **detail: Any,
) -> Occurrence:
    event = Event(kind, outcome=outcome, subject=subject, objects=objects, instances=instances, detail=detail)
    return occurrence(n, AT + timedelta(seconds=n), kind.label, outcome, instances, msgspec.json.decode(body_of(event, AT)))


def read(one: Occurrence, source: Source = SOURCE) -> Any:
    root = etree.fromstring(message(one, source))
    assert SCHEMA.validate(root), SCHEMA.error_log
    return root


STUDY, PATIENT, SERIES = ObjectRef("study", "1.2.3"), ObjectRef("patient", "P1"), ObjectRef("series", "1.2.3.4")


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("outcome", [0, 4, 8, 12])
def test_every_kind_is_valid(kind: Kind, outcome: int) -> None:
    for subject in (MIA, None):
        root = read(told(kind, outcome=outcome, subject=subject, objects=(PATIENT, STUDY, SERIES), instances=3, reason="because"))
        said = root.find("EventIdentification/EventID").get("csd-code")
        assert said == kind.event_id
        types = [one.get("csd-code") for one in root.iter("EventTypeCode")]
        assert types == [kind.type_code] or not kind.type_code
        assert types or kind.event_id not in {"110100", "110108", "110113", "110114"}, "the standard asks for a type"
        assert sum(one.get("UserIsRequestor") == "true" for one in root.iter("ActiveParticipant")) == 1
    for source in (SOURCE, Source("clinic", "", "0b3f", "AE", False, SOURCE.pseudonym)):
        read(Occurrence(5, 5, AT, kind, outcome, {}, 0), source)  # an erased body


def test_the_codes_have_their_meaning() -> None:
    assert {code for kind in Kind for code in (kind.event_id, kind.type_code) if code} <= set(MEANINGS)


def test_who_what_where() -> None:
    root = read(told(Kind.READ, objects=(STUDY, PATIENT, SERIES), instances=3))
    asked, archive = root.findall("ActiveParticipant")
    assert (asked.get("UserID"), asked.get("NetworkAccessPointID"), asked.get("NetworkAccessPointTypeCode")) == ("mia", "192.0.2.7", "2")
    assert [one.find("RoleIDCode").get("csd-code") for one in (asked, archive)] == ["110152", "110153"]
    assert archive.get("AlternativeUserID") == "AETITLES=STRONGROOM"
    objects = root.findall("ParticipantObjectIdentification")
    assert [(one.get("ParticipantObjectID"), one.find("ParticipantObjectIDTypeCode").get("csd-code")) for one in objects] == [
        ("1.2.3", "110180"), ("P1", "2"), ("1.2.3.4", "112002"), ("urn:uuid:0b3f#5", "12"),
    ]
    assert objects[0].find("ParticipantObjectDescription/SOPClass").get("NumberOfInstances") == "3"
    stored = read(told(Kind.STORED, objects=(STUDY,)))
    assert [one.get("csd-code") for one in stored.iter("RoleIDCode")] == ["110153", "110152"]
    exported = read(told(Kind.EXPORTED, objects=(STUDY,)))
    assert [one.find("RoleIDCode").get("csd-code") for one in exported.findall("ActiveParticipant")] == ["110153", "110153", "110154"]
    question = read(told(Kind.SEARCHED, keys={"PatientName": "Müller*"})).find("ParticipantObjectIdentification/ParticipantObjectQuery")
    assert "Müller*" in base64.b64decode(question.text).decode()


def test_without_patients_nothing_names_one() -> None:
    source = Source("clinic", "", "0b3f", "STRONGROOM", False, lambda kind, value: b"\x01\x02")
    for kind in Kind:
        text = message(told(kind, outcome=4, objects=(STUDY, PATIENT, SERIES), instances=3, reason="P1 of 1.2.3"), source).decode()
        if kind is not Kind.ALERT:  # says nothing of patients by itself
            assert "1.2.3" not in text
            assert "P1" not in text
            assert base64.b64encode(b"P1 of").decode()[:5] not in text


@given(st.text(), st.text(), st.text(), st.integers(0, 5))
def test_whatever_is_said_is_valid(name: str, value: str, reason: str, count: int) -> None:
    try:
        body_of(Event(Kind.READ, subject=Subject(1, name, "user", "web"), objects=(ObjectRef("patient", value),), detail={"r": reason}), AT)
    except UnicodeEncodeError:
        return  # a lone surrogate never gets into the ledger
    subject = Subject(1, name, "user", "web", address=value, operator=reason)
    read(told(Kind.READ, subject=subject, objects=(ObjectRef("patient", value), STUDY), instances=count, reason=reason, outcome=4))
    read(told(Kind.SEARCHED, subject=subject, keys={name: value}))


def test_arrivals_of_a_study_are_one_message() -> None:
    ct = Subject(3, "CT1", "device", "dimse", association="a1")
    other = Subject(3, "CT1", "device", "dimse", association="a2")
    events = [
        told(Kind.STORED, n=1, subject=ct, objects=(STUDY,), instances=1),
        told(Kind.STORED, n=2, subject=ct, objects=(STUDY,), instances=1),
        told(Kind.READ, n=3, objects=(STUDY,), instances=9),
        told(Kind.STORED, n=4, subject=ct, objects=(STUDY,), instances=1),
        told(Kind.STORED, n=5, subject=other, objects=(STUDY,), instances=1),
        told(Kind.STORED, n=6, subject=ct, objects=(ObjectRef("study", "1.9"),), instances=1),
        told(Kind.STORED, n=7, subject=ct, objects=(STUDY,), instances=1, outcome=4),
    ]
    found = list(together(events))
    assert [(one.kind, one.first, one.last, one.instances, one.times) for one in found] == [
        (Kind.READ, 3, 3, 9, 1), (Kind.STORED, 1, 4, 3, 3), (Kind.STORED, 5, 5, 1, 1), (Kind.STORED, 6, 6, 1, 1), (Kind.STORED, 7, 7, 1, 1),
    ]
    root = read(found[1])
    assert root.findall("ParticipantObjectIdentification")[-1].get("ParticipantObjectID") == "urn:uuid:0b3f#1-4"
    assert root.find("ParticipantObjectIdentification/ParticipantObjectDescription/SOPClass").get("NumberOfInstances") == "3"
