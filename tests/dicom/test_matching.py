"""matching: every kind of matching of PS3.4 C.2.2.2, folding, and that nothing widens a query by accident."""

from __future__ import annotations

import fnmatch
import re
import time
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archive.dicom import matching as m
from archive.dicom.attributes import lookup
from archive.errors import InvalidQuery


def at(keyword: str):
    found = lookup(keyword)
    assert found is not None
    return found


def says(keyword: str, query: str, *values: str) -> bool:
    return m.matches(m.parse(at(keyword), query), at(keyword), values)


@pytest.mark.parametrize(
    ("keyword", "query", "match"),
    [
        ("PatientName", "", m.Universal()),
        ("PatientName", "*", m.Universal()),
        ("PatientName", "**", m.Universal()),
        ("StudyDate", "*", m.Universal()),  # vendors send it
        ("PatientID", '""', m.Empty()),
        ("PatientID", "A_%[x]", m.Single("A_%[x]")),
        ("PatientID", "A*", m.Wildcard("A*")),
        ("PatientID", "a?b", m.Wildcard("a?b")),
        ("PatientName", "MÜLLER^*", m.Wildcard("muller *")),
        ("PatientName", "Doe^John^^^", m.Single("doe john")),
        ("PatientName", "Yamada=山田", m.Single("yamada=山田=")),
        ("StudyDescription", "Thorax  NATIV", m.Single("thorax nativ")),
        ("StudyDate", "20200131", m.Single("20200131")),
        ("StudyDate", "2020-01-31", m.Single("20200131")),
        ("StudyDate", "2020.01.31", m.Single("20200131")),
        ("StudyDate", "20200101-20200131", m.Range("20200101", "20200131")),
        ("StudyDate", "20200101-", m.Range("20200101", "")),
        ("StudyDate", "-20200131", m.Range("", "20200131")),
        ("StudyDate", "2020-01-01-2020-01-31", m.Range("20200101", "20200131")),
        ("StudyTime", "10", m.Range("100000", "105959.999999")),
        ("StudyTime", "1030-1200", m.Range("103000", "120059.999999")),
        ("StudyTime", "10:30:15.5-", m.Range("103015.5", "")),
        ("AcquisitionDateTime", "2026-2027", m.Range("20260101000000", "20271231235959.999999")),  # no zone lies twenty hours away
        ("AcquisitionDateTime", "20260301-2027", m.Range("20260301000000", "20271231235959.999999")),
        ("AcquisitionDateTime", "20260301-0500", m.Range("20260301000000", "20260301235959.999999", "-0500", "-0500")),
        ("AcquisitionDateTime", "20260301-0500-20260302", m.Range("20260301000000", "20260302235959.999999", "-0500")),
        ("AcquisitionDateTime", "20260301-0500-2026+0100", m.Range("20260301000000", "20261231235959.999999", "-0500", "+0100")),
        ("AcquisitionDateTime", "-20260301101530.123456+0100", m.Range("", "20260301101530.123456", "", "+0100")),
        ("StudyInstanceUID", "1.2.3", m.UidList(("1.2.3",))),
        ("StudyInstanceUID", "1.2.3\\1.2.4", m.UidList(("1.2.3", "1.2.4"))),
        ("StudyInstanceUID", "1.2.3\\\\1.2.4", m.UidList(("1.2.3", "1.2.4"))),  # OHIF's doubled backslash
        ("StudyInstanceUID", "1.2.3,1.2.4,", m.UidList(("1.2.3", "1.2.4"))),
        ("StudyInstanceUID", "\\", m.Universal()),
        ("SeriesNumber", "007", m.Single("7")),
        ("Rows", "512", m.Single("512")),
    ],
)
def test_parse(keyword: str, query: str, match: m.Match) -> None:
    assert m.parse(at(keyword), query) == match


