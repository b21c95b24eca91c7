"""What performed procedure steps tell whoever sees a part of their study: no more than a search of it does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archive.access.grants import Target
from archive.access.subject import Subject
from archive.node import Node
from tests.dimse.test_find import sequence
from tests.dimse.test_mpps import begun
from tests.services import archives

STUDY, OTHER = "1.2.61", "1.2.62"
CT, MR, LATER = f"{STUDY}.1", f"{STUDY}.2", f"{STUDY}.3"


@pytest.fixture
def node(engine: dict[str, Any], tmp_path: Path) -> Iterator[Node]:
    with archives.opened(archives.made(tmp_path, **engine)) as made:
        console = archives.the_console(made)
        for study, series, modality in ((STUDY, CT, "CT"), (STUDY, MR, "MR"), (OTHER, f"{OTHER}.1", "CT")):
            archives.store(made, archives.instance(1, study=study, series=series, Modality=modality))
        named = {
            "ct": [CT], "mr": [MR], "both": [CT, MR], "later": [LATER], "none": [],
            "odd": ["", f"{OTHER}.1"],  # a series of another study
        }
        for name, uids in named.items():
            step = begun(1, ScheduledStepAttributesSequence=sequence(StudyInstanceUID=STUDY) + sequence(StudyInstanceUID=OTHER))
            step.PerformedSeriesSequence = [sequence(SeriesInstanceUID=uid, ReferencedImageSequence=[])[0] for uid in uids]
            made.steps.create(console, "clinical", f"1.2.9.{list(named).index(name)}", json.loads(step.to_json()) | {
                "00400254": {"vr": "LO", "Value": [name]}
            })
        wrong = json.loads(begun(2, ScheduledStepAttributesSequence=sequence(StudyInstanceUID=STUDY)).to_json())
        for n, element in enumerate([{"vr": "LO", "Value": ["no sequence", 5, None]}, {"vr": "UN", "InlineBinary": "AAAA"}]):
            made.steps.create(console, "clinical", f"1.2.10.{n}", wrong | {
                "00400340": element, "00400254": {"vr": "LO", "Value": [f"w{n}"]}
            })
        yield made


def seer(node: Node, name: str, *targets: Target, **more: Any) -> Subject:
    console = archives.the_console(node)
    node.accounts.add_user(console, name, password="violet-otter-94-lantern")
    for target in targets:
        node.accounts.add_grant(console, to=name, role="researcher", target=target, **more)
    return archives.user(node, name)


def seen(node: Node, subject: Subject, study: str = STUDY) -> dict[str, list[str]]:
    return {row["description"]: row["series"] for row in node.steps.of_study(subject, "clinical", study)}


def test_who_sees_one_series_sees_the_steps_of_that_one_and_of_no_other(node: Node) -> None:
    mine = seen(node, seer(node, "one", Target("series", CT)))
    assert mine == {"ct": [CT], "both": [CT], "none": [], "w1": []}


def test_who_sees_one_modality_sees_the_steps_of_that_one(node: Node) -> None:
    mine = seen(node, seer(node, "kind", Target("everything"), modality="MR"))
    assert mine == {"mr": [MR], "both": [MR], "none": [], "w1": []}


def test_a_step_that_is_shown_tells_nothing_else_of_hidden_series(node: Node) -> None:
    rows = node.steps.of_study(seer(node, "part", Target("series", CT)), "clinical", STUDY)
    assert rows
    for hidden in (MR, LATER, OTHER):
        assert hidden not in repr(rows)


def test_who_sees_the_whole_study_sees_what_is_to_come(node: Node) -> None:
    mine = seen(node, seer(node, "whole", Target("study", STUDY)))
    assert mine == {"ct": [CT], "mr": [MR], "both": [CT, MR], "later": [], "none": [], "odd": [], "w0": [], "w1": []}


def test_who_sees_nothing_of_it_sees_none(node: Node) -> None:
    assert seen(node, seer(node, "else", Target("study", OTHER))) == {}
