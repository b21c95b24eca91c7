"""`archive witness` and what else of the ledger goes outside: a real witness in this process, nothing serving."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archive.cli import main
from archive.cli.session import Session
from archive.config import Config
from archive.keys.keyring import Keyring
from archive.ledger import proofs
from tests.services import archives, witnessing
from tests.services.witnessing import Witness


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "inside").mkdir()
    return witnessing.write_config(archives.made(tmp_path / "inside"))


@pytest.fixture
def run(config: Config, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """`run(status, *arguments)`: a command with --json that must end with that status; returns its answer."""

    def call(status: int, *arguments: str) -> Any:
        capsys.readouterr()
        found = main.run(["--config", config.path, "--json", *arguments], Session())
        shown = capsys.readouterr()
        assert found == status, (arguments, shown)
        return json.loads(shown.out or shown.err.splitlines()[-1])

    return call


def test_a_witness_from_begin_to_end(run: Callable[..., Any], config: Config, tmp_path: Path) -> None:
    outside = Witness(tmp_path / "outside")
    before = Path(config.path).read_text()
    with outside.running(*map(str, proofs.verifier_keys(Keyring.open(config)))):
        assert run(0, "witness", "list") == []
        for wrong in (("nas", "ftp://x", str(outside.key)), ("nas", "http://a@b", str(outside.key)), ("N", outside.url, str(outside.key)),
                      ("nas", outside.url, "nonsense")):
            assert run(2, "witness", "add", *wrong)["error"] in {"invalid-request", "configuration-error", "configuration"}
        assert Path(config.path).read_text() == before, "nothing of it was written"
        assert run(0, "witness", "add", "nas", outside.url, str(outside.key))["log"].startswith("strongroom/")
        run(2, "witness", "add", "nas", outside.url, str(outside.key))
        assert run(0, "witness", "list")[0]["problem"] == "not asked yet"
        assert run(0, "witness", "ask")[0]["problem"] == ""
        assert run(1, "witness", "ask", "other")["error"] == "not-found"
        assert run(0, "ledger", "verify", "--witness", str(outside.key))["witnesses"][0]["size"] > 0
    stranger = Witness(tmp_path / "stranger").key
    assert [one["code"] for one in run(1, "ledger", "verify", "--witness", str(stranger))["findings"]] == ["V14"]
    run(0, "ledger", "prove", "1", "--to", str(tmp_path / "proof"))
    assert run(0, "ledger", "check-proof", str(tmp_path / "proof"), "--witness", str(outside.key))["witnesses"][0][0] == witnessing.NAME
    run(1, "ledger", "check-proof", str(tmp_path / "proof"), "--witness", str(stranger))
    assert run(1, "witness", "ask")[0]["problem"].startswith("no connection")
    run(0, "witness", "remove", "nas")
    assert Path(config.path).read_text().split() == before.split()
    assert run(0, "witness", "list") == []
    run(2, "witness", "remove", "nas")
    assert list((config.ledger_dir / "witness").iterdir()) == []
    found = run(0, "audit", "search", "--kind", "configured")
    details = [one["body"]["detail"] for one in found]
    assert [one["what"] for one in details if one.get("name") == "nas"] == ["witness removed", "witness added"]


def test_a_page_and_what_comes_back_of_it(run: Callable[..., Any], config: Config, tmp_path: Path) -> None:
    run(0, "user", "add", "mia", "--password-file", str(_password(tmp_path)))
    page = tmp_path / "page.html"
    size = run(0, "ledger", "page", "--out", str(page))["size"]
    text = page.read_text()
    assert "<script" not in text
    assert "<svg" in text
    note = text.partition("<pre>\n")[2].partition("</pre>")[0]
    assert run(0, "ledger", "compare", str(page))["size"] == size, "the page itself"
    assert run(0, "ledger", "compare", note)["signed"] is True
    found = run(1, "ledger", "compare", note.replace(f"\n{size}\n", "\n1000000\n").partition("\n\n")[0] + "\n")
    assert (found["consistent"], "rolled back" in found["why"]) == (False, True)
    run(2, "ledger", "compare", "no note at all")
    run(4, "ledger", "compare", str(tmp_path / "absent"))


def _password(folder: Path) -> Path:
    path = folder / "password"
    path.write_text("seven boats on a lake\n")
    return path


def test_a_witness_needs_no_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def call(status: int, *arguments: str) -> str:
        capsys.readouterr()
        assert main.run(["--config", str(tmp_path / "none.toml"), "witness", *arguments], Session()) == status, capsys.readouterr()
        return capsys.readouterr().out

    state = str(tmp_path / "state")
    assert call(0, "init", "--state", state, "--name", "nas.example/w").startswith("nas.example/w+")
    assert call(0, "remembered", "--state", state) == "nothing to show\n"
    call(2, "forget", "--state", state, "--origin", "x")
    call(2, "serve", "--state", state, "--listen", "nowhere", "--log", "a+b")