@pytest.mark.parametrize(
    ("keyword", "query"),
    [
        ("StudyDate", "-"),
        ("StudyDate", "NotADate"),
        ("StudyDate", "20201301"),
        ("StudyDate", "2020*"),
        ("StudyDate", "20200101-20200102-20200103"),
        ("StudyTime", "25"),
        ("StudyTime", "-"),
        ("StudyInstanceUID", "1.2.*"),
        ("StudyInstanceUID", "1.2' OR '1'='1"),
        ("StudyInstanceUID", "1." + "2" * 64),
        ("SeriesNumber", "1.5"),
        ("SeriesNumber", "1 OR 1"),
        ("RequestAttributesSequence", "x"),
        ("PatientID", "x" * 2000),
    ],
)
def test_what_cannot_be_matched_is_refused_by_name_and_without_its_value(keyword: str, query: str) -> None:
    with pytest.raises(InvalidQuery) as caught:
        m.parse(at(keyword), query)
    assert keyword in str(caught.value)
    assert len(query) < 3 or query not in str(caught.value)


@pytest.mark.parametrize(
    ("keyword", "query", "values", "expected"),
    [
        ("PatientName", "müller*", ["Muller^Hans"], True),
        ("PatientName", "MULLER^HANS", ["Müller^Hans"], True),
        ("PatientName", "Muller", ["Müller^Hans"], False),  # a single value is the whole name
        ("PatientName", "*ans", ["Müller^Hans"], True),
        ("PatientName", "山田*", ["Yamada^Tarou=山田^太郎=やまだ^たろう"], True),
        ("PatientName", "yamada^tarou", ["Yamada^Tarou=山田^太郎=やまだ^たろう"], True),
        ("PatientName", "=山田^太郎", ["Yamada^Tarou=山田^太郎=やまだ^たろう"], True),
        ("PatientName", "Tanaka=山田*", ["Yamada^Tarou=山田^太郎=やまだ^たろう"], False),
        ("PatientName", "やまた*", ["Yamada^Tarou=山田^太郎=やまだ^たろう"], False),  # another letter
        ("PatientName", "*", [], True),
        ("PatientName", '""', ["^"], True),
        ("PatientName", '""', ["A"], False),
        ("PatientID", "abc", ["ABC"], False),
        ("PatientID", "ABC", ["ABC "], True),
        ("PatientID", "A_C", ["ABC"], False),
        ("PatientID", "A%", ["ABC"], False),
        ("PatientID", "[A]*", ["[A]1"], True),
        ("AccessionNumber", "B", ["A", "B"], True),  # either of several values
        ("PatientID", '""', [], True),
        ("PatientID", '""', [""], True),
        ("StudyDate", "20200101-20201231", ["20200601"], True),
        ("StudyDate", "20200101-20201231", ["2020.06.01"], True),
        ("StudyDate", "20200101-20201231", ["NotAValidDate"], False),
        ("StudyDate", "-20201231", [""], False),
        ("StudyTime", "10-11", ["113059.5"], True),
        ("StudyTime", "10", ["1030"], True),
        ("StudyTime", "103000", ["103000.25"], True),  # a second covers its fractions
        ("StudyTime", "103000", ["103001"], False),
        ("StudyTime", "1030", ["10:30:12"], True),
        ("SeriesNumber", "7", ["07 "], True),
        ("SeriesNumber", "7", ["seven"], False),
        ("StudyInstanceUID", "1.2.3", ["1.2.3\0"], True),
        ("StudyInstanceUID", "1.2.3", ["1.2.30"], False),
    ],
)
def test_matches(keyword: str, query: str, values: list[str], expected: bool) -> None:
    assert says(keyword, query, *values) is expected


NOON = "20260301120000"


