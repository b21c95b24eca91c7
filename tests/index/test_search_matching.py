"""Matching in SQL means what the plain matcher says, attribute by attribute, on both engines."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archive.access import policy
from archive.access.permissions import Permission
from archive.access.policy import scope_of
from archive.db.engine import Database
from archive.db.tables import study
from archive.dicom.attributes import BY_KEYWORD, Attribute, Level
from archive.dicom.matching import Single, Wildcard, matches, matches_fuzzy, parse
from archive.dicom.values import plain
from archive.errors import InvalidQuery
from archive.index.search import Fuzzy, SearchQuery, find
from archive.index.terms import condition
from tests.index.samples import add_datastore, add_user, elements, grant, scanned, store

BITS = st.sampled_from(
    ["A", "a", "b", "Li", "Lee", "Müller", "muller", "Straße", "山田", "太郎", "鈴木一郎", "Ёж", "ﬁ", "≠", "%", "_", "[", "]", "!",
     '"', "'", "*", "?", ";--", "\u0301", "が", "İ", " ", "  ", ".", "-", "0", "12"]
)  # fmt: skip
WORD = st.lists(BITS, max_size=4).map("".join)
GROUP = st.lists(WORD, min_size=1, max_size=3).map("^".join)
NAME = st.lists(GROUP, min_size=1, max_size=3).map("=".join)
DATE = st.sampled_from(["20260102", "20260131", "20251231", "19991301", "2026.01.02", "x", "2026-01-02"])
TIME = st.sampled_from(["10", "1015", "101530", "101530.5", "101530.123456", "10:15:30", "235960", "9", "000000"])
MOMENT = st.sampled_from(["20260102101530", "2026", "202601", "20260102101530.25+0100", "y"])
WHOLE: st.SearchStrategy[Any] = st.sampled_from([0, 1, 2, 12, -3, 1 << 40, "1x", "007"])
DECIMAL: st.SearchStrategy[Any] = st.sampled_from([0.5, 1, 1.0, -12.25, 1e-7, 0.1 + 0.2, 1e16, "1.50000000000000000001", -0.0, 72])
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "PN": NAME, "DA": DATE, "TM": TIME, "DT": MOMENT, "IS": WHOLE, "DS": DECIMAL, "US": st.integers(0, 9)
}  # fmt: skip
ONE = {"DA", "TM", "DT", "LT"}
BY_LEVEL = {
    Level.STUDY: ["PatientName", "PatientID", "PatientBirthDate", "PatientSex", "OtherPatientIDs", "OtherPatientNames", "StudyDate",
                  "StudyTime", "AccessionNumber", "StudyDescription", "ReferringPhysicianName", "PhysiciansOfRecord", "PatientWeight",
                  "StudyID"],
    Level.SERIES: ["Modality", "SeriesNumber", "SeriesDescription", "BodyPartExamined", "SeriesTime", "Laterality", "ProtocolName"],
    Level.IMAGE: ["InstanceNumber", "Rows", "ImageType", "ContentDate", "AcquisitionDateTime", "SliceLocation", "ImageComments",
                  "AcquisitionNumber"],
}  # fmt: skip
SELDOM = {"PatientWeight", "StudyID", "PatientSex", "Laterality", "ProtocolName", "SliceLocation", "AcquisitionNumber", "ImageComments"}


@dataclass
class Node:
    """A study, series or instance of the random archive."""

    uid: str
    said: dict[str, Any]
    below: list[Node] = field(default_factory=list)

    def values(self, attribute: Attribute) -> list[str]:
        element = elements({attribute.keyword: self.said[attribute.keyword]}) if attribute.keyword in self.said else {}
        return [plain(value) for value in element.get(attribute.tag_hex, {}).get("Value", ())]


@st.composite
def said(draw: st.DrawFn, level: Level) -> dict[str, Any]:
    found = {}
    for keyword in BY_LEVEL[level]:
        if draw(st.integers(0, 3)) < (1 if keyword in SELDOM else 2):
            vr = BY_KEYWORD[keyword].vr
            value = VALUES.get(vr, WORD)
            found[keyword] = draw(value if vr in ONE else value | st.lists(value, min_size=2, max_size=3))
    return found


@st.composite
def archives(draw: st.DrawFn) -> list[Node]:
    studies = []
    for a in range(draw(st.integers(1, 4))):
        studies.append(Node(f"1.{a}", draw(said(Level.STUDY))))
        for b in range(draw(st.integers(1, 2))):
            studies[-1].below.append(Node(f"1.{a}.{b}", draw(said(Level.SERIES))))
            for c in range(draw(st.integers(1, 2))):
                studies[-1].below[-1].below.append(Node(f"1.{a}.{b}.{c}", draw(said(Level.IMAGE))))
    return studies


@st.composite
def key_texts(draw: st.DrawFn, attribute: Attribute, nodes: list[Node]) -> str:
    """A query text that often nearly matches something stored."""
    stored = [value for node in nodes for value in node.values(attribute)]
    text = draw((st.sampled_from(stored) if stored else VALUES.get(attribute.vr, WORD)) | VALUES.get(attribute.vr, WORD))
    text = str(text)
    match draw(st.integers(0, 9)):
        case 0:
            return '""'
        case 1 | 2 if len(text) > 1:
            start = draw(st.integers(0, len(text) - 1))
            return f"*{text[start:draw(st.integers(start, len(text)))]}*"
        case 3:
            return text[: draw(st.integers(0, len(text)))] + "*"
        case 4 if text:
            at = draw(st.integers(0, len(text) - 1))
            return text[:at] + "?" + text[at + 1 :]
        case 5:
            return text.swapcase()
        case 6 if attribute.vr in {"DA", "TM", "DT"}:
            return draw(st.sampled_from([f"{text}-", f"-{text}", f"{text}-{text}", "2026-", "10-1130", "20260101-20260105"]))
    return text


def meets(term: Any, attribute: Attribute, node: Node) -> bool:
    if isinstance(term, Fuzzy):
        return matches_fuzzy(" ".join(term.words), node.values(attribute))
    return matches(term, attribute, node.values(attribute))


NAME_KEY = BY_KEYWORD["PatientName"]
Keys = Mapping[Level, list[tuple[Attribute, Any]]]


def expected(studies: list[Node], level: Level, keys: Keys) -> set[str]:
    def all_of(at: Level, node: Node) -> bool:
        return all(meets(term, attribute, node) for attribute, term in keys[at])

    found = set()
    for one in studies:
        if not all_of(Level.STUDY, one):
            continue
        for series in one.below:
            if not all_of(Level.SERIES, series):
                continue
            images = [image for image in series.below if all_of(Level.IMAGE, image)]
            found |= {{Level.STUDY: one, Level.SERIES: series}.get(level, image).uid for image in images}
    return found


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_sql_equals_the_plain_matcher(database: Database, now: datetime, data: st.DataObject) -> None:
    studies = data.draw(archives())
    place = add_datastore(database, now, os.urandom(6).hex())
    reader = add_user(database, now, os.urandom(6).hex())
    grant(database, place, reader, now)
    store(database, place, now, *(
        scanned(one.uid, series.uid, image.uid, **one.said, **series.said, **image.said)
        for one in studies for series in one.below for image in series.below
    ))  # fmt: skip
    nodes = {
        Level.STUDY: studies,
        Level.SERIES: [series for one in studies for series in one.below],
        Level.IMAGE: [image for one in studies for series in one.below for image in series.below],
    }
    uid = {Level.STUDY: "0020000D", Level.SERIES: "0020000E", Level.IMAGE: "00080018"}
    with database.read() as tx:
        for _ in range(6):
            keys: dict[Level, list[tuple[Attribute, Any]]] = {level: [] for level in nodes}
            for _ in range(data.draw(st.integers(1, 2))):
                at = data.draw(st.sampled_from([Level.STUDY, Level.STUDY, Level.SERIES, Level.IMAGE]))
                attribute = BY_KEYWORD[data.draw(st.sampled_from(BY_LEVEL[at]))]
                text = data.draw(key_texts(attribute, nodes[at]))
                try:
                    term = parse(attribute, text)
                except InvalidQuery:
                    continue
                fuzzy = data.draw(st.booleans()) and isinstance(term, Single | Wildcard)
                keys[at].append((attribute, Fuzzy.of(attribute, text, term) if fuzzy else term))
            level = data.draw(st.sampled_from(list(nodes)))
            query = SearchQuery(level, place, tuple(key for some in keys.values() for key in some))
            page = find(tx, scope_of(reader, Permission.SEARCH, now), query)
            found = [row[uid[level]]["Value"][0] for row in page.rows]
            assert len(found) == len(set(found)) == page.total
            assert set(found) == expected(studies, level, keys)


NAMES = [
    ("Müller^Jörg", "MULLER*", True),
    ("Müller^Jörg", "muller^jorg", True),
    ("Müller^Jörg", "*ller*", True),
    ("Yamada^Tarou=山田^太郎=やまだ^たろう", "*山田*", True),
    ("Yamada^Tarou=山田^太郎=やまだ^たろう", "山田*", True),
    ("Yamada^Tarou=山田^太郎=やまだ^たろう", "やまだ^たろう", True),
    ("Yamada^Tarou=山田^太郎=やまだ^たろう", "=山田*=", True),
    ("Yamada^Tarou=山田^太郎=やまだ^たろう", "山田*=", False),
    ("Li^Na", "*Li*", True),
    ("Lo^Na", "*Li*", False),
    ("Do^Ann", "D?", False),
    ("Do^Ann", "D? ann", True),
    ("100%", "*0%", True),
    ("1000", "*0%", False),
    ("a_b", "a_b", True),
    ("axb", "a_b*", False),
    ("[x]", "[x]*", True),
    ("x", "[x]", False),
    ('O"Neil', '*"n*', True),
    ("O'Neil", "*'neil", True),
    ("a=b=c", "a*c", False),
    ("", '""', True),
    ("^^", '""', True),
    ("x", '""', False),
    ("", "?*", False),
]


def test_names(database: Database, now: datetime) -> None:
    reader = add_user(database, now)
    for stored, text, meets in NAMES:
        place = add_datastore(database, now, os.urandom(6).hex())
        grant(database, place, reader, now)
        store(database, place, now, scanned(PatientName=stored))
        with database.read() as tx:
            query = SearchQuery(Level.STUDY, place, ((NAME_KEY, parse(NAME_KEY, text)),))
            assert find(tx, scope_of(reader, Permission.SEARCH, now), query).total == int(meets), text


FUZZY = [("joh", True), ("do", True), ("jo do", True), ("John Doe", True), ("doe^jo*", True), ("ohn", False), ("jo x", False), ("山", True)]


def test_fuzzy_matching_takes_the_beginning_of_any_component(database: Database, now: datetime) -> None:
    place, reader = add_datastore(database, now), add_user(database, now)
    grant(database, place, reader, now)
    store(database, place, now, scanned(PatientName="Doe^John=山田"))
    with database.read() as tx:
        for text, meets in FUZZY:
            query = SearchQuery(Level.STUDY, place, ((NAME_KEY, Fuzzy.of(NAME_KEY, text, parse(NAME_KEY, text))),))
            assert find(tx, scope_of(reader, Permission.SEARCH, now), query).total == int(meets), text


@pytest.mark.parametrize(
    ("keyword", "text", "index"),
    [
        ("AccessionNumber", "A1", "ix_study_accession"),
        ("PatientID", "P*", "ix_study_patient_id"),
        ("StudyDate", "20260101-20260131", "ix_study_date"),
        ("PatientName", "*mull*", "study_name_fts"),
        ("PatientName", "D*", None),
    ],
)
def test_matching_uses_the_index(database: Database, now: datetime, keyword: str, text: str, index: str | None) -> None:
    if not database.sqlite:
        pytest.skip("the plan of an empty table says nothing on PostgreSQL")
    attribute = BY_KEYWORD[keyword]
    with database.read() as tx:
        wanted = condition(attribute, parse(attribute, text), study, sqlite=True, datastore_id=1)
        statement = sa.select(study.c.id).where(study.c.datastore_id == 1, wanted)
        sql = str(statement.compile(tx, compile_kwargs={"literal_binds": True}))
        plan = " ".join(row.detail for row in policy.run_as(tx, policy.system("verify"), sa.text("EXPLAIN QUERY PLAN " + sql)))
        assert (index or "datastore_id=?") in plan
