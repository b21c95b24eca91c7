"""Who saw a patient's images: every access, by whom, and the grants in force at that moment."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from archive.access.grants import Target
from archive.errors import Forbidden, NotFound
from archive.node import Node
from archive.services.disclosure import COLUMNS, PAGE, as_csv
from tests.services import archives


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with archives.opened(archives.made(tmp_path)) as opened:
        for patient, study in (("P1", "1.2.1"), ("P1", "1.2.2"), ("P2", "1.2.3")):
            archives.store(opened, archives.instance(1, study=study, PatientID=patient, PatientName="=Canary^Name"))
        console = archives.the_console(opened)
        for name in ("mia", "ole"):
            opened.accounts.add_user(console, name)
        opened.accounts.add_group(console, "readers")
        opened.accounts.join_group(console, "readers", "ole")
        yield opened


def read(node: Node, name: str, study: str) -> None:
    subject = archives.user(node, name)
    for found in node.retrieve.instances(subject, "clinical", study):
        for view in node.retrieve.open(subject, found):
            bytes(view)


def report(node: Node, patient: str = "P1", **more: Any) -> list[dict[str, Any]]:
    return node.disclosure.of_patient(archives.the_console(node), patient, **more)


def test_every_access_and_why_it_was_possible_then(node: Node) -> None:
    console = archives.the_console(node)
    direct = node.accounts.add_grant(console, to="mia", role="radiologist", target=Target("study", "1.2.1"), reason="second opinion")
    group = node.accounts.add_grant(console, to="readers", role="radiologist", target=Target("patient", "P1"))
    other = node.accounts.add_grant(console, to="mia", role="radiologist", target=Target("study", "1.2.3"))
    read(node, "mia", "1.2.1")
    node.accounts.revoke_grant(console, direct["id"])
    with pytest.raises(NotFound):
        read(node, "mia", "1.2.1")
    node.upkeep.checkpoint()
    read(node, "ole", "1.2.2")
    read(node, "mia", "1.2.3")
    found = report(node)
    assert [(row["who"], row["studies"], row["instances"], [one["grant"] for one in row["because"]]) for row in found] == [
        ("mia", ["1.2.1"], 1, [direct["id"]]), ("ole", ["1.2.2"], 1, [group["id"]]),
    ]
    assert found[0]["because"][0]["reason"] == "second opinion"
    assert [[one["grant"] for one in row["because"]] for row in report(node, "P2")] == [[other["id"]]]


def test_a_grant_given_later_does_not_explain(node: Node) -> None:
    console = archives.the_console(node)
    first = node.accounts.add_grant(console, to="mia", role="radiologist", target=Target("everything"))
    read(node, "mia", "1.2.1")
    node.accounts.add_grant(console, to="mia", role="radiologist", target=Target("study", "1.2.1"))
    [row] = report(node)
    assert [one["grant"] for one in row["because"]] == [first["id"]]


def test_what_was_taken_out_of_sight_is_told_too(node: Node) -> None:
    console = archives.the_console(node)
    node.accounts.add_grant(console, to="mia", role="radiologist", target=Target("everything"))
    read(node, "mia", "1.2.1")
    node.remove.reject(console, "clinical", "study", "1.2.1", reason="wrong patient")
    assert [row["studies"] for row in report(node)] == [["1.2.1"]]


def test_times_and_pages(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    assert PAGE > 2
    monkeypatch.setattr("archive.services.disclosure.PAGE", 2)
    node.accounts.add_grant(archives.the_console(node), to="mia", role="radiologist", target=Target("everything"))
    for _ in range(5):
        read(node, "mia", "1.2.1")
    found = report(node)
    assert len(found) == 5
    assert [row["event"] for row in found] == sorted(row["event"] for row in found)
    assert report(node, since=found[-1]["at"] + timedelta(seconds=1)) == []
    assert len(report(node, until=found[-1]["at"])) < 5


def test_who_may_ask_and_that_it_is_recorded(node: Node) -> None:
    with pytest.raises(Forbidden):
        node.disclosure.of_patient(archives.user(node, "mia"), "P1")
    node.accounts.add_user(archives.the_console(node), "dora", roles=["auditor"])
    assert node.disclosure.of_patient(archives.user(node, "dora"), "P1") == []
    rows = node.oversight.search(archives.the_console(node), patient="P1", kinds=["audit-read"])
    assert [row["body"]["detail"]["what"] for row in rows if row["body"]["subject"]["name"] == "dora"] == ["disclosures"]
    with pytest.raises(NotFound):
        report(node, "P9")


def test_a_spreadsheet_runs_nothing_of_it(node: Node) -> None:
    console = archives.the_console(node)
    node.accounts.add_user(console, "zoe")
    node.accounts.add_grant(console, to="zoe", role="radiologist", target=Target("everything"))
    read(node, "zoe", "1.2.1")
    rows = report(node)
    rows[0]["who"] = "=HYPERLINK(1)"
    lines = list(csv.reader(io.StringIO(as_csv(rows))))
    assert tuple(lines[0]) == COLUMNS
    assert dict(zip(lines[0], lines[1], strict=True))["who"] == "'=HYPERLINK(1)"
    assert "Canary" not in as_csv(rows)