@pytest.mark.parametrize(
    ("query", "stored", "zone", "expected"),
    [
        (f"{NOON}+0100", "20260301110000+0000", "", True),
        (f"{NOON}+0100", "20260301060000-0500", "", True),
        (f"{NOON}+0100", "20260301120000-0500", "", False),
        (f"{NOON}+0100", "20260301120000+0000", "", False),
        (f"{NOON}+0100", "20260301110000", "+0000", True),  # Timezone Offset From UTC of the data set
        (f"{NOON}+0100", "20260301120000", "+0000", False),
        (f"{NOON}+0100", "20260301120000+0100", "+0000", True),  # its own says more
        (f"{NOON}+0100", NOON, "", True),  # as written, where nobody says where
        (f"{NOON}+0100", "20260301110000", "", False),
        (f"{NOON}+0100", "20260301110000", "nonsense", False),
        (f"{NOON}.5+0545", "20260301061500.5+0000", "", True),
        (f"{NOON}.5+0545", "20260301061500+0000", "", False),
        (f"{NOON}.123456+0545", "20260301061500.123456+0000", "", True),
        (NOON, "20260301120000+0100", "", True),  # a key without one: the clock as it was read
        (NOON, "20260301110000+0000", "+0100", False),
        ("20260301+0100-20260301+0100", "20260228230000+0000", "", True),
        ("20260301+0100-20260301+0100", "20260228225959.999999+0000", "", False),
        ("20260301+0100-20260301+0100", "20260301225959.999999+0000", "", True),
        ("20260301+0100-20260301+0100", "20260301230000+0000", "", False),
        ("20260301+1400-", "20260228100000+0000", "", True),
        ("20260301+1400-", "20260228095959+0000", "", False),
        ("-20260228-1200", "20260301115959+0000", "", True),
        ("-20260228-1200", "20260301120000+0000", "", False),
        ("-202602-1200", "20260301115959+0000", "", True),  # the end of February is no 31st
        ("-202602-1200", "20260301120000+0000", "", False),
        ("20260301+0100-20260302", "20260302233000-0500", "", True),  # the other end has none
        ("20260301+0100-20260302", "20260303003000+0100", "", False),
        ("0001+1400-", "00010101000000+0000", "", True),
        ("-9999-1200", "99991231235959-1200", "", True),
        ("20260101+0100-", "20260230120000+0100", "", True),  # no day at all
        ("20260101+0100-", "yesterday+0100", "", False),
    ],
)
def test_dates_and_times_with_an_offset_are_matched_by_the_instant(query: str, stored: str, zone: str, expected: bool) -> None:
    attribute = at("AcquisitionDateTime")
    match = m.parse(attribute, query)
    assert m.matches(match, attribute, [stored], zone) is expected
    assert m.matches(match, attribute, ["", stored], zone) is expected
    assert not expected or m.matches(m.rough(match), attribute, [stored])


_day = datetime.fromisoformat
_STAMP = st.builds(
    lambda when, fraction: f"{when:%Y%m%d%H%M%S}{fraction}",
    st.datetimes(_day("1990-01-01"), _day("2040-01-01")) | st.datetimes(_day("2026-02-27"), _day("2026-03-02")),
    st.sampled_from(["", ".5", ".000001", ".999999"]),
)
_OFFSET = st.builds(lambda sign, hour, minute: f"{sign}{hour:02}{minute}", st.sampled_from("+-"), st.integers(0, 14), st.sampled_from(
    ["00", "15", "30", "45", "59"]))


@given(_STAMP, _OFFSET, _STAMP, _OFFSET)
def test_instants_are_those_of_the_calendar(low: str, low_zone: str, stored: str, stored_zone: str) -> None:
    def instant(clock: str, zone: str) -> datetime:
        whole, _, fraction = clock.partition(".")
        return datetime.strptime(f"{whole}.{fraction or 0}{zone}", "%Y%m%d%H%M%S.%f%z")

    attribute = at("AcquisitionDateTime")
    since, until = m.parse(attribute, f"{low}{low_zone}-"), m.parse(attribute, f"-{low}{low_zone}")
    assert isinstance(until, m.Range)
    for match, expected in (
        (since, instant(stored, stored_zone) >= instant(low, low_zone)),
        (until, instant(stored, stored_zone) <= instant(until.high, low_zone)),
    ):
        assert m.matches(match, attribute, [stored + stored_zone]) is expected
        assert not expected or m.matches(m.rough(match), attribute, [stored + stored_zone])


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("  Dr.\tMÜLLER  ", "dr. muller"),
        ("Ångström", "angstrom"),
        ("Straße", "strasse"),
        ("ΣΊΣΥΦΟΣ", "σισυφοσ"),
        ("ЁЛКА", "елка"),
        ("山田", "山田"),
        ("ヤマダ", "ヤマダ"),  # half width, voiced mark kept
        ("Yamada", "yamada"),
        ("김희중", "김희중"),
        ("evil\u202ename\u0000", "evilname"),
        ("Łódź", "łodz"),
        ("", ""),
    ],
)
def test_fold(text: str, folded: str) -> None:
    assert m.fold(text) == folded


