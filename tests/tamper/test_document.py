"""docs/tamper.md shows what the tests here do, line by line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tamper import columns
from tests.tamper.catalogue import TAMPERS

DOCUMENT = Path(__file__).parents[2] / "docs" / "tamper.md"
READS = {
    "refused": "what it touches is refused", "right": "the right bytes", "fewer": "fewer, none of them wrong",
    "more": "what was out of sight is shown: true bytes",
}
LEVELS = {"quick": "quick", "standard": "standard", "full": "full", "start": "the start: read-only from then; quick", "": "nothing"}


def rows() -> list[str]:
    """The lines of the three tables."""
    found = []
    for one in TAMPERS:
        why = f": {one.why}" if one.why else ""
        found.append(f"| {one.name} | {one.codes.replace(' ', ', ') or '-'} | {LEVELS[one.level]}{why} | {READS[one.reads]} |")
    for table, by in columns.SAID.items():
        found += [f"| `{table}` | {codes.replace(' ', ', ')} | {names.replace(' ', ', ')} |" for codes, names in by.items()]
    found += [f"| {why} | {names.replace(' ', ', ')} |" for why, names in columns.NOT_LOOKED_AT.items()]
    return found


def test_the_document_shows_these_tables() -> None:
    if not DOCUMENT.exists():
        pytest.skip("only the tests are here, without the documents")
    heads = ("| tampering |", "| table |", "| why it is no finding |")
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("| ") and not line.startswith(heads)] == rows()
