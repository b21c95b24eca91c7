"""Keys inside sequences: the database passes over the rows that cannot meet them, on each engine, and no row that does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, Sequence

from archive.dicom.row_keys import meets
from archive.services import query
from tests.services import archives
from tests.web import real
from tests.web.real import SEEN

CASES = [
    ("ScheduledProcedureStepID=S9", 0, 0), ("ScheduledProcedureStepID=S1&RequestedProcedureID=nowhere", 0, 0),
    ("ScheduledProcedureStepID=S1", 1, 1), ("ScheduledProcedureStepID=?1", 2, 2), ("RequestedProcedureID=R-1*", 1, 1),
    ("ScheduledProcedureStepID=R-1", 0, 1), ("ScheduledProcedureStepDescription=M%C3%BCller%20%22x%22", 1, 2),
    ("ReferencedStudySequence.ReferencedSOPInstanceUID=1.2.3.4.5", 1, 1), ("RequestedProcedureID=%22%22", 0, 2),
    ("ScheduledProcedureStepStartDate=20260102", 1, 2), ("ScheduledProcedureStepID=S1%5CT1", 2, 2),
]
"""What is asked, how many series are found, and how many rows are held against it."""


def items(step: str, requested: str) -> Sequence:
    item, study = Dataset(), Dataset()
    study.ReferencedSOPInstanceUID = f"1.2.3.4.{len(requested) + 2}"
    item.ScheduledProcedureStepID, item.RequestedProcedureID, item.ReferencedStudySequence = step, requested, Sequence([study])
    item.ScheduledProcedureStepDescription = 'M\u00fcller "x"' if step == "S1" else "plain"
    item.ScheduledProcedureStepStartDate = "20260102" if step == "S1" else "20260103"
    return Sequence([item])


def test_rows_whose_sequences_cannot_meet_a_key_are_not_looked_at(
    tmp_path: Path, engine: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with archives.opened(archives.made(tmp_path, archive={"public_url": real.ORIGIN}, **engine)) as node:
        place = real.place(node)
        for number, sequence in enumerate((items("S1", "R-1"), items("T1", "R-22"), None)):
            more = {} if sequence is None else {"RequestAttributesSequence": sequence}
            archives.store(node, archives.instance(
                1, study=SEEN, series=f"{SEEN}.{90 + number}", sop=f"{SEEN}.{90 + number}.1", PatientID=f"P{SEEN}",
                SpecificCharacterSet="ISO_IR 192", **more,
            ))
        looked: list[object] = []
        monkeypatch.setattr(query, "meets", lambda key, element, zone: (looked.append(element), meets(key, element, zone))[1])
        for asked, found, held in CASES:
            looked.clear()
            keys = "&".join(f"RequestAttributesSequence.{one}" for one in asked.split("&"))
            answer = place.ask("GET", f"/dicomweb/series?{keys}")
            assert answer.status_code == 200, answer.get_data()
            assert (asked, len(answer.json), len(looked)) == (asked, found, held)