@given(st.text())
def test_folding_twice_changes_nothing(text: str) -> None:
    assert m.fold(m.fold(text)) == m.fold(text)


@given(st.text(alphabet=st.characters(codec="ascii")))
def test_ascii_folds_on_the_fast_path_as_on_the_slow_one(text: str) -> None:
    assert m.fold(text) == m.fold(text + "\u202e")


def test_fold_name_has_three_groups() -> None:
    assert m.fold_name("Yamada^Tarou=山田^太郎=やまだ^たろう") == " yamada tarou=山田 太郎=やまだ たろう "
    assert m.fold_name("Doe^^Jane") == " doe jane== "
    assert m.fold_name("") == " == "
    assert m.fold_name("a=b=c=d") == " a=b=c d "


@pytest.mark.parametrize(
    ("query", "expected"),
    [("joh", True), ("do", True), ("jo do", True), ("John Doe", True), ("ohn", False), ("doe x", False), ("jo*", True), ("DÖE", True)],
)
def test_fuzzy_words_begin_components(query: str, expected: bool) -> None:
    assert m.matches_fuzzy(query, ["Doe^John"]) is expected


@given(st.text(alphabet="ab*?", max_size=10), st.text(alphabet="ab", max_size=10))
def test_glob_agrees_with_fnmatch(pattern: str, text: str) -> None:
    assert m.glob(pattern, text) is (re.fullmatch(fnmatch.translate(pattern), text) is not None)


def test_glob_of_many_stars_is_quick() -> None:
    assert not m.glob("*a" * 200 + "b", "a" * 5000)


@given(
    st.sampled_from(["PatientName", "PatientID", "StudyDescription", "StudyDate", "StudyTime", "SeriesNumber", "StudyInstanceUID"]),
    st.text(),
)
def test_any_text_is_parsed_or_refused(keyword: str, text: str) -> None:
    try:
        match = m.parse(at(keyword), text)
    except InvalidQuery:
        return
    m.matches(match, at(keyword), [text, ""])


@given(st.text(min_size=1, max_size=40).filter(lambda text: not set(text) & set('*?"=\\＊？') and bool(m.fold_group(text))))
def test_a_name_finds_itself(name: str) -> None:
    assert says("PatientName", name, name)


@pytest.mark.parametrize("marks", ["\u0301\u0316", "\u0f73", "\uff9e\u0301", "\u302e\u1b44", "\u200d\u302e\u200d\u1b44"])
def test_folding_takes_the_time_of_the_characters(marks: str) -> None:
    """Whatever they are: Unicode's own order of marks takes the square of their number, and nobody else does anything meanwhile."""
    began = time.process_time()
    assert m.fold("a" + marks * (100_000 // len(marks)) + "z").startswith("a")
    assert time.process_time() - began < 5


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("a\u0301\u0316\u3099\u309a\u30ab\u302e\u1b44\u0f73"),
                        max_size=25), min_size=12, max_size=40))
def test_long_texts_are_folded_as_short_ones_are(words: list[str]) -> None:
    """A space lies between the words, so none has more marks than are looked at."""
    assert m.fold(" ".join(words)) == " ".join(filter(None, map(m.fold, words)))


@pytest.mark.parametrize("pattern", ["*" + "a?" * 500 + "b", "*a" * 500 + "*b", "*" + "a" * 1000 + "b"])
def test_a_pattern_is_looked_for_in_the_time_of_the_text(pattern: str) -> None:
    """Whoever may search must not keep a thread of the archive for minutes."""
    began = time.process_time()
    assert not m.glob(pattern, "a" * 50_000)
    assert m.glob(pattern, "a" * 50_000 + "b")
    assert time.process_time() - began < 5
