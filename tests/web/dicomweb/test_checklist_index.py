"""Every row of the DICOMweb checklist is named by a test: `test_a01_…`; a row without one is a promise nobody keeps."""

from __future__ import annotations

import re
from pathlib import Path

ROWS = {"A": 35, "B": 21, "C": 19, "D": 28, "E": 20, "F": 7, "G": 8}
"""How many rows each part has: storing, instances, metadata, frames and pictures, searching, deleting and methods, access."""
TESTS = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"^(?:    )?def (test_\w+)", re.MULTILINE)
ROW = re.compile(r"(?<=_)([a-g][0-9]{2})(?=_|$)")


def test_every_row_has_a_test_that_names_it() -> None:
    wanted = {f"{part}{number:02}" for part, count in ROWS.items() for number in range(1, count + 1)}
    assert len(wanted) == 138
    names = [name for path in TESTS.rglob("test_*.py") for name in NAMED.findall(path.read_text(encoding="utf-8"))]
    named = {row.upper() for name in names for row in ROW.findall(name)}
    assert sorted(wanted - named) == []
    assert sorted(named - wanted) == [], "names of rows there are none of"
