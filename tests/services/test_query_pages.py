"""A C-FIND whose answer takes several pages: what comes or goes meanwhile moves nothing that stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from archive.access.subject import Subject
from archive.dicom.attributes import BY_KEYWORD, Level
from archive.dicom.row_keys import Key
from archive.dimse import find as find_module
from archive.dimse.identifiers import Identifier
from archive.dimse.models import STUDY_ROOT, Model
from archive.node import Node
from tests.services.archives import instance, made, opened, store, the_console, user

ASKED = {
    "instances of a series": ("IMAGE", {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.1"}, "SOPInstanceUID"),
    "series of a study": ("SERIES", {"StudyInstanceUID": "1.2.3"}, "SeriesInstanceUID"),
    "studies of a patient": ("STUDY", {"PatientID": "P1"}, "StudyInstanceUID"),
    "studies": ("STUDY", {}, "StudyInstanceUID"),
    "instances of a patient": ("IMAGE", {"PatientID": "P1"}, "SOPInstanceUID"),
    "instances by their UIDs": ("IMAGE", {"StudyInstanceUID": "\\".join(f"1.2.{n}" for n in range(30))}, "SOPInstanceUID"),
}


def pages(node: Node, subject: Subject, level: str, keys: dict[str, str], unique: str) -> Iterator[list[str]]:
    wanted = {BY_KEYWORD[name].tag: Key(BY_KEYWORD[name].tag, BY_KEYWORD[name].vr, text) for name, text in ({unique: ""} | keys).items()}
    asked, model = Identifier(b"", Level(level), wanted), Model.of(f"{STUDY_ROOT}.1")
    search = find_module.Search.of(asked, model, "clinical", relational=True, fuzzy=False)
    for page in search.pages(node.query, subject):
        yield [row[BY_KEYWORD[unique].tag_hex]["Value"][0] for row in page]


@pytest.mark.parametrize("what", ASKED)
@pytest.mark.parametrize("usually", ["sqlite", "postgresql"], indirect=True)
def test_what_stays_is_answered_once(tmp_path: Path, usually: dict[str, object], monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    level, keys, unique = ASKED[what]
    monkeypatch.setattr(find_module, "PAGE_ROWS", 3)
    with opened(made(tmp_path, **usually)) as node:
        for n in range(3, 13):  # ten of each, and of each the first comes first
            day = f"202601{30 - n}"
            if level == "STUDY":
                store(node, instance(1, study=f"1.2.{n}", StudyDate=day))
            elif level == "SERIES":
                store(node, instance(1, study="1.2.3", series=f"1.2.3.{n}", SeriesNumber=n))
            else:
                store(node, instance(n, study="1.2.3"))
        subject, console = user(node), the_console(node)
        everything = [uid for page in pages(node, subject, level, keys, unique) for uid in page]
        assert len(everything) == 10
        found, others = [], iter(pages(node, subject, level, keys, unique))
        found += next(others)
        kind = {"STUDY": "study", "SERIES": "series", "IMAGE": "instance"}[level]
        node.remove.reject(console, "clinical", kind, everything[1], reason="test")
        found += next(others)
        if level == "STUDY":
            store(node, instance(1, study="1.2.99", StudyDate="20260131"))
        elif level == "SERIES":
            store(node, instance(1, study="1.2.3", series="1.2.3.99", SeriesNumber=1))
        else:
            store(node, instance(1, study="1.2.3"))
        for page in others:
            found += page
        assert found == everything
