"""A statement built for a term's form means, with the values of another term of that form, what one built for that other term means."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql, sqlite

from archive.db.tables import study
from archive.dicom.attributes import BY_KEYWORD
from archive.dicom.matching import Range, Single, UidList, Wildcard
from archive.index.slots import Fuzzy, Slots, Term, form_of
from archive.index.terms import condition

KEYS = ("PatientName", "PatientID", "AccessionNumber", "StudyDescription", "OtherPatientNames", "StudyTime", "StudyInstanceUID")
TEXT = st.text("ab*?=[]%_!\\^ \"'é\U0010ffff", min_size=1, max_size=9).filter(lambda text: text.count("=") in {0, 2})
TERM: st.SearchStrategy[Term] = st.one_of(
    TEXT.map(Single), TEXT.map(Wildcard), st.builds(Range, TEXT, TEXT), st.lists(TEXT, min_size=1, max_size=3).map(tuple).map(Fuzzy),
    st.lists(TEXT, min_size=1, max_size=10).map(tuple).map(UidList),
)  # fmt: skip


def _said(keyword: str, term: Term, dialect: str, slots: Slots | None, values_of: Term) -> tuple[str, list[Any]]:
    attribute = BY_KEYWORD[keyword]
    slot = None if slots is None else slots.of(0, term)
    wanted = condition(attribute, term, study, sqlite=dialect == "sqlite", datastore_id=1, slot=slot)
    # A list written out has no collation at its values; equality asks for none.
    made: Any = sqlite.dialect if dialect == "sqlite" else postgresql.dialect
    compiled = wanted.compile(dialect=made(paramstyle="named"), compile_kwargs={"render_postcompile": True})
    given_values = {} if slots is None else slots.values([values_of])
    values = {**compiled.params, **{name: value for name, value in given_values.items() if name in compiled.params}}
    text = str(compiled).replace(' COLLATE "C"', "")
    for name in sorted(values, key=len, reverse=True):
        text = text.replace(f":{name}", f"<{values[name]!r}>")
    return text, sorted(repr(value) for value in values.values())


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
@given(st.sampled_from(KEYS), TERM)
@settings(max_examples=80, deadline=None)
def test_a_form_with_values_says_what_the_term_says(dialect: str, keyword: str, term: Term) -> None:
    form = form_of(term)
    if form is not None:
        assert _said(keyword, form, dialect, Slots(), term)[0] == _said(keyword, term, dialect, None, term)[0]


def test_values_do_not_make_forms() -> None:
    assert form_of(Single("A00000001")) == form_of(Single("Müller")) != form_of(Single("ab"))
    assert form_of(Wildcard("smith^j*")) == form_of(Wildcard("brown*")) != form_of(Wildcard("*brown*"))
    assert form_of(UidList(("1",) * 9)) is None
    assert form_of(Single("\\x")) != form_of(Single("yx"))
