"""The conformance statement says what the code does, and the one in docs/ is current."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flask import Flask
from pydicom.datadict import tag_for_keyword

from archive.cli import statement, statement_page
from archive.cli.main import run
from archive.cli.session import Session
from archive.config import Config, parse
from archive.dimse import contexts, models
from archive.services import mpps, worklist
from archive.web.app import create_app
from tests.web.fakes import FakeNode

PAGE = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"


def test_the_page_is_current() -> None:
    current = statement_page.markdown(statement.of(Config()))
    assert PAGE.read_text(encoding="utf-8") == current, "run: archive conformance --defaults > docs/conformance.md"


def test_every_class_that_is_accepted_is_named_and_no_other() -> None:
    made = statement.of(Config())
    named = {row["uid"] for kind in ("services", "storage") for row in made["sop_classes"][kind]}
    assert named == contexts.STORAGE_CLASSES | models.SERVED | {contexts.VERIFICATION}
    assert {row["uid"] for row in made["transfer_syntaxes"]["storage"]} == contexts.TRANSFER_SYNTAXES


def test_every_route_of_dicomweb_is_named() -> None:
    app: Flask = create_app(FakeNode())
    routed = {
        (method, rule.rule.replace("<", "{").replace(">", "}").replace("path:", "")) for rule in app.url_map.iter_rules()
        if rule.endpoint.startswith("dicomweb.") for method in (rule.methods or set()) - {"HEAD"}
        if method != "OPTIONS" or not rule.provide_automatic_options
    }
    named = {(row["method"], row["path"]) for row in statement.of(Config())["web"]["services"]}
    assert named == routed


def test_it_is_of_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[dimse]\nae_title = "CLINIC"\nidle_timeout_s = 77\n[dimse.plain]\nenabled = true\nport = 104\n[http]\ntls = "off"\n')
    assert run(["--config", str(file), "--json", "conformance"], Session()) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["network"]["ae_title"] == "CLINIC"
    assert [one["port"] for one in made["network"]["listeners"]] == [2762, 104]
    assert made["security"]["web"].startswith("none")
    assert run(["--config", str(file), "conformance", "--markdown"], Session()) == 0
    page = capsys.readouterr().out
    assert "- ae title: CLINIC" in page
    assert "| plain | 127.0.0.1 | 104 |" in page
    assert parse({}, file) is not None


def test_each_table_is_whole() -> None:
    page = statement_page.markdown(statement.of(Config()))
    for block in page.split("\n\n"):
        if block.startswith("|"):
            assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1, block[:80]


def test_what_modalities_need_is_what_the_services_check() -> None:
    made = statement.of(Config())["modality"]
    needed = {row["keyword"] for row in made["procedure_steps"]["attributes"] if row["create"] == "needed"}
    assert needed == set(mpps.NEEDED.values())
    left = {row["keyword"] for row in made["procedure_steps"]["attributes"] if row["set"] == "left as it is"}
    assert {f"{tag_for_keyword(keyword):08X}" for keyword in left} == mpps.FIXED
    entry = {row["keyword"] for row in made["worklist"]["attributes"] if row["entry"] == "needed"}
    assert entry == {*worklist.NEEDED.values(), *worklist.NEEDED_OF_STEP.values()}
    reasons = {row["status"] for row in made["commitment"]["failure_reasons"]}
    assert reasons == {"0x0110", "0x0112", "0x0119", "0x0131", "0x0213"}
    page = statement_page.markdown(statement.of(Config()))
    for head in ("Modality Worklist", "Modality Performed Procedure Step", "Storage Commitment", "Forwarding"):
        assert f"\n## {head}\n" in page
